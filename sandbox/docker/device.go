package docker

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
)

// The oldest versions that give a container a device by its name: podman's older ones
// leave it out without a word.
const (
	cdiDocker = "1.44" // of the API; docker 25
	cdiPodman = 6      // of podman itself
)

// byName reports whether the daemon knows devices by their names.
func (found *daemon) byName() bool {
	if found.kind == Podman {
		var major int
		_, err := fmt.Sscanf(found.info.ServerVersion, "%d.", &major)
		return err == nil && major >= cdiPodman
	}
	return !before(found.client.ClientVersion(), cdiDocker) && len(found.info.CDISpecDirs) > 0
}

// requests says how the daemon is asked for devices. dirs are where they are described.
func (found *daemon) requests(names, dirs []string) ([]container.DeviceRequest, error) {
	if len(names) == 0 {
		return nil, nil
	}
	// The daemon would not say what there is instead.
	devices, err := cdi.Resolve(names, dirs...)
	if err != nil {
		return nil, err
	}
	if found.byName() {
		return []container.DeviceRequest{{Driver: "cdi", DeviceIDs: names}}, nil
	}
	if found.kind == Podman {
		return nil, fmt.Errorf("devices %q: podman %s gives none by its API; podman %d does", names, found.info.ServerVersion, cdiPodman)
	}
	if len(devices.GPUs) < len(names) {
		return nil, fmt.Errorf("devices %q: this daemon gives GPUs of NVIDIA (nvidia.com/gpu=…) and no others; "+
			"docker 25 gives all that are described, with \"features\": {\"cdi\": true} in /etc/docker/daemon.json", names)
	}
	// As `docker run --gpus` does.
	request := container.DeviceRequest{Driver: "nvidia", DeviceIDs: devices.GPUs, Capabilities: [][]string{{"gpu"}}}
	if slices.Contains(devices.GPUs, "all") {
		request.DeviceIDs, request.Count = nil, -1
	}
	return []container.DeviceRequest{request}, nil
}

// reportGPU says whether a box can have a GPU here.
func (found *daemon) reportGPU(report *sandbox.Report, dirs []string) {
	names, err := cdi.List(dirs...)
	there := slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, "/gpu=") })
	_, nvidia := found.info.Runtimes["nvidia"]
	report.GPU = there && (found.byName() || nvidia && found.kind == Docker)
	switch {
	case err != nil:
		report.Notes = append(report.Notes, fmt.Sprintf("Boxes can have no GPU: %v.", err))
	case !there:
		report.Notes = append(report.Notes, "Boxes can have no GPU, as no description names one; nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml writes it.")
	case !report.GPU:
		report.Notes = append(report.Notes, "Boxes can have no GPU, as the daemon gives none: it takes docker 25, podman 6, or the runtime of NVIDIA's container toolkit.")
	}
}
