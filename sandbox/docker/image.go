package docker

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
)

// repository is what the images are called that we import, with a tag that tells their
// content. No registry has the name.
const repository = "localhost/bailey-box"

// An image is one that the daemon has.
type image struct {
	id      string
	volumes []string // directories that it wants kept
	env     []string // variables that it says its programs have
}

// imported is an image of the host's that the daemon has imported.
type imported struct {
	ref string   // the daemon's name for it
	env []string // which it does not know of
}

// image makes an image one that the daemon has, by the name that a Spec gives it.
func (d *Driver) image(ctx context.Context, found *daemon, name string) (image, error) {
	if name == "" {
		name = d.options.Image
	}
	if name == "" {
		return image{}, &sandbox.Unavailable{
			Backend: d.Name(),
			Cause:   "no image is named (sandbox.image, --image), and a daemon has nothing that is the host's own programs",
			Remedy: []string{"name an image that the daemon has, such as debian:12",
				"name a directory, a tar archive or an OCI layout, which is imported once"},
			NoImage: true,
		}
	}
	from := imported{ref: name}
	if filepath.IsAbs(name) {
		// One at a time, and each once.
		d.mu.Lock()
		defer d.mu.Unlock()
		var err error
		if from, err = d.importOnce(ctx, found, name); err != nil {
			return image{}, err
		}
	}
	got, err := found.client.ImageInspect(ctx, from.ref)
	if errdefs.IsNotFound(err) {
		return image{}, fmt.Errorf("image %q: the daemon does not have it, and it is not fetched from elsewhere; %s pull %[1]s", name, d.Name())
	}
	if err != nil {
		return image{}, fmt.Errorf("image %q: %w", name, err)
	}
	i := image{id: got.ID, env: from.env}
	if got.Config != nil {
		i.env = append(i.env, got.Config.Env...)
		i.volumes = slices.Sorted(maps.Keys(got.Config.Volumes))
	}
	return i, nil
}

// importOnce returns what is at a path of the host as the daemon has it, and imports it if
// the daemon does not have it, or not any more. It is called with mu held.
func (d *Driver) importOnce(ctx context.Context, found *daemon, path string) (imported, error) {
	if from, ok := d.images[path]; ok {
		if _, err := found.client.ImageInspect(ctx, from.ref); !errdefs.IsNotFound(err) {
			return from, err
		}
	}
	from, err := found.importImage(ctx, path)
	if err != nil {
		return imported{}, err
	}
	d.images[path] = from
	if err := d.dropImages(ctx, found); err != nil {
		d.log.Warn("an image that is not used any more is left at the daemon", "error", err)
	}
	return from, nil
}

// dropImages removes what this driver, or an earlier one with its Root, imported and has
// no use for any more. It is called with mu held.
func (d *Driver) dropImages(ctx context.Context, found *daemon) error {
	var used []string
	for _, from := range d.images {
		used = append(used, from.ref)
	}
	return found.removeImages(ctx, driverLabel+"="+found.tag, func(refs []string, _ map[string]string) bool {
		return !slices.ContainsFunc(refs, func(ref string) bool { return slices.Contains(used, ref) })
	})
}

// keepUnused is how long the images of a driver stay that nobody has used since.
const keepUnused = 7 * 24 * time.Hour

// dropForgotten removes the images of drivers that will not come back for them: their Root
// is gone, or was last used a while ago, as that of a worker which has another image now.
func (found *daemon) dropForgotten(ctx context.Context) error {
	return found.removeImages(ctx, rootLabel, func(_ []string, labels map[string]string) bool {
		root := labels[rootLabel]
		lock, err := os.Stat(filepath.Join(root, lockName))
		if errors.Is(err, fs.ErrNotExist) {
			return true
		}
		return err == nil && time.Since(lock.ModTime()) > keepUnused && !sandbox.Locked(filepath.Join(root, lockName))
	})
}

// removeImages removes those with the label that are to go. What a container still needs
// the daemon keeps, and what another driver needs that one imports again.
func (found *daemon) removeImages(ctx context.Context, label string, goes func(refs []string, labels map[string]string) bool) error {
	list, err := found.client.ImageList(ctx, client.ImageListOptions{Filters: make(client.Filters).Add("label", label)})
	if err != nil {
		return fmt.Errorf("list the images of boxes: %w", err)
	}
	var errs []error
	for _, i := range list.Items {
		if !goes(i.RepoTags, i.Labels) {
			continue
		}
		_, err := found.client.ImageRemove(ctx, i.ID, client.ImageRemoveOptions{})
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			errs = append(errs, fmt.Errorf("remove image %s: %w", i.ID, err))
		}
	}
	return errors.Join(errs...)
}

// Discard implements [sandbox.Discarder].
func (d *Driver) Discard(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.daemon == nil {
		return nil
	}
	clear(d.images)
	return d.dropImages(ctx, d.daemon)
}

