package rootfs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
)

// bounds are what an archive may hold.
type bounds struct {
	bytes int64 // of all files
	files int   // and directories, links and what is left out
	names int   // bytes of all paths, and of where links lead
	name  int   // bytes of one of them
	depth int   // directories one in another
	steps int   // from one directory to the next, on the ways that its paths and links go
}

var unpackBounds = bounds{bytes: 32 << 30, files: 2_000_000, names: 256 << 20, name: 4096, depth: 128, steps: 32 << 20}

// take takes an entry from what an archive may hold.
func (b *bounds) take(header *tar.Header) error {
	if b.files--; b.files < 0 {
		return errTooManyFiles
	}
	if len(header.Name) > b.name || len(header.Linkname) > b.name {
		return fmt.Errorf("a path is longer than %d bytes", b.name)
	}
	if b.names -= len(header.Name) + len(header.Linkname); b.names < 0 {
		return errors.New("the archive's paths are too long")
	}
	if header.Typeflag == tar.TypeReg {
		if header.Size > b.bytes {
			return errors.New("the archive holds too many bytes")
		}
		b.bytes -= header.Size
	}
	return nil
}

var errTooManyFiles = errors.New("the archive holds too many files")

// decompressMax is how much memory the dictionary of an archive may take, in bytes.
const decompressMax = 256 << 20

// decompress returns the archive that r holds as it is, or compressed.
func decompress(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(in)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(decompressMax), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte("BZh")), bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z'}):
		return nil, errors.New("it is compressed by bzip2 or xz; unpack it, or compress it by gzip or zstd")
	}
	return io.NopCloser(in), nil
}

// unpack unpacks a tar archive into a directory that is empty and that nobody else
// changes. All of it is ours to read and, for us, to remove: owners, devices, pipes,
// the bits that change the user, and extended attributes (which hold capabilities) are
// left out. Symbolic links stay what they are, as they are followed in boxes only. It
// stops where it is when ctx ends.
func unpack(ctx context.Context, archive io.Reader, dir string, max bounds) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacker{ctx: ctx, root: root, left: max, parents: map[string]string{".": "."}}
	in := tar.NewReader(withContext(ctx, archive))
	content := withContext(ctx, in) // of which there is more than of the archive, in a file with holes
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := u.entry(header, content); err != nil {
			return fmt.Errorf("unpack %.100q: %w", header.Name, err)
		}
	}
	return u.finish()
}

type unpacker struct {
	ctx  context.Context
	root *os.Root
	left bounds

	// parents are directories that were looked for and where they were found, links
	// followed.
	parents map[string]string

	links []link                // hard links, made when all files are there
	dirs  map[string]attributes // of directories, set when they are full
}

type link struct{ name, target string }

type attributes struct {
	mode fs.FileMode
	time time.Time
}

func (u *unpacker) entry(header *tar.Header, content io.Reader) error {
	if err := u.left.take(header); err != nil {
		return err
	}
	steps, err := steps(header.Name)
	if err != nil {
		return err
	}
	if len(steps) > u.left.depth {
		return fmt.Errorf("more than %d directories one in another", u.left.depth)
	}
	attrs := attributes{header.FileInfo().Mode(), header.ModTime}
	if len(steps) == 0 {
		if header.Typeflag == tar.TypeDir {
			return nil // the root itself, which is a directory of ours
		}
		return errors.New("not the name of a file")
	}
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeXGlobalHeader:
		return nil
	default:
		return fmt.Errorf("an entry of the unknown type %q", header.Typeflag)
	}
	last := len(steps) - 1
	parent, err := u.parent(steps[:last])
	if err != nil {
		return err
	}
	name := path.Join(parent, steps[last])
	info, err := u.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case header.Typeflag == tar.TypeDir && info.IsDir():
		u.setDir(name, attrs)
		return nil
	case header.Typeflag == tar.TypeDir && info.Mode()&fs.ModeSymlink != 0 && u.isDir(steps):
		return nil // a directory elsewhere, as some archives of several layers have it
	default:
		if err := u.remove(name); err != nil {
			return err
		}
		clear(u.parents) // links and directories may have gone
		u.parents["."] = "."
	}
	switch header.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(name, 0o700); err != nil {
			return err
		}
		u.setDir(name, attrs)
		return nil
	case tar.TypeSymlink:
		return u.root.Symlink(header.Linkname, name)
	case tar.TypeLink:
		u.links = append(u.links, link{name, header.Linkname})
		return nil
	}
	return u.file(name, attrs, content)
}

