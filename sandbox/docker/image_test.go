package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func (all files) named(name string) file {
	return all[slices.IndexFunc(all, func(f file) bool { return f.name == name })]
}

func TestArchive(t *testing.T) {
	t.Parallel()
	upper, lower := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{
		upper + "/etc/over": "upper", lower + "/etc/over": "lower", lower + "/etc/under": "under",
		upper + "/hides": "a file", lower + "/hides/what": "is in a directory", lower + "/bin/tool": "tool", upper + "/home/agent/.keep": "",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o750)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Link(lower+"/bin/tool", lower+"/bin/twin"), os.Symlink("/etc/over", lower+"/link")); err != nil {
		t.Fatal(err)
	}
	merged, err := merge(t.Context(), []string{upper, lower})
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := merged.archive(t.Context(), &archive); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for r := tar.NewReader(&archive); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeSymlink:
			content = []byte("-> " + h.Linkname)
		case tar.TypeLink:
			content = []byte("= " + h.Linkname)
		}
		got[h.Name] = string(content)
		if h.Name == "home/agent/" && h.Mode != 0o1777 || h.Name == "etc/under" && h.Mode != 0o750 {
			t.Errorf("%s has mode %o", h.Name, h.Mode)
		}
	}
	if diff := cmp.Diff(map[string]string{
		"etc/": "", "etc/over": "upper", "etc/under": "under", "hides": "a file", "home/": "", "home/agent/": "", "home/agent/.keep": "",
		"bin/": "", "bin/tool": "tool", "bin/twin": "= bin/tool", "link": "-> /etc/over",
	}, got); diff != "" {
		t.Error(diff)
	}

	first := merged.fingerprint("", "/elsewhere")
	// What an archive was unpacked to once more is the same image.
	again := t.TempDir()
	if err := exec.CommandContext(t.Context(), "cp", "-a", lower+"/.", again).Run(); err != nil {
		t.Fatal(err)
	}
	if copied, err := merge(t.Context(), []string{upper, again}); err != nil || copied.fingerprint("", "/elsewhere") != first {
		t.Errorf("a copy has another fingerprint (%v)", err)
	}
	if err := os.WriteFile(lower+"/bin/tool", []byte("another tool"), 0o750); err != nil {
		t.Fatal(err)
	}
	changed, err := merge(t.Context(), []string{upper, lower})
	if err != nil {
		t.Fatal(err)
	}
	if changed.fingerprint("", "/elsewhere") == first {
		t.Error("a changed image has the same fingerprint")
	}
	// An archive is known by its content, and files where they are by a time that nobody sets.
	if merged.fingerprint("digest", "/elsewhere") == first {
		t.Error("another archive has the same fingerprint")
	}
	first = changed.fingerprint("", lower+"/")
	if err := errors.Join(os.WriteFile(lower+"/bin/tool", []byte("another loot"), 0o750), os.Chtimes(lower+"/bin/tool", time.Time{}, changed.named("bin/tool").info.ModTime())); err != nil {
		t.Fatal(err)
	}
	if same, err := merge(t.Context(), []string{upper, lower}); err != nil || same.fingerprint("", lower+"/") == first {
		t.Errorf("an image that was changed behind its dates has the same fingerprint (%v)", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := merge(ctx, []string{upper}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
