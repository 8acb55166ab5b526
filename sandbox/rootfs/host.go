package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/bailey-platform/bailey/sandbox"
)

// What of the host a box sees when there is no image. Whatever is not
// named here does not exist for it.
var (
	// hostDirs are mounted read-only. Those that are links on the host (as all but
	// /usr are on most) are links in the box.
	hostDirs = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}

	// hostFiles are copied if every user of the host may read them, directories with
	// all they hold: what programs need to find their libraries, their certificates
	// and the time of day.
	hostFiles = []string{
		"etc/alternatives", "etc/ca-certificates/extracted", "etc/debian_version", "etc/fonts",
		"etc/java-*", "etc/ld.so.cache", "etc/ld.so.conf", "etc/ld.so.conf.d", "etc/localtime",
		"etc/magic", "etc/magic.mime", "etc/mime.types", "etc/os-release", "etc/perl",
		"etc/pki/ca-trust/extracted", "etc/pki/tls/certs", "etc/pki/tls/openssl.cnf", "etc/protocols",
		"etc/python3*", "etc/services", "etc/ssl/certs", "etc/ssl/openssl.cnf", "etc/terminfo", "etc/timezone",
	}
)

const (
	copyFileMax  = 8 << 20 // bytes of one file copied
	copyFilesMax = 20_000  // files copied
)

// Hostname is every box's.
const Hostname = "box"

const hosts = "127.0.0.1 localhost " + Hostname + "\n::1 localhost\n"

// boxDirs are what every box has, outer ones first, though its image may not.
var boxDirs = []directory{
	{"tmp", 0o777 | fs.ModeSticky}, {"var", 0o755}, {"var/tmp", 0o777 | fs.ModeSticky},
	{path.Dir(sandbox.HomePath), 0o755}, {sandbox.HomePath, 0o755},
	{path.Dir(sandbox.AgentPath), 0o755}, {sandbox.WorkPath, 0o755},
}

// A directory is one that is made.
type directory struct {
	name string
	mode fs.FileMode
}

// makeDirs makes directories in another.
func makeDirs(in string, dirs []directory) error {
	for _, d := range dirs {
		name := filepath.Join(in, d.name)
		if err := os.MkdirAll(name, 0o755); err != nil {
			return err
		}
		// Whatever our umask is.
		if err := os.Chmod(name, d.mode); err != nil {
			return err
		}
	}
	return nil
}

// giveHome gives the home directory of what is a box's root to the box's user, if that
// is another than ours, as root says.
func giveHome(dir string, root bool) error {
	if !root {
		return nil
	}
	return os.Chown(filepath.Join(dir, sandbox.HomePath), sandbox.User, sandbox.User)
}

// A Host is what boxes see of the host.
type Host struct {
	Mounts []Mount           // read-only, into every box
	Links  map[string]string // at the top of every box, and where they lead
}

// SeeHost finds what boxes see of the host, whose root is at from, and puts what has
// to be copied or made up for them into dir.
func SeeHost(dir, from string) (*Host, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	etc := filepath.Join(dir, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return nil, err
	}
	for name, content := range map[string]string{
		"passwd":        fmt.Sprintf("root:x:0:0:root:/:/bin/bash\nagent:x:%d:%[1]d:agent:%s:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n", sandbox.User, sandbox.HomePath),
		"group":         fmt.Sprintf("root:x:0:\nagent:x:%d:\nnogroup:x:65534:\n", sandbox.User),
		"hosts":         hosts,
		"hostname":      Hostname + "\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	c := copier{from: from, to: dir}
	for _, pattern := range hostFiles {
		names, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if err := c.tree(name); err != nil {
				return nil, err
			}
		}
	}
	if err := readable(dir); err != nil {
		return nil, err
	}

	h := &Host{Mounts: []Mount{{etc, "/etc"}}, Links: make(map[string]string)}
	for _, name := range hostDirs {
		source := filepath.Join(from, name)
		info, err := os.Lstat(source)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case info.IsDir():
			h.Mounts = append(h.Mounts, Mount{source, "/" + name})
		case info.Mode()&fs.ModeSymlink != 0:
			if h.Links[name], err = os.Readlink(source); err != nil {
				return nil, err
			}
		}
	}
	return h, nil
}

// MakeRoot makes in dir what a box has for a root, beneath its mounts. root says that
// the box's user is another than ours.
func (h *Host) MakeRoot(dir string, root bool) error {
	dirs := []directory{{".", 0o755}, {"mnt", 0o755}, {"opt", 0o755}, {"run", 0o755}, {"srv", 0o755}}
	if err := makeDirs(dir, append(dirs, boxDirs...)); err != nil {
		return err
	}
	for name, target := range h.Links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return giveHome(dir, root)
}

// readable lets everybody read what is in dir, whatever our umask is.
func readable(dir string) error {
	return filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		want := info.Mode() | 0o444
		if entry.IsDir() {
			want |= 0o555
		}
		if want == info.Mode() {
			return nil
		}
		return os.Chmod(name, want)
	})
}

// A copier copies files from one root to another, under the same names.
type copier struct {
	from, to string
	copied   int
}

// tree copies a file, a link as the link it is, or a directory with what is in it,
// leaving out what not everybody may read.
func (c *copier) tree(name string) error {
	return filepath.WalkDir(name, func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return nil // it went away
		}
		rel, err := filepath.Rel(c.from, name)
		if err != nil {
			return err
		}
		if c.copied++; c.copied > copyFilesMax {
			return fmt.Errorf("%s and its like hold more than %d files", name, copyFilesMax)
		}
		target := filepath.Join(c.to, rel)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		switch mode := info.Mode(); {
		case mode.IsDir():
			if mode.Perm()&0o005 != 0o005 {
				return fs.SkipDir
			}
			return os.MkdirAll(target, 0o755)
		case mode&fs.ModeSymlink != 0:
			link, err := os.Readlink(name)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case mode.IsRegular() && mode.Perm()&0o004 != 0 && info.Size() <= copyFileMax:
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return os.WriteFile(target, data, 0o644)
		}
		return nil
	})
}
