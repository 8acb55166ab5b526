package boxinit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox/lockdown"
	"github.com/bailey-platform/bailey/sandbox/netns"
)

// Role is the first argument of a process that is to become a box, after the name
// [netns.LauncherName]. The second is the driver's, to know the process by. The third is
// [TakesExits] if there is somebody to take the exits of its network.
const (
	Role       = "box"
	TakesExits = "exits"
)

// The descriptors that the process is started with, after its standard streams.
const (
	fdLine  = 3 + iota // a [Line]
	fdPlan             // a file in memory with the [Plan], encoded
	fdSelf             // this executable, for who can find it under no name
	fdHold             // whatever the driver wants to be held open as long as the box lives
	fdExits            // a socket to send the exits by, if somebody takes them
)

// Env is the environment of the process. Without the first, Go finds out at its start how
// many CPUs the control groups leave it, which takes as long as anything here. And it is a
// process of a few milliseconds' work, and then of none: what the collector would need
// threads for, which a box may have no room for, is not worth it.
var Env = []string{"GOMAXPROCS=2", "GOGC=off"}

// SelfPath is the path that the process is started by.
var SelfPath = fmt.Sprintf("/proc/self/fd/%d", fdSelf)

// RunIfRole becomes a box if the process was started for that, and does not return
// then. It must come first in main.
func RunIfRole() {
	if filepath.Base(os.Args[0]) != netns.LauncherName || len(os.Args) < 2 || os.Args[1] != Role {
		return
	}
	if err := unix.CloseRange(fdLine, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "keep descriptors from the box:", err)
		os.Exit(1)
	}
	unix.Close(fdSelf)
	b := &box{exits: slices.Contains(os.Args, TakesExits), line: Line{os.NewFile(fdLine, "line to the driver")}}
	_ = b.line.Send(Failed, b.become().Error()) // a driver that is gone needs no telling
	os.Exit(1)                                  // and everything in the box ends
}

type box struct {
	exits bool // there is somebody to take them
	line  Line
	plan  Plan
	store place // of what only we see
}

// become makes the box, runs its command, and becomes what waits for the end of that. It
// returns only if it fails.
func (b *box) become() error {
	// What takes the longest, beside the rest.
	network := make(chan error, 1)
	go func() { network <- b.connect() }()
	if err := b.readPlan(); err != nil {
		return fmt.Errorf("read the plan of the box: %w", err)
	}
	if err := b.settle(); err != nil {
		return err
	}
	_, _, mounts, err := b.expect(Mounts)
	if err != nil {
		return err
	}
	// Who the thread is from here on, others are not. The command is of this one.
	runtime.LockOSThread()
	if b.plan.Change {
		if err := own(); err != nil {
			return err
		}
	}
	// Not before, as who has to map our users may then be kept from it, too; and not
	// before we are another user, as the kernel takes that as a reason to forget it.
	if err := hide(); err != nil {
		return err
	}
	if err := b.makeRoot(mounts); err != nil {
		return err
	}
	if err := <-network; err != nil {
		return err
	}
	if _, _, _, err := b.expect(Go); err != nil {
		return err
	}
	command, err := b.run()
	if err != nil {
		return err
	}
	return b.stay(command) // if it fails, the command ends with us
}

func (b *box) readPlan() error {
	var stat unix.Stat_t
	if err := unix.Fstat(fdPlan, &stat); err != nil {
		return err
	}
	data := make([]byte, stat.Size)
	if _, err := unix.Pread(fdPlan, data, 0); err != nil { // a file in memory, so all of it
		return err
	}
	unix.Close(fdPlan)
	var err error
	b.plan, err = Decode(data)
	return err
}

// expect waits for the driver to say this.
func (b *box) expect(want Word) (Word, string, []int, error) {
	word, more, fds, err := b.line.Receive()
	if errors.Is(err, io.EOF) {
		err = errors.New("the driver is gone")
	}
	if err == nil && word != want {
		err = fmt.Errorf("the driver says %q, not %q", word, want)
	}
	return word, more, fds, err
}

