package ns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/ns/boxinit"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
	"github.com/bailey-platform/bailey/sandbox/users"
	"github.com/bailey-platform/bailey/sandbox/workfolder"
)

// Start implements [sandbox.Driver]. As root it gives the work folder, and what root
// owns in it, to the box's user: nothing that a box makes on the host is root's.
func (d *Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	spec, err := d.validate(spec)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h, err := d.prepare(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.claims.Take(spec); err != nil {
		return nil, err
	}
	b := &box{driver: d, host: h, spec: spec, log: d.log.With("box", spec.ID), ended: make(chan struct{}), met: make(chan struct{})}
	if err := b.start(ctx); err != nil {
		return nil, fmt.Errorf("start box %s: %w", spec.ID, err)
	}
	if h.held().Freeze {
		return freezable{b}, nil
	}
	return b, nil
}

// start starts a box whose id and folder are claimed. The claim goes with the box,
// or with the error.
func (b *box) start(ctx context.Context) error {
	if err := b.setUp(ctx); err != nil {
		return errors.Join(err, b.tearDown())
	}
	launched := make(chan error, 1)
	go b.run(launched)
	if err := <-launched; err != nil {
		return err
	}
	err := b.attend(ctx)
	b.goOn()
	if err != nil {
		b.end(sandbox.CauseStopped, "")
		<-b.ended
		b.stdio.Close()
		return err
	}
	if !b.host.held().Memory {
		go b.watch()
	}
	return nil
}

// setUp makes what the box needs on the host before it can run.
func (b *box) setUp(ctx context.Context) (err error) {
	b.root = b.host.seen
	if b.spec.Image != "" {
		if b.root, err = rootfs.Open(ctx, b.spec.Image, b.host.images()); err != nil {
			return err
		}
	}
	if err := workfolder.Ready(b.spec, b.driver.root); err != nil {
		return err
	}
	if b.driver.root {
		if b.users, err = b.host.users.Take(); err != nil {
			return err
		}
	}
	if b.host.cgroups == nil {
		return nil
	}
	if b.group, err = b.host.cgroups.Make(b.spec.ID, b.spec.Limits); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	if b.host.held().Processes {
		// It bounds the box as a whole, its first process included.
		if err := b.group.LimitProcesses(b.spec.Limits.Processes + initThreads); err != nil {
			return fmt.Errorf("control group: %w", err)
		}
	}
	if err := b.group.SpareOthers(); err != nil {
		return fmt.Errorf("control group: %w", err)
	}
	return nil
}

// run starts the process that becomes the box, says so on launched, and sees the box
// to its end.
func (b *box) run(launched chan<- error) {
	// The kernel kills the process when the thread that started it ends, rather than
	// ours, so the thread must be there for as long as the box. Never unlocked, it ends
	// with this goroutine, and what was done to it goes with it.
	runtime.LockOSThread()

	cmd, err := b.launch()
	if err != nil {
		launched <- errors.Join(err, b.tearDown())
		return
	}
	b.process = cmd.Process
	b.host.hold(b.process.Pid, true)
	launched <- nil

	lifetime := time.AfterFunc(b.spec.Limits.Lifetime, func() {
		b.end(sandbox.CauseTime, fmt.Sprintf("it had run for %v", b.spec.Limits.Lifetime))
	})
	_ = cmd.Wait() // the box has said how its command ended, or was killed
	lifetime.Stop()
	b.finish()
}

// launch starts the process within the box's limits, in namespaces of its own. It must
// run on the thread that stays with the box.
func (b *box) launch() (cmd *exec.Cmd, err error) {
	cpus, err := confined(b.spec.Limits.CPUs)
	if err != nil {
		b.log.Warn("box sees every CPU", "error", err)
		cpus = runtime.NumCPU()
	}
	plan, err := b.planFile(cpus)
	if err != nil {
		return nil, err
	}
	defer plan.Close()
	line, theirLine, err := boxinit.Lines()
	if err != nil {
		return nil, err
	}
	b.line = line
	defer theirLine.Close()
	cmd = &exec.Cmd{
		Path:        boxinit.SelfPath,
		Args:        []string{netns.LauncherName, boxinit.Role, b.host.tag},
		Dir:         "/",
		Env:         boxinit.Env, // nothing of the worker's
		ExtraFiles:  []*os.File{theirLine, plan, b.host.launcher, b.host.launcher},
		SysProcAttr: b.attributes(),
	}
	if b.users != 0 {
		cmd.ExtraFiles[3] = b.host.users.File() // so that they are ours as long as the box lives
	}
	if b.spec.Network != nil {
		exits, theirs, err := netns.Socket()
		if err != nil {
			return nil, err
		}
		b.exitsSock = exits
		defer theirs.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
		cmd.Args = append(cmd.Args, boxinit.TakesExits)
	}
	if b.stdio, err = sandbox.NewStdio(cmd); err != nil {
		return nil, err
	}
	err = b.fork(cmd)
	b.stdio.Started(b.spec.Stderr)
	if err != nil {
		b.stdio.Close()
		return nil, err
	}
	return cmd, nil
}

// attributes say what namespaces the process is in, and what it may do there.
func (b *box) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS |
			// As Go does where no user namespace is made: otherwise our page tables are copied,
			// and every page that we write to next. Its child waits for nothing of ours, as
			// the users are mapped later, see mapUsers.
			unix.CLONE_VM | unix.CLONE_VFORK,
		Pdeathsig: syscall.SIGKILL,
		Setsid:    true, // a terminal's signals are for the worker

		// Nobody is root there yet, so capabilities have to be handed on.
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP, unix.CAP_DAC_OVERRIDE},
	}
	if b.users != 0 {
		// To become its users, and for whatever is done with the files of any of them: what
		// lies over the image is written with the rights of who has mounted it.
		attr.AmbientCaps = append(attr.AmbientCaps, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_CHOWN, unix.CAP_FOWNER,
			unix.CAP_FSETID, unix.CAP_DAC_READ_SEARCH, unix.CAP_MKNOD, unix.CAP_SETFCAP)
	}
	return attr
}

