package docker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"

	"github.com/bailey-platform/bailey/sandbox"
)

// fakeDaemon is what is known of one, without there being one.
func fakeDaemon(t *testing.T, kind Kind, api string, info system.Info) *daemon {
	t.Helper()
	c, err := client.New(client.WithAPIVersion(api))
	if err != nil {
		t.Fatal(err)
	}
	return &daemon{kind: kind, client: c, info: info, tag: "feed", dir: "/host/root", filter: "{}"}
}

type network struct{}

func (network) Attach(sandbox.Exits) error { return nil }

// What a box may do is decided here, and nothing of it by default.
func TestDescribe(t *testing.T) {
	t.Parallel()
	d := &Driver{options: Options{Kind: Docker, Runtime: "runsc"}, root: true}
	spec := sandbox.Spec{
		ID: "one", Command: []string{"/agent", "serve"}, Agent: "/host/agent", WorkDir: "/host/work",
		ReadOnly: map[string]string{"/mnt/b": "/host/b", "/mnt": "/host/a"},
		Files:    map[string]string{"/etc/resolv.conf": "/host/resolv.conf"},
		Env:      []string{"A=b"},
		Limits:   sandbox.Limits{MemoryBytes: 1 << 30, CPUs: 1000, Processes: 99, DiskBytes: (17*12 + 64) << 20},
	}
	spec.Limits = spec.Limits.Defaults()
	got, err := d.describe(fakeDaemon(t, Docker, "1.41", system.Info{}), spec, image{id: "sha256:1", env: []string{"A=image", "B=c"}, volumes: []string{"/data/", "/tmp", sandbox.WorkPath}})
	if err != nil {
		t.Fatal(err)
	}
	off, processes := false, int64(99)
	bind := func(source, target string, readOnly bool) mount.Mount {
		return mount.Mount{Type: "bind", Source: source, Target: target, ReadOnly: readOnly, BindOptions: &mount.BindOptions{Propagation: "rprivate"}}
	}
	const mib = 1 << 20
	want := client.ContainerCreateOptions{
		Name: "bailey-feed-one",
		Config: &container.Config{
			Hostname: "box", User: "61000:61000", Image: "sha256:1", Entrypoint: []string{"/agent"}, Cmd: []string{"serve"},
			Env: []string{"B=c", "A=b"}, WorkingDir: "/workspace", Labels: map[string]string{"io.bailey.driver": "feed", "io.bailey.box": "one", "io.bailey.root": "/host/root"},
			Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
			AttachStdin: true, AttachStdout: true, AttachStderr: true, OpenStdin: true, StdinOnce: true,
		},
		HostConfig: &container.HostConfig{
			NetworkMode: "none", ReadonlyRootfs: true, CapDrop: []string{"ALL"}, SecurityOpt: []string{"seccomp={}", "no-new-privileges"},
			CgroupnsMode: "private", IpcMode: "private", ShmSize: 64 * mib, LogConfig: container.LogConfig{Type: "none"},
			RestartPolicy: container.RestartPolicy{Name: "no"}, Runtime: "runsc", Init: &off,
			Tmpfs: map[string]string{
				"/tmp":        "rw,nosuid,nodev,exec,mode=1777,size=100663296,nr_inodes=24576",
				"/home/agent": "rw,nosuid,nodev,exec,mode=1777,size=75497472,nr_inodes=18432,uid=61000,gid=61000",
				"/var/tmp":    "rw,nosuid,nodev,exec,mode=1777,size=12582912,nr_inodes=4096",
				"/run":        "rw,nosuid,nodev,exec,mode=1777,size=12582912,nr_inodes=4096",
				"/data":       "rw,nosuid,nodev,exec,mode=1777,size=12582912,nr_inodes=4096",
			},
			Mounts: []mount.Mount{
				bind("/host/work", "/workspace", false), bind("/host/agent", "/.bailey/agent", true),
				bind("/host/a", "/mnt", true), bind("/host/b", "/mnt/b", true), bind("/host/resolv.conf", "/etc/resolv.conf", true),
			},
			Resources: container.Resources{
				Memory: 1024 * mib, MemorySwap: 1024 * mib, CPUQuota: 100_000_000, CPUPeriod: 100_000, PidsLimit: &processes,
				Ulimits: got.HostConfig.Ulimits,
			},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, u := range got.HostConfig.Ulimits {
		if u.Hard > filesMax || u.Soft > u.Hard || u.Soft < 0 {
			t.Errorf("%+v", u)
		}
	}

	// With a network the command comes after a gate.
	spec.Network = network{}
	got, err = d.describe(fakeDaemon(t, Docker, "1.41", system.Info{}), spec, image{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("/bin/bash --norc --noprofile -c read -r _ && exec \"$@\" gate /agent serve",
		strings.Join(append(got.Config.Entrypoint, got.Config.Cmd...), " ")); diff != "" {
		t.Error(diff)
	}
	// An ordinary user's podman maps that user to the box's.
	rootless := fakeDaemon(t, Podman, "1.41", system.Info{})
	rootless.rootless = true
	got, err = (&Driver{options: Options{Kind: Podman}}).describe(rootless, spec, image{})
	if err != nil {
		t.Fatal(err)
	}
	if got.HostConfig.UsernsMode != "keep-id:uid=61000,gid=61000" || got.Config.User != "61000:61000" {
		t.Errorf("%s as %s", got.HostConfig.UsernsMode, got.Config.User)
	}
}

func TestDeviceRequests(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nvidia.json"), []byte(`{"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [
		{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}},
		{"name": "GPU-1234", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}},
		{"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "acme.json"), []byte(`{"cdiVersion": "0.6.0", "kind": "acme.com/npu", "devices": [
		{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	named := system.Info{CDISpecDirs: []string{"/etc/cdi"}}
	for _, c := range []struct {
		kind  Kind
		api   string
		info  system.Info
		names []string
		want  container.DeviceRequest
		fails string
	}{
		{Docker, "1.44", named, []string{"nvidia.com/gpu=0", "acme.com/npu=0"}, container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"nvidia.com/gpu=0", "acme.com/npu=0"}}, ""},
		{Docker, "1.41", system.Info{}, []string{"nvidia.com/gpu=0", "nvidia.com/gpu=GPU-1234"}, container.DeviceRequest{Driver: "nvidia", DeviceIDs: []string{"0", "GPU-1234"}, Capabilities: [][]string{{"gpu"}}}, ""},
		{Docker, "1.44", system.Info{}, []string{"nvidia.com/gpu=all"}, container.DeviceRequest{Driver: "nvidia", Count: -1, Capabilities: [][]string{{"gpu"}}}, ""},
		{Docker, "1.41", named, []string{"acme.com/npu=0"}, container.DeviceRequest{}, "docker 25"},
		{Podman, "1.41", system.Info{ServerVersion: "6.0.1"}, []string{"nvidia.com/gpu=all"}, container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"nvidia.com/gpu=all"}}, ""},
		{Podman, "1.41", system.Info{ServerVersion: "4.9.3"}, []string{"nvidia.com/gpu=all"}, container.DeviceRequest{}, "podman 6"},
		{Docker, "1.44", named, []string{"nvidia.com/gpu=7"}, container.DeviceRequest{}, `"nvidia.com/gpu=7"`},
	} {
		got, err := fakeDaemon(t, c.kind, c.api, c.info).requests(c.names, []string{dir})
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s %v: %v", c.kind, c.names, err)
			}
			continue
		}
		if diff := cmp.Diff([]container.DeviceRequest{c.want}, got); diff != "" || err != nil {
			t.Errorf("%s %v: %v %s", c.kind, c.names, err, diff)
		}
	}
	if got, err := fakeDaemon(t, Docker, "1.41", system.Info{}).requests(nil, []string{dir}); got != nil || err != nil {
		t.Errorf("without devices: %v, %v", got, err)
	}
}

