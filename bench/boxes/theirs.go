package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

const (
	kindNamespaces = string(sandbox.SharedKernel)
	kindOwnKernel  = string(sandbox.OwnKernel)
)

// theirs returns the other contenders that are installed.
func (s *stage) theirs(ctx context.Context) []contender {
	var out []contender
	add := func(name, isolation string, make func() (contender, error)) {
		c, err := make()
		if err == nil && c.run != nil {
			err = c.run(ctx) // tried once, so that a table is not full of failures
		}
		if err != nil {
			s.leaveOut(name, err)
			return
		}
		c.name, c.isolation = name, isolation
		out = append(out, c)
	}
	add("bubblewrap", kindNamespaces, s.bubblewrap)
	for _, engine := range []string{"crun", "runc"} {
		add(engine, kindNamespaces, func() (contender, error) { return s.runtime(engine) })
	}
	add("runsc", kindOwnKernel, s.runsc)
	add("docker", kindNamespaces, func() (contender, error) { return s.engine(ctx, "docker") })
	add("podman", kindNamespaces, func() (contender, error) { return s.engine(ctx, "podman") })
	add("sandbox-runtime", kindNamespaces, func() (contender, error) { return s.fromNPM("srt", "-c", "echo hi") })
	add("codex sandbox", kindNamespaces, func() (contender, error) { return s.fromNPM("codex", "sandbox", "--", "echo", "hi") })
	return out
}

// hi runs a command that is to print "hi", and returns when it has.
func hi(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	if env != nil {
		cmd.Env = env
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// Through a pipe, as some runtimes write to a file from an offset of their own.
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var out bytes.Buffer
	_, _ = out.ReadFrom(stdout)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %.200s", name, err, stderr.String())
	}
	if !strings.Contains(out.String(), "hi") {
		return fmt.Errorf("%s said %.80q", name, out.String())
	}
	return nil
}

func (s *stage) bubblewrap() (contender, error) {
	work := filepath.Join(s.dir, "bwrap")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return contender{}, err
	}
	args := []string{
		"--ro-bind", s.root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", work, "/mnt", "--unshare-all",
		"--die-with-parent", "--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "sh", "-c", "echo hi",
	}
	return contender{run: func(ctx context.Context) error { return hi(ctx, nil, "bwrap", args...) }}, nil
}

// bundle writes an OCI bundle that runs a command on the root folder.
func (s *stage) bundle(name string, args ...string) (string, error) {
	dir := filepath.Join(s.dir, "bundles", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	data, err := json.Marshal(specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: s.root, Readonly: true},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"}, NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		}},
	})
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644)
}

// ociCommand is an OCI runtime as it is called.
type ociCommand struct {
	stage *stage
	argv  []string // the runtime with its global flags
}

func (c ociCommand) run(ctx context.Context) error {
	id := fmt.Sprintf("bench%08d", boxes.Add(1))
	bundle, err := c.stage.bundle("once", "/bin/sh", "-c", "echo hi")
	if err != nil {
		return err
	}
	return hi(ctx, nil, c.argv[0], append(c.argv[1:len(c.argv):len(c.argv)], "run", "--bundle", bundle, id)...)
}

func (c ociCommand) open(ctx context.Context) (opened, error) {
	id := fmt.Sprintf("bench%08d", boxes.Add(1))
	bundle, err := c.stage.bundle(id, "/bin/sleep", "3600")
	if err != nil {
		return nil, err
	}
	args := append(c.argv[1:len(c.argv):len(c.argv)], "run", "--detach", "--bundle", bundle, id)
	cmd := exec.CommandContext(ctx, c.argv[0], args...)
	if out, err := silent(cmd); err != nil {
		return nil, fmt.Errorf("%w: %.200s", err, out)
	}
	return &ociBox{c, id}, nil
}

