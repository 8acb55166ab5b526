package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/oci/cradle"
	"github.com/bailey-platform/bailey/sandbox/users"
	"github.com/bailey-platform/bailey/sandbox/workfolder"
)

// Start implements [sandbox.Driver]. As root it gives the work folder, and what root
// owns in it, to the box's user: nothing that a box makes on the host is root's.
func (d *Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	spec, err := validate(spec, d.root)
	if err != nil {
		return nil, err
	}
	h, err := d.prepare(ctx)
	if err != nil {
		return nil, err
	}
	devices, err := cdi.Resolve(spec.Devices, d.options.DeviceDirs...)
	if err != nil {
		return nil, err
	}
	root, err := h.root(ctx, spec.Image)
	if err != nil {
		return nil, err
	}
	if err := d.claims.Take(spec); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	b := &box{
		root:    root,
		devices: devices,
		driver:  d,
		host:    h,
		spec:    spec,
		log:     d.log.With("box", spec.ID),
		ended:   make(chan struct{}),
	}
	if err := b.start(ctx); err != nil {
		return nil, fmt.Errorf("start box %s: %w", spec.ID, err)
	}
	return b, nil
}

// start starts a box whose id and folder are claimed. The claim goes with the box, or
// with the error.
func (b *box) start(ctx context.Context) error {
	config, err := b.setUp()
	if err != nil {
		return errors.Join(err, b.tearDown())
	}
	launched, started := make(chan error, 1), make(chan error, 1)
	go b.run(launched, started)
	if err := <-launched; err != nil {
		return err
	}
	if err := b.await(ctx, config, started); err != nil {
		b.end(sandbox.CauseStopped, "")
		<-b.ended
		b.stdio.Close()
		return err
	}
	if b.group != nil {
		go b.watch()
	}
	return nil
}

// setUp makes what the box needs on the host before it can run, and says what its
// cradle is to do.
func (b *box) setUp() (cradle.Config, error) {
	h := b.host
	if err := workfolder.Ready(b.spec, b.driver.root); err != nil {
		return cradle.Config{}, err
	}
	if b.driver.root {
		var err error
		if b.users, err = h.users.take(); err != nil {
			return cradle.Config{}, err
		}
	}
	if h.cgroups != nil {
		group, err := h.cgroups.Make(b.spec.ID, b.spec.Limits)
		if err != nil {
			return cradle.Config{}, fmt.Errorf("control group: %w", err)
		}
		b.group = group
	}
	scratch, _ := b.spec.Limits.Scratch()
	config := cradle.Config{
		Engine:   h.engine.path,
		Flags:    h.engine.flags,
		ID:       "box", // each has a runtime's state of its own
		Layers:   b.root.Layers,
		Scratch:  scratch,
		Inodes:   max(inodeMin, scratch>>12),
		Ordinary: !b.driver.root,
		Network:  b.spec.Network != nil,
	}
	var mappings []specs.LinuxIDMapping
	switch {
	case !b.driver.root:
		// The one user that an ordinary user may map is itself.
		mappings = []specs.LinuxIDMapping{{ContainerID: sandbox.User, HostID: 0, Size: 1}}
	case b.users.maps(b.sources()):
		config.IDMapped, config.Owner = true, b.users.first
		mappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(b.users.first), Size: users.PerBox}}
	default:
		b.log.Info("a file system cannot map owners: the box's users are the host's of the same number, in a user namespace of its own",
			"layers", b.root.Layers, "work_folder", b.spec.WorkDir)
		mappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: users.PerBox}}
	}
	config.Mounts = mounts(b.spec, b.root, b.devices, config.Owner)
	b.spec.Env = b.spec.EnvIn(b.root.Env)
	data, err := json.Marshal(bundle(b.spec, b.devices, mappings))
	config.Bundle = data
	return config, err
}

