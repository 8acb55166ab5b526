package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/bailey-platform/bailey/sandbox"
)

// addImage makes a root of an image, with a layer over it of what every box needs.
func (r *Root) addImage(ctx context.Context, store store, image string) error {
	if !filepath.IsAbs(image) {
		return errors.New("want the absolute path of a directory, of a tar archive or of an OCI image layout")
	}
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	var files string
	switch {
	case info.Mode().IsRegular():
		files, err = r.addArchive(ctx, store, image, info)
	case !info.IsDir():
		err = errors.New("it is neither a directory nor a file")
	case isLayout(image):
		files, err = r.addLayout(ctx, store, image)
	default:
		files = image
	}
	if err != nil {
		return err
	}
	r.Layers = []string{files}
	base, err := r.addBase(ctx, store)
	if err != nil {
		return err
	}
	r.Layers = []string{base, files}
	return nil
}

// addArchive unpacks a tar archive. It is known by the digest of its content, and that
// by what the file system says of it, so that it is not read each time.
func (r *Root) addArchive(ctx context.Context, store store, image string, info fs.FileInfo) (string, error) {
	stat := info.Sys().(*syscall.Stat_t)
	identity := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %d %d %d", image, stat.Dev, stat.Ino, stat.Size, info.ModTime().UnixNano(), stat.Ctim.Nano()))
	known, err := r.hold(store.get(ctx, "tar-"+hex.EncodeToString(identity[:16]), func(ctx context.Context, dir string) error {
		digest, err := digestOf(ctx, image)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "sha256"), []byte(digest), 0o600)
	}))
	if err != nil {
		return "", err
	}
	digest, err := os.ReadFile(filepath.Join(known, "sha256"))
	if err != nil {
		return "", err
	}
	r.Digest = string(digest)
	return r.hold(store.get(ctx, "image-"+r.Digest, func(ctx context.Context, dir string) error {
		file, err := os.Open(image)
		if err != nil {
			return err
		}
		defer file.Close()
		sum := sha256.New()
		all := io.TeeReader(withContext(ctx, file), sum)
		tree, err := decompress(all)
		if err != nil {
			return err
		}
		defer tree.Close()
		if err := unpack(ctx, tree, dir, unpackBounds); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, all); err != nil {
			return err
		}
		if hex.EncodeToString(sum.Sum(nil)) != r.Digest {
			return errors.New("it changed while it was unpacked")
		}
		return nil
	}))
}

func digestOf(ctx context.Context, name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, withContext(ctx, file)); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func isLayout(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, "oci-layout"))
	return err == nil
}

// addLayout unpacks the image for this platform of an OCI image layout, known by the
// digest of its manifest.
func (r *Root) addLayout(ctx context.Context, store store, dir string) (string, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return "", err
	}
	image, digest, err := choose(index, 0)
	if err != nil {
		return "", err
	}
	if r.Env, err = variables(image); err != nil {
		return "", err
	}
	r.Digest = digest.Hex
	return r.hold(store.get(ctx, "image-"+r.Digest, func(ctx context.Context, dir string) error {
		if err := verify(ctx, image, digest, unpackBounds); err != nil {
			return err
		}
		tree := mutate.Extract(cancellable{image, ctx})
		defer tree.Close()
		in := withContext(ctx, tree)
		if err := unpack(ctx, in, dir, unpackBounds); err != nil {
			return err
		}
		// What goes wrong with the layers comes only after the end of the archive that
		// the library makes of them.
		_, err := io.Copy(io.Discard, in)
		return err
	}))
}

// envMax bounds the variables of an image, in bytes.
const envMax = 64 << 10

// variables are those that an image says its programs have. What says so is checked, as
// layers are.
func variables(image v1.Image) ([]string, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return nil, err
	}
	data, err := image.RawConfigFile()
	if err != nil {
		return nil, err
	}
	if got, _, err := v1.SHA256(bytes.NewReader(data)); err != nil || got != manifest.Config.Digest {
		return nil, errors.Join(fmt.Errorf("the configuration %s is damaged: it is %s", manifest.Config.Digest, got), err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	size := 0
	for _, v := range config.Config.Env {
		if i := strings.Index(v, "="); i < 1 || strings.ContainsRune(v, 0) {
			return nil, fmt.Errorf("its configuration has a variable %.20q, which is not KEY=value", v)
		}
		size += len(v)
	}
	if size > envMax {
		return nil, fmt.Errorf("its configuration has %d bytes of variables, and %d are the most", size, envMax)
	}
	return config.Config.Env, nil
}

// cancellable is an image whose layers can be read until ctx ends.
type cancellable struct {
	v1.Image
	ctx context.Context
}

func (c cancellable) Layers() ([]v1.Layer, error) {
	layers, err := c.Image.Layers()
	for i := range layers {
		layers[i] = cancellableLayer{layers[i], c.ctx}
	}
	return layers, err
}

type cancellableLayer struct {
	v1.Layer
	ctx context.Context
}

func (l cancellableLayer) Uncompressed() (io.ReadCloser, error) {
	content, err := l.Layer.Uncompressed()
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{withContext(l.ctx, content), content}, nil
}

// verify checks that an image's parts are those which their digests say, and that they
// hold no more than they may, also of what upper layers hide: of both, the library takes
// what it finds on disk.
func verify(ctx context.Context, image v1.Image, digest v1.Hash, max bounds) error {
	manifest, err := image.RawManifest()
	if err != nil {
		return err
	}
	if got, _, err := v1.SHA256(bytes.NewReader(manifest)); err != nil || got != digest {
		return errors.Join(fmt.Errorf("the manifest %s is damaged: it is %s", digest, got), err)
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		want, err := layer.Digest()
		if err != nil {
			return err
		}
		content, err := layer.Compressed()
		if err != nil {
			return err
		}
		sum := sha256.New()
		in := io.TeeReader(withContext(ctx, content), sum)
		held := max.takeAll(in)
		_, err = io.Copy(io.Discard, in)
		if err := errors.Join(err, content.Close()); err != nil {
			return err
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
			return fmt.Errorf("the layer %s is damaged: it is sha256:%s", want, got)
		}
		if held != nil {
			return fmt.Errorf("the layer %s: %w", want, held)
		}
	}
	return nil
}

// takeAll takes all entries of an archive, which may be compressed.
func (b *bounds) takeAll(archive io.Reader) error {
	tree, err := decompress(archive)
	if err != nil {
		return err
	}
	defer tree.Close()
	for in := tar.NewReader(tree); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if err := b.take(header); err != nil {
			return err
		}
	}
}

