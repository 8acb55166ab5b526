package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
)

const (
	filesMax = 8192     // descriptors a process in a box may have open
	shmMax   = 64 << 20 // bytes of shared memory in a box
)

// bundle is a box's description for gVisor, in the terms of the OCI runtime
// specification. dir is its root and seen, unless nil, what of the host is mounted
// there.
func bundle(dir string, seen *rootfs.Host, spec sandbox.Spec, root bool) specs.Spec {
	processes := uint64(spec.Limits.Processes)
	b := specs.Spec{
		Version:  "1.0.2",
		Hostname: rootfs.Hostname,
		Root:     &specs.Root{Path: dir},

		Annotations: map[string]string{},
		Process: &specs.Process{
			User: specs.User{UID: sandbox.User, GID: sandbox.User},
			Args: spec.Command,
			Env:  spec.Env,
			Cwd:  sandbox.WorkPath,
			// None: what runs in a box needs no more than an ordinary user may.
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NPROC", Soft: processes, Hard: processes},
				{Type: "RLIMIT_NOFILE", Soft: filesMax, Hard: filesMax},
				{Type: "RLIMIT_CORE"},
			},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
				Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shmMax)}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		}},
	}
	// Only what may change under the box is looked up anew at every use; for the rest
	// that would be most of the time it takes to start a program.
	changing := make(map[string]bool) // by source
	change := func(source, target, mode string) {
		if !changing[source] {
			changing[source] = true
			hint := fmt.Sprintf("dev.gvisor.spec.mount.changing%d.", len(changing))
			b.Annotations[hint+"source"] = source
			b.Annotations[hint+"type"] = "bind"
			b.Annotations[hint+"share"] = "shared"
		}
		b.Mounts = append(b.Mounts, bind(source, target, mode))
	}
	if seen != nil {
		for _, m := range seen.Mounts {
			b.Mounts = append(b.Mounts, bind(m.Source, m.Target, "ro"))
		}
	}
	if spec.Agent != "" {
		b.Mounts = append(b.Mounts, bind(spec.Agent, sandbox.AgentPath, "ro"))
	}
	change(spec.WorkDir, sandbox.WorkPath, "rw")
	// Outer directories before those within them.
	targets := make([]string, 0, len(spec.ReadOnly))
	for target := range spec.ReadOnly {
		targets = append(targets, target)
	}
	slices.Sort(targets)
	for _, target := range targets {
		change(spec.ReadOnly[target], target, "ro")
	}
	if !root {
		// An ordinary user may map one user into a namespace of its own: itself.
		b.Linux.Namespaces = append(b.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		b.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: sandbox.User, HostID: uint32(os.Geteuid()), Size: 1}}
		b.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: sandbox.User, HostID: uint32(os.Getegid()), Size: 1}}
	}
	return b
}

func bind(source, target, mode string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source,
		Options: []string{"rbind", mode, "nosuid", "nodev"}}
}

func writeBundle(dir string, b specs.Spec) error {
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}

// arguments is the command line that runs the bundle in dir as the container named.
// It is run in dir, which keeps the path of the control socket short.
func arguments(container string, limits sandbox.Limits, root bool) []string {
	return []string{
		runtimeName,
		"--root=state",
		"--log=" + logFile,
		"--network=none",
		// A namespace that is shared would have to be mounted somewhere.
		"--gofer-network-namespace=new",
		// Ours are set up around all of its processes.
		"--ignore-cgroups",
		// As root the kernel then runs as nobody, and opens no file itself. Otherwise
		// both are the same user, and this way is faster.
		fmt.Sprintf("--directfs=%t", !root),
		"--file-access-mounts=exclusive", // but for those marked as changing
		fmt.Sprintf("--overlay2=root:memory,size=%d", scratch(limits)),
		"run", "--bundle=.", container,
	}
}

// logFile is where gVisor says what went wrong, in the box's directory.
const logFile = "log"

// scratch is how much a box may write outside its work folder. It is in memory, so
// half of that is left to the programs.
func scratch(limits sandbox.Limits) int64 {
	return min(limits.DiskBytes, limits.MemoryBytes/2)
}

// reserved are the paths of a box that nothing may be mounted over.
var reserved = []string{"/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr", "/tmp",
	path.Dir(sandbox.AgentPath), sandbox.AgentPath}

// validate checks what is asked for, and returns it with the defaults filled in.
func validate(spec sandbox.Spec, root bool) (sandbox.Spec, error) {
	if err := spec.Validate(); err != nil {
		return spec, err
	}
	switch {
	case spec.Image != "", len(spec.Files) > 0, spec.Network != nil, len(spec.Devices) > 0:
		return spec, errors.New("images, mounted files, networks and devices are not there yet")
	}
	spec.Limits = spec.Limits.Defaults()
	for target := range spec.ReadOnly {
		if slices.Contains(reserved, target) {
			return spec, fmt.Errorf("read-only directory: cannot appear as %q", target)
		}
	}
	// As root the box is another user than we are.
	if root && spec.Agent != "" {
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
