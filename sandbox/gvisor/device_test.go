package gvisor

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
	"github.com/bailey-platform/bailey/sandbox/gvisor/stage"
)

// No GPU is at hand where these tests run: that gVisor is told of it as it must be is
// all that is tried.
func TestGPUInTheBundle(t *testing.T) {
	t.Parallel()
	node := func(path string, major, minor int64) cdi.Node {
		return cdi.Node{HostPath: path, Path: path, Type: "c", Major: major, Minor: minor, Access: "rw"}
	}
	// As the descriptions have it that nvidia-ctk writes.
	gpu := cdi.Devices{
		GPUs: []string{"0"},
		Env:  []string{"NVIDIA_VISIBLE_DEVICES=void"},
		Nodes: []cdi.Node{
			node(nvidiactl, 195, 255), node("/dev/nvidia-uvm", 510, 0), node("/dev/nvidia-modeset", 195, 254),
			node("/dev/nvidia0", 195, 0), node("/dev/dri/card1", 226, 1),
		},
		Hooks:  []cdi.Hook{{Stage: "createContainer", Path: "/usr/bin/nvidia-cdi-hook", Args: []string{"nvidia-cdi-hook", "update-ldcache"}}},
		Mounts: []cdi.Mount{{HostPath: "/usr/lib/libcuda.so.1", Path: "/usr/lib/libcuda.so.1", Options: []string{"ro", "bind"}}},
	}
	found, err := offered([]string{"nvidia.com/gpu=0"}, gpu)
	if err != nil {
		t.Fatal(err)
	}
	on := &stage.Stage{Dir: "/box/stage"}
	b := bundle(on, nil, sandbox.Spec{WorkDir: "/work", Env: []string{"A=B"}}, found, true)
	if diff := cmp.Diff([]specs.LinuxDevice{
		{Path: "/dev/nvidiactl", Type: "c", Major: 195, Minor: 255},
		{Path: "/dev/nvidia-uvm", Type: "c", Major: 510},
		{Path: "/dev/nvidia0", Type: "c", Major: 195},
	}, b.Linux.Devices); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"A=B", "NVIDIA_VISIBLE_DEVICES=void"}, b.Process.Env); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(&specs.Hooks{CreateContainer: []specs.Hook{
		{Path: "/usr/bin/nvidia-cdi-hook", Args: []string{"nvidia-cdi-hook", "update-ldcache"}}}}, b.Hooks); diff != "" {
		t.Error(diff)
	}
	library := b.Mounts[len(b.Mounts)-1]
	if library.Destination != "/usr/lib/libcuda.so.1" || cmp.Diff([]string{"/usr/lib/libcuda.so.1"}, on.ReadOnly) != "" {
		t.Errorf("%+v from %q", library, on.ReadOnly)
	}

	none := bundle(&stage.Stage{Dir: "/box/stage"}, nil, sandbox.Spec{WorkDir: "/work"}, cdi.Devices{}, true)
	if len(none.Linux.Devices) > 0 || none.Hooks != nil {
		t.Errorf("a box without devices has %+v, %+v", none.Linux.Devices, none.Hooks)
	}

	for want, d := range map[string]cdi.Devices{
		"no others":           {Nodes: []cdi.Node{node("/dev/net0", 1, 2)}},
		"names no":            {GPUs: []string{"0"}, Nodes: []cdi.Node{node("/dev/nvidia0", 195, 0)}},
		"cannot show it":      {GPUs: []string{"0"}, Nodes: []cdi.Node{node(nvidiactl, 195, 255), {HostPath: "/dev/nvidia1", Path: "/dev/nvidia0"}}},
		`at "startContainer"`: {GPUs: []string{"0"}, Nodes: []cdi.Node{node(nvidiactl, 195, 255)}, Hooks: []cdi.Hook{{Stage: "startContainer"}}},
	} {
		if _, err := offered([]string{"some"}, d); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
	if _, err := devices([]string{"nvidia.com/gpu=0"}, []string{t.TempDir()}); err == nil {
		t.Error("a device that nothing describes")
	}
}
