package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
	"github.com/bailey-platform/bailey/sandbox/gvisor/stage"
	"github.com/bailey-platform/bailey/sandbox/workfolder"
)

// Start implements [sandbox.Driver]. As root it gives the work folder, and what root
// owns in it, to the box's user: nothing that a box makes on the host is root's.
func (d *Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	return d.open(ctx, spec, []string{"run", "--bundle=."})
}

// open starts a box by the subcommand of gVisor's that is given.
func (d *Driver) open(ctx context.Context, spec sandbox.Spec, command []string) (sandbox.Box, error) {
	spec, err := validate(spec, d.root)
	if err != nil {
		return nil, err
	}
	h, err := d.prepare(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.claims.Take(spec); err != nil {
		return nil, err
	}
	b, err := d.start(ctx, h, spec, command)
	if err != nil {
		return nil, fmt.Errorf("start box %s: %w", spec.ID, err)
	}
	return b, nil
}

// start starts a box whose id and folder are claimed. The claim goes with the box,
// or with the error.
func (d *Driver) start(ctx context.Context, h *host, spec sandbox.Spec, command []string) (*box, error) {
	b := &box{
		driver:    d,
		command:   append(arguments(spec, d.root), command...),
		host:      h,
		spec:      spec,
		log:       d.log.With("box", spec.ID),
		dir:       filepath.Join(h.dir, "boxes", spec.ID),
		container: spec.ID + "-" + h.tag,
		ended:     make(chan struct{}),
	}
	if err := b.setUp(ctx); err != nil {
		return nil, b.scrubError(errors.Join(err, b.tearDown()))
	}
	word, stop := notice(filepath.Join(b.dir, "state"))
	defer stop()
	launched := make(chan error, 1)
	go b.run(launched)
	if err := <-launched; err != nil {
		return nil, b.scrubError(err)
	}
	err := b.connect(ctx)
	if err == nil {
		err = b.await(ctx, word)
	}
	if err != nil {
		b.end(sandbox.CauseStopped, "")
		<-b.ended
		b.stdio.Close()
		return nil, b.scrubError(err)
	}
	go b.watch()
	return b, nil
}

// setUp makes what the box needs on the host before it can run.
func (b *box) setUp(ctx context.Context) error {
	for _, dir := range []string{b.dir, filepath.Join(b.dir, "state"), filepath.Join(b.dir, "stage")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := workfolder.Ready(b.spec, b.driver.root); err != nil {
		return err
	}
	var err error
	if b.root, err = b.host.open(ctx, b.spec.Image); err != nil {
		return err
	}
	b.spec.Env = b.spec.EnvIn(b.root.Env)
	b.stage = &stage.Stage{
		Dir:    filepath.Join(b.dir, "stage"),
		Layers: b.root.Layers,
		// gVisor mounts unbounded memory over an empty /tmp.
		Stubs:       append(slices.Sorted(maps.Keys(b.spec.Files)), "/tmp/.keep"),
		MemoryBytes: b.spec.Limits.MemoryBytes,
		Network:     b.spec.Network != nil,
	}
	found, err := devices(b.spec.Devices, b.driver.options.DeviceDirs)
	if err != nil {
		return err
	}
	if err := writeBundle(b.dir, bundle(b.stage, b.root.Mounts, b.spec, found, b.driver.root)); err != nil {
		return err
	}
	if b.host.cgroups == nil {
		return nil
	}
	group, err := b.host.cgroups.Make(b.spec.ID, b.spec.Limits)
	if err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	b.group = group
	return nil
}

// run starts gVisor, says so on launched, and sees the box to its end.
func (b *box) run(launched chan<- error) {
	// The kernel kills gVisor when the thread that started it ends, rather than the
	// process, so the thread must be there for as long as the box. Never unlocked, it
	// ends with this goroutine, and what was done to it goes with it.
	runtime.LockOSThread()

	cmd := &exec.Cmd{
		Path: b.driver.runtime(),
		Args: append(b.command, b.container),
		Dir:  b.dir,
		Env:  []string{}, // nothing of the worker's
		SysProcAttr: &syscall.SysProcAttr{
			Pdeathsig: syscall.SIGKILL,
			Setsid:    true, // a terminal's signals are for the worker
		},
	}
	if err := b.begin(cmd); err != nil {
		launched <- errors.Join(err, b.tearDown())
		return
	}
	b.starter = cmd.Process
	launched <- nil

	lifetime := time.AfterFunc(b.spec.Limits.Lifetime, func() {
		b.end(sandbox.CauseTime, fmt.Sprintf("it had run for %v", b.spec.Limits.Lifetime))
	})
	_ = cmd.Wait() // its status says it too
	lifetime.Stop()
	b.finish(cmd.ProcessState)
}

// begin starts the command on the box's stage, with its streams.
func (b *box) begin(cmd *exec.Cmd) error {
	stdio, err := sandbox.NewStdio(cmd)
	if err != nil {
		return err
	}
	entrance, err := b.stage.Wrap(cmd, b.driver.options.Launcher)
	if err == nil {
		err = b.launch(cmd)
		entrance.Started()
	}
	stdio.Started(b.spec.Stderr)
	if err != nil {
		stdio.Close()
		if entrance != nil {
			entrance.Close()
		}
		return err
	}
	b.stdio, b.entrance = stdio, entrance
	return nil
}

// connect hands the exits of the box's network to whoever serves them, and only then
// lets the command run.
func (b *box) connect(ctx context.Context) error {
	if b.spec.Network == nil {
		return nil
	}
	exits, err := b.entrance.Exits(ctx)
	if err != nil {
		return fmt.Errorf("make its network: %w", err)
	}
	if !b.own(exits) {
		return exits.Close() // await says how the box ended
	}
	if err := b.spec.Network.Attach(exits); err != nil {
		return fmt.Errorf("attach its network: %w", err)
	}
	return b.entrance.Open()
}

// launch starts the process within the box's limits. It must run on the thread that
// stays with the box.
func (b *box) launch(cmd *exec.Cmd) error {
	if b.group != nil {
		dir, err := b.group.Open()
		if err != nil {
			return err
		}
		if dir != nil {
			defer dir.Close()
			cmd.SysProcAttr.UseCgroupFD = true
			cmd.SysProcAttr.CgroupFD = int(dir.Fd())
		}
		// A group with our thread in it could not be removed.
		defer func() {
			if err := b.group.Leave(); err != nil {
				b.log.Error("the thread that waits for a box counts as part of it", "error", err)
			}
		}()
		if err := b.group.Enter(); err != nil {
			return fmt.Errorf("enter the control group: %w", err)
		}
	}
	if err := cgroup.Confine(b.spec.Limits.CPUs); err != nil {
		b.log.Warn("box sees every CPU", "error", err)
	}
	return cmd.Start()
}

// await waits until gVisor says that the command runs.
func (b *box) await(ctx context.Context, word <-chan struct{}) error {
	for {
		if s, ok := b.state(); ok {
			return b.adopt(s)
		}
		select {
		case <-word:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-b.ended:
			// A command may end before anybody looks; gVisor says so if it never began.
			if b.exit.Cause == sandbox.CauseCrashed || b.exit.Cause == sandbox.CauseMemory {
				return fmt.Errorf("%s: %s", b.exit.Cause, b.exit.Detail)
			}
			return nil
		}
	}
}

// state is what gVisor keeps on disk of a running container.
type state struct {
	Status   string `json:"status"`
	GoferPid int    `json:"goferPid"`
	Sandbox  struct {
		Pid int `json:"pid"`
	} `json:"sandbox"`
}

func (b *box) state() (s state, running bool) {
	data, err := os.ReadFile(filepath.Join(b.dir, "state", b.container+"_sandbox:"+b.container+".state"))
	if err != nil || json.Unmarshal(data, &s) != nil { // it may be half written
		return state{}, false
	}
	return s, s.Status == "running"
}

// adopt takes hold of the box's other processes.
func (b *box) adopt(s state) error {
	for _, pid := range []int{s.Sandbox.Pid, s.GoferPid} {
		p, err := hold(pid)
		if err == nil && containerOf(pid) != b.container {
			p.close()
			err = fmt.Errorf("process %d is another's", pid)
		}
		if err != nil {
			select {
			case <-b.ended:
				return nil // a short command
			case <-time.After(time.Second):
				return err
			}
		}
		b.keep(p)
	}
	return nil
}

// keep adds a process to the box's parts, unless the box has ended by now.
func (b *box) keep(p *process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.ended:
		p.close()
	default:
		b.parts = append(b.parts, p)
	}
}
