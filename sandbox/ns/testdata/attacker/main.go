// Attacker tries, in a box, what nobody may do there, and prints for each attempt its
// name and what became of it: an error of the system, or "done".
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread()
	if len(os.Args) > 1 && os.Args[1] == "foreign" {
		foreign() // it is not to come back
		fmt.Println("foreign done")
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "memory" {
		if err := hoard(os.Args[2]); err != nil {
			fmt.Println(outcome(err))
			os.Exit(1)
		}
		return
	}
	for _, a := range attacks {
		errno := unix.Errno(0)
		if _, _, errno = unix.Syscall6(a.number, a.args[0], a.args[1], a.args[2], a.args[3], a.args[4], a.args[5]); errno == 0 {
			fmt.Println(a.name, "done")
			continue
		}
		fmt.Println(a.name, unix.ErrnoName(errno))
	}
	for name, clone := range map[string]uintptr{
		"clone-user": unix.CLONE_NEWUSER, "clone-mount": unix.CLONE_NEWNS, "clone-pid": unix.CLONE_NEWPID,
		"clone-net": unix.CLONE_NEWNET, "clone-ipc": unix.CLONE_NEWIPC, "clone-uts": unix.CLONE_NEWUTS,
		"clone-cgroup": unix.CLONE_NEWCGROUP,
	} {
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: clone}
		fmt.Println(name, outcome(cmd.Run()))
	}
	for name, header := range map[string]unix.CapUserData{"capabilities": {Effective: ^uint32(0), Permitted: ^uint32(0), Inheritable: ^uint32(0)}} {
		data := [2]unix.CapUserData{header, header}
		fmt.Println(name, outcome(unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])))
	}
}

func outcome(err error) string {
	switch e := err.(type) {
	case nil:
		return "done"
	case unix.Errno:
		return unix.ErrnoName(e)
	case *os.PathError:
		return outcome(e.Err)
	}
	return err.Error()
}

type attack struct {
	name   string
	number uintptr
	args   [6]uintptr
}

func args(list ...uintptr) (a [6]uintptr) {
	copy(a[:], list)
	return a
}

func text(s string) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(s + "\x00"))) }

var (
	self    = uintptr(os.Getpid())
	here    = text("/tmp")
	scratch = func() uintptr { b := make([]byte, 4096); return uintptr(unsafe.Pointer(&b[0])) }()
)

