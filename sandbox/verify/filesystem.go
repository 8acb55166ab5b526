package verify

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

var filesystemChecks = []check{
	{
		id:    "filesystem/host-files",
		tried: "read files of the host by their paths, by /proc/self/root, /proc/1/root and up from the work folder",
		probe: func(p *prober) outcome {
			up := strings.Repeat("../", 40)
			return p.unread(p.facts.File, p.facts.Private,
				"/proc/self/root"+p.facts.File, "/proc/1/root"+p.facts.File, "/proc/self/cwd/"+up+p.facts.File[1:],
				"/proc/self/root/proc/self/root"+p.facts.File, up+p.facts.File[1:],
				fmt.Sprintf("/proc/%d/root%s", p.facts.PID, p.facts.File))
		},
	},
	{
		id:    "filesystem/write-host",
		tried: "write to a file of the host that every user may write to",
		probe: func(p *prober) outcome {
			tries := make(map[string]func() error)
			for _, name := range []string{p.facts.Script, "/proc/self/root" + p.facts.Script, "/proc/1/root" + p.facts.Script} {
				tries[name] = func() error { return appendTo(name) }
			}
			return denied(tries)
		},
		judge: unchanged,
	},
	{
		id:    "filesystem/symlink",
		tried: "follow symbolic links in the work folder, one planted from outside and one made inside, to a file of the host",
		probe: func(p *prober) outcome {
			own := workFile("link")
			_ = os.Remove(own)
			if err := os.Symlink(p.facts.File, own); err != nil {
				return broken("no link can be made in the work folder: %v", err)
			}
			return p.unread(workFile(planted), own, own+"/../"+filepath.Base(p.facts.Private))
		},
	},
	{
		id:    "filesystem/hard-link",
		tried: "make a hard link in the work folder to files outside",
		probe: func(p *prober) outcome {
			tries := make(map[string]func() error)
			for _, name := range []string{p.facts.File, "/proc/self/root" + p.facts.File, "/proc/1/root" + p.facts.Private} {
				tries[name] = func() error { return os.Link(name, workFile("hard")) }
			}
			return denied(tries)
		},
	},
	{
		id:    "filesystem/device-nodes",
		tried: "make device nodes of disks, memory and the kernel's log, and open those in /dev",
		probe: func(p *prober) outcome {
			tries := make(map[string]func() error)
			devices := []string{"/dev/mem", "/dev/kmem", "/dev/kmsg", "/dev/port", "/dev/kvm", "/dev/loop-control", "/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/mapper/control"}
			if !p.facts.Isolation.AtLeast(sandbox.OwnKernel) { // which brings one of its own
				devices = append(devices, "/dev/fuse")
			}
			for name, dev := range map[string]struct{ mode, major, minor uint32 }{
				"disk": {unix.S_IFBLK, 254, 0}, "disk 8:0": {unix.S_IFBLK, 8, 0}, "memory": {unix.S_IFCHR, 1, 1}, "kernel log": {unix.S_IFCHR, 1, 11},
			} {
				for _, dir := range []string{workFile(""), "/tmp", "/dev/shm", "/dev"} {
					node := filepath.Join(dir, "node-"+strings.ReplaceAll(name, " ", "-"))
					tries[fmt.Sprintf("%s in %s", name, filepath.Base(dir))] = func() error {
						if err := unix.Mknod(node, dev.mode|0o600, int(unix.Mkdev(dev.major, dev.minor))); err != nil {
							return err
						}
						defer os.Remove(node)
						fd, err := unix.Open(node, unix.O_RDONLY|unix.O_NONBLOCK, 0)
						if err != nil {
							return err // a node that opens nothing
						}
						return unix.Close(fd)
					}
				}
			}
			for _, name := range devices {
				tries[name] = func() error {
					fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
					if err != nil {
						return err
					}
					return unix.Close(fd)
				}
			}
			return denied(tries)
		},
	},
	{
		id:    "filesystem/mount",
		tried: "mount, bind, move and unmount file systems, pivot and change the root, by the old calls and the new ones",
		probe: func(p *prober) outcome {
			target := workFile("mountpoint")
			if err := os.MkdirAll(target, 0o755); err != nil {
				return broken("no directory can be made in the work folder: %v", err)
			}
			mount := func(source, kind string, flags uintptr) func() error {
				return func() error {
					if err := unix.Mount(source, target, kind, flags, ""); err != nil {
						return err
					}
					return unix.Unmount(target, unix.MNT_DETACH)
				}
			}
			return denied(map[string]func() error{
				"tmpfs":      mount("tmpfs", "tmpfs", 0),
				"proc":       mount("proc", "proc", 0),
				"bind":       mount("/", "", unix.MS_BIND),
				"overlay":    mount("overlay", "overlay", 0),
				"pivot_root": func() error { return unix.PivotRoot(target, target) },
				"chroot": func() error {
					// Tried where it changes nothing if it works.
					return unix.Chroot("/")
				},
				"fsopen": func() error { return opened(unix.Fsopen("tmpfs", 0)) },
				"open_tree": func() error {
					return opened(unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE))
				},
			})
		},
	},
	{
		id:    "filesystem/handles",
		tried: "open files by their handles, around every path (open_by_handle_at)",
		probe: func(*prober) outcome {
			return denied(map[string]func() error{"open_by_handle_at": func() error {
				handle, mountID, err := unix.NameToHandleAt(unix.AT_FDCWD, "/", 0)
				if err != nil {
					// The handle of the root of many file systems.
					made := unix.NewFileHandle(1, []byte{2, 0, 0, 0, 0, 0, 0, 0})
					handle, mountID = made, 0
				}
				_ = mountID
				root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
				if err != nil {
					return err
				}
				defer unix.Close(root)
				return opened(unix.OpenByHandleAt(root, handle, unix.O_RDONLY))
			}})
		},
	},
	{
		id:    "filesystem/programs",
		tried: "change the programs that boxes share with the host, and the agent's executable",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for _, name := range []string{sandbox.AgentPath, "/proc/self/exe", "/proc/1/exe"} {
				tries["write "+name] = func() error {
					fd, err := unix.Open(name, unix.O_WRONLY, 0)
					if errors.Is(err, unix.ETXTBSY) {
						// It runs just now, which is looked at before whether the mount can
						// be written to. Changing the mode as it is tells that.
						return unix.Chmod(name, 0o755)
					}
					if err != nil {
						return err
					}
					return unix.Close(fd)
				}
			}
			return denied(tries)
		},
	},
	{
		id:    "filesystem/owner",
		tried: "leave a set-user-id program in the work folder that is root's on the host",
		probe: func(*prober) outcome {
			name := workFile("setuid")
			if err := os.WriteFile(name, []byte("#!/bin/sh\n"), 0o755); err != nil {
				return broken("nothing can be written to the work folder: %v", err)
			}
			_ = unix.Chmod(name, unix.S_ISUID|0o755) // it is the owner that is judged
			_ = unix.Chown(name, 0, 0)
			return outcome{Status: Held, Saw: "written", Values: map[string]string{"name": "setuid"}}
		},
		judge: func(h *host, out outcome) outcome {
			if out.Status != Held {
				return out
			}
			info, err := os.Lstat(filepath.Join(h.dir, fmt.Sprintf("work-%d", h.boxes), "setuid"))
			if err != nil {
				return broken("the file is not in the work folder: %v", err)
			}
			owner := info.Sys().(*syscall.Stat_t).Uid
			if owner == 0 {
				return broken("on the host the file belongs to root, with mode %v", info.Mode())
			}
			if os.Geteuid() != 0 {
				return held("on the host the file belongs to user %d, as everything of this worker", owner)
			}
			return held("on the host the file belongs to user %d, who is nobody there", owner)
		},
	},
	{
		id:    "filesystem/engine-sockets",
		tried: "connect to the sockets of container engines and of the system, and look for a cluster's secrets",
		probe: func(*prober) outcome {
			tries := make(map[string]func() error)
			for _, name := range []string{"/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
				"/run/crio/crio.sock", "/run/systemd/private", "/run/dbus/system_bus_socket"} {
				tries[name] = func() error { return connect(name) }
			}
			const secrets = "/var/run/secrets/kubernetes.io"
			tries[secrets] = func() error { _, err := os.ReadDir(secrets); return err }
			return denied(tries)
		},
	},
}

// connect connects to a socket by its path, whatever kind it is of.
func connect(path string) error {
	var err error
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			continue
		}
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		_ = unix.Close(fd)
		if err == nil || errors.Is(err, unix.EAGAIN) { // somebody listens, and has a queue
			return nil
		}
		if !errors.Is(err, unix.EPROTOTYPE) {
			break
		}
	}
	return err
}

func appendTo(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("changed\n")
	return errors.Join(err, f.Close())
}

// opened closes a descriptor that was not to be had.
func opened(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
