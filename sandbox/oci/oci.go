// Package oci runs boxes with any runtime of the Open Container Initiative that is
// given by its path: crun, runc, youki. The host's kernel serves such a box, in
// namespaces and behind a filter of system calls; it is a weaker wall than a kernel of
// its own, and a faster one.
//
// A box is a process of ours, the cradle, with the runtime's container in it; see
// package cradle. It holds everything that is made for the box, and dies with us, so
// no box outlives the worker, and none has a mount, an interface or a file on the host.
//
// The package must not know what runs in a box or who asked for it. Start reading at
// [Driver.Start].
package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
)

// Name is the backend's name.
const Name = "oci"

// Options say how boxes are made.
type Options struct {
	// Engine is the absolute path of the runtime.
	Engine string

	// AllowOld accepts a runtime whose version has a defect that a box could leave
	// through, for distributions that have mended it under the old version.
	AllowOld bool

	// DeviceDirs are where devices are described, those of package cdi if there are none.
	DeviceDirs []string

	// Root is a directory for what the driver keeps on the host. It is made if it does
	// not exist, and one driver at a time uses it.
	Root string

	// Launcher is the executable that calls launcher.RunIf. The default is the one that
	// is running.
	Launcher string

	Logger *slog.Logger // nil discards
}

// A Driver makes boxes with a runtime.
type Driver struct {
	// Static after New.
	options Options
	log     *slog.Logger
	root    bool // we are root on the host

	claims sandbox.Claims // of the live boxes

	mu   sync.Mutex
	host *host // what all boxes share; nil before the first use
}

// host is what a driver sets up once.
type host struct {
	dir      string   // Options.Root, absolute
	lock     *os.File // held on dir while we live
	tag      string   // tells this driver's control groups from another's
	engine   *engine
	programs *rootfs.Root   // what boxes without an image see
	cgroups  *cgroup.Groups // nil where we may make none
	users    *roots         // nil unless we are root
}

// New returns a driver. It does nothing yet, so that a worker without boxes leaves
// no trace.
func New(options Options) *Driver {
	d := &Driver{
		options: options,
		log:     options.Logger,
		root:    os.Geteuid() == 0,
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Name implements [sandbox.Driver].
func (d *Driver) Name() string { return Name }

// launcher returns the executable that has the cradle's role.
func (d *Driver) launcher() string { return cmp.Or(d.options.Launcher, netns.Self) }

// lockName is the file that a driver holds a lock on.
const lockName = "lock"

// identifyMax bounds how long a runtime may take to say what it is.
const identifyMax = 10 * time.Second

// prepare sets up what all boxes share.
func (d *Driver) prepare(ctx context.Context) (*host, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.host != nil {
		return d.host, nil
	}
	ctx, cancel := context.WithTimeout(ctx, identifyMax)
	defer cancel()
	e, err := identify(ctx, d.options.Engine, d.root, d.options.AllowOld)
	if err != nil {
		return nil, err
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
	h := &host{dir: dir, lock: held, engine: e}
	if h.tag, err = sandbox.Tag(held); err != nil {
		held.Close()
		return nil, err
	}
	if h.programs, err = rootfs.Open(ctx, "", h.images()); err != nil {
		held.Close()
		return nil, err
	}
	if d.root {
		h.users = &roots{launcher: d.launcher()}
	}
	if h.cgroups, err = cgroup.Find("bailey-" + h.tag); err != nil {
		d.log.Info("no control groups for boxes", "reason", err)
	}
	d.host = h
	return h, nil
}

// Prepare implements [sandbox.Driver].
func (d *Driver) Prepare(ctx context.Context, image string) error {
	h, err := d.prepare(ctx)
	if err != nil {
		return err
	}
	root, err := h.root(ctx, image)
	if err != nil {
		return err
	}
	return root.Close()
}

// images is where images are unpacked.
func (h *host) images() string { return filepath.Join(h.dir, "images") }

// root returns what a box of this image sees. The caller closes it.
func (h *host) root(ctx context.Context, image string) (*rootfs.Root, error) {
	if image == "" {
		// Kept open, as it takes a while to make.
		return &rootfs.Root{Layers: h.programs.Layers, Mounts: h.programs.Mounts}, nil
	}
	return rootfs.Open(ctx, image, h.images())
}

// Sweep removes what an earlier worker with the same Root left behind when it was
// killed. Its boxes died with it, so that is their control groups. The boxes of this
// driver are not touched. A worker calls it once, before its first box.
func (d *Driver) Sweep(ctx context.Context) error {
	h, err := d.prepare(ctx)
	if err != nil {
		return err
	}
	var errs []error
	if h.cgroups != nil {
		errs = append(errs, h.cgroups.Sweep(d.claims.Holds))
	}
	checks, err := filepath.Glob(filepath.Join(h.dir, "check-*"))
	errs = append(errs, err)
	for _, dir := range checks {
		if !d.claims.Holds(filepath.Base(dir)) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}
