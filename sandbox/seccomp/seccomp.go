// Package seccomp says which system calls reach the host's kernel from boxes that a
// container runtime makes, in the form that runtimes, docker and podman read. What we
// start ourselves has the filter of package lockdown.
//
// The package must not know what runs in a box. Start reading at [Filter].
package seccomp

import (
	"runtime"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// allowed are the system calls that programs in a box may make, whatever their
// arguments: what an ordinary user's programs need to compute, to use files, to talk to
// each other and over the network.
const allowed = `
	read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 lseek _llseek
	open openat openat2 creat close close_range dup dup2 dup3 fcntl fcntl64 flock ioctl
	sendfile sendfile64 splice tee vmsplice copy_file_range readahead fadvise64 fadvise64_64 arm_fadvise64_64
	sync syncfs fsync fdatasync sync_file_range sync_file_range2 arm_sync_file_range
	truncate truncate64 ftruncate ftruncate64 fallocate

	stat stat64 fstat fstat64 lstat lstat64 newfstatat fstatat64 statx statfs statfs64 fstatfs fstatfs64
	access faccessat faccessat2 getdents getdents64 readlink readlinkat getcwd chdir fchdir
	mkdir mkdirat rmdir rename renameat renameat2 link linkat unlink unlinkat symlink symlinkat mknod mknodat
	chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32 umask
	utime utimes utimensat utimensat_time64 futimesat
	getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
	setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
	inotify_init inotify_init1 inotify_add_watch inotify_rm_watch

	mmap mmap2 munmap mremap mprotect pkey_alloc pkey_free pkey_mprotect madvise mincore msync brk
	mlock mlock2 mlockall munlock munlockall remap_file_pages memfd_create membarrier
	get_mempolicy set_mempolicy mbind set_mempolicy_home_node process_mrelease
	landlock_create_ruleset landlock_add_rule landlock_restrict_self

	fork vfork execve execveat exit exit_group wait4 waitid waitpid
	gettid getpid getppid getpgid getpgrp setpgid getsid setsid set_tid_address
	getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid getresgid32
	getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32
	setresuid setresuid32 setresgid setresgid32 setgroups setgroups32 setfsuid setfsuid32 setfsgid setfsgid32
	capget capset prctl arch_prctl getrlimit setrlimit ugetrlimit prlimit64 getrusage times
	getpriority setpriority nice ioprio_get ioprio_set
	sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam
	sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min
	sched_rr_get_interval sched_rr_get_interval_time64 sched_yield
	futex futex_time64 futex_waitv futex_wake futex_wait futex_requeue set_robust_list get_robust_list rseq
	restart_syscall set_thread_area get_thread_area set_tls cacheflush breakpoint pidfd_open pidfd_send_signal

	kill tkill tgkill sigaction signal sigreturn sigprocmask sigpending sigsuspend sigaltstack
	rt_sigaction rt_sigreturn rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigqueueinfo rt_tgsigqueueinfo
	rt_sigtimedwait rt_sigtimedwait_time64 signalfd signalfd4 pause alarm
	getitimer setitimer timer_create timer_delete timer_getoverrun
	timer_gettime timer_gettime64 timer_settime timer_settime64
	timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
	clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64
	gettimeofday time nanosleep

	select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64
	epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2
	eventfd eventfd2 pipe pipe2 io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64

	socketpair bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt shutdown
	send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64

	msgget msgsnd msgrcv msgctl semget semop semtimedop semtimedop_time64 semctl shmget shmat shmdt shmctl ipc
	mq_open mq_unlink mq_timedsend mq_timedsend_time64 mq_timedreceive mq_timedreceive_time64 mq_notify mq_getsetattr

	uname sysinfo getcpu getrandom seccomp`

// forbidden are the calls that are refused as what a user without rights may not do.
// All that is named nowhere is not there, so that programs look for another way.
const forbidden = `
	mount umount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree move_mount mount_setattr
	unshare setns ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp
	bpf perf_event_open userfaultfd open_by_handle_at add_key keyctl request_key
	init_module finit_module delete_module kexec_load kexec_file_load reboot syslog acct swapon swapoff quotactl
	settimeofday clock_settime clock_settime64 clock_adjtime clock_adjtime64 adjtimex stime
	sethostname setdomainname vhangup iopl ioperm lookup_dcookie move_pages migrate_pages fanotify_init`

// absent are those that programs try and have another way for. They are named because
// a docker before 23 has no say in what becomes of calls that are not: it refuses them.
const absent = `clone3 io_uring_setup io_uring_enter io_uring_register`

// newNamespaces are the flags of clone that make namespaces.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// personalities are the kinds of system that programs may ask Linux to look like, as
// personality(2) numbers them: itself, with 32 bits, with an old version's number, both;
// and asking which it is.
var personalities = []uint64{0, 0x8, 0x20000, 0x20008, 0xffffffff}

// Filter returns which system calls reach the host's kernel from a box. The caller
// owns it.
func Filter() *specs.LinuxSeccomp {
	missing, refused := uint(unix.ENOSYS), uint(unix.EPERM)
	f := &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &missing,
		Architectures:   architectures(),
		Syscalls: []specs.LinuxSyscall{
			{Names: strings.Fields(allowed), Action: specs.ActAllow},
			{Names: strings.Fields(forbidden), Action: specs.ActErrno, ErrnoRet: &refused},
			{Names: strings.Fields(absent), Action: specs.ActErrno, ErrnoRet: &missing},
			// A new namespace would be a place with rights. The flags of clone3 are out of
			// sight, and so it is absent.
			{Names: []string{"clone"}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: newNamespaces, ValueTwo: 0, Op: specs.OpMaskedEqual}}},
			{Names: []string{"socket"}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{
					{Index: 0, Value: unix.AF_NETLINK, Op: specs.OpEqualTo},
					{Index: 2, Value: unix.NETLINK_ROUTE, Op: specs.OpEqualTo},
				}},
		},
	}
	for _, family := range []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6} {
		f.Syscalls = append(f.Syscalls, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: family, Op: specs.OpEqualTo}}})
	}
	for _, p := range personalities {
		f.Syscalls = append(f.Syscalls, specs.LinuxSyscall{Names: []string{"personality"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: p, Op: specs.OpEqualTo}}})
	}
	return f
}

// architectures are those whose programs this machine runs.
func architectures() []specs.Arch {
	switch runtime.GOARCH {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	return nil // the runtime's own
}
