package lockdown

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Access is what may be done with a directory and all beneath it, or with a file.
type Access uint64

// The kinds of access there are to be given. Devices are made, and asked for more than
// reading and writing, by nobody.
const (
	Read Access = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR

	Write Access = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER

	// Control is to ask a device for more than reading and writing.
	Control Access = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

const (
	makeDevices = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK

	// ofFile is what of an access there is for what is no directory.
	ofFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// A Landlock keeps a thread, and what it starts, to some files of those that its user
// may use. It cannot look into, signal or meet by abstract sockets any process outside,
// and cannot change mounts.
type Landlock struct {
	Paths map[string]Access
	NoTCP bool // no connection is made and no port opened
}

// LandlockVersion returns the version of Landlock that this kernel has, 0 if it has
// none. What came with each:
//
//	1 files; 2 moving between directories; 3 truncating; 4 TCP ports;
//	5 control of devices; 6 signals and abstract sockets
func LandlockVersion() int {
	version, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(version)
}

// The versions in which what is promised here came.
const (
	versionMoves    = 2
	versionTruncate = 3
	versionTCP      = 4
	versionControl  = 5

	// LandlockWhole is the version that has all of it.
	LandlockWhole = 6
)

// ErrNoLandlock is the error of a kernel without it.
var ErrNoLandlock = errors.New("this kernel has no Landlock")

// Restrict confines the calling thread. On a kernel whose Landlock is older than
// [LandlockWhole] it does what that has; whoever relies on it asks for the version
// first.
func (l Landlock) Restrict() error {
	version := LandlockVersion()
	if version == 0 {
		return ErrNoLandlock
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: uint64(Read|Write|Control) | makeDevices}
	if version < versionMoves {
		attr.Handled_access_fs &^= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version < versionTruncate {
		attr.Handled_access_fs &^= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if version < versionControl {
		attr.Handled_access_fs &^= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if l.NoTCP && version >= versionTCP {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if version >= LandlockWhole {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	// The end of the structure is of newer kernels, and of nothing asked for here.
	rules, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET,
		uintptr(unsafe.Pointer(&attr)), unsafe.Offsetof(attr.Quiet_access_fs), 0)
	if errno != 0 {
		return fmt.Errorf("make rules for Landlock: %w", errno)
	}
	defer unix.Close(int(rules))
	for path, access := range l.Paths {
		if err := addPath(int(rules), path, uint64(access)&attr.Handled_access_fs); err != nil {
			return fmt.Errorf("rule of Landlock for %s: %w", path, err)
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, rules, 0, 0); errno != 0 {
		return fmt.Errorf("be restricted by Landlock: %w", errno)
	}
	return nil
}

func addPath(rules int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= ofFile
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
