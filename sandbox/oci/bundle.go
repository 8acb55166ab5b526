package oci

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
	"github.com/bailey-platform/bailey/sandbox/oci/cradle"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
	"github.com/bailey-platform/bailey/sandbox/seccomp"
)

const (
	filesMax = 8192     // descriptors a process in a box may have open
	inodeMin = 16 << 10 // files that every box may make
)

// masked and readOnly are what a box does not see, and may not change, of what its
// kernel tells in files.
var (
	masked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/key-users",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	}
	readOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// bundle is a box's description for the runtime, in the terms of its specification.
// Its network is that of the cradle, and so are its mounts but those made here.
func bundle(spec sandbox.Spec, devices cdi.Devices, mappings []specs.LinuxIDMapping) specs.Spec {
	processes, files := uint64(spec.Limits.Processes), filesLimit()
	_, shared := spec.Limits.Scratch()
	b := specs.Spec{
		Version:  "1.0.2",
		Hostname: rootfs.Hostname,
		Root:     &specs.Root{Path: cradle.Rootfs},
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
				{Type: "RLIMIT_NOFILE", Soft: files, Hard: files},
				{Type: "RLIMIT_CORE"},
			},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "mode=755", "size=64k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
				Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shared)}},
			// Nothing: it describes the host.
			{Destination: "/sys", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "nosuid", "noexec", "nodev", "mode=555", "size=4k"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.UserNamespace},
			},
			UIDMappings:   mappings,
			GIDMappings:   mappings,
			MaskedPaths:   masked,
			ReadonlyPaths: readOnly,
			Seccomp:       seccomp.Filter(),
		},
	}
	addDevices(&b, devices)
	return b
}

// filesLimit is filesMax, or less if that is more than we may have ourselves.
func filesLimit() uint64 {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return filesMax
	}
	return min(filesMax, own.Max)
}

// mounts are what the cradle mounts into the box's root.
func mounts(spec sandbox.Spec, root *rootfs.Root, devices cdi.Devices, first int) []cradle.Mount {
	var list []cradle.Mount
	add := func(source, target string, writable bool) {
		m := cradle.Mount{Source: source, Target: target, Writable: writable, Owner: first}
		if strings.HasPrefix(target, sandbox.WorkPath+"/") && first != 0 {
			m.Owner = first + sandbox.User // the folder is the box's user's
		}
		list = append(list, m)
	}
	for _, m := range root.Mounts {
		add(m.Source, m.Target, false)
	}
	if spec.Agent != "" {
		add(spec.Agent, sandbox.AgentPath, false)
	}
	add(spec.WorkDir, sandbox.WorkPath, true)
	for _, m := range devices.Mounts {
		add(m.HostPath, m.Path, slices.Contains(m.Options, "rw"))
	}
	// Outer directories before those within them, and files last.
	for _, set := range []map[string]string{spec.ReadOnly, spec.Files} {
		targets := make([]string, 0, len(set))
		for target := range set {
			targets = append(targets, target)
		}
		slices.Sort(targets)
		for _, target := range targets {
			add(set[target], target, false)
		}
	}
	return list
}

// sources are the directories and files of the host that the box sees.
func (b *box) sources() []string {
	list := slices.Clone(b.root.Layers)
	for _, m := range mounts(b.spec, b.root, b.devices, 0) {
		list = append(list, m.Source)
	}
	return list
}

// reserved are the paths of a box that nothing may be mounted over.
var reserved = []string{"/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr", "/tmp",
	path.Dir(sandbox.AgentPath), sandbox.AgentPath}

// validate checks what is asked for, and returns it with the defaults filled in.
func validate(spec sandbox.Spec, root bool) (sandbox.Spec, error) {
	if err := spec.Validate(); err != nil {
		return spec, err
	}
	spec.Limits = spec.Limits.Defaults()
	for target := range spec.ReadOnly {
		if slices.Contains(reserved, target) {
			return spec, fmt.Errorf("read-only directory: cannot appear as %q", target)
		}
	}
	for _, set := range []map[string]string{spec.ReadOnly, spec.Files} {
		for target := range set {
			for _, own := range []string{"/dev/", "/proc/", "/sys/", path.Dir(sandbox.AgentPath) + "/"} {
				if strings.HasPrefix(target, own) {
					return spec, fmt.Errorf("mount: cannot appear as %q", target)
				}
			}
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
