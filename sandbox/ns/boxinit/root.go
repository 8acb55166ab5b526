package boxinit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
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
	host, err := openPlace("/")
	if err != nil {
		return err
	}
	defer host.close()
	size := fmt.Sprintf("size=%d,nr_inodes=%d,mode=755", r.Size, r.Files)
	if err := unix.Mount("scratch", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, size); err != nil {
		return fmt.Errorf("make scratch space: %w", err)
	}
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	if err := b.furnish(); err != nil {
		return err
	}
	if b.store, err = openPlace(furniture); err != nil {
		return err
	}
	if err := overlay(mounts[:len(r.Layers)]); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	// The kernel lets a box have a /proc only while it can see that of the host.
	if err := makeProc(b.store); err != nil {
		return err
	}
	if err := makeDev(host, r); err != nil {
		return err
	}
	for name, target := range map[string]string{"meminfo": "/proc/meminfo", "cpuinfo": "/proc/cpuinfo", "sys": "/sys"} {
		if err := b.store.show(name, target); err != nil {
			return err
		}
	}
	// The host's root lies over ours, which the working directory still is. It goes
	// before any path of the image's is followed: until then /.. is the host's.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	for i, m := range r.Mounts {
		if err := makePlace(m); err != nil {
			return err
		}
		if err := attach(mounts[len(r.Layers)+i], m.Target); err != nil {
			return err
		}
	}
	return nil
}

// A place is a directory that is left behind with the host's root, but from which
// things can still be shown in the box.
type place struct{ fd int }

func openPlace(name string) (place, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return place{}, fmt.Errorf("open %s: %w", name, err)
	}
	return place{fd}, nil
}

func (p place) close() { unix.Close(p.fd) }

// show shows at target in the box what the place has under a name.
func (p place) show(name, target string) error {
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d/%s", p.fd, name), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show %s as %s: %w", name, target, err)
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

// furniture is a directory beside the root, for the files and directories that are shown
// in the box in place of others. Only the box's root could write there, and there is
// none; what an ordinary user changes there is seen in that box alone.
const furniture = "furniture"

// furnish makes them, and in the working directory.
func (b *box) furnish() error {
	unix.Umask(0)
	for _, dir := range []string{furniture, furniture + "/nowhere", furniture + "/sys"} {
		if err := unix.Mkdir(dir, 0o555); err != nil {
			return err
		}
	}
	for name, text := range b.plan.Root.Texts {
		name = furniture + "/" + name
		if err := os.MkdirAll(path.Dir(name), 0o555); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o444); err != nil {
			return err
		}
	}
	return os.WriteFile(furniture+"/nothing", nil, 0o444)
}

// makePlace makes what a mount is put over, unless there is something.
func makePlace(m Mount) error {
	make := func() error {
		if m.File {
			return unix.Mknod(m.Target, unix.S_IFREG|0o444, 0)
		}
		return unix.Mkdir(m.Target, 0o755)
	}
	err := make()
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(path.Dir(m.Target), 0o755); err == nil {
			err = make()
		}
	}
	// What is there may be read-only.
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make room for %s: %w", m.Target, err)
	}
	return nil
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

func makeProc(store place) error {
	if err := makeDir("/proc"); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, name := range procReadOnly {
		name = "/proc/" + name
		if err := unix.Mount(name, name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", name, err)
		}
		if err := unix.Mount("", name, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	for _, name := range procHidden {
		name = "/proc/" + name
		var stat unix.Stat_t
		if err := unix.Lstat(name, &stat); err != nil {
			continue // this kernel has none
		}
		empty := "nothing"
		if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			empty = "nowhere"
		}
		if err := store.show(empty, name); err != nil {
			return err
		}
	}
	return makeDir("/sys")
}

func makeDev(host place, r Root) error {
	if err := makeDir("/dev"); err != nil {
		return err
	}
	if err := unix.Mount("dev", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=65536,nr_inodes=128,mode=755"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for _, device := range r.Devices {
		if err := makePlace(Mount{Target: device.Target, File: true}); err != nil {
			return err
		}
		if err := host.show(device.Source, device.Target); err != nil {
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
		{"tmpfs", "/dev/shm", fmt.Sprintf("size=%d,nr_inodes=%d,mode=1777", r.Shared, r.Shared/4096)},
	} {
		if err := unix.Mkdir(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(path.Base(m.target), m.target, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// Nothing is written there but to the devices.
	if err := unix.Mount("", "/dev", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make /dev read-only: %w", err)
	}
	return nil
}

// makeDir makes a directory of the box's, unless its image has it.
func makeDir(name string) error {
	if err := unix.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return nil
}