// fork starts the process in the box's control group.
func (b *box) fork(cmd *exec.Cmd) error {
	if b.group == nil {
		return cmd.Start()
	}
	dir, err := b.group.Open()
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(dir.Fd())
		return cmd.Start()
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
	return cmd.Start()
}

// planFile is a file in memory that holds the plan of the box.
func (b *box) planFile(cpus int) (*os.File, error) {
	plan, err := b.driver.plan(b.host, b.root, b.spec, cpus)
	if err != nil {
		return nil, err
	}
	b.mounts = plan.Root.All()
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "plan")
	if _, err := file.Write(plan.Encode()); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// attend gives the process what it cannot make itself, takes the exits it makes, and
// waits until the command runs.
func (b *box) attend(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { b.end(sandbox.CauseStopped, "") })()
	err := b.converse()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// goOn says that the box may end: nobody waits for what it says of its start.
func (b *box) goOn() { b.meet.Do(func() { close(b.met) }) }

func (b *box) converse() error {
	err := b.mapUsers()
	if err == nil {
		err = b.sendMounts()
	}
	if err != nil {
		b.end(sandbox.CauseStopped, "") // it waits for what does not come
		return b.reason(err)
	}
	if b.spec.Network != nil {
		exits, err := netns.Receive(b.exitsSock)
		b.exitsSock.Close()
		if err != nil {
			return b.reason(err)
		}
		b.exits = &exits
		if err := b.spec.Network.Attach(exits); err != nil {
			return fmt.Errorf("attach the network: %w", err)
		}
	}
	if err := b.line.Send(boxinit.Go, ""); err != nil {
		return b.reason(err)
	}
	word, more, _, err := b.line.Receive()
	switch {
	case err != nil:
		return b.reason(err)
	case word == boxinit.Failed:
		return errors.New(more)
	case word != boxinit.Running:
		return fmt.Errorf("the box says %q, not that it runs", word)
	}
	return nil
}

// reason is what the box says that it failed of, or else this.
func (b *box) reason(err error) error {
	if word, more, _, told := b.line.Receive(); told == nil && word == boxinit.Failed {
		return errors.New(more)
	}
	b.end(sandbox.CauseStopped, "")
	b.goOn()
	<-b.ended
	if said := b.stdio.LastLine(); said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// mapUsers says who of the host the users of the box are: its own range, or for an
// ordinary user, who may map no other, ourselves.
func (b *box) mapUsers() error {
	uids, gids, groups := "", "", "allow"
	if b.users != 0 {
		uids = fmt.Sprintf("0 %d %d", b.users, users.PerBox)
		gids = uids
	} else {
		uids, gids = fmt.Sprintf("%d %d 1", sandbox.User, os.Geteuid()), fmt.Sprintf("%d %d 1", sandbox.User, os.Getegid())
		groups = "deny" // as the kernel wants it of who may not map groups
	}
	for _, file := range []struct{ name, text string }{{"setgroups", groups}, {"uid_map", uids}, {"gid_map", gids}} {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", b.process.Pid, file.name), []byte(file.text), 0); err != nil {
			return fmt.Errorf("map the users of the box: %w", err)
		}
	}
	return nil
}

// sendMounts makes the mounts of the plan and sends them, if we are root: only root
// may map the owners of files.
func (b *box) sendMounts() error {
	if b.users == 0 {
		return b.line.Send(boxinit.Mounts, "")
	}
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", b.process.Pid))
	if err != nil {
		return fmt.Errorf("find the box's users: %w", err)
	}
	defer file.Close()
	users := int(file.Fd())
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, m := range b.mounts {
		fd, err := boxinit.Detach(m.Source, m.Write, &users)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	return b.line.Send(boxinit.Mounts, "", fds...)
}
