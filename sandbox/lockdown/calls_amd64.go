package lockdown

import "golang.org/x/sys/unix"

const architecture = unix.AUDIT_ARCH_X86_64

// foreign is the first number of the x32 calls, which have the architecture of the
// others and are not theirs.
const foreign = 0x40000000

// ordinaryHere are older forms of those in ordinary.
var ordinaryHere = []uint32{
	unix.SYS_OPEN, unix.SYS_CREAT, unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_ACCESS, unix.SYS_GETDENTS,
	unix.SYS_MKDIR, unix.SYS_RMDIR, unix.SYS_MKNOD, unix.SYS_LINK, unix.SYS_UNLINK, unix.SYS_SYMLINK,
	unix.SYS_READLINK, unix.SYS_RENAME, unix.SYS_DUP2, unix.SYS_INOTIFY_INIT, unix.SYS_PIPE, unix.SYS_SELECT,
	unix.SYS_POLL, unix.SYS_EPOLL_CREATE, unix.SYS_EPOLL_WAIT, unix.SYS_EVENTFD, unix.SYS_SIGNALFD, unix.SYS_PAUSE,
	unix.SYS_ALARM, unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_GETPGRP, unix.SYS_TIME, unix.SYS_ARCH_PRCTL,
}

// ofFilesHere are older forms of those in ofFiles.
var ofFilesHere = []uint32{
	unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN, unix.SYS_UTIME, unix.SYS_UTIMES, unix.SYS_FUTIMESAT,
}
