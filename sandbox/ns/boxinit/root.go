package boxinit

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stage is a directory that every host has, for the new root to be put at in our own
// view of the host until it is all there is.
const stage = "/tmp"

// makeRoot makes the box's root and leaves the host's. sent are the mounts that the
// driver made, in the order of the plan: the layers, then the others.
//
// Everything in the box is named only once it is our root: whatever links an image has,
// they lead to places in it.
func (b *box) makeRoot(sent []int) error {
	r := b.plan.Root
	// Ours are not to be seen on the host, nor the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part with the host's mounts: %w", err)
	}
	mounts, err := b.detach(sent)
	if err != nil {
		return err
	}
	devices := make(map[string]int)
	for _, device := range r.Bare {
		fd, err := unix.OpenTree(unix.AT_FDCWD, device, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("mount %s: %w", device, err)
		}
		devices[device] = fd
	}

	size := fmt.Sprintf("size=%d,nr_inodes=%d,mode=755", r.Size, r.Files)
	if err := unix.Mount("scratch", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, size); err != nil {
		return fmt.Errorf("make scratch space: %w", err)
	}
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	if err := overlay(mounts[:len(r.Layers)]); err != nil {
		return err
	}
	mounts = mounts[len(r.Layers):]
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := b.furnish(); err != nil {
		return err
	}
	// The kernel lets a box have a /proc only while it can see that of the host.
	if err := makeProc(); err != nil {
		return err
	}
	if err := makeDev(devices, r.Shared); err != nil {
		return err
	}
	for i, m := range r.Mounts {
		if err := makePlace(m); err != nil {
			return err
		}
		if err := attach(mounts[i], m.Target); err != nil {
			return err
		}
	}
	for target, source := range r.Covers {
		if err := bind(source, target, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// The host's root lies over ours, which the working directory still is.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	return nil
}

// detach returns the mounts of the plan, the layers first.
func (b *box) detach(sent []int) ([]int, error) {
	all := b.plan.Root.All()
	if len(sent) > 0 && len(sent) != len(all) {
		return nil, fmt.Errorf("%d mounts were sent for %d", len(sent), len(all))
	}
	if len(sent) > 0 {
		return sent, nil
	}
	var mounts []int
	for _, m := range all {
		fd, err := Detach(m.Source, m.Write, nil)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, fd)
	}
	return mounts, nil
}

// overlay puts what is written in the working directory over the layers, and goes
// there.
func overlay(layers []int) error {
	for _, dir := range []string{"written", "work", "root"} {
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	var lower []string
	for i, layer := range layers {
		dir := fmt.Sprintf("layer%d", i)
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := attach(layer, dir); err != nil {
			return err
		}
		lower = append(lower, dir)
	}
	if err := unix.Mount("overlay", "root", "overlay", unix.MS_NOSUID|unix.MS_NODEV,
		"lowerdir="+strings.Join(lower, ":")+",upperdir=written,workdir=work,userxattr"); err != nil {
		return fmt.Errorf("lay scratch space over the image: %w", err)
	}
	return unix.Chdir("root")
}

// furnish makes the files of the root.
func (b *box) furnish() error {
	unix.Umask(0)
	if err := os.MkdirAll(emptyDir, 0o555); err != nil {
		return err
	}
	if err := os.WriteFile(emptyFile, nil, 0o444); err != nil {
		return err
	}
	for name, text := range b.plan.Root.Texts {
		if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o444); err != nil {
			return err
		}
	}
	return nil
}

// makePlace makes what a mount is put over, unless there is something.
func makePlace(m Mount) error {
	if _, err := os.Lstat(m.Target); err == nil {
		return nil
	}
	dir := m.Target
	if m.File {
		dir = path.Dir(m.Target)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make room for %s: %w", m.Target, err)
	}
	if !m.File {
		return nil
	}
	fd, err := unix.Open(m.Target, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return fmt.Errorf("make room for %s: %w", m.Target, err)
	}
	return unix.Close(fd)
}

// What of /proc tells of the host rather than of the box, or reaches into it.
var (
	procHidden = []string{
		"acpi", "asound", "bus", "cmdline", "driver", "dynamic_debug", "fs", "interrupts", "irq", "kallsyms", "kcore",
		"key-users", "keys", "kmsg", "latency_stats", "modules", "sched_debug", "scsi", "sysrq-trigger", "timer_list",
		"timer_stats", "tty",
	}
	procReadOnly = []string{"sys"}
)

func makeProc() error {
	if err := os.MkdirAll("/proc", 0o555); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, name := range procReadOnly {
		if err := bind("/proc/"+name, "/proc/"+name, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV); err != nil {
			return err
		}
	}
	for _, name := range procHidden {
		name = "/proc/" + name
		var stat unix.Stat_t
		if err := unix.Lstat(name, &stat); err != nil {
			continue // this kernel has none
		}
		var err error
		if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = bind(emptyDir, name, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV)
		} else {
			err = bind(emptyFile, name, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV)
		}
		if err != nil {
			return fmt.Errorf("hide %s: %w", name, err)
		}
	}
	return nil
}

// What is seen in the box in place of what is hidden. Only the box's root could write
// there, and there is none.
const (
	emptyFile = "/.bailey/nothing"
	emptyDir  = "/.bailey/nowhere"
)

func makeDev(devices map[string]int, shared int64) error {
	if err := os.MkdirAll("/dev", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("dev", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=65536,nr_inodes=128,mode=755"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		if err := makePlace(Mount{Target: filepath.Clean(name), File: true}); err != nil {
			return err
		}
		if err := attach(devices[name], name); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
	} {
		if err := unix.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	for _, m := range []struct{ kind, target, options string }{
		{"devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620"},
		{"tmpfs", "/dev/shm", fmt.Sprintf("size=%d,nr_inodes=%d,mode=1777", shared, shared/4096)},
	} {
		if err := unix.Mkdir(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(path.Base(m.target), m.target, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// Nothing is written there but to the devices.
	return unix.MountSetattr(unix.AT_FDCWD, "/dev", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
