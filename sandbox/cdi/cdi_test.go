package cdi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// nvidia is a description as NVIDIA's tool writes it, of devices that every host has.
const nvidia = `---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/zero
- name: "1"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
      hostPath: /dev/full
      permissions: r
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/zero
    - path: /dev/nvidia1
      hostPath: /dev/full
      permissions: r
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
  - path: /dev/nvidiactl
    hostPath: /dev/null
    type: c
    major: 1
    minor: 3
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib/x86_64-linux-gnu]
  mounts:
  - hostPath: /usr/bin/nvidia-smi
    containerPath: /usr/bin/nvidia-smi
    options: [ro, nosuid, nodev, bind]
`

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestResolve(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"nvidia.yaml": nvidia, "other.json": `{
		"cdiVersion": "0.7.0", "kind": "vendor.example/tape",
		"devices": [{"name": "one", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}], "additionalGids": [7, 7, 9]}}]}`})
	zero := Node{HostPath: "/dev/zero", Path: "/dev/nvidia0", Type: "c", Major: 1, Minor: 5, Access: "rwm"}
	full := Node{HostPath: "/dev/full", Path: "/dev/nvidia1", Type: "c", Major: 1, Minor: 7, Access: "r"}
	ctl := Node{HostPath: "/dev/null", Path: "/dev/nvidiactl", Type: "c", Major: 1, Minor: 3, Access: "rwm"}
	shared := Devices{
		Env:    []string{"NVIDIA_VISIBLE_DEVICES=void"},
		Mounts: []Mount{{"/usr/bin/nvidia-smi", "/usr/bin/nvidia-smi", []string{"ro", "nosuid", "nodev", "bind"}}},
		Hooks: []Hook{{Stage: "createContainer", Path: "/usr/bin/nvidia-cdi-hook",
			Args: []string{"nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib/x86_64-linux-gnu"}}},
	}
	with := func(d Devices, gpus []string, nodes ...Node) Devices {
		d.GPUs, d.Nodes = gpus, append([]Node{ctl}, nodes...)
		return d
	}
	for names, want := range map[string]Devices{
		"":                                    {},
		"nvidia.com/gpu=1":                    with(shared, []string{"1"}, full),
		"nvidia.com/gpu=all":                  with(shared, []string{"all"}, zero, full),
		"nvidia.com/gpu=0 nvidia.com/gpu=all": with(shared, []string{"0", "all"}, zero, full),
		"vendor.example/tape=one": {
			Nodes:  []Node{{HostPath: "/dev/null", Path: "/dev/null", Type: "c", Major: 1, Minor: 3, Access: "rwm"}},
			Groups: []uint32{7, 9},
		},
	} {
		got, err := Resolve(strings.Fields(names), dir)
		if err != nil {
			t.Errorf("%s: %v", names, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", names, diff)
		}
	}
	list, err := List(dir)
	if diff := cmp.Diff([]string{"nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=all", "vendor.example/tape=one"}, list); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
}

func TestErrorsSayWhatThereIs(t *testing.T) {
	t.Parallel()
	one := func(edits string) string {
		return `{"cdiVersion": "0.7.0", "kind": "v.example/dev", "devices": [{"name": "d", "containerEdits": ` + edits + `}]}`
	}
	for name, c := range map[string]struct {
		files map[string]string
		name  string
		want  []string
	}{
		"no devices":            {nil, "nvidia.com/gpu=all", []string{"none of this name in", "nvidia-ctk cdi generate"}},
		"another":               {map[string]string{"n.yaml": nvidia}, "nvidia.com/gpu=7", []string{"nvidia.com/gpu=0, nvidia.com/gpu=1, nvidia.com/gpu=all"}},
		"no name":               {nil, "gpu", []string{"vendor.com/class=name"}},
		"a path":                {nil, "/dev/sda", []string{"vendor.com/class=name"}},
		"a broken file":         {map[string]string{"n.yaml": "kind: [", "x.txt": "ignored"}, "nvidia.com/gpu=0", []string{"n.yaml cannot be used"}},
		"a missing device":      {map[string]string{"x.json": one(`{"deviceNodes": [{"path": "/dev/no-such-device"}]}`)}, "v.example/dev=d", []string{"no such file"}},
		"a file":                {map[string]string{"x.json": one(`{"deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/passwd"}]}`)}, "v.example/dev=d", []string{"no device"}},
		"another device":        {map[string]string{"x.json": one(`{"deviceNodes": [{"path": "/dev/null", "type": "c", "major": 8, "minor": 0}]}`)}, "v.example/dev=d", []string{"c 1:3", "c 8:0"}},
		"elsewhere":             {map[string]string{"x.json": one(`{"deviceNodes": [{"path": "/etc/null", "hostPath": "/dev/null"}]}`)}, "v.example/dev=d", []string{"not in /dev"}},
		"a mount with dots":     {map[string]string{"x.json": one(`{"mounts": [{"hostPath": "/usr/../etc", "containerPath": "/x"}]}`)}, "v.example/dev=d", []string{"without dots"}},
		"a mount over all":      {map[string]string{"x.json": one(`{"mounts": [{"hostPath": "/usr", "containerPath": "/"}]}`)}, "v.example/dev=d", []string{"without dots"}},
		"cache":                 {map[string]string{"x.json": one(`{"intelRdt": {"closID": "x"}}`)}, "v.example/dev=d", []string{"processor's cache"}},
		"one path for two":      {map[string]string{"x.json": one(`{"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null"}, {"path": "/dev/x", "hostPath": "/dev/zero"}]}`)}, "v.example/dev=d", []string{"/dev/null", "/dev/zero"}},
		"one value for two":     {map[string]string{"x.json": one(`{"env": ["A=1", "A=2"]}`)}, "v.example/dev=d", []string{"A=1", "A=2"}},
		"a class of one letter": {map[string]string{"x.json": strings.ReplaceAll(one(`{"env": ["A=1"]}`), "/dev", "/d")}, "v.example/d=d", []string{"broken"}},
		"nothing in a spec":     {map[string]string{"x.json": one(`{}`)}, "v.example/dev=d", []string{"x.json cannot be used"}},
		"a duplicate device":    {map[string]string{"a.yaml": nvidia, "b.yaml": nvidia}, "nvidia.com/gpu=0", []string{"a.yaml cannot be used", "b.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := write(t, c.files)
			d, err := Resolve([]string{c.name}, dir, filepath.Join(dir, "missing"))
			if err == nil {
				t.Fatalf("%+v", d)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want %q", err, want)
				}
			}
		})
	}
}

func FuzzResolve(f *testing.F) {
	f.Add(nvidia)
	f.Add(`{"cdiVersion": "0.7.0", "kind": "v.example/dev", "devices": [{"name": "d", "containerEdits": {"env": ["A=1"]}}]}`)
	f.Fuzz(func(t *testing.T, spec string) {
		dir := write(t, map[string]string{"x.yaml": spec})
		names, err := List(dir)
		if err != nil {
			return
		}
		for _, name := range names {
			d, err := Resolve([]string{name}, dir)
			if err != nil {
				continue
			}
			for _, n := range d.Nodes {
				if !strings.HasPrefix(n.Path, "/dev") || !filepath.IsAbs(n.HostPath) || n.Type == "" {
					t.Errorf("%+v", n)
				}
			}
		}
	})
}
