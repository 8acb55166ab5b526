// Package stage makes what gVisor is started in: a mount namespace with the root of
// one box, in which the memory of the machine is the box's, and a network of its own
// if the box has one. What is mounted there is seen by the box's processes only and
// goes with the last of them.
//
// It is done by a process of its own ([RunIfRole]), which then becomes gVisor. For an
// ordinary user that process is in a user namespace, where it has the rights for it.
//
// The package must not know what gVisor makes of it. Start reading at [Stage.Wrap].
package stage

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/netns"
)

// A Stage is what to make.
type Stage struct {
	// Dir is an empty directory of the host over which everything is mounted.
	Dir string

	// Layers are directories that the root is made of, the upper ones first. They are
	// not written to; what is made in it for gVisor's mounts is kept in memory.
	Layers []string

	// Stubs are files of the root that something will be mounted over.
	Stubs []string

	// ReadOnly are directories and files of the host that gVisor is to mount, and must
	// not be able to write to. See [Stage.Source].
	ReadOnly []string

	// MemoryBytes is how much the machine seems to have.
	MemoryBytes int64

	// Network says that there are to be exits.
	Network bool
}

// What is in Stage.Dir.
const (
	layerDir = "layer" // and a number, while the root is made
	upperDir = "upper"
	workDir  = "work"
	rootDir  = "root"
	shareDir = "share" // and a number
	memFile  = "meminfo"
)

// Root is where gVisor finds the root.
func (s *Stage) Root() string { return filepath.Join(s.Dir, rootDir) }

// Source adds a directory or file to what gVisor may only read, and returns where it
// finds it.
func (s *Stage) Source(host string) string {
	s.ReadOnly = append(s.ReadOnly, host)
	return filepath.Join(s.Dir, share(len(s.ReadOnly)-1))
}

func share(i int) string { return shareDir + strconv.Itoa(i) }
func layer(i int) string { return layerDir + strconv.Itoa(i) }

// role is the part that [RunIfRole] plays: descriptor, signal, stage, program,
// arguments.
const role = "gvisor-stage"

// rights are what is needed in a user namespace to make the stage (the overlay has
// directories that are closed to everybody), and by gVisor to start on it.
var rights = []uintptr{
	unix.CAP_SYS_ADMIN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER,
	unix.CAP_NET_ADMIN, unix.CAP_NET_RAW,
	unix.CAP_SYS_CHROOT, unix.CAP_SYS_PTRACE, unix.CAP_SETPCAP,
}

// An Entrance is where a command waits until it may go on stage.
type Entrance struct {
	ours, theirs *os.File
	program      *os.File // what is to be run, if it has no name that will do
}

// Wrap changes a command, which is to be started next, so that it runs on the stage.
// launcher is the executable that calls [RunIfRole], [netns.Self] if empty. An ordinary
// user's command runs as the user that boxes run as, in a user namespace that has no
// other.
func (s *Stage) Wrap(cmd *exec.Cmd, launcher string) (*Entrance, error) {
	plan, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	e := new(Entrance)
	if e.ours, e.theirs, err = netns.Socket(); err != nil {
		return nil, err
	}
	program := cmd.Path
	if program == netns.Self && launcher != "" {
		// By the time it is run, that is the launcher.
		if e.program, err = os.Open(netns.Self); err != nil {
			e.Started()
			e.Close()
			return nil, err
		}
		program = fmt.Sprintf("/proc/self/fd/%d", 3+len(cmd.ExtraFiles))
		cmd.ExtraFiles = append(cmd.ExtraFiles, e.program)
	}
	attr := cmd.SysProcAttr
	cmd.Args = append([]string{
		netns.LauncherName, role, strconv.Itoa(3 + len(cmd.ExtraFiles)), strconv.Itoa(int(attr.Pdeathsig)), string(plan), program,
	}, cmd.Args...)
	cmd.ExtraFiles = append(cmd.ExtraFiles, e.theirs)
	cmd.Path = cmp.Or(launcher, netns.Self)
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: sandbox.User, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: sandbox.User, HostID: os.Getegid(), Size: 1}}
		attr.AmbientCaps = rights
	}
	return e, nil
}

// Started is called once the command was started, whether or not that succeeded.
func (e *Entrance) Started() {
	e.theirs.Close()
	if e.program != nil {
		e.program.Close()
	}
}

// Exits waits for the exits of a stage with a network. The command does not run before
// [Entrance.Open] is called.
func (e *Entrance) Exits(ctx context.Context) (sandbox.Exits, error) {
	defer context.AfterFunc(ctx, func() { _ = e.ours.SetReadDeadline(time.Unix(1, 0)) })()
	exits, err := netns.Receive(e.ours)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return exits, err
}

// Open lets the command of a stage with a network run.
func (e *Entrance) Open() error {
	_, err := e.ours.Write([]byte{0})
	return err
}

// Complaint returns why the command, which has ended, could not be run, or "" if it
// was.
func (e *Entrance) Complaint() string {
	words := make([]byte, 4<<10)
	n, err := e.ours.Read(words)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(string(words[:n]), "?")
}

// Close closes the entrance.
func (e *Entrance) Close() { e.ours.Close() }

// RunIfRole does what the process was started for by [Stage.Wrap], if it was, and does
// not return then. It must come first in main.
func RunIfRole() {
	if filepath.Base(os.Args[0]) != netns.LauncherName || len(os.Args) < 7 || os.Args[1] != role {
		return
	}
	fd, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, netns.LauncherName, err)
		os.Exit(2)
	}
	sock := os.NewFile(uintptr(fd), "entrance")
	// It returns only if it fails.
	err = play(sock, os.Args[3], os.Args[4], os.Args[5], os.Args[6:])
	_ = netns.SendError(sock, err) // the exit status says it too
	os.Exit(1)
}

func play(sock *os.File, signal, plan, program string, args []string) error {
	death, err := strconv.Atoi(signal)
	if err != nil {
		return err
	}
	var s Stage
	if err := json.Unmarshal([]byte(plan), &s); err != nil {
		return err
	}
	// All of this is done to one thread, which becomes the program.
	runtime.LockOSThread()
	// It was set for the thread that the process began with, which need not be this one.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(death), 0, 0, 0); err != nil {
		return err
	}
	for fd := 3; fd <= int(sock.Fd()); fd++ {
		unix.CloseOnExec(fd)
	}
	if err := s.mount(); err != nil {
		return err
	}
	if s.Network {
		if err := connect(sock); err != nil {
			return err
		}
	}
	return fmt.Errorf("run %s: %w", program, syscall.Exec(program, args, os.Environ()))
}

// connect puts the calling thread into a network namespace of its own, hands over its
// exits, and waits until somebody is there to serve them.
func connect(sock *os.File) error {
	box, exits, err := netns.Pair()
	if err != nil {
		return err
	}
	defer box.Close()
	defer exits.Close()
	if err := unix.Setns(int(box.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := netns.Send(sock, exits); err != nil {
		return err
	}
	if _, err := sock.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("nobody serves the exits: %w", err)
	}
	return nil
}