func TestTheDaemonsSocketIsNotForBoxes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	socket := filepath.Join(run, "docker.sock")
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(run, link); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"/", dir, run, link, run + "/."} {
		for name, spec := range map[string]sandbox.Spec{
			"read-only":   {WorkDir: t.TempDir(), ReadOnly: map[string]string{"/mnt/x": source}},
			"work folder": {WorkDir: source},
		} {
			spec.ID, spec.Command = "x", []string{"/bin/true"}
			if _, err := validate(spec, false, socket); err == nil || !strings.Contains(err.Error(), "socket") {
				t.Errorf("%s %s: %v", name, source, err)
			}
		}
	}
	spec := sandbox.Spec{ID: "x", Command: []string{"/bin/true"}, WorkDir: t.TempDir(), ReadOnly: map[string]string{"/mnt/x": t.TempDir()}}
	if _, err := validate(spec, false, socket); err != nil {
		t.Error(err)
	}
	spec.Files = map[string]string{"/mnt/sock": socket}
	if _, err := validate(spec, false, socket); err == nil {
		t.Error("the socket itself is mounted")
	}
}

// What crun says where both versions of control groups are mounted.
func TestHybridControlGroupsHaveARemedy(t *testing.T) {
	t.Parallel()
	for kind, want := range map[Kind]string{Docker: "sandbox.runtime", Podman: "containers.conf"} {
		err := New(Options{Kind: kind}).unavailable(errors.New("crun: cgroups in hybrid mode not supported"))
		if u, ok := errors.AsType[*sandbox.Unavailable](err); !ok || len(u.Remedy) != 2 || !strings.Contains(u.Remedy[0], want) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestFindUsage(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, dir := range []string{"memory/docker/1", "cpu,cpuacct/docker/1", "pids/docker/1", "system.slice/docker-1.scope"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	one := root + "/system.slice/docker-1.scope"
	for groups, want := range map[string]usage{
		"":                                  {},
		"0::/system.slice/docker-1.scope\n": {one, one, one},
		"0::/\n":                            {},
		"0::/../elsewhere\n":                {},
		"4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n2:pids:/docker/1\n1:name=systemd:/\n0::/\n": {root + "/memory/docker/1", root + "/cpu,cpuacct/docker/1", root + "/pids/docker/1"},
		"4:memory:/gone\nodd line\n": {},
	} {
		if got := findUsage(root, groups); got != want {
			t.Errorf("%q: %+v", groups, got)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "memory/docker/1/memory.oom_control"), []byte("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if u := (usage{memory: root + "/memory/docker/1"}); !u.killed() {
		t.Error("the kill is not seen")
	}
	if (usage{}).killed() {
		t.Error("something was killed nowhere")
	}
}

func TestBefore(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"1.40", "1.41", true}, {"1.41", "1.41", false}, {"1.9", "1.10", true}, {"2.0", "1.41", false}, {"", "1.41", true}, {"x", "1.41", true},
	} {
		if before(c.a, c.b) != c.want {
			t.Errorf("%s before %s: %t", c.a, c.b, !c.want)
		}
	}
}
