package rootfs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Linkname: content}
}

// archive makes a tar archive. The Linkname of a file is its content.
func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// image is the entries of an image that has what it needs.
func image(more ...tar.Header) []tar.Header {
	return append([]tar.Header{
		{Typeflag: tar.TypeDir, Name: "./usr/bin/", Mode: 0o755},
		file("./usr/bin/bash", "the shell"),
		{Typeflag: tar.TypeSymlink, Name: "./bin", Linkname: "usr/bin"},
		{Typeflag: tar.TypeReg, Name: "./etc/passwd", Mode: 0o644, Linkname: "root:x:0:0::/root:/bin/sh"},
		{Typeflag: tar.TypeReg, Name: "./etc/group", Mode: 0o644, Linkname: "root:x:0:\nagent:x:5:\n"},
	}, more...)
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstandard(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// imageLayout writes an OCI image layout with an image of these layers for each
// platform.
func imageLayout(t testing.TB, platforms []v1.Platform, layers ...[]byte) string {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range platforms {
		made := empty.Image
		for _, data := range layers {
			if made, err = mutate.AppendLayers(made, static.NewLayer(gzipped(t, data), types.OCILayer)); err != nil {
				t.Fatal(err)
			}
		}
		if made, err = mutate.CreatedAt(made, v1.Time{Time: time.Unix(int64(len(p.Architecture)), 0)}); err != nil {
			t.Fatal(err)
		}
		if err := path.AppendImage(made, layout.WithPlatform(p)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var here = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

func TestImages(t *testing.T) {
	t.Parallel()
	plain := archive(t, image()...)
	dir := t.TempDir()
	tree(t, dir, map[string]string{"bin": "-> usr/bin", "usr/bin/bash": "the shell",
		"etc/passwd": "root:x:0:0::/root:/bin/sh", "etc/group": "root:x:0:\nagent:x:5:\n"})
	for name, image := range map[string]string{
		"directory": dir,
		"tar":       write(t, "image.tar", plain),
		"gzip":      write(t, "image.tar.gz", gzipped(t, plain)),
		"zstd":      write(t, "named-otherwise", zstandard(t, plain)),
		"layout": imageLayout(t, []v1.Platform{{OS: "linux", Architecture: "z80"}, here},
			archive(t, append(image(), file("old", "x"), file("etc/dir/older", "x"))...),
			archive(t, file("./.wh.old", ""), file("etc/dir/.wh..wh..opq", ""), file("etc/new", "y"))),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache := filepath.Join(t.TempDir(), "cache")
			root, err := Open(t.Context(), image, cache)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			for name, want := range map[string]string{
				"/bin/bash":     "the shell",
				"/etc/passwd":   fmt.Sprintf("root:x:0:0::/root:/bin/sh\nagent:x:%d:%[1]d::/home/agent:/bin/bash\n", sandbox.User),
				"/etc/group":    fmt.Sprintf("root:x:0:\nagent:x:5:\nbailey-agent:x:%d:\n", sandbox.User),
				"/etc/hostname": "box\n",
			} {
				if got, err := root.ReadFile(name, 1<<10); err != nil || string(got) != want {
					t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
				}
			}
			if name == "layout" {
				if got, err := root.ReadFile("/etc/new", 10); err != nil || string(got) != "y" {
					t.Errorf("a file of the upper layer: %q, %v", got, err)
				}
				for _, gone := range []string{"/old", "/etc/dir/older", "/.wh.old"} {
					if _, err := root.ReadFile(gone, 10); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s, which the upper layer removes: %v", gone, err)
					}
				}
			}
			for _, name := range []string{"workspace", "home/agent", ".bailey", "tmp", "proc"} {
				info, err := os.Stat(filepath.Join(root.Layers[0], name))
				if err != nil || !info.IsDir() {
					t.Errorf("%s: %v, %v", name, info, err)
				}
				if name == "home/agent" && os.Geteuid() == 0 && info.Sys().(*syscall.Stat_t).Uid != sandbox.User {
					t.Error("the home directory is not the box's user's")
				}
			}
			// It is done once.
			before := list(t, cache)
			again, err := Open(t.Context(), image, cache)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if diff := cmp.Diff(root.Layers, again.Layers); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(before, list(t, cache)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestHostIsARootToo(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	root, err := Open(t.Context(), "", cache)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/bin/bash", "/usr/bin/env"} {
		if _, err := root.ReadFile(name, 64<<20); err != nil {
			t.Error(err)
		}
	}
	passwd, err := root.ReadFile("/etc/passwd", 1<<10)
	if err != nil || !bytes.Contains(passwd, []byte("agent:x:61000:")) {
		t.Errorf("%q, %v", passwd, err)
	}
	if _, err := root.ReadFile("/etc/shadow", 1<<20); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/etc/shadow: %v", err)
	}
	for _, dir := range root.Layers {
		if _, err := os.Stat(filepath.Join(dir, "..")); err != nil {
			t.Error(err)
		}
	}
	if err := root.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(cache); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestImagesThatAreNone(t *testing.T) {
	t.Parallel()
	layoutOf := func(change func(dir string)) string {
		dir := imageLayout(t, []v1.Platform{here}, archive(t, image()...))
		change(dir)
		return dir
	}
	blobs := func(dir string, change func(name string, data []byte)) {
		names, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			change(name, data)
		}
	}
	for name, c := range map[string]struct{ image, want string }{
		"relative":     {"some/dir", "absolute path"},
		"missing":      {"/no/such/image", "no such file"},
		"a device":     {"/dev/null", "neither"},
		"empty":        {write(t, "x", nil), "/bin/bash"},
		"no archive":   {write(t, "x", []byte(strings.Repeat("no tar ", 1000))), "read the archive"},
		"xz":           {write(t, "x", []byte("\xfd7zXZ\x00rest")), "gzip or zstd"},
		"half a gzip":  {write(t, "x", gzipped(t, archive(t, image()...))[:100]), "unexpected EOF"},
		"no shell":     {write(t, "x", archive(t, file("etc/passwd", "x"))), "/bin/bash"},
		"docker save":  {write(t, "x", archive(t, file("manifest.json", "[]"))), "docker export"},
		"no platform":  {imageLayout(t, []v1.Platform{{OS: "linux", Architecture: "z80"}}, archive(t)), "z80"},
		"two images":   {imageLayout(t, []v1.Platform{here, {OS: "linux", Architecture: runtime.GOARCH, Variant: "v9"}}, archive(t)), "2 images"},
		"empty layout": {imageLayout(t, nil), "no image"},
		"a layout without blobs": {layoutOf(func(dir string) {
			blobs(dir, func(name string, _ []byte) { _ = os.Remove(name) })
		}), "no such file"},
		"a changed layer": {layoutOf(func(dir string) {
			blobs(dir, func(name string, data []byte) {
				if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
					other := gzipped(t, archive(t, image(file("evil", "x"))...))
					if err := os.WriteFile(name, other, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			})
		}), "is damaged"},
		"no index": {layoutOf(func(dir string) { _ = os.WriteFile(filepath.Join(dir, "index.json"), []byte("{"), 0o644) }), "unexpected end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache := t.TempDir()
			root, err := Open(t.Context(), c.image, cache)
			if err == nil {
				root.Close()
				t.Fatal("it was taken")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if left, _ := filepath.Glob(filepath.Join(cache, "*.new")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// Whatever an archive holds, nothing of it lands outside, and what it is refused for is
// said.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	small := bounds{bytes: 1000, files: 10, names: 2000, name: 100, depth: 5, steps: 300}
	link := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
	}
	for name, c := range map[string]struct {
		entries []tar.Header
		want    map[string]string
		err     string
	}{
		"upwards":             {entries: []tar.Header{file("../escaped", "x")}, err: "upwards"},
		"upwards in between":  {entries: []tar.Header{file("a/../../escaped", "x")}, err: "upwards"},
		"absolute":            {entries: []tar.Header{file("/escaped", "x")}, want: map[string]string{"escaped": "x"}},
		"over a link":         {entries: []tar.Header{link("out", ".."), file("out/escaped", "x")}, want: map[string]string{"out": "-> ..", "escaped": "x"}},
		"over an absolute":    {entries: []tar.Header{link("out", "/"), file("out/escaped", "x")}, want: map[string]string{"out": "-> /", "escaped": "x"}},
		"over /proc":          {entries: []tar.Header{link("p", "/proc/self/root"), file("p/etc/x", "x")}, want: map[string]string{"p": "-> /proc/self/root", "proc/self/root/etc/x": "x"}},
		"through a link":      {entries: []tar.Header{link("f", "/escaped"), file("f", "x")}, want: map[string]string{"f": "x"}},
		"links in a circle":   {entries: []tar.Header{link("a", "b"), link("b", "a"), file("a/f", "x")}, err: "too many symbolic links"},
		"hard link outside":   {entries: []tar.Header{hard("h", "/etc/passwd")}, err: "no such file"},
		"hard link upwards":   {entries: []tar.Header{hard("h", "../../etc/passwd")}, err: "upwards"},
		"hard link over link": {entries: []tar.Header{link("out", "/"), hard("h", "out/etc/passwd")}, err: "no such file"},
		"hard link to a dir":  {entries: []tar.Header{file("d/f", "x"), hard("h", "d")}, err: "not a file"},
		"hard link to itself": {entries: []tar.Header{hard("h", "h")}, err: "no such file"},
		"hard link before":    {entries: []tar.Header{hard("h", "f"), file("f", "x")}, want: map[string]string{"f": "x", "h": "x"}},
		"a link moved": {entries: []tar.Header{file("a/f", "1"), link("l", "a"), file("l/g", "2"), link("l", "b"), file("l/h", "3")},
			want: map[string]string{"a/f": "1", "a/g": "2", "b/h": "3", "l": "-> b"}},
		"a directory over a link": {entries: []tar.Header{file("a/f", "1"), link("l", "a"), {Typeflag: tar.TypeDir, Name: "l/", Mode: 0o755}, file("l/g", "2")},
			want: map[string]string{"a/f": "1", "a/g": "2", "l": "-> a"}},
		"a directory over a link that leads nowhere": {entries: []tar.Header{link("l", "a"), {Typeflag: tar.TypeDir, Name: "l/", Mode: 0o755}, file("l/g", "2")},
			want: map[string]string{"l/g": "2"}},
		"a file over a directory": {entries: []tar.Header{file("d/f", "1"), file("d", "2")}, want: map[string]string{"d": "2"}},
		"a file under a file":     {entries: []tar.Header{file("d", "1"), file("d/f", "2")}, err: "file exists"},
		"devices": {entries: []tar.Header{{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
			{Typeflag: tar.TypeBlock, Name: "disk"}, {Typeflag: tar.TypeFifo, Name: "pipe"}, file("f", "x")}, want: map[string]string{"f": "x"}},
		"an odd type":                   {entries: []tar.Header{{Typeflag: 'Z', Name: "odd"}}, err: "unknown type"},
		"no name":                       {entries: []tar.Header{link("./.", "x")}, err: "not the name"},
		"many files":                    {entries: slicesOf(11, func(i int) tar.Header { return file(fmt.Sprint(i), "") }), err: "too many files"},
		"many bytes":                    {entries: []tar.Header{file("a", strings.Repeat("x", 600)), file("b", strings.Repeat("x", 600))}, err: "too many bytes"},
		"a long path":                   {entries: []tar.Header{file(strings.Repeat("x", 101), "")}, err: "longer than"},
		"a long link":                   {entries: []tar.Header{link("l", strings.Repeat("x", 101))}, err: "longer than"},
		"deep":                          {entries: []tar.Header{file("a/b/c/d/e/f", "")}, err: "one in another"},
		"deep by links":                 {entries: []tar.Header{link("a", "1/2/3"), link("a/b", "4/5/6"), file("a/b/f", "")}, err: "one in another"},
		"directories that nobody lists": {entries: slicesOf(4, func(i int) tar.Header { return file(fmt.Sprintf("%d/a/b/f", i), "") }), err: "too many files"},
		"a long way": {entries: []tar.Header{link("a", strings.Repeat("./", 45)), link("b", strings.Repeat("a/", 40)), link("c", strings.Repeat("a/", 40)),
			file("b/x/f", ""), file("c/x/g", "")}, err: "too long a way"},
		"a full directory goes": {entries: []tar.Header{file("d/e/f", "1"), file("d/g", "2"), link("d/e/l", "/"), link("d", "x")}, want: map[string]string{"d": "-> x"}},
		"closed to us":          {entries: []tar.Header{{Typeflag: tar.TypeDir, Name: "d", Mode: 0}, {Typeflag: tar.TypeReg, Name: "d/f", Mode: 0, Linkname: "x"}}, want: map[string]string{"d/f": "x"}},
		"the root twice":        {entries: []tar.Header{{Typeflag: tar.TypeDir, Name: "./", Mode: 0}, file("f", "x")}, want: map[string]string{"f": "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			outer := t.TempDir()
			dir := filepath.Join(outer, "in", "root")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			err := unpack(t.Context(), bytes.NewReader(archive(t, c.entries...)), dir, small)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v, want %q", err, c.err)
				}
			} else if err != nil {
				t.Error(err)
			} else if diff := cmp.Diff(c.want, list(t, dir)); diff != "" {
				t.Error(diff)
			}
			outside(t, outer)
			if err := os.RemoveAll(dir); err != nil {
				t.Errorf("what was unpacked cannot be removed: %v", err)
			}
		})
	}
}

// What is under way when the context ends is not gone on with.
func TestUnpackingEndsWithTheContext(t *testing.T) {
	t.Parallel()
	for name, entries := range map[string][]tar.Header{
		"between entries": {file("a", "1"), file("b", "2")},
		"replacing":       {file("d/a", "1"), file("d/b", "2"), file("d", "3")},
		"linking":         {file("a", "1"), {Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			whole := archive(t, entries...)
			// Wherever in the archive that is.
			for at := 0; at <= len(whole)-2*512; at += 512 { // at the end of which are two empty blocks
				ctx, cancel := context.WithCancel(t.Context())
				in := io.MultiReader(bytes.NewReader(whole[:at]), call(cancel), bytes.NewReader(whole[at:]))
				if err := unpack(ctx, in, t.TempDir(), unpackBounds); !errors.Is(err, context.Canceled) {
					t.Errorf("ended after %d of %d bytes: %v", at, len(whole), err)
				}
			}
		})
	}
}

// call is empty, and calls a function when that is found out.
type call func()

func (c call) Read([]byte) (int, error) {
	c()
	return 0, io.EOF
}

// A file of nothing but a hole takes no reading of the archive.
func TestUnpackingAHoleEndsWithTheContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	done := make(chan error, 1)
	go func() { done <- unpack(ctx, bytes.NewReader(hole(t, 30<<30)), dir, unpackBounds) }()
	for { // until it has begun
		if info, err := os.Stat(filepath.Join(dir, "f")); err == nil && info.Size() > 0 {
			break
		}
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// hole is an archive of a file f with nothing in it but a hole, as GNU tar has it: a
// list of no data in the file's place.
func hole(t testing.TB, size int64) []byte {
	t.Helper()
	block := func(kind byte, content string) []byte {
		head := make([]byte, 512, 1024)
		for at, field := range map[int]string{0: "f", 100: "0000644", 108: "0000000", 116: "0000000",
			124: fmt.Sprintf("%011o", len(content)), 136: "00000000000", 148: "        ", 156: string(kind), 257: "ustar\x0000"} {
			copy(head[at:], field)
		}
		sum := 0
		for _, b := range head {
			sum += int(b)
		}
		copy(head[148:], fmt.Sprintf("%06o\x00 ", sum))
		return append(append(head, content...), make([]byte, 512-len(content))...)
	}
	var records string
	for _, r := range []string{"major=1", "minor=0", "name=f", fmt.Sprintf("realsize=%d", size)} {
		r = " GNU.sparse." + r + "\n"
		records += fmt.Sprint(len(r)+2) + r
	}
	return slices.Concat(block('x', records), block('0', "0\n"+strings.Repeat("\x00", 510)), make([]byte, 1024))
}

// What lower layers hold costs as much to look through as what is seen in the end.
func TestLayersHoldNoMoreThanAnImageMay(t *testing.T) {
	t.Parallel()
	same := make([]tar.Header, 40)
	for i := range same {
		same[i] = file("same", "")
	}
	whiteouts := slicesOf(40, func(i int) tar.Header { return file(fmt.Sprintf(".wh.%d", i), "") })
	for name, layers := range map[string][][]tar.Header{
		"the same again and again": {same},
		"what is not there hidden": {whiteouts},
		"what is hidden":           {slicesOf(25, func(i int) tar.Header { return file(fmt.Sprint(i), "") }), slicesOf(25, func(i int) tar.Header { return file(fmt.Sprint(i), "") })},
		"many bytes":               {{file("f", strings.Repeat("x", 600))}, {file("f", strings.Repeat("x", 600))}},
	} {
		var data [][]byte
		for _, entries := range layers {
			data = append(data, archive(t, entries...))
		}
		index, err := layout.ImageIndexFromPath(imageLayout(t, []v1.Platform{here}, data...))
		if err != nil {
			t.Fatal(err)
		}
		image, digest, err := choose(index, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(t.Context(), image, digest, unpackBounds); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		err = verify(t.Context(), image, digest, bounds{bytes: 1000, files: 30, names: 2000, name: 100, depth: 5, steps: 1000})
		if err == nil || !strings.Contains(err.Error(), "too many") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// outside checks that there is nothing in a directory but in/root.
func outside(t testing.TB, outer string) {
	t.Helper()
	for dir, want := range map[string]string{outer: "in", filepath.Join(outer, "in"): "root"} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 || entries[0].Name() != want {
			t.Errorf("%s holds %v, %v", dir, entries, err)
		}
	}
}

func slicesOf[T any](n int, f func(int) T) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = f(i)
	}
	return all
}

func TestModesAndTimes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	when := time.Unix(1_000_000_000, 0)
	data := archive(t,
		tar.Header{Typeflag: tar.TypeReg, Name: "su", Mode: 0o6755, Uid: 0, Gid: 5, ModTime: when},
		tar.Header{Typeflag: tar.TypeReg, Name: "dark", Mode: 0, Uid: 1234, ModTime: when},
		tar.Header{Typeflag: tar.TypeDir, Name: "tmp", Mode: 0o1777, ModTime: when},
		tar.Header{Typeflag: tar.TypeReg, Name: "tmp/f", Mode: 0o640},
		tar.Header{Typeflag: tar.TypeDir, Name: "shared", Mode: 0o2770, ModTime: when},
	)
	if err := unpack(t.Context(), bytes.NewReader(data), dir, unpackBounds); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{
		"su": 0o755, "dark": 0o400, "tmp": fs.ModeDir | fs.ModeSticky | 0o777, "tmp/f": 0o640, "shared": fs.ModeDir | 0o770,
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != want || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
			t.Errorf("%s: %v of user %d, want %v", name, info.Mode(), info.Sys().(*syscall.Stat_t).Uid, want)
		}
		if name != "tmp/f" && !info.ModTime().Equal(when) {
			t.Errorf("%s: of %v", name, info.ModTime())
		}
	}
}

func TestReadFileStaysWithinWhatTheBoxSees(t *testing.T) {
	t.Parallel()
	upper, lower, mounted := t.TempDir(), t.TempDir(), t.TempDir()
	tree(t, upper, map[string]string{"etc/x": "upper", "up": "-> ../../../../../../etc/x", "abs": "-> /etc/x", "circle": "-> circle",
		"into": "-> /usr/f", "host": "-> " + filepath.Join(lower, "secret"), "out": "-> usr/out", "dots": "-> etc/../etc/./x"})
	tree(t, lower, map[string]string{"etc/x": "lower", "etc/y": "lower too", "secret": "secret", "usr/f": "hidden"})
	tree(t, mounted, map[string]string{"f": "mounted", "out": "-> ../etc/y"})
	r := &Root{Layers: []string{upper, lower}, Mounts: []Mount{{mounted, "/usr"}}}
	for name, want := range map[string]string{
		"/etc/x": "upper", "/etc/y": "lower too", "up": "upper", "/abs": "upper", "/into": "mounted", "/out": "lower too", "/dots": "upper",
		"/etc/../etc/y": "lower too", "//etc//y": "lower too",
	} {
		if got, err := r.ReadFile(name, 100); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]string{
		"/circle": "too many", "/host": "not exist", "/etc": "not a file", "/": "not a file", "": "not a file", "/none": "not exist", "/usr/none": "not exist",
	} {
		if got, err := r.ReadFile(name, 100); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v, want %q", name, got, err, want)
		}
	}
	if _, err := r.ReadFile("/etc/x", 4); err == nil {
		t.Error("a file of more bytes than wanted")
	}
}

// However many processes want an image at once, one unpacks it.
func TestImageIsUnpackedOnce(t *testing.T) {
	t.Parallel()
	image, cache := write(t, "image.tar", archive(t, image()...)), t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			root, err := Open(context.Background(), image, cache)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := root.ReadFile("/bin/bash", 100); err != nil || string(got) != "the shell" {
				t.Errorf("%q, %v", got, err)
			}
			if err := root.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made, err := filepath.Glob(filepath.Join(cache, "image-*[!k]")); err != nil || len(made) != 1 {
		t.Errorf("%v, %v", made, err)
	}
	// The same archive under another name is the same image.
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(t.Context(), write(t, "other.tar", data), cache)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if made, err := filepath.Glob(filepath.Join(cache, "image-*[!k]")); err != nil || len(made) != 1 {
		t.Errorf("%v, %v", made, err)
	}
}

func TestWaitingForAnImageEndsWithTheContext(t *testing.T) {
	t.Parallel()
	s, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	making, finish := make(chan struct{}), make(chan struct{})
	made := make(chan error, 1)
	go func() {
		e, err := s.get(context.Background(), "x", func(context.Context, string) error {
			close(making)
			<-finish
			return nil
		})
		if err == nil {
			err = e.close()
		}
		made <- err
	}()
	<-making
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.get(ctx, "x", nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(finish)
	if err := <-made; err != nil {
		t.Error(err)
	}
}

// Two workers that wait for one image, of which the lock's name is removed meanwhile,
// still make it once.
func TestALockWithoutItsNameLocksNothing(t *testing.T) {
	t.Parallel()
	s, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(s.dir, "x.lock")
	held := entry{dir: filepath.Join(s.dir, "x")}
	if err := held.open(); err != nil {
		t.Fatal(err)
	}
	if err := held.flock(t.Context(), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var makers, made atomic.Int32
	done := make(chan error, 2)
	get := func() {
		e, err := s.get(t.Context(), "x", func(context.Context, string) error {
			if makers.Add(1) > 1 {
				t.Error("two make it at once")
			}
			made.Add(1)
			time.Sleep(50 * time.Millisecond) // long enough for another to come
			makers.Add(-1)
			return nil
		})
		if err == nil {
			err = e.close()
		}
		done <- err
	}
	go get()
	for opened := 0; opened < 2; { // by the first, too
		opened = 0
		fds, _ := filepath.Glob("/proc/self/fd/*")
		for _, fd := range fds {
			if target, _ := os.Readlink(fd); target == name {
				opened++
			}
		}
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	go get()
	held.lock.Close()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := made.Load(); n != 1 {
		t.Errorf("it was made %d times", n)
	}
}

func TestUnusedImagesGo(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	s, err := openStore(cache)
	if err != nil {
		t.Fatal(err)
	}
	get := func(name string) *entry {
		t.Helper()
		e, err := s.get(t.Context(), name, func(_ context.Context, dir string) error {
			return os.WriteFile(filepath.Join(dir, "f"), nil, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	age := func(name string) {
		t.Helper()
		old := time.Now().Add(-2 * keepUnused)
		if err := os.Chtimes(filepath.Join(cache, name+".lock"), old, old); err != nil {
			t.Fatal(err)
		}
	}
	get("old").close()
	age("old")
	used := get("old-but-used")
	defer used.close()
	age("old-but-used")
	get("new").close()
	// Somebody was killed while making this, and somebody else with this in use.
	for _, name := range []string{"killed", "host-once-1"} {
		if err := os.WriteFile(filepath.Join(cache, name+".lock"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree(t, cache, map[string]string{"killed.new/half": "", "host-once-1/etc": ""})
	age("killed")

	get("another").close()
	want := map[string]string{"another.lock": "", "another/f": "", "new.lock": "", "new/f": "",
		"old-but-used.lock": "", "old-but-used/f": ""}
	if diff := cmp.Diff(want, list(t, cache)); diff != "" {
		t.Error(diff)
	}
	// And can come back.
	get("old").close()
}

func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, image()...))
	f.Add(archive(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/"}, file("a/b", "x"), tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "a/b"}))
	f.Add(gzipped(f, archive(f, file("a", "x"))))
	f.Add(zstandard(f, archive(f, file("a", "x"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "in", "root")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		in, err := decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer in.Close()
		_ = unpack(t.Context(), in, dir, bounds{bytes: 1 << 20, files: 100, names: 1 << 16, name: 1000, depth: 20, steps: 10_000}) // refused or not
		outside(t, outer)
		err = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err == nil && info.Mode()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSocket) != 0 {
				t.Errorf("%s is %v", name, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if err := removeAll(dir); err != nil {
			t.Error(err)
		}
	})
}
