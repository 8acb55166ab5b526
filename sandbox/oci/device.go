package oci

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
)

// addDevices adds to a bundle what a box must have to use some devices, but for what
// its cradle mounts. Nodes are the host's own, mounted: nobody can make one in a user
// namespace, and what may be done with one is what its mode says.
func addDevices(b *specs.Spec, d cdi.Devices) {
	for _, n := range d.Nodes {
		b.Mounts = append(b.Mounts, specs.Mount{Destination: n.Path, Type: "bind", Source: n.HostPath,
			Options: []string{"bind", "nosuid", "noexec"}})
	}
	// What the box is told otherwise comes later, and counts.
	b.Process.Env = slices.Concat(d.Env, b.Process.Env)
	if len(d.Hooks) == 0 {
		return
	}
	b.Hooks = new(specs.Hooks)
	stages := map[string]*[]specs.Hook{
		"createRuntime":   &b.Hooks.CreateRuntime,
		"createContainer": &b.Hooks.CreateContainer,
		"startContainer":  &b.Hooks.StartContainer,
		"poststart":       &b.Hooks.Poststart,
		"poststop":        &b.Hooks.Poststop,
		//lint:ignore SA1019 descriptions of devices still have it
		"prestart": &b.Hooks.Prestart,
	}
	for _, h := range d.Hooks {
		if stage := stages[h.Stage]; stage != nil {
			*stage = append(*stage, specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env})
		}
	}
}

// reportGPU says whether a box can have a GPU here.
func reportGPU(report *sandbox.Report, dirs []string) {
	names, err := cdi.List(dirs...)
	report.GPU = slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, "/gpu=") })
	switch {
	case err != nil:
		report.Notes = append(report.Notes, fmt.Sprintf("Boxes can have no GPU: %v.", err))
	case !report.GPU:
		report.Notes = append(report.Notes, "Boxes can have no GPU, as no description names one; nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml writes it.")
	}
}
