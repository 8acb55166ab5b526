package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// places are the directories that the file tools reach. They keep a tool from what it was
// not asked for rather than a box from the host: the shell is bound by none of this, and
// may change a path between the look at it and its use.
type places struct {
	workdir  string
	allowed  []string // besides
	readOnly []string // not to be written to
}

// find returns where a path leads, all links followed, if that is within reach.
func (p places) find(name string) (string, error) {
	root := canonical(p.workdir)
	at := name
	if !path.IsAbs(name) {
		at = path.Join(root, name)
	}
	found, err := follow(path.Clean(at))
	if err != nil {
		return "", fmt.Errorf("path %q: %s", name, reason(err))
	}
	if within(found, root) {
		return found, nil
	}
	others := ""
	for _, dir := range p.allowed {
		if dir == "" {
			continue
		}
		if within(found, canonical(dir)) {
			return found, nil
		}
		others = " and its other permitted directories"
	}
	return "", fmt.Errorf("path %q is outside the session's working directory%s", name, others)
}

// findWritable is find for a path that is to be changed.
func (p places) findWritable(name string) (string, error) {
	found, err := p.find(name)
	if err != nil {
		return "", err
	}
	for _, dir := range p.readOnly {
		if within(found, canonical(dir)) {
			return "", fmt.Errorf("%s is inside read-only directory %s", name, dir)
		}
	}
	return found, nil
}

// reaches reports whether what is at a path of ours is within reach, or may be.
func (p places) reaches(name string) bool {
	found, err := follow(name)
	if err != nil || within(found, canonical(p.workdir)) {
		return true
	}
	for _, dir := range p.allowed {
		if dir != "" && within(found, canonical(dir)) {
			return true
		}
	}
	return false
}

// canonical is where a directory of ours is, all links followed, or else its absolute
// path, which nothing that find finds is in then.
func canonical(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return path.Clean(dir)
	}
	if found, err := follow(abs); err == nil {
		return found
	}
	return abs
}

func within(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// linksMax is how many symbolic links are followed on one way.
const linksMax = 40

// follow returns where a clean absolute path leads, with no link left in it, be there
// something or not.
func follow(name string) (string, error) {
	at, links := "/", 0
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		at = path.Join(at, part)
		info, err := os.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			continue
		case err != nil:
			return "", err
		case info.Mode()&fs.ModeSymlink == 0:
			continue
		}
		if links++; links > linksMax {
			return "", syscall.ELOOP
		}
		target, err := os.Readlink(at)
		if err != nil {
			return "", err
		}
		at = path.Dir(at)
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// reason is what went wrong with a file, without its path on the host.
func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT.Error()
	case errors.Is(err, fs.ErrPermission):
		return syscall.EACCES.Error()
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return "i/o error"
}