// silent runs a command whose descendants keep its streams: they get a file.
func silent(cmd *exec.Cmd) ([]byte, error) {
	log, err := os.CreateTemp("", "bailey-bench-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	out, _ := os.ReadFile(log.Name())
	return out, err
}

type ociBox struct {
	runtime ociCommand
	id      string
}

func (b *ociBox) command(ctx context.Context, args ...string) error {
	argv := b.runtime.argv
	out, err := exec.CommandContext(ctx, argv[0], append(argv[1:len(argv):len(argv)], args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %.200s", args[0], err, out)
	}
	return nil
}

func (b *ociBox) call(ctx context.Context) error {
	argv := b.runtime.argv
	return hi(ctx, nil, argv[0], append(argv[1:len(argv):len(argv)], "exec", b.id, "/bin/sh", "-c", "echo hi")...)
}

func (b *ociBox) freeze(ctx context.Context) error { return b.command(ctx, "pause", b.id) }
func (b *ociBox) thaw(ctx context.Context) error   { return b.command(ctx, "resume", b.id) }
func (b *ociBox) close()                           { _ = b.command(context.Background(), "delete", "--force", b.id) }

func (s *stage) runtime(name string) (contender, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return contender{}, err
	}
	argv := []string{path, "--root", filepath.Join(s.dir, "state-"+name)}
	if name == "crun" {
		// It refuses a host with both versions of control groups.
		argv = append([]string{"unshare", "-m", "sh", "-c", `umount /sys/fs/cgroup/unified 2>/dev/null; exec "$0" "$@"`}, argv...)
	}
	c := ociCommand{s, argv}
	return contender{run: c.run, open: c.open}, nil
}

func (s *stage) runsc() (contender, error) {
	if s.gvisor == "" {
		return contender{}, fmt.Errorf("no -runsc was given")
	}
	path, err := filepath.Abs(s.gvisor)
	if err != nil {
		return contender{}, err
	}
	state := filepath.Join(s.dir, "state-runsc")
	s.closers = append(s.closers, func() { unix.Unmount(filepath.Join(state, "null-netns"), unix.MNT_DETACH) }) // runsc leaves it
	c := ociCommand{s, []string{path, "--root", state, "--network", "none"}}
	return contender{run: c.run, open: c.open}, nil
}

// engine is docker or podman, by their own commands, on an image of the root folder.
func (s *stage) engine(ctx context.Context, name string) (contender, error) {
	if _, err := exec.LookPath(name); err != nil {
		return contender{}, err
	}
	if name == "docker" {
		os.Setenv("DOCKER_HOST", dockerHost())
	}
	if out, err := exec.CommandContext(ctx, name, "info").CombinedOutput(); err != nil {
		return contender{}, fmt.Errorf("%w: %.200s", err, out)
	}
	const image = "bailey-bench:root"
	if err := exec.CommandContext(ctx, name, "image", "inspect", image).Run(); err != nil {
		tar := exec.CommandContext(ctx, "tar", "-C", s.root, "-c", ".")
		load := exec.CommandContext(ctx, name, "import", "-", image)
		pipe, err := tar.StdoutPipe()
		if err != nil {
			return contender{}, err
		}
		load.Stdin = pipe
		if err := tar.Start(); err != nil {
			return contender{}, err
		}
		out, err := load.CombinedOutput()
		pipe.Close() // or tar would wait for a reader that failed
		_ = tar.Wait()
		if err != nil {
			return contender{}, fmt.Errorf("%s import: %w: %.200s", name, err, out)
		}
		s.closers = append(s.closers, func() { _ = exec.Command(name, "rmi", "-f", image).Run() })
	}
	var global []string
	if name == "podman" {
		// Its usual runtime, crun, refuses hosts that have both versions of control groups.
		global = []string{"--runtime", "runc"}
	}
	flags := []string{"--network", "none", "--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096"}
	return contender{
		run: func(ctx context.Context) error {
			return hi(ctx, nil, name, slices.Concat(global, []string{"run", "--rm"}, flags, []string{image, "/bin/sh", "-c", "echo hi"})...)
		},
		open: func(ctx context.Context) (opened, error) {
			out, err := exec.CommandContext(ctx, name, slices.Concat(global, []string{"run", "--detach", "--rm"}, flags, []string{image, "/bin/sleep", "3600"})...).CombinedOutput()
			if err != nil {
				return nil, fmt.Errorf("%w: %.200s", err, out)
			}
			lines := strings.Fields(string(out))
			return &engineBox{name, lines[len(lines)-1]}, nil
		},
	}, nil
}

// dockerHost is where docker listens: what DOCKER_HOST says, or the usual place.
func dockerHost() string {
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		return host
	}
	return "unix:///var/run/docker.sock"
}

type engineBox struct{ engine, id string }

func (b *engineBox) call(ctx context.Context) error {
	return hi(ctx, nil, b.engine, "exec", b.id, "/bin/sh", "-c", "echo hi")
}
func (b *engineBox) freeze(ctx context.Context) error {
	return exec.CommandContext(ctx, b.engine, "pause", b.id).Run()
}
func (b *engineBox) thaw(ctx context.Context) error {
	return exec.CommandContext(ctx, b.engine, "unpause", b.id).Run()
}
func (b *engineBox) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = exec.CommandContext(ctx, b.engine, "rm", "--force", b.id).Run()
}

// fromNPM is a command of the packages from npm. They know no root folder and run on the
// host's, and every command is a new box.
func (s *stage) fromNPM(name string, args ...string) (contender, error) {
	path := filepath.Join(s.npm, "node_modules", ".bin", name)
	if s.npm == "" {
		return contender{}, fmt.Errorf("no -npm directory was given")
	}
	if _, err := os.Stat(path); err != nil {
		return contender{}, err
	}
	home := filepath.Join(s.dir, "home-"+name)
	if err := os.MkdirAll(home, 0o755); err != nil {
		return contender{}, err
	}
	env := append(os.Environ(), "HOME="+home, "CODEX_HOME="+home)
	return contender{run: func(ctx context.Context) error { return hi(ctx, env, path, args...) }}, nil
}
