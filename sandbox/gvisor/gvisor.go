// Package gvisor runs boxes on gVisor, a kernel in user space, which is compiled
// into this executable: there is nothing to install and no service to run. It
// works as root and as an ordinary user alike.
//
// A box is three processes of this executable under another name: one that
// starts the others and waits, one that is the kernel, and one that opens the
// files the box may reach. The kernel dies with its starter and that with us, so
// no box outlives the worker.
//
// The package must not know what runs in a box or who asked for it. gVisor itself is
// package engine, which is imported in runtime.go only, so that everything else builds
// without it.
//
// Start reading at [Driver.Start].
package gvisor

import (
	"context"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
)

// Name is the backend's name.
const Name = "gvisor"

const (
	runtimeName = "runsc"
	self        = "/proc/self/exe"
)

// Options say how boxes are made.
type Options struct {
	// Root is a directory for what the driver keeps on the host while boxes run.
	// It is made if it does not exist, and one driver at a time uses it.
	Root string

	// Runtime is the executable that calls [RunIfRuntime]. The default is the one
	// that is running.
	Runtime string

	// Launcher is the executable that boxes are started by, see package launcher. The
	// default is the one that is running.
	Launcher string

	// DeviceDirs are where devices are described, [cdi.Dirs] if there are none.
	DeviceDirs []string

	Logger *slog.Logger // nil discards
}

// A Driver makes boxes on gVisor.
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
	dir      string         // Options.Root, absolute and without links
	lock     *os.File       // held on dir while we live
	tag      string         // tells this driver's boxes from another's on this host
	images   string         // what is unpacked of images
	programs *rootfs.Root   // the root of boxes without an image, never closed
	cgroups  *cgroup.Groups // nil where we may make none
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

// Prepare implements [sandbox.Driver].
func (d *Driver) Prepare(ctx context.Context, image string) error {
	h, err := d.prepare(ctx)
	if err != nil {
		return err
	}
	root, err := h.open(ctx, image)
	if err != nil || root == h.programs {
		return err
	}
	return root.Close()
}

// prepare sets up what all boxes share.
func (d *Driver) prepare(ctx context.Context) (*host, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.host != nil {
		return d.host, nil
	}
	if d.options.Runtime == "" && !compiled {
		return nil, &sandbox.Unavailable{
			Backend: Name,
			Cause:   "this binary was built without gVisor (-tags slim or -race)",
			Remedy:  []string{"build it without those"},
		}
	}
	if linkedDynamically(d.runtime()) {
		return nil, &sandbox.Unavailable{
			Backend: Name,
			Cause:   "the program needs the host's C library, and gVisor's processes start where there is none",
			Remedy:  []string{"build it with CGO_ENABLED=0"},
		}
	}
	if d.root {
		ids, err := os.ReadFile("/proc/self/uid_map")
		if err != nil {
			return nil, err
		}
		if !mapped(string(ids), sandbox.User) {
			return nil, &sandbox.Unavailable{
				Backend: Name,
				Cause:   fmt.Sprintf("we are root of a user namespace that has no user %d, which boxes run as", sandbox.User),
				Remedy:  []string{"run as an ordinary user", "give the namespace 65536 user and group ids"},
			}
		}
	}
	dir, err := filepath.Abs(d.options.Root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "boxes"), 0o700); err != nil {
		return nil, err
	}
	// gVisor refuses to mount by way of links.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	held, err := sandbox.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("sandbox directory %s: %w", dir, err)
	}
	h := &host{dir: dir, lock: held, images: filepath.Join(dir, "images")}
	if h.tag, err = sandbox.Tag(held); err != nil {
		held.Close()
		return nil, err
	}
	if h.programs, err = rootfs.Open(ctx, "", h.images); err != nil {
		held.Close()
		return nil, err
	}
	if h.cgroups, err = cgroup.Find("bailey-" + h.tag); err != nil {
		d.log.Info("no control groups for boxes; their limits are watched instead", "reason", err)
	}
	d.host = h
	return h, nil
}

// open returns what a box with this image has for a root, to be closed with the box.
func (h *host) open(ctx context.Context, image string) (*rootfs.Root, error) {
	if image == "" {
		return h.programs, nil
	}
	return rootfs.Open(ctx, image, h.images)
}

// lockName is the file that a driver holds a lock on.
const lockName = "lock"

// mapped reports whether a user exists by what /proc/self/uid_map says
// (user_namespaces(7)).
func mapped(ids string, user uint64) bool {
	for line := range strings.Lines(ids) {
		var first, outside, count uint64
		if _, err := fmt.Sscan(line, &first, &outside, &count); err == nil && user >= first && user-first < count {
			return true
		}
	}
	return false
}

// runtime returns the executable that becomes gVisor.
func (d *Driver) runtime() string {
	if d.options.Runtime != "" {
		return d.options.Runtime
	}
	// The link still works when the file was replaced by a newer one.
	return self
}

// linkedDynamically reports whether a program needs a loader and libraries.
func linkedDynamically(path string) bool {
	file, err := elf.Open(path)
	if err != nil {
		return false // it will not start, and say why
	}
	defer file.Close()
	return slices.ContainsFunc(file.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// version returns the version of gVisor that is compiled into the runtime.
func (d *Driver) version() string {
	info, err := buildinfo.ReadFile(d.runtime())
	if err != nil {
		return "unknown"
	}
	for _, module := range append(info.Deps, &info.Main) {
		if module.Path == "gvisor.dev/gvisor" {
			return module.Version
		}
	}
	return "unknown"
}

// Sweep removes what an earlier worker with the same Root left behind when it was
// killed: processes that are still dying, control groups, files. The boxes of this
// driver are not touched. A worker calls it once, before its first box.
func (d *Driver) Sweep(ctx context.Context) error {
	h, err := d.prepare(ctx)
	if err != nil {
		return err
	}
	live := d.claims.Holds
	if err := killLeftovers(ctx, h.tag, live); err != nil {
		return err
	}
	var errs []error
	if h.cgroups != nil {
		errs = append(errs, h.cgroups.Sweep(live))
	}
	checks, err := filepath.Glob(filepath.Join(h.dir, "check-*"))
	errs = append(errs, err)
	for _, dir := range checks {
		if !live(filepath.Base(dir)) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	entries, err := os.ReadDir(filepath.Join(h.dir, "boxes"))
	errs = append(errs, err)
	for _, entry := range entries {
		if !live(entry.Name()) {
			d.log.Info("removing a box that an earlier worker left", "box", entry.Name())
			errs = append(errs, os.RemoveAll(filepath.Join(h.dir, "boxes", entry.Name())))
		}
	}
	return errors.Join(errs...)
}

// killLeftovers kills the processes of boxes with this tag that are not live. It
// knows them by the name they were given on their command line.
func killLeftovers(ctx context.Context, tag string, live func(id string) bool) error {
	for {
		found := 0
		for _, pid := range pids() {
			if sandbox.Kill(pid, func() bool {
				id, ok := strings.CutSuffix(containerOf(pid), "-"+tag)
				return ok && !live(id)
			}) {
				found++
			}
		}
		if found == 0 {
			return nil
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return fmt.Errorf("%d processes of earlier boxes do not end: %w", found, err)
		}
	}
}
