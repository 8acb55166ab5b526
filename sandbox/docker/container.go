package docker

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
	"github.com/bailey-platform/bailey/sandbox/seccomp"
)

// The labels by which we know our containers.
const (
	driverLabel = "io.bailey.driver"
	boxLabel    = "io.bailey.box"
	rootLabel   = "io.bailey.root" // Options.Root, whose lock its user holds; package leaks reads it
)

const (
	filesMax = 8192 // descriptors a process in a box may have open
)

// gate is a shell that waits for a line before it becomes the box's command. A shell
// reads from a pipe no further than that.
var gate = []string{"/bin/bash", "--norc", "--noprofile", "-c", `read -r _ && exec "$@"`, "gate"}

// describe says what container a box is.
func (d *Driver) describe(found *daemon, spec sandbox.Spec, i image) (client.ContainerCreateOptions, error) {
	devices, err := found.requests(spec.Devices, d.options.DeviceDirs)
	if err != nil {
		return client.ContainerCreateOptions{}, err
	}
	command := spec.Command
	if spec.Network != nil {
		command = append(slices.Clone(gate), command...)
	}
	off, processes := false, int64(spec.Limits.Processes)
	_, shared := spec.Limits.Scratch()
	user, group := sandbox.User, sandbox.User
	if !found.rootless && !d.root {
		user, group = os.Geteuid(), os.Getegid() // whose the work folder is
	}
	host := &container.HostConfig{
		NetworkMode:    "none",
		ReadonlyRootfs: true,
		CapDrop:        []string{"ALL"},
		SecurityOpt:    []string{"seccomp=" + found.filter, "no-new-privileges"},
		CgroupnsMode:   container.CgroupnsModePrivate,
		IpcMode:        container.IPCModePrivate,
		ShmSize:        shared,
		LogConfig:      container.LogConfig{Type: "none"},
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		Runtime:        d.options.Runtime,
		Tmpfs:          scratch(found.kind, spec.Limits, i.volumes, user),
		Init:           &off, // the agent adopts orphans itself, and a command alone has none
		Mounts:         mounts(spec),
		Resources: container.Resources{
			Memory:     spec.Limits.MemoryBytes,
			MemorySwap: spec.Limits.MemoryBytes, // together: swap would only make running out slow
			CPUQuota:   max(1000, int64(spec.Limits.CPUs*cpuPeriod)),
			CPUPeriod:  cpuPeriod,
			CpusetCpus: cpus(spec.Limits.CPUs),
			PidsLimit:  &processes,
			Ulimits:    ulimits(found.kind),

			DeviceRequests: devices,
		},
	}
	if found.rootless && found.kind == Podman {
		// We are one user of the host, and so must the box be, to have the work folder.
		host.UsernsMode = container.UsernsMode(fmt.Sprintf("keep-id:uid=%d,gid=%[1]d", user))
	}
	return client.ContainerCreateOptions{
		Name: fmt.Sprintf("bailey-%s-%s", found.tag, spec.ID),
		Config: &container.Config{
			Hostname:     rootfs.Hostname,
			User:         fmt.Sprintf("%d:%d", user, group),
			Image:        i.id,
			Entrypoint:   command[:1],
			Cmd:          command[1:],
			Env:          spec.EnvIn(i.env),
			WorkingDir:   sandbox.WorkPath,
			Labels:       map[string]string{driverLabel: found.tag, boxLabel: spec.ID, rootLabel: found.dir},
			Healthcheck:  &container.HealthConfig{Test: []string{"NONE"}},
			AttachStdin:  true,
			AttachStdout: true,
			AttachStderr: true,
			OpenStdin:    true,
			StdinOnce:    true, // so that the agent ends when we do
		},
		HostConfig: host,
	}, nil
}

// filterFor returns the filter of system calls as a daemon takes it, in place of its own,
// which lets tracing and rarer families of sockets through: docker the filter itself,
// and podman the path of a file with it, which is put into dir.
func filterFor(kind Kind, dir string) (string, error) {
	filter, err := json.Marshal(seccomp.Filter())
	if err != nil || kind != Podman {
		return string(filter), err
	}
	path := filepath.Join(dir, "seccomp.json")
	return path, os.WriteFile(path, filter, 0o600)
}

// cpuPeriod is the length in microseconds over which CPU time is measured out.
const cpuPeriod = 100_000