// choose finds the one image for this platform in an index, which may hold others.
func choose(index v1.ImageIndex, depth int) (v1.Image, v1.Hash, error) {
	if depth > 2 {
		return nil, v1.Hash{}, errors.New("its indexes lead to too many others")
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, v1.Hash{}, err
	}
	var fit []v1.Descriptor
	var others []string
	for _, d := range manifest.Manifests {
		switch {
		case !d.MediaType.IsImage() && !d.MediaType.IsIndex():
		case d.Platform == nil || d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH:
			fit = append(fit, d)
		default:
			others = append(others, d.Platform.String())
		}
	}
	switch {
	case len(fit) == 0:
		return nil, v1.Hash{}, fmt.Errorf("it holds no image for linux/%s (but for: %s)", runtime.GOARCH, strings.Join(others, ", "))
	case len(fit) > 1:
		return nil, v1.Hash{}, fmt.Errorf("it holds %d images for linux/%s; give each a layout of its own", len(fit), runtime.GOARCH)
	}
	if fit[0].MediaType.IsIndex() {
		inner, err := index.ImageIndex(fit[0].Digest)
		if err != nil {
			return nil, v1.Hash{}, err
		}
		return choose(inner, depth+1)
	}
	image, err := index.Image(fit[0].Digest)
	return image, fit[0].Digest, err
}

// shell is what every image must have.
const shell = "/bin/bash"

const accountsMax = 1 << 20 // bytes of an image's list of users, or of groups

// addBase makes the layer over an image: directories that something is mounted on, and
// what the box's user is called.
func (r *Root) addBase(ctx context.Context, store store) (string, error) {
	if _, _, err := r.find(shell); err != nil {
		if _, _, saved := r.find("/manifest.json"); saved == nil {
			err = fmt.Errorf("%w; it looks like what `docker save` writes: give what `docker export` writes of a container, or an OCI image layout", err)
		}
		return "", fmt.Errorf("the tools need %s: %w", shell, err)
	}
	files := make(map[string]string)
	for name, line := range map[string]string{
		"passwd": fmt.Sprintf("%%s:x:%d:%[1]d::%s:/bin/bash\n", sandbox.User, sandbox.HomePath),
		"group":  fmt.Sprintf("%%s:x:%d:\n", sandbox.User),
	} {
		list, err := r.ReadFile("/etc/"+name, accountsMax)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if len(list) > 0 && !bytes.HasSuffix(list, []byte("\n")) {
			list = append(list, '\n')
		}
		files[name] = string(list) + fmt.Sprintf(line, freeName(list))
	}
	files["hosts"], files["hostname"] = hosts, Hostname+"\n"

	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(sum, "%s %d %s", name, len(files[name]), files[name])
	}
	return r.hold(store.get(ctx, "base-"+hex.EncodeToString(sum.Sum(nil)), func(_ context.Context, dir string) error {
		if err := makeDirs(dir, append([]directory{{"etc", 0o755}, {"dev", 0o755}, {"proc", 0o555}, {"sys", 0o555}}, boxDirs...)); err != nil {
			return err
		}
		for name, content := range files {
			name = filepath.Join(dir, "etc", name)
			if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
				return err
			}
			if err := os.Chmod(name, 0o644); err != nil {
				return err
			}
		}
		return giveHome(dir, os.Geteuid() == 0)
	}))
}

// freeName is the name of the box's user in a list of accounts.
func freeName(list []byte) string {
	for line := range bytes.Lines(list) {
		if bytes.HasPrefix(line, []byte("agent:")) {
			return "bailey-agent"
		}
	}
	return "agent"
}

// withContext reads until ctx ends.
func withContext(ctx context.Context, r io.Reader) io.Reader { return &contextReader{ctx, r} }

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
