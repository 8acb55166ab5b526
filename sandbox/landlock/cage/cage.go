// Package cage is what a process of the host does to become the command of a box that
// is no more than that, with fewer rights: package landlock's. It runs in the small
// executable that boxes are started by.
//
// It must not know what a box is. Start reading at [RunIfRole].
package cage

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox/lockdown"
	"github.com/bailey-platform/bailey/sandbox/netns"
)

// Role is the first argument of a process that is to become such a command, after the
// name [netns.LauncherName].
const Role = "cage"

// The descriptors that the process is started with, after its standard streams.
const (
	PlanFD   = 3 + iota // a file that holds the [Plan], in JSON
	ReasonFD            // a pipe for the reason why it cannot be; closed when it is
)

// A Plan says what to run, and with how few rights.
type Plan struct {
	Command  []string
	Env      []string
	User     int  // user and group of the command
	Change   bool // to that user, from root
	Filter   lockdown.Filter
	Landlock lockdown.Landlock

	OpenFiles, FileBytes uint64 // limits of each process
}

// RunIfRole becomes the command if the process was started for that, and does not return
// then. It must come first in main.
func RunIfRole() {
	if filepath.Base(os.Args[0]) != netns.LauncherName || len(os.Args) < 2 || os.Args[1] != Role {
		return
	}
	unix.CloseOnExec(PlanFD)
	unix.CloseOnExec(ReasonFD)
	fmt.Fprint(os.NewFile(ReasonFD, "reason"), become())
	os.Exit(1)
}

func become() error {
	var plan Plan
	if err := json.NewDecoder(os.NewFile(PlanFD, "plan")).Decode(&plan); err != nil {
		return err
	}
	for resource, most := range map[int]uint64{
		unix.RLIMIT_NOFILE: plan.OpenFiles, unix.RLIMIT_FSIZE: plan.FileBytes, unix.RLIMIT_CORE: 0,
	} {
		if err := lockdown.Limit(resource, most); err != nil {
			return err
		}
	}
	// What a thread has given up is given up for the program that it becomes.
	runtime.LockOSThread()
	if plan.Change {
		if err := lockdown.DropBounding(); err != nil {
			return err
		}
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("leave all groups: %w", err)
		}
		if err := syscall.Setgid(plan.User); err != nil {
			return fmt.Errorf("become group %d: %w", plan.User, err)
		}
		if err := syscall.Setuid(plan.User); err != nil {
			return fmt.Errorf("become user %d: %w", plan.User, err)
		}
		// The kernel forgot with the change of user that we end with the worker.
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return err
		}
	}
	if err := lockdown.DropCapabilities(); err != nil {
		return err
	}
	if err := lockdown.NoNewPrivileges(); err != nil {
		return err
	}
	if err := plan.Landlock.Restrict(); err != nil {
		return err
	}
	if err := lockdown.Install(plan.Filter, false); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", plan.Command[0], syscall.Exec(plan.Command[0], plan.Command, plan.Env))
}
