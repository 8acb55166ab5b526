// Package rootfs makes what a box sees as its root: of the host's own programs, or of
// an image, which is a directory, a tar archive or an OCI image layout. An archive is
// unpacked once, into a directory that workers share.
//
// It must not know what a box is made of, nor fetch anything from elsewhere. What it
// unpacks it does not trust.
//
// Start reading at [Open].
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A Root is what boxes see of an image, or of the host. It is made of directories of
// the host that a box must not be able to write to: what it writes goes elsewhere.
//
// A Root is in use until it is closed; what it is made of stays as it is until then.
// It is safe for concurrent use.
type Root struct {
	// Layers are directories that lie one on another, the upper ones first: what is in
	// the first hides what has the same name in the second, and directories are
	// merged, as overlayfs has it. In them is every directory that a Spec's parts are
	// mounted over without being asked for, and the home directory with its owner.
	Layers []string

	// Mounts are mounted read-only over the layers.
	Mounts []Mount

	// Digest tells what is in an archive or an image layout, wherever and by whom it was
	// unpacked. It is empty for a directory and for the host.
	Digest string

	// Env are the variables that the image says its programs have ("KEY=value"). Only an
	// OCI image layout says so.
	Env []string

	held []*entry
}

// A Mount is a directory of the host that a box sees.
type Mount struct{ Source, Target string }

// Open makes an image ready, which is what a Spec's Image says, and returns what boxes
// see of it. That takes as long as unpacking it does; once that is done, it is a matter
// of microseconds, except for the host's own programs (""), where it takes some tens of
// milliseconds each time.
//
// cache is a directory for what is unpacked, made if need be. It must be closed to
// those we do not trust. Several processes may share it if they are the same user.
// What nobody has in use is removed from it when something new is unpacked, if it has
// not been opened for a week.
func Open(ctx context.Context, image, cache string) (*Root, error) {
	r, err := open(ctx, image, cache)
	if err != nil {
		name := "what boxes see of the host"
		if image != "" {
			name = fmt.Sprintf("image %q", image)
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

func open(ctx context.Context, image, cache string) (*Root, error) {
	store, err := openStore(cache)
	if err != nil {
		return nil, err
	}
	r := new(Root)
	if image == "" {
		err = r.addHost(ctx, store)
	} else {
		err = r.addImage(ctx, store, image)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Close says that no box uses the root any more.
func (r *Root) Close() error {
	var errs []error
	for _, e := range r.held {
		errs = append(errs, e.close())
	}
	r.held = nil
	return errors.Join(errs...)
}

// hold adds an entry of the store to the root.
func (r *Root) hold(e *entry, err error) (dir string, _ error) {
	if err != nil {
		return "", err
	}
	r.held = append(r.held, e)
	return e.dir, nil
}

func (r *Root) addHost(ctx context.Context, store store) error {
	dir, err := r.hold(store.once(ctx, "host", func(_ context.Context, dir string) error {
		h, err := SeeHost(filepath.Join(dir, "files"), "/")
		if err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, "base"), 0o755); err != nil {
			return err
		}
		for _, m := range h.Mounts {
			if !strings.HasPrefix(m.Source, dir+"/") { // it is in a layer
				r.Mounts = append(r.Mounts, m)
			}
		}
		return h.MakeRoot(filepath.Join(dir, "base"), os.Geteuid() == 0)
	}))
	r.Layers = []string{filepath.Join(dir, "base"), filepath.Join(dir, "files")}
	return err
}

// linksMax is how many symbolic links are followed on one way.
const linksMax = 40

// ReadFile returns what a box sees in the file of this name, which is a path in the
// box and may lead over symbolic links: none of them leads out of what the box sees.
// It refuses files of more than max bytes.
func (r *Root) ReadFile(name string, max int64) ([]byte, error) {
	info, at, err := r.find(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > max {
		return nil, fmt.Errorf("%s: more than %d bytes", name, max)
	}
	return at.read(max)
}

// find finds the file that a box sees by a name.
func (r *Root) find(name string) (fs.FileInfo, place, error) {
	dir := "/" // a path without links
	links := 0
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		next := path.Join(dir, part)
		info, at, err := r.lstat(next)
		if err != nil {
			return nil, place{}, err
		}
		switch mode := info.Mode(); {
		case mode&fs.ModeSymlink != 0:
			if links++; links > linksMax {
				return nil, place{}, fmt.Errorf("%s: too many symbolic links", name)
			}
			target, err := at.readlink()
			if err != nil {
				return nil, place{}, err
			}
			if path.IsAbs(target) {
				dir = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case len(rest) == 0 && mode.IsRegular():
			return info, at, nil
		default:
			dir = next
		}
	}
	return nil, place{}, fmt.Errorf("%s: not a file", name)
}

// A place is a file in one of the directories that a root is made of.
type place struct{ dir, name string }

// lstat finds what a box sees at a path that has no links in it, but perhaps at its
// end.
func (r *Root) lstat(name string) (fs.FileInfo, place, error) {
	places := make([]place, 0, len(r.Layers))
	for _, m := range r.Mounts {
		if name == m.Target || strings.HasPrefix(name, m.Target+"/") {
			places = append(places, place{m.Source, "." + name[len(m.Target):]})
		}
	}
	if len(places) == 0 {
		for _, dir := range r.Layers {
			places = append(places, place{dir, "." + name})
		}
	}
	for _, p := range places {
		info, err := p.lstat()
		if !errors.Is(err, fs.ErrNotExist) {
			return info, p, err
		}
	}
	return nil, place{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (p place) lstat() (fs.FileInfo, error) {
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Lstat(p.name)
}

func (p place) readlink() (string, error) {
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	return root.Readlink(p.name)
}

func (p place) read(max int64) ([]byte, error) {
	root, err := os.OpenRoot(p.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	file, err := root.OpenFile(p.name, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("%s: more than %d bytes", p.name, max)
	}
	return data, err
}
