package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// ownKernel says why a check of the host kernel's surface says nothing of a backend
// whose boxes have a kernel of their own: what it answers, it answers itself.
func ownKernel(r sandbox.Report) string {
	if r.Isolation.AtLeast(sandbox.OwnKernel) {
		return "the box's calls are answered by a kernel of its own"
	}
	return ""
}

// call is a system call by number, for those that have no function. What it opens is
// closed.
func call(number uintptr, args ...uintptr) func() error {
	for len(args) < 6 {
		args = append(args, 0)
	}
	return func() error {
		r, _, errno := unix.Syscall6(number, args[0], args[1], args[2], args[3], args[4], args[5])
		if errno != 0 {
			return errno
		}
		if r > 2 {
			_ = unix.Close(int(r)) // if it is a descriptor
		}
		return nil
	}
}

// refused turns the errors that only say that a call got as far as looking at its
// arguments into success: it was not refused.
func refused(try func() error) func() error {
	return func() error {
		err := try()
		switch errno, _ := err.(unix.Errno); errno {
		case unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT:
			return err
		case 0:
			return err
		}
		return nil
	}
}

var kernelChecks = []check{
	{
		id:    "kernel/own",
		tried: "see which kernel answers",
		applies: func(r sandbox.Report) string {
			if !r.Isolation.AtLeast(sandbox.OwnKernel) {
				return "the backend says that boxes share the host's kernel"
			}
			return ""
		},
		probe: func(*prober) outcome {
			var uts unix.Utsname
			if err := unix.Uname(&uts); err != nil {
				return broken("uname: %v", err)
			}
			version := unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Version[:])
			return outcome{Status: Held, Saw: "the box's kernel says it is " + version, Values: map[string]string{"version": version}}
		},
		judge: func(_ *host, out outcome) outcome {
			var uts unix.Utsname
			if err := unix.Uname(&uts); err != nil {
				return broken("uname on the host: %v", err)
			}
			if host := unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Version[:]); out.Values["version"] == host {
				return broken("the host's own kernel answers: %s", host)
			}
			return out
		},
	},
	{
		id:      "kernel/calls",
		tried:   "use system calls that have been the way out of boxes before: keyrings, bpf, userfaultfd, io_uring, perf, modules, kexec, tracing",
		applies: ownKernel,
		probe: func(p *prober) outcome {
			tries := map[string]func() error{
				"add_key":          refused(call(unix.SYS_ADD_KEY, pointer(kind), pointer(description), pointer(payload), 1, processKeyring)),
				"keyctl":           refused(call(unix.SYS_KEYCTL, 0, processKeyring, 0)),
				"request_key":      refused(call(unix.SYS_REQUEST_KEY, pointer(kind), pointer(description), 0, 0)),
				"bpf":              refused(call(unix.SYS_BPF, 0, pointer(zeros), 0)),
				"userfaultfd":      refused(call(unix.SYS_USERFAULTFD, unix.O_CLOEXEC)),
				"io_uring_setup":   refused(call(unix.SYS_IO_URING_SETUP, 4, pointer(zeros))),
				"perf_event_open":  refused(call(unix.SYS_PERF_EVENT_OPEN, pointer(zeros), 0, ^uintptr(0), ^uintptr(0), 0)),
				"init_module":      refused(call(unix.SYS_INIT_MODULE, pointer(payload), 1, pointer(description))),
				"finit_module":     refused(call(unix.SYS_FINIT_MODULE, 0, pointer(description), 0)),
				"delete_module":    refused(call(unix.SYS_DELETE_MODULE, pointer(description), unix.O_NONBLOCK)),
				"kexec_load":       refused(call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0xffff)),
				"ptrace":           refused(call(unix.SYS_PTRACE, unix.PTRACE_PEEKUSR, uintptr(os.Getppid()), 0, 0)),
				"process_vm_readv": refused(call(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid()), 0, 0, 0, 0, 0)),
				"setns":            refused(call(unix.SYS_SETNS, 0, 0)),
				"swapon":           refused(call(unix.SYS_SWAPON, pointer(description), 0)),
				"reboot":           refused(call(unix.SYS_REBOOT, 0, 0, 0)), // without its magic numbers
				"acct":             refused(call(unix.SYS_ACCT, pointer(nowhere))),
				"quotactl":         refused(call(unix.SYS_QUOTACTL, ^uintptr(0), 0, 0, 0)),
				"syslog":           refused(call(unix.SYS_SYSLOG, 3, pointer(zeros), 16)),
				"fanotify_init":    refused(call(unix.SYS_FANOTIFY_INIT, 0, 0)),
			}
			return denied(tries)
		},
	},
	{
		id:      "kernel/namespaces",
		tried:   "make namespaces, which open the kernel's most attacked parts to everybody",
		applies: ownKernel,
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for name, flag := range map[string]uintptr{
				"user": unix.CLONE_NEWUSER, "mount": unix.CLONE_NEWNS, "network": unix.CLONE_NEWNET, "pid": unix.CLONE_NEWPID,
				"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP, "time": unix.CLONE_NEWTIME,
			} {
				tries["unshare "+name] = call(unix.SYS_UNSHARE, flag)
			}
			return denied(tries)
		},
	},
	{
		id:      "kernel/sockets",
		tried:   "open sockets of families that reach deep into the kernel: packet, raw, vsock, crypto, netfilter, CAN, …",
		applies: ownKernel,
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for name, s := range map[string]struct{ family, kind, proto int }{
				"packet": {unix.AF_PACKET, unix.SOCK_RAW, 0x0300}, "raw": {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}, "raw v6": {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW},
				"vsock": {unix.AF_VSOCK, unix.SOCK_STREAM, 0}, "crypto": {unix.AF_ALG, unix.SOCK_SEQPACKET, 0},
				"netfilter": {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, "can": {unix.AF_CAN, unix.SOCK_RAW, 1},
				"key": {unix.AF_KEY, unix.SOCK_RAW, 2}, "bluetooth": {unix.AF_BLUETOOTH, unix.SOCK_RAW, 1}, "xdp": {unix.AF_XDP, unix.SOCK_RAW, 0},
				"tipc": {unix.AF_TIPC, unix.SOCK_RDM, 0}, "rds": {unix.AF_RDS, unix.SOCK_SEQPACKET, 0}, "qipcrtr": {unix.AF_QIPCRTR, unix.SOCK_DGRAM, 0},
			} {
				tries[name] = func() error { return opened(unix.Socket(s.family, s.kind|unix.SOCK_CLOEXEC, s.proto)) }
			}
			return denied(tries)
		},
	},
	{
		id:    "kernel/settings",
		tried: "change the kernel's settings and read its memory in /proc and /sys",
		probe: func(p *prober) outcome {
			tries := make(map[string]func() error)
			for _, name := range []string{
				"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/hostname",
				"/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/cgroup.procs",
				"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/kernel/security/apparmor/.remove",
			} {
				tries["write "+name] = func() error { return opened(unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)) }
			}
			for _, name := range []string{"/proc/kcore", "/proc/kpagecount", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/kernel/debug/tracing/trace", "/sys/firmware/acpi/tables/DSDT"} {
				tries["read "+name] = func() error {
					data, err := readSome(name, 4096)
					if err == nil && len(data) == 0 {
						return fmt.Errorf("empty")
					}
					return err
				}
			}
			return denied(tries)
		},
	},
	{
		id:    "kernel/terminal",
		tried: "put keystrokes into the terminal that the worker was started from (TIOCSTI)",
		probe: func(*prober) outcome {
			tries := map[string]func() error{"/dev/tty": func() error {
				fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				c := byte(0)
				if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSTI, uintptr(unsafe.Pointer(&c))); errno != 0 {
					return errno
				}
				return nil
			}}
			terminals, _ := filepath.Glob("/dev/pts/[0-9]*")
			for _, name := range terminals {
				tries[name] = func() error { return opened(unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)) }
			}
			return denied(tries)
		},
	},
	{
		id:      "kernel/32-bit",
		tried:   "get around a filter of system calls by the numbers of another architecture",
		applies: ownKernel,
		// In a process of its own: a filter may kill whoever makes such a call, or only
		// the thread, and then nobody answers.
		probe: func(p *prober) outcome {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			line, err := json.Marshal(question{ID: foreignCall.id, Facts: p.facts})
			if err != nil {
				return broken("%v", err)
			}
			cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
			cmd.Stdin = bytes.NewReader(append(line, '\n'))
			answer, err := cmd.Output()
			var out outcome
			if json.Unmarshal(answer, &out) == nil {
				return out
			}
			return held("who makes such a call is killed for it (%v)", err)
		},
	},
}

// foreignCall is the check within kernel/32-bit.
var foreignCall = check{
	id: "kernel/32-bit-call",
	probe: func(*prober) outcome {
		// x32's getpid; the filter's numbers mean other calls there.
		const x32 = 0x40000000
		return denied(map[string]func() error{
			"x32": func() error {
				_, _, errno := unix.Syscall(x32|unix.SYS_GETPID, 0, 0, 0)
				if errno != 0 {
					return errno
				}
				return nil
			},
		})
	},
}

// What calls are given to look at. They are here for ever, as a call's arguments do not
// keep anything alive.
var (
	kind        = []byte("user\x00")
	description = []byte("bailey\x00")
	payload     = []byte("x")
	nowhere     = []byte("/nowhere\x00")
	zeros       = make([]byte, 128)
)

// processKeyring is the keyring that goes with the process, -2.
const processKeyring = ^uintptr(1)

func pointer(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
