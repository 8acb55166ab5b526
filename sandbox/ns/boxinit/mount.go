package boxinit

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Detach makes a mount of what is at a path of the host, with all that is mounted
// beneath, which is nowhere yet. No program gains rights through it, and no device is
// one there. users is a user namespace by which the owners of its files are mapped, or
// nil. The caller closes the result.
func Detach(path string, write bool, users *int) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if !write {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if users != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(*users)
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("restrict the mount of %s: %w", path, err)
	}
	return fd, nil
}

// attach puts a mount that is nowhere at a path, which is not followed if it is a
// link, and closes it.
func attach(fd int, target string) error {
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", target, err)
	}
	return nil
}