// Arguments are such that the call would do it, or fail in another way than by being
// refused, if it were not.
var attacks = append([]attack{
	{"ptrace", unix.SYS_PTRACE, args(unix.PTRACE_TRACEME)},
	{"process_vm_readv", unix.SYS_PROCESS_VM_READV, args(self)},
	{"process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, args(self)},
	{"process_madvise", unix.SYS_PROCESS_MADVISE, args(^uintptr(0))},
	{"pidfd_getfd", unix.SYS_PIDFD_GETFD, args(^uintptr(0))},
	{"kcmp", unix.SYS_KCMP, args(self, self)},
	{"keyctl", unix.SYS_KEYCTL, args(0, ^uintptr(2))},
	{"add_key", unix.SYS_ADD_KEY, args(text("user"), text("x"), scratch, 1, ^uintptr(2))},
	{"request_key", unix.SYS_REQUEST_KEY, args(text("user"), text("x"))},
	{"bpf", unix.SYS_BPF, args(5, scratch, 128)},
	{"userfaultfd", unix.SYS_USERFAULTFD, args(1)},
	{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, args(scratch, 0, 0, ^uintptr(0))},
	{"io_uring_setup", unix.SYS_IO_URING_SETUP, args(1, scratch)},
	{"clone3", unix.SYS_CLONE3, args(scratch, 88)},
	{"mount", unix.SYS_MOUNT, args(text("x"), here, text("tmpfs"))},
	{"umount2", unix.SYS_UMOUNT2, args(text("/proc"), unix.MNT_DETACH)},
	{"pivot_root", unix.SYS_PIVOT_ROOT, args(here, here)},
	{"chroot", unix.SYS_CHROOT, args(here)},
	{"fsopen", unix.SYS_FSOPEN, args(text("tmpfs"))},
	{"fsmount", unix.SYS_FSMOUNT, args(0)},
	{"fspick", unix.SYS_FSPICK, args(^uintptr(99), here)},
	{"open_tree", unix.SYS_OPEN_TREE, args(^uintptr(99), here, 1)},
	{"move_mount", unix.SYS_MOVE_MOUNT, args(^uintptr(99), here, ^uintptr(99), here)},
	{"mount_setattr", unix.SYS_MOUNT_SETATTR, args(^uintptr(99), text("/proc/sys"), 0, scratch, 32)},
	{"unshare-user", unix.SYS_UNSHARE, args(unix.CLONE_NEWUSER)},
	{"unshare-mount", unix.SYS_UNSHARE, args(unix.CLONE_NEWNS)},
	{"setns", unix.SYS_SETNS, args(0)},
	{"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, args(^uintptr(99), here, scratch, scratch)},
	{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, args(0, scratch)},
	{"fanotify_init", unix.SYS_FANOTIFY_INIT, args(0)},
	{"init_module", unix.SYS_INIT_MODULE, args(scratch, 1, scratch)},
	{"finit_module", unix.SYS_FINIT_MODULE, args(0, scratch)},
	{"delete_module", unix.SYS_DELETE_MODULE, args(text("x"))},
	{"kexec_load", unix.SYS_KEXEC_LOAD, args()},
	{"reboot", unix.SYS_REBOOT, args(unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, 0)},
	{"swapon", unix.SYS_SWAPON, args(here)},
	{"swapoff", unix.SYS_SWAPOFF, args(here)},
	{"acct", unix.SYS_ACCT, args()},
	{"quotactl", unix.SYS_QUOTACTL, args()},
	{"quotactl_fd", unix.SYS_QUOTACTL_FD, args()},
	{"syslog", unix.SYS_SYSLOG, args(10)},
	{"settimeofday", unix.SYS_SETTIMEOFDAY, args()},
	{"clock_settime", unix.SYS_CLOCK_SETTIME, args(0, scratch)},
	{"adjtimex", unix.SYS_ADJTIMEX, args(scratch)},
	{"clock_adjtime", unix.SYS_CLOCK_ADJTIME, args(0, scratch)},
	{"sethostname", unix.SYS_SETHOSTNAME, args(text("x"), 1)},
	{"setdomainname", unix.SYS_SETDOMAINNAME, args(text("x"), 1)},
	{"vhangup", unix.SYS_VHANGUP, args()},
	{"mbind", unix.SYS_MBIND, args()},
	{"move_pages", unix.SYS_MOVE_PAGES, args()},
	{"migrate_pages", unix.SYS_MIGRATE_PAGES, args()},
	{"memfd_secret", unix.SYS_MEMFD_SECRET, args()},
	{"personality-no-randomize", unix.SYS_PERSONALITY, args(0x0040000)},
	{"personality-read-implies-exec", unix.SYS_PERSONALITY, args(0x0400000)},
	{"ioctl-TIOCSTI", unix.SYS_IOCTL, args(0, unix.TIOCSTI, scratch)},
	{"ioctl-TIOCSTI-high-bits", unix.SYS_IOCTL, args(0, unix.TIOCSTI|1<<40, scratch)},
	{"ioctl-TIOCLINUX", unix.SYS_IOCTL, args(0, 0x541C, scratch)},
	{"ioctl-TIOCSETD", unix.SYS_IOCTL, args(0, unix.TIOCSETD, scratch)},
	{"setuid", unix.SYS_SETUID, args(0)},
	{"setgid", unix.SYS_SETGID, args(0)},
	{"setgroups", unix.SYS_SETGROUPS, args(1, scratch)},
	{"mknod-disk", unix.SYS_MKNODAT, args(^uintptr(99), text("/tmp/disk"), unix.S_IFBLK|0o666, 8<<8)},
	{"mknod-mem", unix.SYS_MKNODAT, args(^uintptr(99), text("/tmp/mem"), unix.S_IFCHR|0o666, 1<<8|1)},
	{"mknod-whiteout", unix.SYS_MKNODAT, args(^uintptr(99), text("/tmp/whiteout"), unix.S_IFCHR|0o666, 0)},
	{"socket-packet", unix.SYS_SOCKET, args(unix.AF_PACKET, unix.SOCK_DGRAM, 0)},
	{"socket-vsock", unix.SYS_SOCKET, args(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
	{"socket-alg", unix.SYS_SOCKET, args(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)},
	{"socket-key", unix.SYS_SOCKET, args(unix.AF_KEY, unix.SOCK_RAW, 2)},
	{"socket-bluetooth", unix.SYS_SOCKET, args(unix.AF_BLUETOOTH, unix.SOCK_RAW, 1)},
	{"socket-tipc", unix.SYS_SOCKET, args(unix.AF_TIPC, unix.SOCK_STREAM, 0)},
	{"socket-rds", unix.SYS_SOCKET, args(unix.AF_RDS, unix.SOCK_SEQPACKET, 0)},
	{"socket-xdp", unix.SYS_SOCKET, args(unix.AF_XDP, unix.SOCK_RAW, 0)},
	{"socket-netfilter", unix.SYS_SOCKET, args(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)},
	{"socket-audit", unix.SYS_SOCKET, args(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT)},
	{"socket-uevent", unix.SYS_SOCKET, args(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT)},
	{"socket-raw", unix.SYS_SOCKET, args(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)},
	{"socket-ping", unix.SYS_SOCKET, args(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)},
	{"socket-sctp", unix.SYS_SOCKET, args(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)},
	{"socket-high-bits", unix.SYS_SOCKET, args(unix.AF_PACKET|1<<40, unix.SOCK_DGRAM, 0)},
}, attacksHere...)
