package gvisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
	"github.com/bailey-platform/bailey/sandbox/gvisor/stage"
)

// gpuNodes are the device files whose system calls gVisor has an understanding of. It
// passes them on to the driver one by one; what else comes with a GPU, such as those
// for displays, a box does without.
var gpuNodes = regexp.MustCompile(`^/dev/nvidia([0-9]+|ctl|-uvm)$`)

// nvidiactl is the device that every use of a GPU begins with.
const nvidiactl = "/dev/nvidiactl"

// devices finds what a box must have to use the devices named.
func devices(names, dirs []string) (cdi.Devices, error) {
	found, err := cdi.Resolve(names, dirs...)
	if err != nil || len(names) == 0 {
		return found, err
	}
	return offered(names, found)
}

// offered is what gVisor can offer of what was found. It refuses all but NVIDIA's GPUs,
// as gVisor would leave them out without a word.
func offered(names []string, found cdi.Devices) (cdi.Devices, error) {
	if len(found.GPUs) < len(names) {
		return found, fmt.Errorf("devices %q: a box on gVisor can have GPUs of NVIDIA (nvidia.com/gpu=…) and no others", names)
	}
	found.Nodes = slices.DeleteFunc(found.Nodes, func(n cdi.Node) bool { return !gpuNodes.MatchString(n.Path) })
	if !slices.ContainsFunc(found.Nodes, func(n cdi.Node) bool { return n.Path == nvidiactl }) {
		return found, fmt.Errorf("devices %q: their description names no %s, without which gVisor offers no GPU; write it anew with nvidia-ctk cdi generate", names, nvidiactl)
	}
	for _, node := range found.Nodes {
		if node.HostPath != node.Path {
			return found, fmt.Errorf("device %s: gVisor cannot show it as %s", node.HostPath, node.Path)
		}
	}
	for _, hook := range found.Hooks {
		if hook.Stage != "createContainer" {
			return found, fmt.Errorf("devices %q: %s is to be run at %q, which gVisor does not", names, hook.Path, hook.Stage)
		}
	}
	return found, nil
}

// addDevices puts devices into a bundle.
func addDevices(b *specs.Spec, on *stage.Stage, d cdi.Devices) {
	for _, node := range d.Nodes {
		b.Linux.Devices = append(b.Linux.Devices, specs.LinuxDevice{Path: node.Path, Type: node.Type, Major: node.Major, Minor: node.Minor})
	}
	for _, m := range d.Mounts {
		b.Mounts = append(b.Mounts, bind(on.Source(m.HostPath), m.Path, "ro"))
	}
	for _, hook := range d.Hooks {
		if b.Hooks == nil {
			b.Hooks = new(specs.Hooks)
		}
		b.Hooks.CreateContainer = append(b.Hooks.CreateContainer, specs.Hook{Path: hook.Path, Args: hook.Args, Env: hook.Env})
	}
	b.Process.Env = append(slices.Clip(b.Process.Env), d.Env...)
	b.Process.User.AdditionalGids = append(b.Process.User.AdditionalGids, d.Groups...)
}

// reportGPU says whether a box can have a GPU here.
func reportGPU(report *sandbox.Report, dirs []string) {
	if _, err := os.Stat(nvidiactl); errors.Is(err, fs.ErrNotExist) {
		return // there is none, and nothing to say of it
	}
	names, err := cdi.List(dirs...)
	report.GPU = slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, "nvidia.com/gpu=") })
	switch {
	case err != nil:
		report.Notes = append(report.Notes, fmt.Sprintf("Boxes can have no GPU: %v.", err))
	case !report.GPU:
		report.Notes = append(report.Notes, "Boxes can have no GPU, as no description names one; nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml writes it.")
	}
}
