package verify

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A socket's file that is seen is no way out; one that somebody answers at is.
func TestConnect(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, kind := range []string{"unix", "unixpacket", "unixgram"} {
		path := filepath.Join(dir, kind)
		var end interface{ Close() error }
		var err error
		if kind == "unixgram" {
			end, err = net.ListenUnixgram(kind, &net.UnixAddr{Name: path, Net: kind})
		} else {
			end, err = net.Listen(kind, path)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := connect(path); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		end.Close()
	}
	dead := filepath.Join(dir, "dead")
	if err := os.WriteFile(dead, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dead, filepath.Join(dir, "none")} {
		if err := connect(path); err == nil {
			t.Errorf("%s was connected to", path)
		}
	}
}

// A change was reported as "changed (<nil>)".
func TestUnchangedSaysWhatHappened(t *testing.T) {
	t.Parallel()
	h := &host{}
	h.bait.script, h.bait.secret = filepath.Join(t.TempDir(), "script"), "s"
	if out := unchanged(h, outcome{}); out.Status != Broken || !strings.Contains(out.Saw, "cannot be read") {
		t.Errorf("%+v", out)
	}
	if err := os.WriteFile(h.bait.script, []byte("other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := unchanged(h, outcome{}); out.Status != Broken || strings.Contains(out.Saw, "nil") {
		t.Errorf("%+v", out)
	}
}