// own makes the calling thread, which began as nobody of the box's, its root. What it may
// do itself stays what it was; what it runs inherits nothing of that.
func own() error {
	// Of the thread alone, as users are to the kernel; syscall's own stop every thread.
	for _, call := range []uintptr{unix.SYS_SETGROUPS, unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
		if _, _, errno := unix.RawSyscall(call, 0, 0, 0); errno != 0 {
			return fmt.Errorf("become the box's root: %w", errno)
		}
	}
	if err := lockdown.DropInheritable(); err != nil {
		return err
	}
	return dieWithDriver() // which the kernel takes the change as a reason to forget
}

// hide makes the memory and descriptors of the process nobody's business, and so its
// executable, which is a file of the host's.
func hide() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide from other processes: %w", err)
	}
	return nil
}

// dieWithDriver has the kernel end the calling thread's process when the thread of the
// driver's ends that started it. If it has ended, so has its end of the line.
func dieWithDriver() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("die with the driver: %w", err)
	}
	return nil
}

// oomScore makes the kernel, when the host is out of memory, look for what to kill in
// boxes before it looks elsewhere.
const oomScore = "500"

// settle changes what the process is to the kernel.
func (b *box) settle() error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0); err != nil {
		return fmt.Errorf("be the first to go when memory is short: %w", err)
	}
	if err := unix.Sethostname([]byte(b.plan.Hostname)); err != nil {
		return fmt.Errorf("name the host: %w", err)
	}
	if err := unix.Setdomainname(nil); err != nil {
		return fmt.Errorf("name the domain: %w", err)
	}
	name := append([]byte("init"), 0)
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
}

// connect makes the box's network one with the exits as the only ways out, if there is
// somebody to take them, or with none.
func (b *box) connect() error {
	if !b.exits {
		return raiseLoopback()
	}
	exits := os.NewFile(fdExits, "exits")
	defer exits.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	made, err := netns.Jail()
	if err != nil {
		return errors.Join(err, netns.SendError(exits, err))
	}
	// The driver's are open now: ours are not needed.
	return errors.Join(netns.Send(exits, made), made.Close())
}

// raiseLoopback lets the box talk to itself, see netdevice(7).
func raiseLoopback() error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring up the loopback: %w", err)
	}
	return nil
}

// run starts the command with nothing but what a box's program may have, and returns its
// process.
func (b *box) run() (int, error) {
	for _, limit := range []struct {
		resource int
		most     uint64
	}{
		{unix.RLIMIT_NOFILE, b.plan.Limits.OpenFiles},
		{unix.RLIMIT_NPROC, b.plan.Limits.Processes},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_MEMLOCK, 64 << 10},
		{unix.RLIMIT_MSGQUEUE, 800 << 10},
	} {
		if err := lockdown.Limit(limit.resource, limit.most); err != nil {
			return 0, err
		}
	}
	unix.Umask(0o022)
	if err := unix.Chdir(b.plan.Dir); err != nil {
		return 0, fmt.Errorf("go to %s: %w", b.plan.Dir, err)
	}

	// What is given up by this thread alone is of the command and not of this process,
	// which must be out of reach for it. Locked for good, the thread ends with us.
	if err := b.confine(); err != nil {
		return 0, err
	}
	attr := &syscall.ProcAttr{
		Env:   b.plan.Env,
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if b.plan.Change {
		// Without capabilities once it is another user: it has none of its own.
		attr.Sys.Credential = &syscall.Credential{Uid: uint32(b.plan.User), Gid: uint32(b.plan.User)}
	}
	command, err := syscall.ForkExec(b.plan.Command[0], b.plan.Command, attr)
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", b.plan.Command[0], err)
	}
	// The command's input and output end when the command closes them.
	unix.Close(0)
	unix.Close(1)
	return command, nil
}

// confine takes from the calling thread what the command must not have. The filter of
// system calls is for the whole process.
func (b *box) confine() error {
	// So that the box's own is the top of what it sees of control groups.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("hide the control groups of others: %w", err)
	}
	if err := lockdown.DropBounding(); err != nil {
		return err
	}
	if !b.plan.Change {
		if err := lockdown.DropCapabilities(); err != nil {
			return err
		}
	}
	if err := lockdown.NoNewPrivileges(); err != nil {
		return err
	}
	if len(b.plan.Landlock.Paths) > 0 {
		if err := b.plan.Landlock.Restrict(); err != nil {
			return err
		}
	}
	return lockdown.Install(b.plan.Filter, true)
}
