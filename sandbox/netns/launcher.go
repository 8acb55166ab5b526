package netns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// LauncherName is what the executable that has [RunIfRole] in its main is started as
// to make a part of a box, with the part as its first argument.
const LauncherName = "bailey-launcher"

// Self is the executable that is running, under whatever name.
const Self = "/proc/self/exe"

// The parts that this package has to play. The next argument is the descriptor of the
// socket that [Receive] waits at the other end of.
const (
	rolePair   = "net-pair"   // signal, path, arguments: runs the program in the box's end
	roleJoin   = "net-join"   // process: starts the next within the process's namespaces
	roleJoined = "net-joined" // makes its network namespace a jail
)

// RunIfRole does what the process was started for by [Wrap] or [Join], if it was, and
// does not return then. It must come first in main.
func RunIfRole() {
	if filepath.Base(os.Args[0]) != LauncherName || len(os.Args) < 3 {
		return
	}
	var role func(sock *os.File, args []string) error
	switch os.Args[1] {
	case rolePair:
		role = playPair
	case roleJoin:
		role = playJoin
	case roleJoined:
		role = playJoined
	default:
		return
	}
	fd, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, LauncherName, err)
		os.Exit(2)
	}
	sock := os.NewFile(uintptr(fd), "exits")
	if err := role(sock, os.Args[3:]); err != nil {
		_ = SendError(sock, err) // the exit status says it too
		os.Exit(1)
	}
	os.Exit(0)
}

// Wrap changes a command, which is to be started next, so that it runs in the box's
// end of a [Pair], of which it is the process that Wait waits for; its streams,
// descriptors, environment, control group and the signal at its parent's death stay
// what they were. launcher is the executable that calls [RunIfRole], [Self] if empty.
// An ordinary user's command runs in a user namespace as well, as its root, unless the
// command says otherwise.
//
// The function that it returns waits for the exits. It must be called once, after the
// command was started, whether or not that succeeded. The command itself is run only
// after the exits are there, and not at all if they cannot be made: its end says so,
// and this function why.
func Wrap(cmd *exec.Cmd, launcher string) (exits func(context.Context) (sandbox.Exits, error), err error) {
	if cmd.Path == Self && launcher != "" && launcher != Self {
		return nil, fmt.Errorf("%s would be %s by the time it is run", Self, launcher)
	}
	ours, theirs, err := Socket()
	if err != nil {
		return nil, err
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	attr := cmd.SysProcAttr
	cmd.Args = append([]string{
		LauncherName, rolePair, strconv.Itoa(3 + len(cmd.ExtraFiles)), strconv.Itoa(int(attr.Pdeathsig)), cmd.Path,
	}, cmd.Args...)
	cmd.Path = cmp.Or(launcher, Self)
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	attr.Cloneflags |= unix.CLONE_NEWNET
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		if attr.UidMappings == nil {
			attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
			attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		}
	}
	return func(ctx context.Context) (sandbox.Exits, error) {
		theirs.Close()
		defer ours.Close()
		return receive(ctx, ours)
	}, nil
}

// receive is [Receive] for no longer than ctx.
func receive(ctx context.Context, sock *os.File) (sandbox.Exits, error) {
	defer context.AfterFunc(ctx, func() { _ = sock.SetReadDeadline(time.Unix(1, 0)) })()
	e, err := Receive(sock)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return e, err
}

// playPair makes the other end of this network namespace, hands over its exits, and
// becomes the program that is to be in this one.
func playPair(sock *os.File, args []string) error {
	if len(args) < 3 {
		return errors.New("no program to run")
	}
	signal, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	// It was set for the thread that the process began with, which need not be this
	// one. If our parent has died before, nobody takes the exits.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(signal), 0, 0, 0); err != nil {
		return err
	}
	box, exits, err := pair()
	if err != nil {
		return err
	}
	box.Close()
	if err := Send(sock, exits); err != nil {
		return err
	}
	if err := exits.Close(); err != nil {
		return err
	}
	unix.CloseOnExec(int(sock.Fd()))
	err = syscall.Exec(args[1], args[2:], os.Environ())
	// The exits have been sent: there is nobody to be told by the socket any more.
	fmt.Fprintf(os.Stderr, "run %s: %v\n", args[1], err)
	os.Exit(127)
	return nil
}