// run starts the cradle, says so on launched, says on started when the command runs,
// and sees the box to its end.
func (b *box) run(launched, started chan<- error) {
	// The kernel kills the cradle when the thread that started it ends, rather than the
	// process, so the thread must be there for as long as the box. Never unlocked, it
	// ends with this goroutine, and what was done to it goes with it.
	runtime.LockOSThread()

	replies, err := b.launch()
	if err != nil {
		launched <- errors.Join(err, b.tearDown())
		return
	}
	defer replies.Close()
	launched <- nil
	lifetime := time.AfterFunc(b.spec.Limits.Lifetime, func() {
		b.end(sandbox.CauseTime, fmt.Sprintf("it had run for %v", b.spec.Limits.Lifetime))
	})
	defer lifetime.Stop()

	// What the cradle says last, or nothing if it could not.
	var last cradle.Reply
	decoder := json.NewDecoder(replies)
	for {
		var reply cradle.Reply
		if err := decoder.Decode(&reply); err != nil {
			break
		}
		last = reply
		switch {
		case reply.Started:
			started <- nil
		case reply.Error != "" && b.group != nil && b.group.Killed():
			started <- errors.New(outOfMemory(b.spec.Limits))
		case reply.Error != "":
			started <- errors.New(reply.Error)
		}
	}
	_ = b.cmd.Wait() // what it says of the box is in last
	b.finish(last.Ended)
}

// launch starts the cradle within the box's limits and returns where its replies come.
// It must run on the thread that stays with the box.
func (b *box) launch() (replies *os.File, err error) {
	b.cmd = &exec.Cmd{
		Path: b.driver.launcher(),
		Args: []string{netns.LauncherName, cradle.RoleBox},
		Dir:  "/",
		Env:  []string{}, // nothing of the worker's
		SysProcAttr: &syscall.SysProcAttr{
			Pdeathsig:  syscall.SIGKILL,
			Setsid:     true, // a terminal's signals are for the worker
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		},
	}
	attr := b.cmd.SysProcAttr
	if !b.driver.root {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	var theirs []*os.File // in the order of the cradle's descriptors
	defer func() {
		for _, file := range theirs {
			file.Close()
		}
		if err != nil {
			b.closeControl()
			if replies != nil {
				replies.Close()
			}
		}
	}()
	configuration, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b.requests, theirs = w, append(theirs, configuration)
	replies, w, err = os.Pipe()
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, w)
	sock, other, err := netns.Socket()
	if err != nil {
		return nil, err
	}
	b.sock, theirs = sock, append(theirs, other)
	b.cmd.ExtraFiles = theirs
	if b.users != nil {
		// Which stay open; the second so that the users are the box's for as long as it
		// lives, which may be longer than we do.
		b.cmd.ExtraFiles = append(b.cmd.ExtraFiles[:len(theirs):len(theirs)], b.users.space, b.host.users.held())
	}
	if b.stdio, err = sandbox.NewStdio(b.cmd); err != nil {
		return nil, err
	}
	err = b.startWithinLimits()
	b.stdio.Started(b.spec.Stderr)
	if err != nil {
		b.stdio.Close()
	}
	return replies, err
}

// startWithinLimits starts the cradle in the box's control group. The group limits the
// runtime as well, which is gone once the command runs.
func (b *box) startWithinLimits() error {
	if b.group != nil {
		dir, err := b.group.Open()
		if err != nil {
			return err
		}
		if dir != nil {
			defer dir.Close()
			b.cmd.SysProcAttr.UseCgroupFD, b.cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
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
	return b.cmd.Start()
}

// await tells the cradle what to do, has its network served, and waits until the
// command runs.
func (b *box) await(ctx context.Context, config cradle.Config, started <-chan error) error {
	defer b.closeControl()
	defer context.AfterFunc(ctx, func() { b.end(sandbox.CauseStopped, "") })()
	err := b.instruct(config)
	if err != nil {
		b.end(sandbox.CauseStopped, "") // it has no more to wait for
	}
	// If the cradle failed it says why, and that is why all else did.
	select {
	case reason := <-started:
		return reason
	case <-b.ended:
	}
	select {
	case reason := <-started: // it came to both
		return reason
	default:
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		err = errors.New(b.exit.Detail)
	}
	return err
}

// instruct tells the cradle what to do, and has its network served.
func (b *box) instruct(config cradle.Config) error {
	if err := json.NewEncoder(b.requests).Encode(config); err != nil {
		return fmt.Errorf("tell its cradle what to do: %w", err)
	}
	if b.spec.Network == nil {
		return nil
	}
	exits, err := netns.Receive(b.sock)
	if err != nil {
		return err
	}
	b.keepExits(exits)
	if err := b.spec.Network.Attach(exits); err != nil {
		return fmt.Errorf("serve its network: %w", err)
	}
	_, err = b.requests.WriteString(cradle.Go)
	return err
}
