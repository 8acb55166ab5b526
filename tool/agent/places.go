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

// A place is where a path leads, with no link left in it, be there something or not.
type place struct {
	path string
	info fs.FileInfo // of what is there, nil if that is not known
}

// find returns where a path leads, if that is within reach.
func (p places) find(name string) (place, error) {
	root := canonical(p.workdir)
	at := name
	if !path.IsAbs(name) {
		at = path.Join(root, name)
	}
	at = path.Clean(at)
	from, rest := "/", at
	if within(at, root) {
		from, rest = root, strings.TrimPrefix(at, root) // where no link is left
	}
	found, err := follow(from, rest)
	if err != nil {
		return place{}, fmt.Errorf("path %q: %s", name, reason(err))
	}
	if within(found.path, root) {
		return found, nil
	}
	others := ""
	for _, dir := range p.allowed {
		if dir == "" {
			continue
		}
		if within(found.path, canonical(dir)) {
			return found, nil
		}
		others = " and its other permitted directories"
	}
	return place{}, fmt.Errorf("path %q is outside the session's working directory%s", name, others)
}

// findWritable is find for a path that is to be changed.
func (p places) findWritable(name string) (place, error) {
	found, err := p.find(name)
	if err != nil {
		return place{}, err
	}
	for _, dir := range p.readOnly {
		if within(found.path, canonical(dir)) {
			return place{}, fmt.Errorf("%s is inside read-only directory %s", name, dir)
		}
	}
	return found, nil
}

// reaches reports whether what is at a path of ours is within reach, or may be.
func (p places) reaches(name string) bool {
	found, err := follow("/", name)
	if err != nil || within(found.path, canonical(p.workdir)) {
		return true
	}
	for _, dir := range p.allowed {
		if dir != "" && within(found.path, canonical(dir)) {
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
	if found, err := follow("/", abs); err == nil {
		return found.path
	}
	return abs
}

func within(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// linksMax is how many symbolic links are followed on one way.
const linksMax = 40

// follow returns where a clean path leads from a directory whose own has no link in it.
func follow(dir, name string) (place, error) {
	at, links := place{path: dir}, 0
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = place{path: path.Dir(at.path)}
			continue
		}
		above := at.path
		at = place{path: path.Join(above, part)}
		info, err := os.Lstat(at.path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			continue
		case err != nil:
			return place{}, err
		case info.Mode()&fs.ModeSymlink == 0:
			at.info = info
			continue
		}
		if links++; links > linksMax {
			return place{}, syscall.ELOOP
		}
		target, err := os.Readlink(at.path)
		if err != nil {
			return place{}, err
		}
		at = place{path: above}
		if path.IsAbs(target) {
			at.path = "/"
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
