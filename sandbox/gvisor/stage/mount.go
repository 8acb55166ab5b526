package stage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// memoryMax is how many bytes of memory the stage's own file system may take, which
// holds directories and empty files only.
const memoryMax = 4 << 20

// mount makes the stage in a mount namespace that the calling thread is in from then
// on.
func (s *Stage) mount() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	// What the host unmounts goes here too, and nothing of this reaches the host.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave the host's mounts alone: %w", err)
	}
	if err := unix.Mount("stage", s.Dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=755,size=%d", memoryMax)); err != nil {
		return fmt.Errorf("mount memory: %w", err)
	}
	// From here on by short names, which need not be quoted among mount options.
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.Chdir(s.Dir); err != nil {
		return err
	}
	if err := s.root(); err != nil {
		return err
	}
	for i, host := range s.ReadOnly {
		if err := bind(host, share(i)); err != nil {
			return err
		}
	}
	if err := seemingMemory(s.MemoryBytes); err != nil {
		return fmt.Errorf("have the machine seem to have the box's memory: %w", err)
	}
	return os.Chdir(cwd)
}

// root mounts the root.
func (s *Stage) root() error {
	for _, dir := range []string{upperDir, workDir, rootDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	var lower []string
	for i, host := range s.Layers {
		if err := bind(host, layer(i)); err != nil {
			return err
		}
		lower = append(lower, layer(i))
	}
	if err := s.furnish(lower); err != nil {
		return fmt.Errorf("make way for what is mounted in the root: %w", err)
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(lower, ":"), upperDir, workDir)
	if os.Geteuid() != 0 {
		options += ",userxattr"
	}
	err := unix.Mount("root", rootDir, "overlay", unix.MS_NOSUID|unix.MS_NODEV, options)
	if err != nil {
		return fmt.Errorf("mount the root as an overlay (an ordinary user needs Linux 5.11 for it): %w", err)
	}
	// The overlay keeps what it needs of them.
	for _, dir := range lower {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	return nil
}

// bind shows a directory or file of the host, with all that is mounted in it, as name,
// and makes it one that cannot be written to by this name.
func bind(host, name string) error {
	info, err := os.Stat(host)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.Mkdir(name, 0o755)
	} else {
		err = os.WriteFile(name, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(host, name, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", host, err)
	}
	err = unix.MountSetattr(unix.AT_FDCWD, name, unix.AT_RECURSIVE, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
	})
	if err != nil {
		return fmt.Errorf("make %s read-only (which needs Linux 5.12): %w", host, err)
	}
	return nil
}

// seemingMemory has /proc/meminfo say how much memory there is. That is where gVisor
// looks to tell the box.
func seemingMemory(bytes int64) error {
	if err := os.WriteFile(memFile, fmt.Appendf(nil, "MemTotal: %d kB\n", bytes>>10), 0o444); err != nil {
		return err
	}
	return unix.Mount(memFile, "/proc/meminfo", "", unix.MS_BIND, "")
}

// furnish makes the stubs in the upper layer. (In the overlay itself an
// ordinary user could not make anything in a directory that is another's.)
func (s *Stage) furnish(lower []string) error {
	r := room{lower: lower}
	for _, stub := range s.Stubs {
		name, err := r.directory(filepath.Dir(stub))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(name, filepath.Base(stub)), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// A room is a root that is being furnished: its upper layer, over the lower ones.
type room struct{ lower []string }

// linksMax bounds how many links are followed on the way to one directory.
const linksMax = 40

// directory makes a directory in the upper layer, with what leads there, and returns
// its name. Those that a lower layer has look as they do there; its links are followed
// within the root.
func (r room) directory(path string) (string, error) {
	at, rest, links := "/", strings.TrimPrefix(path, "/"), 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next := filepath.Join(at, name) // never above the root
		info, target, err := r.look(next)
		if err != nil {
			return "", err
		}
		if target != "" {
			if links++; links > linksMax {
				return "", fmt.Errorf("%s: %w", path, unix.ELOOP)
			}
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = strings.TrimPrefix(target+"/"+rest, "/")
			continue
		}
		if at = next; at == "/" {
			continue
		}
		mode := fs.FileMode(0o755)
		if info != nil {
			if !info.IsDir() {
				return "", fmt.Errorf("%s: %w", at, unix.ENOTDIR)
			}
			mode = info.Mode() & (fs.ModePerm | fs.ModeSticky)
		}
		upper := filepath.Join(upperDir, at)
		if err := os.Mkdir(upper, 0o755); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return "", err
		}
		if err := os.Chmod(upper, mode); err != nil {
			return "", err
		}
		if err := own(upper, info); err != nil {
			return "", err
		}
	}
	return filepath.Join(upperDir, at), nil
}

// look finds what is at a path, and where it leads if it is a link.
func (r room) look(path string) (info fs.FileInfo, target string, err error) {
	for _, layer := range append([]string{upperDir}, r.lower...) {
		name := filepath.Join(layer, path)
		info, err := os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && info.Mode()&fs.ModeSymlink != 0 {
			target, err = os.Readlink(name)
		}
		return info, target, err
	}
	return nil, "", nil
}

// own gives a directory to whom the one that it stands for belongs, where we can.
func own(name string, like fs.FileInfo) error {
	if like == nil || os.Geteuid() != 0 {
		return nil
	}
	stat := like.Sys().(*syscall.Stat_t)
	return os.Chown(name, int(stat.Uid), int(stat.Gid))
}
