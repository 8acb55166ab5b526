package rootfs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
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
}

var unpackBounds = bounds{bytes: 32 << 30, files: 2_000_000, names: 256 << 20, name: 4096, depth: 128}

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
// left out. Symbolic links stay what they are, as they are followed in boxes only.
func unpack(archive io.Reader, dir string, max bounds) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacker{root: root, left: max, parents: map[string]string{".": "."}}
	in := tar.NewReader(archive)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := u.entry(header, in); err != nil {
			return fmt.Errorf("unpack %.100q: %w", header.Name, err)
		}
	}
	return u.finish()
}

type unpacker struct {
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
	if u.left.files--; u.left.files < 0 {
		return errors.New("the archive holds too many files")
	}
	if len(header.Name) > u.left.name || len(header.Linkname) > u.left.name {
		return fmt.Errorf("a path is longer than %d bytes", u.left.name)
	}
	if u.left.names -= len(header.Name) + len(header.Linkname); u.left.names < 0 {
		return errors.New("the archive's paths are too long")
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
		if err := u.root.RemoveAll(name); err != nil {
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
	return u.file(name, header.Size, attrs, content)
}

func (u *unpacker) file(name string, size int64, attrs attributes, content io.Reader) error {
	if size > u.left.bytes {
		return errors.New("the archive holds too many bytes")
	}
	u.left.bytes -= size
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
	name, err := follow(u.root, steps)
	if err != nil {
		return "", err
	}
	if err := u.root.MkdirAll(name, 0o755); err != nil {
		return "", err
	}
	u.parents[key] = name
	return name, nil
}

func (u *unpacker) isDir(steps []string) bool {
	name, err := follow(u.root, steps)
	if err != nil {
		return false
	}
	info, err := u.root.Lstat(name)
	return err == nil && info.IsDir()
}

// follow returns where a path leads, as if root were the root of the file system, with
// no link left in it. What is not there is no link.
func follow(root *os.Root, steps []string) (string, error) {
	at := "."
	links := 0
	for rest := slices.Clone(steps); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at) // of "." it is "."
			continue
		}
		next := path.Join(at, part)
		info, err := root.Lstat(next)
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
		target, err := root.Readlink(next)
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
	parent, err := follow(u.root, to[:len(to)-1])
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
