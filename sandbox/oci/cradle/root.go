package cradle

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// engine is where the runtime's executable is seen, whatever the stage hides.
const engine = stage + "/engine"

// setUp makes everything the runtime needs: the box's root and the bundle.
func setUp(config Config) error {
	// Nothing of what follows shows on the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount the process list: %w", err)
	}
	if err := closeGroups(); err != nil {
		return err
	}
	// Everything of the host is taken hold of before the stage hides some of it.
	layers := make([]int, len(config.Layers))
	for i, dir := range config.Layers {
		var err error
		if layers[i], err = tree(dir, false, config.IDMapped); err != nil {
			return fmt.Errorf("the box's root %s: %w", dir, err)
		}
		defer unix.Close(layers[i])
	}
	executable, err := tree(config.Engine, false, false)
	if err != nil {
		return fmt.Errorf("the runtime %s: %w", config.Engine, err)
	}
	defer unix.Close(executable)
	trees := make([]int, len(config.Mounts))
	for i, m := range config.Mounts {
		if trees[i], err = tree(m.Source, m.Writable, config.IDMapped); err != nil {
			return fmt.Errorf("what is to appear as %s: %w", m.Target, err)
		}
		defer unix.Close(trees[i])
	}
	if err := overlay(config, layers); err != nil {
		return err
	}
	root, err := unix.Open(Rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	// Runtimes have been led astray by such links.
	for _, name := range []string{"dev", "proc", "sys"} {
		if err := ownDirectory(root, name); err != nil {
			return fmt.Errorf("in the box's root /%s is not a directory of its own: %w", name, err)
		}
	}
	for i, m := range config.Mounts {
		if err := place(root, m, trees[i]); err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	if err := os.WriteFile(engine, nil, 0o755); err != nil {
		return err
	}
	if err := attach(executable, unix.AT_FDCWD, engine); err != nil {
		return err
	}
	if err := os.WriteFile(stage+"/config.json", config.Bundle, 0o600); err != nil {
		return err
	}
	// Making places for mounts as the box's owner has cleared it: with the file system's
	// user the kernel forgets whose death we are to follow.
	return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
}

// closeGroups keeps the runtime from making control groups. The box is in one already,
// if we can make any, and sees no more of them than that.
func closeGroups() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("hide the control groups of the host: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, ok := strings.Cut(line, " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 5 || len(tail) < 1 {
			continue
		}
		switch {
		case tail[0] == "cgroup2" && head[4] != "/sys/fs/cgroup":
			// Beside the hierarchies of version 1 it only confuses: crun refuses to
			// work when it has controllers.
			err = unix.Mount("tmpfs", head[4], "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		case tail[0] == "cgroup2" || tail[0] == "cgroup":
			err = unix.MountSetattr(unix.AT_FDCWD, head[4], 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}
		if err != nil {
			return fmt.Errorf("close the control groups at %s: %w", head[4], err)
		}
	}
	return nil
}

// tree takes hold of a part of the host's file system, to be mounted somewhere else.
func tree(source string, writable, idMapped bool) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, err
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if !writable {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if idMapped {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = UsersFile
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func attach(tree, dir int, target string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if target == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	return unix.MoveMount(tree, "", dir, target, flags)
}

// overlay makes the box's root: the layers one on another, with what the box writes
// kept in memory. No option names a path of the host, as the box can
// read them.
func overlay(config Config, layers []int) error {
	options := fmt.Sprintf("mode=755,size=%d,nr_inodes=%d", config.Scratch, config.Inodes)
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("make scratch space: %w", err)
	}
	if err := os.Chdir(stage); err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work", "root", "state"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	names := make([]string, len(layers))
	for i, layer := range layers {
		names[i] = strconv.Itoa(i)
		if err := os.Mkdir(names[i], 0o755); err != nil {
			return err
		}
		if err := attach(layer, unix.AT_FDCWD, names[i]); err != nil {
			return fmt.Errorf("mount the box's root: %w", err)
		}
	}
	if err := errors.Join(os.Chown("upper", config.Owner, config.Owner), os.Chmod("upper", 0o755)); err != nil {
		return err
	}
	options = "lowerdir=" + strings.Join(names, ":") + ",upperdir=upper,workdir=work"
	if config.Ordinary {
		options += ",userxattr"
	}
	if err := unix.Mount("overlay", "root", "overlay", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("lay scratch space over the box's root: %w", err)
	}
	return nil
}

// ownDirectory makes sure that what is at this name, if anything, is a directory.
func ownDirectory(root int, name string) error {
	fd, err := unix.Openat(root, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// place mounts a tree in the box's root, where it makes what is missing.
func place(root int, m Mount, tree int) error {
	var stat unix.Stat_t
	if err := unix.Fstat(tree, &stat); err != nil {
		return err
	}
	// As the box itself would: what an image says of who may write where counts.
	if err := errors.Join(unix.Setfsgid(m.Owner), unix.Setfsuid(m.Owner)); err != nil {
		return err
	}
	at, err := find(root, m.Target, stat.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err := errors.Join(err, unix.Setfsuid(0), unix.Setfsgid(0)); err != nil {
		return err
	}
	defer unix.Close(at)
	return attach(tree, at, "")
}

// find opens a file or a directory in the box's root, or makes it. Links lead where
// they do in the box, and never out of its root.
func find(root int, target string, dir bool) (int, error) {
	fd, err := within(root, target, unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if target == "/" {
		return -1, err
	}
	parent, err := find(root, path.Dir(target), true)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	name := filepath.Base(target)
	// A link that leads nowhere, as images have for files that a running system makes.
	if err := unix.Unlinkat(parent, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return -1, err
	}
	if dir {
		err = unix.Mkdirat(parent, name, 0o755)
	} else {
		err = unix.Mknodat(parent, name, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return -1, err
	}
	return within(parent, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
}

// triesMax bounds the attempts of within.
const triesMax = 1000

// within opens what is in a directory. The kernel gives such a search up if something is
// renamed or mounted meanwhile, anywhere on the host, and wants to be asked again, see
// openat2(2).
func within(dir int, path string, how unix.OpenHow) (fd int, err error) {
	for range triesMax {
		fd, err = unix.Openat2(dir, path, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}