// scratch is where a box may write, besides its work folder: the root is read-only, as
// few of a daemon's ways to store it can limit its size. volumes are the directories
// that the image wants kept, and that are scratch space here.
func scratch(kind Kind, limits sandbox.Limits, volumes []string, user int) map[string]string {
	shares := map[string]int64{"/tmp": 8, sandbox.HomePath: 6, "/var/tmp": 1, "/run": 1}
	for _, dir := range volumes {
		if dir = path.Clean(dir); dir != sandbox.WorkPath && shares[dir] == 0 {
			shares[dir] = 1
		}
	}
	var all int64
	for _, share := range shares {
		all += share
	}
	total, _ := limits.Scratch()
	parts := make(map[string]string, len(shares))
	for dir, share := range shares {
		size := total / all * share
		parts[dir] = fmt.Sprintf("rw,nosuid,nodev,exec,mode=1777,size=%d", size)
		if kind == Podman {
			continue // which takes no other options
		}
		parts[dir] += fmt.Sprintf(",nr_inodes=%d", max(4096, size>>12))
		if dir == sandbox.HomePath {
			// Of the box's user, as docker's runtimes give it the mode that the image has there.
			parts[dir] += fmt.Sprintf(",uid=%d,gid=%[1]d", user)
		}
	}
	return parts
}

// mounts are what a box sees of the host.
func mounts(spec sandbox.Spec) []mount.Mount {
	bind := func(source, target string, readOnly bool) mount.Mount {
		return mount.Mount{Type: mount.TypeBind, Source: source, Target: target, ReadOnly: readOnly,
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate}}
	}
	list := []mount.Mount{bind(spec.WorkDir, sandbox.WorkPath, false)}
	if spec.Agent != "" {
		list = append(list, bind(spec.Agent, sandbox.AgentPath, true))
	}
	// Outer directories before those within them, and files last.
	for _, set := range []map[string]string{spec.ReadOnly, spec.Files} {
		targets := make([]string, 0, len(set))
		for target := range set {
			targets = append(targets, target)
		}
		slices.Sort(targets)
		for _, target := range targets {
			list = append(list, bind(set[target], target, true))
		}
	}
	return list
}

// userProcessesMax is how many processes podman's boxes may have together, which are
// one user's. A single box's are held by its control group.
const userProcessesMax = 32768

// ulimits are said at no more than we have ourselves: a daemon that may not raise its
// own limits fails at its defaults.
func ulimits(kind Kind) []*container.Ulimit {
	limit := func(name string, resource int, most uint64) *container.Ulimit {
		var own unix.Rlimit
		if err := unix.Getrlimit(resource, &own); err == nil {
			most = min(most, own.Max)
		}
		return &container.Ulimit{Name: name, Soft: int64(most), Hard: int64(most)}
	}
	list := []*container.Ulimit{{Name: "core"}, limit("nofile", unix.RLIMIT_NOFILE, filesMax)}
	if kind == Podman { // docker's default is its own limit
		list = append(list, limit("nproc", unix.RLIMIT_NPROC, userProcessesMax))
	}
	return list
}

// next rotates among the CPUs that boxes are put on.
var next atomic.Uint32

// cpus names the CPUs of a box, no more than the limit fills: programs in it then count
// that many, and start as many workers. It names none if that is all there are.
func cpus(limit float64) string {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return ""
	}
	var list []int
	for cpu := range len(all) * 64 {
		if all.IsSet(cpu) {
			list = append(list, cpu)
		}
	}
	want := int(math.Ceil(limit))
	if want >= len(list) {
		return ""
	}
	names := make([]string, want)
	first := int(next.Add(uint32(want)))
	for i := range names {
		names[i] = strconv.Itoa(list[(first+i)%len(list)])
	}
	return strings.Join(names, ",")
}

// reserved are the paths of a box that nothing may be mounted over.
var reserved = []string{"/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr", "/tmp",
	path.Dir(sandbox.AgentPath), sandbox.AgentPath}

// validate checks what is asked for, and returns it with the defaults filled in.
func validate(spec sandbox.Spec, root bool, socket string) (sandbox.Spec, error) {
	if err := spec.Validate(); err != nil {
		return spec, err
	}
	spec.Limits = spec.Limits.Defaults()
	if within(socket, spec.WorkDir) {
		return spec, fmt.Errorf("work folder: %s would show the box the daemon's socket", spec.WorkDir)
	}
	for target := range spec.ReadOnly {
		if slices.Contains(reserved, target) {
			return spec, fmt.Errorf("read-only directory: cannot appear as %q", target)
		}
	}
	for _, set := range []map[string]string{spec.ReadOnly, spec.Files} {
		for target, source := range set {
			for _, own := range []string{"/dev/", "/proc/", "/sys/", path.Dir(sandbox.AgentPath) + "/"} {
				if strings.HasPrefix(target, own) {
					return spec, fmt.Errorf("mount: cannot appear as %q", target)
				}
			}
			if within(socket, source) {
				return spec, fmt.Errorf("mount: %s would show the box the daemon's socket", source)
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

// within reports whether a path leads into a directory, in whatever way both are
// written.
func within(path, dir string) bool {
	resolve := func(name string) string {
		if resolved, err := filepath.EvalSymlinks(name); err == nil {
			return resolved
		}
		return filepath.Clean(name)
	}
	return strings.HasPrefix(resolve(path)+"/", strings.TrimSuffix(resolve(dir), "/")+"/")
}
