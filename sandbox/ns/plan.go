package ns

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/ns/boxinit"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
)

const (
	openFilesMax = 8192 // descriptors a process in a box may have open
	initThreads  = 16   // of a box's first process, at the most
)

// harmless are the devices that every box has. They hold nothing and keep nothing.
var harmless = []string{"/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"}

// plan says what a box is to be, with this root and so many CPUs.
func (d *Driver) plan(h *host, root *rootfs.Root, spec sandbox.Spec, cpus int) (boxinit.Plan, error) {
	p := boxinit.Plan{
		Command:  spec.Command,
		Env:      spec.EnvIn(root.Env),
		Dir:      sandbox.WorkPath,
		User:     sandbox.User,
		Change:   d.root,
		Hostname: rootfs.Hostname,
		Filter:   h.filter,
		Landlock: h.landlock,
		Limits:   boxinit.Limits{Processes: uint64(spec.Limits.Processes), OpenFiles: openFilesMax},
	}
	if !d.root {
		p.Limits.Processes += initThreads // being of the same user, it is counted
	}
	if h.held().Processes {
		p.Limits.Processes += initThreads // the control group's comes first, which counts how often
	}
	scratch, shared := spec.Limits.Scratch()
	p.Root = boxinit.Root{
		Size: scratch, Files: scratch / fileMin, Shared: shared,
		Texts: map[string]string{"meminfo": memory(spec.Limits), "cpuinfo": processors(h.cpuinfo, cpus)},
	}
	for _, list := range []string{"online", "possible", "present"} {
		p.Root.Texts["sys/devices/system/cpu/"+list] = fmt.Sprintf("0-%d\n", cpus-1)
	}
	for _, device := range harmless {
		p.Root.Devices = append(p.Root.Devices, boxinit.Device{Source: device, Target: device})
	}
	for _, layer := range root.Layers {
		p.Root.Layers = append(p.Root.Layers, boxinit.Mount{Source: layer})
	}
	for _, m := range root.Mounts {
		p.Root.Mounts = append(p.Root.Mounts, boxinit.Mount{Source: m.Source, Target: m.Target})
	}
	if spec.Agent != "" {
		p.Root.Mounts = append(p.Root.Mounts, boxinit.Mount{Source: spec.Agent, Target: sandbox.AgentPath, File: true})
	}
	p.Root.Mounts = append(p.Root.Mounts, boxinit.Mount{Source: spec.WorkDir, Target: sandbox.WorkPath, Write: true})
	var given []boxinit.Mount
	for target, source := range spec.ReadOnly {
		given = append(given, boxinit.Mount{Source: source, Target: target})
	}
	for target, source := range spec.Files {
		given = append(given, boxinit.Mount{Source: source, Target: target, File: true})
	}
	if len(spec.Devices) > 0 {
		found, err := d.devices(spec)
		if err != nil {
			return p, err
		}
		p.Env = append(slices.Clip(p.Env), found.Env...)
		for _, node := range found.Nodes {
			p.Root.Devices = append(p.Root.Devices, boxinit.Device{Source: node.HostPath, Target: node.Path})
		}
		for _, m := range found.Mounts {
			info, err := os.Stat(m.HostPath)
			if err != nil {
				return p, fmt.Errorf("devices %q: %w", spec.Devices, err)
			}
			given = append(given, boxinit.Mount{Source: m.HostPath, Target: m.Path, File: !info.IsDir()})
		}
	}
	// Outer directories before what is within them.
	slices.SortFunc(given, func(a, b boxinit.Mount) int { return strings.Compare(a.Target, b.Target) })
	p.Root.Mounts = append(p.Root.Mounts, given...)
	if n := len(p.Root.All()); n > boxinit.MountsMax {
		return p, fmt.Errorf("a box can have %d mounts, not %d", boxinit.MountsMax, n)
	}
	return p, nil
}

// memory is a /proc/meminfo of a box: what it has in all. What is left of that at any
// moment cannot be told this way; programs that ask get the whole.
func memory(limits sandbox.Limits) string {
	kB := limits.MemoryBytes >> 10
	return fmt.Sprintf("MemTotal:       %8d kB\nMemFree:        %8[1]d kB\nMemAvailable:   %8[1]d kB\n"+
		"Buffers:               0 kB\nCached:                0 kB\nSwapCached:            0 kB\n"+
		"SwapTotal:             0 kB\nSwapFree:              0 kB\nShmem:                 0 kB\n", kB)
}

// processors is a /proc/cpuinfo with the first so many of the host's.
func processors(all string, count int) string {
	stanzas := strings.SplitAfterN(all, "\n\n", count+1)
	return strings.Join(stanzas[:min(count, len(stanzas))], "")
}

// fileMin is how much of the scratch space a file is counted for, when there are many
// small ones: what the kernel keeps of each.
const fileMin = 4096

// reserved are the paths of a box that nothing may be mounted over.
var reserved = []string{"/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr", "/tmp",
	path.Dir(sandbox.AgentPath), sandbox.AgentPath}

// validate checks what is asked for, and returns it with the defaults filled in.
func (d *Driver) validate(spec sandbox.Spec) (sandbox.Spec, error) {
	if err := spec.Validate(); err != nil {
		return spec, err
	}
	spec.Limits = spec.Limits.Defaults()
	for target := range spec.ReadOnly {
		if slices.Contains(reserved, target) || within(target, "/proc") || within(target, "/dev") {
			return spec, fmt.Errorf("read-only directory: cannot appear as %q", target)
		}
	}
	for target := range spec.Files {
		if within(target, "/proc") || within(target, "/dev") || within(target, path.Dir(sandbox.AgentPath)) {
			return spec, fmt.Errorf("mounted file: cannot appear as %q", target)
		}
	}
	// As root the box is another user than we are.
	if d.root && spec.Agent != "" {
		info, err := os.Stat(spec.Agent)
		if err != nil {
			return spec, fmt.Errorf("agent: %w", err)
		}
		if info.Mode().Perm()&0o005 != 0o005 {
			return spec, fmt.Errorf("agent %s: every user must be able to read and run it (chmod 755)", spec.Agent)
		}
	}
	return spec, nil
}

func within(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, dir+"/")
}
