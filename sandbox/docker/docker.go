// Package docker runs boxes as containers of a docker or a podman daemon, by its API:
// for hosts where one is there already, with the images that it has and whatever
// runtime it is told to use. What is between a box and the host is what that runtime
// puts there.
//
// A container outlives the worker that asked for it. Its agent does not, as its
// standard input ends with us, and what is left of it goes with [Driver.Sweep].
//
// The package must not know what runs in a box or who asked for it. Start reading at
// [Driver.Start].
package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/netns"
)

// A Kind is which daemon it is. Its value is the backend's name.
type Kind string

// The kinds of daemon.
const (
	Docker Kind = "docker"
	Podman Kind = "podman"
)

// Options say how boxes are made.
type Options struct {
	Kind Kind

	// Host is the daemon's socket, "unix:///…": work folders are on its host, so it
	// must be this one. The default is where the kind usually has it.
	Host string

	// Runtime is the daemon's name for the runtime of boxes, such as "runsc". The
	// default is the daemon's own.
	Runtime string

	// Image is the image of boxes that name none, and of the self-test's, in the terms
	// of [sandbox.Spec.Image]. Without it every box has to name one: a daemon has
	// nothing that is the host's own programs.
	Image string

	// DeviceDirs are where devices are described, those of package cdi if there are none.
	DeviceDirs []string

	// Root is a directory by which the driver knows its own containers. It is made if
	// it does not exist, and one driver at a time uses it.
	Root string

	// Launcher is the executable that calls launcher.RunIf. The default is the one that
	// is running.
	Launcher string

	Logger *slog.Logger // nil discards
}

// A Driver makes boxes with a daemon.
type Driver struct {
	// Static after New.
	options Options
	log     *slog.Logger
	root    bool // we are root on the host

	claims sandbox.Claims // of the live boxes

	mu     sync.Mutex
	daemon *daemon             // nil before the first use
	images map[string]imported // by what a Spec calls them
}

// New returns a driver. It does nothing yet, so that a worker without boxes leaves
// no trace.
func New(options Options) *Driver {
	d := &Driver{
		options: options,
		log:     options.Logger,
		root:    os.Geteuid() == 0,
		images:  make(map[string]imported),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Name implements [sandbox.Driver].
func (d *Driver) Name() string { return string(d.options.Kind) }

// lockName is the file in Root by whose lock one driver uses it; package leaks knows it.
const lockName = "lock"

// launcher returns the executable that has the role of package netns.
func (d *Driver) launcher() string { return cmp.Or(d.options.Launcher, netns.Self) }

// socket returns where the daemon listens.
func (d *Driver) socket() string {
	switch {
	case d.options.Host != "":
		return d.options.Host
	case d.options.Kind == Podman && d.root:
		return "unix:///run/podman/podman.sock"
	case d.options.Kind == Podman:
		return fmt.Sprintf("unix:///run/user/%d/podman/podman.sock", os.Geteuid())
	}
	return "unix:///var/run/docker.sock"
}

// prepare finds the daemon and what is to be known of it.
func (d *Driver) prepare(ctx context.Context) (*daemon, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.daemon != nil {
		return d.daemon, nil
	}
	if d.options.Kind != Docker && d.options.Kind != Podman {
		return nil, fmt.Errorf("a daemon of kind %q: want %q or %q", d.options.Kind, Docker, Podman)
	}
	if !strings.HasPrefix(d.socket(), "unix:///") {
		return nil, fmt.Errorf("daemon %q: want unix:/// and a path, as work folders must be on its host", d.socket())
	}
	dir, err := filepath.Abs(d.options.Root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	held, err := sandbox.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("sandbox directory %s: %w", dir, err)
	}
	now := time.Now()
	_ = os.Chtimes(held.Name(), now, now) // then images may go a little too soon
	found, err := d.connect(ctx)
	if err != nil {
		held.Close()
		return nil, err
	}
	found.dir, found.lock, found.tag = dir, held, sandbox.PathTag(dir)
	if found.filter, err = filterFor(found.kind, dir); err != nil {
		found.client.Close()
		held.Close()
		return nil, err
	}
	d.daemon = found
	return found, nil
}

// Prepare implements [sandbox.Driver].
func (d *Driver) Prepare(ctx context.Context, image string) error {
	found, err := d.prepare(ctx)
	if err != nil {
		return err
	}
	_, err = d.image(ctx, found, image)
	return err
}

// Sweep removes what an earlier worker with the same Root left behind when it was
// killed: containers, running or not, and files. The boxes of this driver are not
// touched. It also removes images that were imported for drivers which are no more. A
// worker calls it once, before its first box.
func (d *Driver) Sweep(ctx context.Context) error {
	found, err := d.prepare(ctx)
	if err != nil {
		return err
	}
	var list client.ContainerListResult
	err = patiently(ctx, func() (err error) { // podman fails while one of them is ending
		list, err = found.client.ContainerList(ctx, client.ContainerListOptions{
			All:     true,
			Filters: make(client.Filters).Add("label", driverLabel+"="+found.tag),
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("list the containers of %s: %w", d.Name(), err)
	}
	var errs []error
	for _, c := range list.Items {
		if id := c.Labels[boxLabel]; !d.claims.Holds(id) {
			d.log.Info("removing a box that an earlier worker left", "box", id)
			errs = append(errs, found.remove(ctx, c.ID))
		}
	}
	checks, err := filepath.Glob(filepath.Join(found.dir, "check-*"))
	errs = append(errs, err)
	for _, dir := range checks {
		if !d.claims.Holds(filepath.Base(dir)) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	if err := found.dropForgotten(ctx); err != nil {
		d.log.Warn("images that nobody uses are left at the daemon", "error", err) // no reason not to start
	}
	return errors.Join(errs...)
}