// importImage has the daemon import what is at a path of the host, unless it has. What is
// in a directory is looked at once in the life of a driver.
func (found *daemon) importImage(ctx context.Context, path string) (_ imported, err error) {
	root, err := rootfs.Open(ctx, path, filepath.Join(found.dir, "images"))
	if err != nil {
		return imported{}, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	files, err := merge(ctx, root.Layers)
	if err != nil {
		return imported{}, err
	}
	made := imported{repository + ":" + files.fingerprint(root.Digest, path), root.Env}
	if _, err := found.client.ImageInspect(ctx, made.ref); err == nil || !errdefs.IsNotFound(err) {
		return made, err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(files.archive(ctx, w)) }()
	defer r.Close()
	progress, err := found.client.ImageImport(ctx, client.ImageImportSource{Source: r, SourceName: "-"}, made.ref, client.ImageImportOptions{
		Changes: []string{fmt.Sprintf("LABEL %s=%s", driverLabel, found.tag), fmt.Sprintf("LABEL %s=%q", rootLabel, found.dir)},
	})
	if err != nil {
		return imported{}, fmt.Errorf("import image %q: %w", path, err)
	}
	defer progress.Close()
	for messages := json.NewDecoder(progress); ; {
		var message struct{ Error string }
		switch err := messages.Decode(&message); {
		case errors.Is(err, io.EOF):
			return made, nil
		case err != nil:
			return imported{}, fmt.Errorf("import image %q: %w", path, err)
		case message.Error != "":
			return imported{}, fmt.Errorf("import image %q: %s", path, message.Error)
		}
	}
}

// files are those of an image, in the order of their names within each layer.
type files []file

// A file is one of an image. The content is read when it is archived.
type file struct {
	name string // in the image, without a slash at its beginning
	path string // on the host
	info fs.FileInfo
}

// merge lays the layers one on another, the upper ones first.
func merge(ctx context.Context, layers []string) (files, error) {
	var all files
	seen := make(map[string]bool) // whether it is a directory
	for _, layer := range layers {
		err := filepath.WalkDir(layer, func(path string, entry fs.DirEntry, err error) error {
			if err := errors.Join(err, context.Cause(ctx)); err != nil {
				return err
			}
			name, err := filepath.Rel(layer, path)
			if err != nil || name == "." {
				return err
			}
			if dir, ok := seen[name]; ok {
				if entry.IsDir() && !dir {
					return fs.SkipDir // a file hides it
				}
				return nil
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			// The rest has no business in an image: sockets, devices.
			if mode := info.Mode(); mode.IsRegular() || mode.IsDir() || mode&fs.ModeSymlink != 0 {
				seen[name] = entry.IsDir()
				all = append(all, file{name, path, info})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// fingerprint tells images apart, by all that can be known without reading their files:
// the digest of the archive they come from, or for what is in the directory at path the
// time of its last change, which nobody can set. It is the same wherever an archive has
// been unpacked to, so that each is imported once.
func (all files) fingerprint(digest, path string) string {
	sum := sha256.New()
	fmt.Fprintln(sum, digest)
	for _, f := range all {
		stat := f.info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(sum, "%q %s %d %d", f.name, f.info.Mode(), stat.Uid, stat.Gid)
		if !f.info.IsDir() {
			fmt.Fprintf(sum, " %d %d", stat.Size, f.info.ModTime().UnixNano())
			if strings.HasPrefix(f.path, filepath.Clean(path)+"/") {
				fmt.Fprintf(sum, " %d", stat.Ctim.Nano())
			}
		}
		if f.info.Mode()&fs.ModeSymlink != 0 {
			target, _ := os.Readlink(f.path) // one that cannot be read fails when it is archived
			fmt.Fprintf(sum, " %q", target)
		}
		fmt.Fprintln(sum)
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// archive writes the files as a tar archive.
func (all files) archive(ctx context.Context, to io.Writer) error {
	w := tar.NewWriter(to)
	type inode struct{ dev, ino uint64 }
	linked := make(map[inode]string) // files of several names, by the first
	for _, f := range all {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		stat := f.info.Sys().(*syscall.Stat_t)
		h := &tar.Header{
			Format: tar.FormatPAX, Name: f.name, Mode: int64(stat.Mode & 0o7777), ModTime: f.info.ModTime(),
		}
		if os.Geteuid() == 0 {
			h.Uid, h.Gid = int(stat.Uid), int(stat.Gid)
		} // else all of it is ours, which is nobody's there
		var err error
		switch mode := f.info.Mode(); {
		case mode.IsDir():
			h.Typeflag = tar.TypeDir
			h.Name += "/"
			if "/"+f.name == sandbox.HomePath {
				// What is mounted there may get the mode, but not the owner.
				h.Mode = 0o1777
			}
		case mode&fs.ModeSymlink != 0:
			h.Typeflag = tar.TypeSymlink
			h.Linkname, err = os.Readlink(f.path)
		default:
			h.Typeflag, h.Size = tar.TypeReg, f.info.Size()
			if id := (inode{stat.Dev, stat.Ino}); stat.Nlink > 1 {
				if first, ok := linked[id]; ok {
					h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, first
				} else {
					linked[id] = f.name
				}
			}
		}
		if err == nil {
			err = w.WriteHeader(h)
		}
		if err == nil && h.Typeflag == tar.TypeReg {
			err = copyFile(w, f.path, h.Size)
		}
		if err != nil {
			return err
		}
	}
	return w.Close()
}

// copyFile copies a file whose size has been announced.
func copyFile(to io.Writer, path string, size int64) error {
	from, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	if n, err := io.Copy(to, io.LimitReader(from, size)); err != nil {
		return err
	} else if n < size {
		return fmt.Errorf("%s became shorter while it was read", path)
	}
	return nil
}