func (u *unpacker) file(name string, attrs attributes, content io.Reader) error {
	file, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	err = errors.Join(err, file.Chmod(attrs.mode.Perm()|0o400), file.Close())
	if err != nil {
		return err
	}
	return u.root.Chtimes(name, attrs.time, attrs.time)
}

func (u *unpacker) setDir(name string, attrs attributes) {
	if u.dirs == nil {
		u.dirs = make(map[string]attributes)
	}
	u.dirs[name] = attrs
}

// steps splits the name of an entry.
func steps(name string) ([]string, error) {
	var all []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return nil, errors.New("its path leads upwards")
		default:
			all = append(all, part)
		}
	}
	return all, nil
}

// parent returns the directory that something is to be put in, with no link in its
// path, and makes it if it is not there.
func (u *unpacker) parent(steps []string) (string, error) {
	key := path.Join(append([]string{"."}, steps...)...)
	if found, ok := u.parents[key]; ok {
		return found, nil
	}
	name, err := u.follow(steps)
	if err != nil {
		return "", err
	}
	if err := u.makeDirs(name); err != nil {
		return "", err
	}
	u.parents[key] = name
	return name, nil
}

// makeDirs makes a directory, and those that it is in, which are files like any other.
func (u *unpacker) makeDirs(name string) error {
	depth := 1 + strings.Count(name, "/")
	if depth > u.left.depth { // by way of links
		return fmt.Errorf("more than %d directories one in another", u.left.depth)
	}
	err := u.root.Mkdir(name, 0o755)
	if errors.Is(err, fs.ErrNotExist) && depth > 1 {
		if err := u.makeDirs(path.Dir(name)); err != nil {
			return err
		}
		err = u.root.Mkdir(name, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		info, found := u.root.Lstat(name)
		if found != nil || !info.IsDir() {
			return err
		}
		return nil
	}
	if u.left.files--; err == nil && u.left.files < 0 {
		err = errTooManyFiles
	}
	return err
}

// remove removes what is at a path, with all that is in it.
func (u *unpacker) remove(name string) error {
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	err := u.root.Remove(name)
	if !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	dir, err := u.root.Open(name)
	if err != nil {
		return err
	}
	inside, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	for _, other := range inside {
		if err := u.remove(path.Join(name, other)); err != nil {
			return err
		}
	}
	return u.root.Remove(name)
}

func (u *unpacker) isDir(steps []string) bool {
	name, err := u.follow(steps)
	if err != nil {
		return false
	}
	info, err := u.root.Lstat(name)
	return err == nil && info.IsDir()
}

// follow returns where a path leads, as if ours were the root of the file system, with
// no link left in it. What is not there is no link.
func (u *unpacker) follow(steps []string) (string, error) {
	at := "."
	links := 0
	for rest := slices.Clone(steps); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if u.left.steps--; u.left.steps < 0 {
			return "", errors.New("the archive's paths go too long a way")
		}
		if u.ctx.Err() != nil {
			return "", context.Cause(u.ctx)
		}
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at) // of "." it is "."
			continue
		}
		next := path.Join(at, part)
		info, err := u.root.Lstat(next)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > linksMax {
			return "", errors.New("too many symbolic links")
		}
		target, err := u.root.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			at = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// finish makes the hard links, whose targets may come later in the archive, and sets
// what directories are to be like, which could have been in our own way.
func (u *unpacker) finish() error {
	for _, l := range u.links {
		if err := u.link(l); err != nil {
			return fmt.Errorf("link %.100q to %.100q: %w", l.name, l.target, err)
		}
	}
	for name, attrs := range u.dirs {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		info, err := u.root.Lstat(name)
		if err != nil || !info.IsDir() {
			continue // something else of the same name came later
		}
		// A directory that was closed to its owner we could not remove as that.
		if err := u.root.Chmod(name, attrs.mode.Perm()|attrs.mode&fs.ModeSticky|0o700); err != nil {
			return err
		}
		if err := u.root.Chtimes(name, attrs.time, attrs.time); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) link(l link) error {
	to, err := steps(l.target)
	if err != nil {
		return err
	}
	if len(to) == 0 {
		return errors.New("not a file")
	}
	parent, err := u.follow(to[:len(to)-1])
	if err != nil {
		return err
	}
	target := path.Join(parent, to[len(to)-1])
	info, err := u.root.Lstat(target)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0 {
		return errors.New("not a file")
	}
	if _, err := u.root.Lstat(l.name); err == nil {
		return nil // something else of the same name came later
	}
	return u.root.Link(target, l.name)
}
