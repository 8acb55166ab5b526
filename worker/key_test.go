package worker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKeyFileThatOthersCanRead: such a key is no secret.
func TestKeyFileThatOthersCanRead(t *testing.T) {
	t.Parallel()
	root := os.Geteuid() == 0
	for _, tt := range []struct {
		in   string
		mode os.FileMode
		ok   bool
	}{
		{"", 0o600, true},
		{"", 0o400, true},
		{"", 0o440, root}, // as systemd and people give it to a service's group
		{"", 0o640, root},
		{"", 0o644, false},
		{"", 0o604, false},
		{"", 0o660, false},
		{"/dev/shm", 0o444, root}, // as Kubernetes does
		{"/dev/shm", 0o646, false},
	} {
		dir := t.TempDir()
		if tt.in != "" {
			var err error
			if dir, err = os.MkdirTemp(tt.in, "bailey-key-"); err != nil {
				t.Skipf("no file system in memory: %v", err)
			}
			defer os.RemoveAll(dir)
		}
		path := filepath.Join(dir, "key")
		if err := os.WriteFile(path, []byte("sk-test\n"), tt.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil || tt.in == "" && fs.Type == unix.TMPFS_MAGIC {
			continue // temporary files are in memory here, and so judged like those
		}
		key, err := KeyFile(path)()
		if tt.ok && (err != nil || key != "sk-test") {
			t.Errorf("%s mode %#o: %q, %v", tt.in, tt.mode, key, err)
		}
		if !tt.ok && (err == nil || !strings.Contains(err.Error(), "chmod 600")) {
			t.Errorf("%s mode %#o: %v, want a refusal with its remedy", tt.in, tt.mode, err)
		}
		if err != nil && strings.Contains(err.Error(), "sk-test") {
			t.Errorf("the error tells the key: %v", err)
		}
	}
}
