// Package none runs a box's command as a plain process of the host, in its work
// folder. It isolates nothing: the command may do whatever the worker's user may.
// It is for machines that are boxes themselves, and for operators who say so
// (`--sandbox none`); nothing ever falls back to it.
//
// There being no mounts, the paths that a [sandbox.Spec] promises do not exist.
// Wherever one of them begins an argument of the command or the value of a variable,
// the host's stands in for it. What else is told of those paths, to the model for
// one, is wrong here. A variable is added to the environment, by which the processes
// of a box are found again.
//
// Start reading at [Driver.Start].
package none

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
)

// Name is the backend's name.
const Name = "none"

// A Driver runs processes. Create one with [New].
type Driver struct {
	log    *slog.Logger
	change Change
	notes  string // a directory; see Remember
	claims sandbox.Claims
}

// A Change makes a box's process another than it would be, before it is started. paths
// are what stands in on the host for the paths of the box, by those. The function that
// it returns is called once the process was started, whether or not that succeeded, and
// says whether it became what it was to be.
type Change func(cmd *exec.Cmd, spec sandbox.Spec, paths map[string]string) (started func() error, err error)

// New returns a driver. A nil logger discards.
func New(log *slog.Logger) *Driver {
	return NewChanged(log, func(*exec.Cmd, sandbox.Spec, map[string]string) (func() error, error) {
		return func() error { return nil }, nil
	})
}

// NewChanged returns a driver for a backend that runs processes too, though not as they
// are.
func NewChanged(log *slog.Logger, change Change) *Driver {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Driver{log: log, change: change}
}

// Name implements [sandbox.Driver].
func (d *Driver) Name() string { return Name }

// Check implements [sandbox.Driver].
func (d *Driver) Check(ctx context.Context) (sandbox.Report, error) {
	begun := time.Now()
	if err := exec.CommandContext(ctx, "/bin/bash", "--norc", "--noprofile", "-c", "exit 0").Run(); err != nil {
		return sandbox.Report{}, &sandbox.Unavailable{
			Backend: Name,
			Cause:   fmt.Sprintf("the tools need /bin/bash: %v", err),
			Remedy:  []string{"install bash"},
		}
	}
	return sandbox.Report{
		Backend:   Name,
		Version:   "none",
		Isolation: sandbox.NoIsolation,
		Root:      os.Geteuid() == 0,
		Start:     time.Since(begun),
		Limits: map[string]sandbox.Enforcement{
			"memory":      sandbox.NotHeld,
			"cpu":         sandbox.NotHeld,
			"processes":   sandbox.NotHeld,
			"disk":        sandbox.NotHeld,
			"work_folder": sandbox.NotHeld,
			"network":     sandbox.NotHeld,
			"lifetime":    sandbox.BestEffort,
		},
		Notes: []string{
			"NOTHING IS ISOLATED: what a model asks for runs on this host with all the rights of the worker's user. " +
				"It can read that user's files, keys and processes, the worker's own credentials among them, use the " +
				"network, and change the work folders of other sessions.",
			"No limit on memory, CPU, processes or disk is held.",
		},
	}, nil
}

// Prepare implements [sandbox.Driver].
func (d *Driver) Prepare(_ context.Context, image string) error {
	return refuse(sandbox.Spec{Image: image})
}

// refuse says what of a spec cannot be had without isolation, rather than leave it out.
func refuse(spec sandbox.Spec) error {
	switch {
	case spec.Image != "":
		return errors.New("the backend none runs on the host's own root and takes no image")
	case len(spec.Files) > 0:
		return errors.New("the backend none can mount no files")
	case spec.Network != nil:
		return errors.New("the backend none can hold no network rules")
	case len(spec.Devices) > 0:
		return errors.New("the backend none can offer no devices: its boxes see the host's")
	}
	return nil
}

// Start implements [sandbox.Driver].
func (d *Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	if err := errors.Join(spec.Validate(), refuse(spec)); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	spec.Limits = spec.Limits.Defaults()
	if err := d.claims.Take(spec); err != nil {
		return nil, err
	}
	b := &box{driver: d, spec: spec, marker: markerName + spec.ID + "-" + rand.Text(), ended: make(chan struct{})}
	err := errors.Join(b.makeHome(), b.note())
	if err == nil {
		launched := make(chan error, 1)
		go b.run(launched)
		err = <-launched
	}
	if err != nil {
		return nil, fmt.Errorf("start box %s: %w", spec.ID, errors.Join(err, b.tearDown()))
	}
	d.log.Warn("a box runs that is a process of the host", "box", spec.ID, "pid", b.process.Pid)
	return b, nil
}

// makeHome makes a home directory if the command is told of one.
func (b *box) makeHome() (err error) {
	told := append(slices.Clone(b.spec.Command), b.spec.Env...)
	if slices.ContainsFunc(told, func(s string) bool { return strings.Contains(s, sandbox.HomePath) }) {
		b.home, err = os.MkdirTemp("", "bailey-home-")
	}
	return err
}

// command prepares the process.
func (b *box) command() *exec.Cmd {
	here := b.translate
	args := make([]string, len(b.spec.Command))
	for i, arg := range b.spec.Command {
		args[i] = here(arg)
	}
	env := []string{b.marker}
	for _, v := range b.spec.Env {
		name, value, _ := strings.Cut(v, "=")
		env = append(env, name+"="+here(value))
	}
	return &exec.Cmd{Path: args[0], Args: args, Env: env, Dir: b.spec.WorkDir}
}

// translate replaces a path of a box, or the beginning of one, by what it is on the
// host.
func (b *box) translate(name string) string {
	// What lies within another comes first.
	best, host := "", ""
	for inside, outside := range b.paths() {
		if within(name, inside) && len(inside) > len(best) {
			best, host = inside, outside
		}
	}
	if best == "" {
		return name
	}
	return host + strings.TrimPrefix(name, best)
}

// paths are the host's for those of the box.
func (b *box) paths() map[string]string {
	paths := maps.Clone(b.spec.ReadOnly)
	if paths == nil {
		paths = make(map[string]string)
	}
	paths[sandbox.WorkPath] = b.spec.WorkDir
	if b.home != "" {
		paths[sandbox.HomePath] = b.home
	}
	if b.spec.Agent != "" {
		paths[sandbox.AgentPath] = b.spec.Agent
	}
	return paths
}

func within(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, dir+"/")
}

// markerName begins the variable by which a box's processes are known.
const markerName = "BAILEY_BOX="
