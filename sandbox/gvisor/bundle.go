package gvisor

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
	"github.com/bailey-platform/bailey/sandbox/gvisor/stage"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
)

const (
	filesMax = 8192 // descriptors a process in a box may have open
)

// bundle is a box's description for gVisor, in the terms of the OCI runtime
// specification. seen are the directories of the host that it sees, and on is where it
// will run, which gets what the bundle needs there.
func bundle(on *stage.Stage, seen []rootfs.Mount, spec sandbox.Spec, d cdi.Devices, root bool) specs.Spec {
	processes := uint64(spec.Limits.Processes)
	_, shared := spec.Limits.Scratch()
	b := specs.Spec{
		Version:  "1.0.2",
		Hostname: rootfs.Hostname,
		Root:     &specs.Root{Path: on.Root()},

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
				Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shared)}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		}},
	}
	network := specs.LinuxNamespace{Type: specs.NetworkNamespace}
	if on.Network {
		network.Path = "/proc/self/ns/net" // the stage's
	}
	b.Linux.Namespaces = append(b.Linux.Namespaces, network)
	if !root {
		// The one user that there is on the stage.
		one := []specs.LinuxIDMapping{{ContainerID: sandbox.User, HostID: sandbox.User, Size: 1}}
		b.Linux.Namespaces = append(b.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		b.Linux.UIDMappings, b.Linux.GIDMappings = one, one
	}

	for _, m := range seen {
		b.Mounts = append(b.Mounts, bind(on.Source(m.Source), m.Target, "ro"))
	}
	if spec.Agent != "" {
		b.Mounts = append(b.Mounts, bind(on.Source(spec.Agent), sandbox.AgentPath, "ro"))
	}
	// Only what may change under the box is looked up anew at every use; for the rest
	// that would be most of the time it takes to start a program.
	changing := 0
	change := func(source, target, mode string) {
		changing++
		hint := fmt.Sprintf("dev.gvisor.spec.mount.changing%d.", changing)
		b.Annotations[hint+"source"] = source
		b.Annotations[hint+"type"] = "bind"
		b.Annotations[hint+"share"] = "shared"
		b.Mounts = append(b.Mounts, bind(source, target, mode))
	}
	change(spec.WorkDir, sandbox.WorkPath, "rw")
	// Outer directories before those within them, and files last.
	for _, target := range slices.Sorted(maps.Keys(spec.ReadOnly)) {
		change(on.Source(spec.ReadOnly[target]), target, "ro")
	}
	for _, target := range slices.Sorted(maps.Keys(spec.Files)) {
		b.Mounts = append(b.Mounts, bind(on.Source(spec.Files[target]), target, "ro"))
	}
	addDevices(&b, on, d)
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

// arguments is gVisor's command line, up to the subcommand that makes the container.
// It is run in the box's directory, which keeps the path of the control socket short.
func arguments(spec sandbox.Spec, root bool) []string {
	scratch, _ := spec.Limits.Scratch()
	stack := "none"
	if spec.Network != nil {
		stack = "sandbox"
	}
	return []string{
		runtimeName,
		"--root=state",
		"--log=" + logFile,
		"--network=" + stack,
		// A namespace that is shared would have to be mounted somewhere.
		"--gofer-network-namespace=new",
		// Ours are set up around all of its processes.
		"--ignore-cgroups",
		// As root the kernel then runs as nobody, and opens no file itself. Otherwise
		// both are the same user, and this way is faster.
		fmt.Sprintf("--directfs=%t", !root),
		"--file-access-mounts=exclusive", // but for those marked as changing
		fmt.Sprintf("--overlay2=root:memory,size=%d", scratch),
	}
}

// logFile is where gVisor says what went wrong, in the box's directory.
const logFile = "log"

// reserved are the paths of a box that nothing may be mounted over.
var reserved = []string{"/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr", "/tmp",
	path.Dir(sandbox.AgentPath), sandbox.AgentPath}

// virtual reports whether a path is of those where gVisor shows what there is no file
// of.
func virtual(target string) bool {
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if strings.HasPrefix(target, dir+"/") {
			return true
		}
	}
	return false
}

// validate checks what is asked for, and returns it with the defaults filled in.
func validate(spec sandbox.Spec, root bool) (sandbox.Spec, error) {
	if err := spec.Validate(); err != nil {
		return spec, err
	}
	spec.Limits = spec.Limits.Defaults()
	// One folder has one name, and gVisor refuses to mount by way of links.
	var err error
	if spec.WorkDir, err = filepath.EvalSymlinks(spec.WorkDir); err != nil {
		return spec, fmt.Errorf("work folder: %w", err)
	}
	for target := range spec.ReadOnly {
		if slices.Contains(reserved, target) || virtual(target) {
			return spec, fmt.Errorf("read-only directory: cannot appear as %q", target)
		}
	}
	for target := range spec.Files {
		if slices.Contains(reserved, target) || virtual(target) || target == sandbox.WorkPath {
			return spec, fmt.Errorf("mounted file: cannot appear as %q", target)
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
