package netns

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a child that [startIn] has started ends with when it could not become the
// program. Nothing else of ours ends so.
const (
	exitUser    = 201 // it may not enter the user namespace
	exitNetwork = 202 // it may not enter the network namespace
	exitRun     = 203 // it could not be run
)

// startIn starts this executable again as a child in a user and a network namespace,
// which are given as descriptors, as that user namespace's root, and returns the
// child's id. All descriptors that are not to be closed on exec stay open in it.
//
// Only a process of one thread may enter a user namespace, which no process of Go's is
// once it runs. A child is, until it is another program, so that is where it is done.
// There is nothing of the kind in os/exec.
func startIn(user, network int, args []string) (pid int, err error) {
	path, err := syscall.BytePtrFromString(Self)
	if err != nil {
		return 0, err
	}
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return 0, err
	}
	env := []*byte{nil}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// No signal is handled in the child, where the runtime's handlers would not find
	// what they need.
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return 0, err
	}
	child, errno := forkInto(uintptr(user), uintptr(network), path, &argv[0], &env[0], &before)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, errno
	}
	return int(child), nil
}

// forkInto is the part of startIn that is run in two processes. The child has a copy of
// our memory and of this thread only: it must not grow its stack, allocate, or wait for
// anything that another thread might hold.
//
//go:nosplit
//go:norace
func forkInto(user, network uintptr, path *byte, argv, env **byte, mask *unix.Sigset_t) (uintptr, syscall.Errno) {
	child, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || child != 0 {
		return child, errno
	}
	status := uintptr(exitRun)
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, user, unix.CLONE_NEWUSER, 0); errno != 0 {
		status = exitUser
	} else if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, network, unix.CLONE_NEWNET, 0); errno != 0 {
		status = exitNetwork
	} else {
		// As anybody but root we would lose by exec what rights we have just gained. If
		// there is no root in there, what is run says that it has none.
		syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0)
		syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0)
		syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(mask)), 0, 8, 0, 0)
		syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(env)))
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, status, 0, 0)
	}
}
