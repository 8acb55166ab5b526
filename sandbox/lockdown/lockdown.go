// Package lockdown takes from the calling thread what a program that is not trusted
// must not have: capabilities, most of the kernel's system calls, and reach beyond the
// processes it starts itself. What the thread starts afterwards has as little, and
// nothing gives it back.
//
// Everything here is of a thread, as the kernel sees it, and so of use only on a
// locked one. The package must not know what a box is. Start reading at [Calls.Filter],
// for what may be called, and at [Landlock], for what may be reached.
package lockdown

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NoNewPrivileges keeps the thread and its children from gaining rights by running a
// program, setuid ones among them. Filters and Landlock need it.
func NoNewPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up gaining privileges: %w", err)
	}
	return nil
}

// DropBounding takes every capability out of the thread's bounding set, so that no
// program it runs can have any. It needs CAP_SETPCAP.
func DropBounding() error {
	for capability := uintptr(0); ; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && capability > 0 {
			return nil // the kernel knows no more of them
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
}

// DropCapabilities gives up every capability of the thread: permitted, effective and
// inheritable, and with these the ambient ones.
func DropCapabilities() error {
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}

// DropInheritable keeps the capabilities of the thread from the programs that it runs, but
// for what the kernel gives to root.
func DropInheritable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var has [2]unix.CapUserData
	err := unix.Capget(&header, &has[0])
	if err == nil {
		has[0].Inheritable, has[1].Inheritable = 0, 0
		err = unix.Capset(&header, &has[0])
	}
	if err != nil {
		return fmt.Errorf("keep capabilities from programs: %w", err)
	}
	return nil
}

// Install puts a filter before every system call of the thread, or of every thread of
// the process.
func Install(filter Filter, everyThread bool) error {
	if len(filter) == 0 || len(filter)%unix.SizeofSockFilter != 0 {
		return fmt.Errorf("install the filter of system calls: %d bytes are none", len(filter))
	}
	program := unix.SockFprog{
		Len:    uint16(len(filter) / unix.SizeofSockFilter),
		Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0])),
	}
	flags := uintptr(0)
	if everyThread {
		flags = unix.SECCOMP_FILTER_FLAG_TSYNC
	}
	thread, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	switch {
	case errno != 0:
		return fmt.Errorf("install the filter of system calls: %w", errno)
	case thread != 0:
		return fmt.Errorf("install the filter of system calls: thread %d has another", thread)
	}
	return nil
}

// Limit lowers a limit of the process, if it is higher.
func Limit(resource int, most uint64) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(resource, &limit); err != nil {
		return err
	}
	limit.Max = min(limit.Max, most)
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(resource, &limit); err != nil {
		return fmt.Errorf("limit resource %d to %d: %w", resource, limit.Max, err)
	}
	return nil
}
