package ns

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
)

// devices finds what a box must have to use the devices that its Spec names, and refuses
// what it cannot be given.
func (d *Driver) devices(spec sandbox.Spec) (cdi.Devices, error) {
	found, err := cdi.Resolve(spec.Devices, d.options.DeviceDirs...)
	if err != nil {
		return found, err
	}
	// What hooks do is to prepare the libraries among an image's. Those of the host are.
	if len(found.Hooks) > 0 && spec.Image != "" {
		return found, fmt.Errorf("devices %q: %s is to be run on the image, which this backend does not; use the host's own programs, or the backend oci",
			spec.Devices, found.Hooks[0].Path)
	}
	for _, node := range found.Nodes {
		if !within(node.Path, "/dev") || slices.Contains(harmless, node.Path) || within(node.Path, "/dev/pts") || within(node.Path, "/dev/shm") {
			return found, fmt.Errorf("device %s: cannot appear as %q", node.HostPath, node.Path)
		}
		info, err := os.Stat(node.HostPath)
		if err != nil {
			return found, err
		}
		// A box's users are members of no group of the host.
		if info.Mode()&fs.ModeDevice == 0 || info.Mode().Perm()&0o006 != 0o006 {
			return found, fmt.Errorf("device %s has the mode %v: a box can use what every user may read and write", node.HostPath, info.Mode())
		}
	}
	// A socket is a way to a program of the host that nobody has looked at. None of the
	// devices that there are needs one.
	found.Mounts = slices.DeleteFunc(found.Mounts, func(m cdi.Mount) bool {
		info, err := os.Stat(m.HostPath)
		return err == nil && info.Mode()&fs.ModeSocket != 0
	})
	for _, m := range found.Mounts {
		if within(m.Path, "/proc") || within(m.Path, "/dev") || within(m.Path, "/sys") {
			return found, fmt.Errorf("devices %q: %s cannot appear as %q", spec.Devices, m.HostPath, m.Path)
		}
	}
	return found, nil
}

// reportGPU says whether a box can have a GPU here.
func (d *Driver) reportGPU(report *sandbox.Report) {
	names, err := cdi.List(d.options.DeviceDirs...)
	if err != nil {
		report.Notes = append(report.Notes, fmt.Sprintf("Boxes can have no devices: %v.", err))
		return
	}
	report.GPU = slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, "nvidia.com/gpu=") })
}
