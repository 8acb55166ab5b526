package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A device that every host has stands for one that few have.
func TestDevices(t *testing.T) {
	t.Parallel()
	dirs := t.TempDir()
	library := filepath.Join(dirs, "library")
	if err := os.WriteFile(library, []byte("a library"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dirs, "acme.json"), []byte(`{"cdiVersion": "0.6.0", "kind": "acme.com/gpu", "devices": [{"name": "0", "containerEdits": {
		"deviceNodes": [{"path": "/dev/acme0", "hostPath": "/dev/zero"}],
		"mounts": [{"hostPath": "`+library+`", "containerPath": "/opt/acme/lib", "options": ["ro"]}],
		"env": ["ACME=on", "HOME=/elsewhere"]}}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range engines {
		t.Run(name, func(t *testing.T) {
			if name == "runc" && os.Geteuid() != 0 {
				t.Skip("an ordinary user cannot use runc")
			}
			t.Parallel()
			driver := openWith(t, name, t.TempDir(), dirs)
			s := spec("gpu", t.TempDir())
			s.Devices = []string{"acme.com/gpu=0"}
			_, client := start(t, driver, s)
			got := bash(t, client, "head -c 3 /dev/acme0 | wc -c; cat /opt/acme/lib; echo; echo $ACME $HOME; (echo x >/opt/acme/lib) 2>&1 | grep -o Read-only")
			if got != "3\na library\non /home/agent\nRead-only" {
				t.Errorf("%q", got)
			}
			s = spec("none", t.TempDir())
			_, client = start(t, driver, s)
			if got := bash(t, client, "ls /dev/acme0 /opt/acme || true"); strings.Contains(got, "lib\n") {
				t.Errorf("a box without the device has %q", got)
			}
			report, err := driver.Check(t.Context())
			if err != nil || !report.GPU {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
}