// Join does what [Jail] does to the network namespace of a running process, which must
// be another than ours. launcher is the executable that calls [RunIfRole], [Self] if
// empty; it is needed when the namespace belongs to a user namespace in which we have
// no rights before we are in it, such as those of containers that an ordinary user
// runs.
//
// That the process is still the one which is meant is the caller's to know.
func Join(ctx context.Context, pid int, launcher string) (sandbox.Exits, error) {
	exits, err := joinDirectly(pid)
	if errors.Is(err, unix.EPERM) {
		exits, err = joinAs(ctx, pid, launcher)
	}
	if err != nil {
		return sandbox.Exits{}, fmt.Errorf("make a jail of the network of process %d: %w", pid, err)
	}
	return exits, nil
}

func joinDirectly(pid int) (exits sandbox.Exits, err error) {
	target, err := openNetwork(pid)
	if err != nil {
		return sandbox.Exits{}, err
	}
	defer target.Close()
	err = apart(func() error {
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		exits, err = Jail()
		return err
	})
	return exits, err
}

// openNetwork opens the network namespace of a process, unless it is ours.
func openNetwork(pid int) (*os.File, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	theirs, err := file.Stat()
	if err == nil {
		var ours os.FileInfo
		if ours, err = os.Stat(ownNetwork); err == nil && os.SameFile(ours, theirs) {
			err = errors.New("it is in our own network namespace")
		}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// joinAs has another process do it, as a thread cannot enter a user namespace.
func joinAs(ctx context.Context, pid int, launcher string) (sandbox.Exits, error) {
	ours, theirs, err := Socket()
	if err != nil {
		return sandbox.Exits{}, err
	}
	defer ours.Close()
	cmd := &exec.Cmd{
		Path:       cmp.Or(launcher, Self),
		Args:       []string{LauncherName, roleJoin, "3", strconv.Itoa(pid)},
		Env:        []string{},
		ExtraFiles: []*os.File{theirs},
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return sandbox.Exits{}, err
	}
	exits, err := receive(ctx, ours)
	if err != nil {
		_ = cmd.Process.Kill()
	}
	_ = cmd.Wait() // what went wrong is said by the socket
	return exits, err
}

// playJoin starts this program again in the namespaces of a process, and waits for it.
func playJoin(sock *os.File, args []string) error {
	if len(args) != 1 {
		return errors.New("no process to join")
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	network, err := openNetwork(pid)
	if err != nil {
		return err
	}
	// The one that has the say there, which need not be the process's own.
	user, err := unix.IoctlRetInt(int(network.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return fmt.Errorf("find the user namespace of its network: %w", err)
	}
	child, err := startIn(user, int(network.Fd()), []string{LauncherName, roleJoined, strconv.Itoa(int(sock.Fd()))})
	if err != nil {
		return err
	}
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(child, &status, 0, nil); !errors.Is(err, unix.EINTR) {
			if err != nil {
				return err
			}
			break
		}
	}
	switch status.ExitStatus() {
	case 0, 1: // it has had its say itself
		return nil
	case exitUser:
		return errors.New("we may not enter the user namespace of its network")
	case exitNetwork:
		return errors.New("we may not enter its network namespace")
	}
	return fmt.Errorf("start in its namespaces: %v", status)
}

func playJoined(sock *os.File, _ []string) error {
	runtime.LockOSThread()
	exits, err := Jail()
	if err != nil {
		return err
	}
	return Send(sock, exits)
}
