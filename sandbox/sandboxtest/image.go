package sandboxtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/bailey-platform/bailey/sandbox"
)

// imagePrograms are what the suite's own image has of the host, with the libraries that
// they need. Without stty a shell that is talked to by way of a terminal repeats what it
// is told.
var imagePrograms = []string{"bash", "stty", "cat", "ls", "id", "touch", "mkdir", "rm"}

// imageMark is in a file of the suite's image.
const imageMark = "of the image"

// buildImage makes a small root of the host's programs.
func buildImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	add := func(source, target string) {
		t.Helper()
		data, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		target = filepath.Join(dir, target)
		if _, err := os.Lstat(target); err == nil {
			return
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.WriteFile(target, data, 0o755), os.Chmod(target, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range imagePrograms {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skip("the host has no", name, "to make an image of")
		}
		add(path, "/bin/"+name)
		libs, err := exec.Command("ldd", path).Output()
		if err != nil {
			continue // it needs none
		}
		for field := range strings.FieldsSeq(string(libs)) {
			if filepath.IsAbs(field) {
				add(field, field)
			}
		}
	}
	for name, content := range map[string]string{
		"etc/mark":   imageMark,
		"etc/passwd": "root:x:0:0::/:/bin/bash\nsomebody:x:7:7::/:/bin/bash\n",
		"etc/group":  "root:x:0:\n",
		"opt/tool":   "#!/bin/bash\necho tool\n",
	} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o755), os.Chmod(name, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("bash", filepath.Join(dir, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	// Whatever our umask is, and whoever the box is.
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			err = os.Chmod(name, 0o755)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// archived makes a tar archive of a directory.
func archived(t *testing.T, dir string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// images are the suite's image in every form.
func images(t *testing.T) map[string]string {
	t.Helper()
	dir := buildImage(t)
	data := archived(t, dir)
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, static.NewLayer(data, types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.Config(image, v1.Config{Env: []string{"PATH=/opt:/bin", "OF_IMAGE=yes", "GIVEN=image"}})
	if err != nil {
		t.Fatal(err)
	}
	oci := t.TempDir()
	path, err := layout.Write(oci, empty.Index)
	if err == nil {
		err = path.AppendImage(image, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"directory": dir, "tar": file, "OCI layout": oci}
}

// A box sees its image and nothing else, and changes nothing of it.
func (s suite) image(t *testing.T) {
	if !s.isolated() {
		spec := s.spec(t)
		spec.Image = t.TempDir()
		if box, err := s.driver.Start(t.Context(), spec); err == nil {
			stop(t, box)
			t.Error("the backend takes no images, and starts a box with one")
		}
		return
	}
	for kind, image := range images(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := s.driver.Prepare(ctx, image); err != nil {
				t.Fatal(err)
			}
			for i := range 2 { // a box of its own each, on what is there by now
				spec := s.spec(t)
				spec.Image = image
				spec.Env = append(spec.Env, "GIVEN=spec")
				shared := t.TempDir()
				spec.ReadOnly = map[string]string{"/mnt/shared": shared}
				spec.Files = map[string]string{"/etc/extra/deep": filepath.Join(t.TempDir(), "f"), "/etc/mark": filepath.Join(t.TempDir(), "g")}
				for target, source := range spec.Files {
					if err := os.WriteFile(source, []byte("mounted over "+target), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if i == 0 {
					spec.Files = nil
				}
				_, client := s.dial(t, spec)
				want := imageMark
				if i == 1 {
					want = "mounted over /etc/mark"
					if got := bash(t, client, "cat /etc/extra/deep"); got != "mounted over /etc/extra/deep" {
						t.Errorf("a file where the image has none: %q", got)
					}
				}
				if got := bash(t, client, "cat /etc/mark"); got != want {
					t.Errorf("a file of the image: %q, want %q", got, want)
				}
				if got := bash(t, client, "/opt/tool"); got != "tool" {
					t.Errorf("a program of the image: %q", got)
				}
				if got := bash(t, client, "id -u; id -un"); got != fmt.Sprintf("%d\nagent", sandbox.User) {
					t.Errorf("the user is %q", got)
				}
				if kind == "OCI layout" {
					// Its variables are beneath those of the box, and its programs beside them.
					if got := bash(t, client, "echo $OF_IMAGE $GIVEN; tool; ls >/dev/null"); got != "yes spec\ntool" {
						t.Errorf("with the image's variables: %q", got)
					}
				}
				bash(t, client, "echo x >$HOME/x; echo x >/tmp/x; echo x >x; cat x $HOME/x /tmp/x; ls /proc/self/fd /dev/null /mnt/shared")
				for _, command := range []string{"ls /usr/share", "ls /etc/ssl", "echo x >/bin/bash", "echo x >/etc/extra/deep"} {
					if text, failed := call(t, client, "bash", map[string]any{"command": command}); !failed {
						t.Errorf("%s: %s", command, text)
					}
				}
				// What a box does to the image, it does to its own.
				call(t, client, "bash", map[string]any{"command": "rm -rf /opt; echo x >/etc/group; mkdir /new; touch /bin/new"})
			}
			if kind != "directory" {
				return
			}
			for name, want := range map[string]bool{"opt/tool": true, "new": false, "bin/new": false, "etc/extra": false, "workspace": false} {
				if _, err := os.Lstat(filepath.Join(image, name)); (err == nil) != want {
					t.Errorf("on the host, after boxes have changed what they could: %s: %v", name, err)
				}
			}
			if got, err := os.ReadFile(filepath.Join(image, "etc/group")); err != nil || string(got) != "root:x:0:\n" {
				t.Errorf("on the host, a file of the image holds %q, %v", got, err)
			}
		})
	}
}

// What is no image starts no box.
func (s suite) imageRefused(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.tar")
	if err := os.WriteFile(broken, []byte(strings.Repeat("no archive ", 100)), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string]string{
		"missing": "/no/such/image", "a device": "/dev/null", "a broken archive": broken, "a directory without a shell": t.TempDir(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := s.spec(t)
			spec.Image = image
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			box, err := s.driver.Start(ctx, spec)
			if err == nil {
				stop(t, box)
				t.Fatal("started")
			}
			t.Log(err)
			spec.Image = ""
			stop(t, s.start(t, spec))
		})
	}
}
