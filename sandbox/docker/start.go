package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/workfolder"
)

// Start implements [sandbox.Driver]. As root it gives the work folder, and what root
// owns in it, to the box's user: nothing that a box makes on the host is root's.
func (d *Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	spec, err := validate(spec, d.root, strings.TrimPrefix(d.socket(), "unix://"))
	if err != nil {
		return nil, err
	}
	found, err := d.prepare(ctx)
	if err != nil {
		return nil, err
	}
	i, err := d.image(ctx, found, spec.Image)
	if err != nil {
		return nil, err
	}
	if err := d.claims.Take(spec); err != nil {
		return nil, err
	}
	b := &box{
		driver: d,
		daemon: found,
		spec:   spec,
		log:    d.log.With("box", spec.ID),
		ended:  make(chan struct{}),
	}
	if err := b.start(ctx, i); err != nil {
		return nil, fmt.Errorf("start box %s: %w", spec.ID, err)
	}
	return b, nil
}

// start starts a box whose id and folder are claimed. The claim goes with the box, or
// with the error.
func (b *box) start(ctx context.Context, i image) error {
	if err := workfolder.Ready(b.spec, b.driver.root); err != nil {
		b.driver.claims.Give(b.spec.ID)
		return err
	}
	created, err := b.create(ctx, i)
	if errdefs.IsNotFound(err) {
		// It is another driver's image, too, which had no more use for it.
		if i, err = b.driver.image(ctx, b.daemon, b.spec.Image); err == nil {
			created, err = b.create(ctx, i)
		}
	}
	if err != nil {
		b.driver.claims.Give(b.spec.ID)
		return err
	}
	b.id = created.ID
	if err := b.launch(ctx); err != nil {
		b.abandon(ctx)
		return err
	}
	return nil
}

func (b *box) create(ctx context.Context, i image) (client.ContainerCreateResult, error) {
	options, err := b.driver.describe(b.daemon, b.spec, i)
	if err != nil {
		return client.ContainerCreateResult{}, err
	}
	return b.daemon.client.ContainerCreate(ctx, options)
}

// launch starts the container, which is there, and returns when the command runs.
func (b *box) launch(ctx context.Context) error {
	// Before it runs, so that nothing it says is lost.
	attached, err := b.daemon.client.ContainerAttach(ctx, b.id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		// podman makes the container now, and the client does not pass on what it says of
		// it; it says it again when asked to start what it could not make.
		_, reason := b.daemon.client.ContainerStart(ctx, b.id, client.ContainerStartOptions{})
		return cmp.Or(reason, fmt.Errorf("attach to it: %w", err))
	}
	b.conn = attached
	if b.stdout, b.output, err = os.Pipe(); err != nil {
		return err
	}
	if _, err := b.daemon.client.ContainerStart(ctx, b.id, client.ContainerStartOptions{}); err != nil {
		return err
	}
	got, err := b.daemon.client.ContainerInspect(ctx, b.id, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	// A short command may have ended by now, and then there is nothing to look at.
	if state := got.Container.State; state != nil && state.Running && state.Pid > 0 {
		b.usage = usageOf(state.Pid)
		if b.spec.Network != nil {
			if err := b.connect(ctx, state.Pid); err != nil {
				return err
			}
		}
	} else if b.spec.Network != nil {
		return errors.New("it ended before its network was served")
	}
	b.lifetime = time.AfterFunc(b.spec.Limits.Lifetime, func() {
		b.end(sandbox.CauseTime, fmt.Sprintf("it had run for %v", b.spec.Limits.Lifetime))
	})
	go b.run()
	go b.watch()
	return nil
}

// connect has the box's network served, and then lets its command run: until now there
// has been a shell that waits. Nor could that have reached anything.
func (b *box) connect(ctx context.Context, pid int) error {
	exits, err := netns.Join(ctx, pid, b.driver.launcher())
	if err != nil {
		return fmt.Errorf("its network: %w", err)
	}
	b.exits = &exits
	if err := b.spec.Network.Attach(exits); err != nil {
		return fmt.Errorf("serve its network: %w", err)
	}
	_, err = b.conn.Conn.Write([]byte("\n"))
	return err
}

// abandon removes what there is of a box that did not start.
func (b *box) abandon(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeMax)
	defer cancel()
	if err := b.daemon.remove(ctx, b.id); err != nil {
		b.log.Error("a box that did not start is left at the daemon", "error", err)
	}
	if b.conn.Conn != nil {
		b.conn.Close()
	}
	if b.stdout != nil {
		b.stdout.Close()
		b.output.Close()
	}
	b.release()
}
