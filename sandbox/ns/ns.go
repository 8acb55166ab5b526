// Package ns runs boxes in namespaces of the host's own kernel: programs run at full
// speed and a box starts in a few milliseconds. It works as root and as an ordinary
// user alike, with nothing to install.
//
// The kernel is shared, so a hole in it is a way out. What can be done about that is
// done: a box has its own users (as root, of a range that no other live box has), root,
// processes, network, host name and control groups; it can make some two thirds of the
// kernel's system calls, with the arguments that programs need; it has no capability,
// can gain none, and is within a Landlock domain. For more, there is sandbox/gvisor.
//
// A box begins as the small executable of sandbox/launcher, started in the namespaces,
// which makes the rest from within (sandbox/ns/boxinit) and stays, as next to nothing, as
// the box's first process. The kernel ends that when the worker dies, and with it all of the box.
//
// Out of memory, the kernel ends the process in the box that has most of it: a tool's,
// as a rule, and the box lives on (see [sandbox.LimitHits]). If it was the box's own
// command, the box ends with [sandbox.CauseMemory]. A full disk is an error of whoever
// writes.
//
// The package must not know what runs in a box or who asked for it. Start reading at
// [Driver.Start].
package ns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cgroup"
	"github.com/bailey-platform/bailey/sandbox/lockdown"
	"github.com/bailey-platform/bailey/sandbox/rootfs"
	"github.com/bailey-platform/bailey/sandbox/users"
)

// Name is the backend's name.
const Name = "ns"

// Options say how boxes are made.
type Options struct {
	// Root is a directory for what the driver keeps on the host while boxes run.
	// It is made if it does not exist, and one driver of this kind at a time uses it.
	Root string

	// Launcher is the executable that calls launcher.RunIf in its main. The default is
	// the one that is running.
	Launcher string

	// Users are the users and groups of the host that boxes are given, by a worker that
	// is root: [users.PerBox] of them to each, and never the same to two at once, not
	// even by several workers. The default is [users.Default].
	Users users.Range

	// DeviceDirs are where devices are described, [cdi.Dirs] if there are none.
	DeviceDirs []string

	Logger *slog.Logger // nil discards
}

// A Driver makes boxes of namespaces.
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
	dir      string         // Options.Root, absolute
	lock     *os.File       // held on dir while we live
	tag      string         // tells this driver's boxes from another's on this host
	launcher *os.File       // open, so that a newer file of the name changes nothing
	seen     *rootfs.Root   // of the host, in boxes without an image
	users    *users.Ranges  // nil for an ordinary user
	cgroups  *cgroup.Groups // nil where we may make none
	filter   lockdown.Filter
	cpuinfo  string            // the host's /proc/cpuinfo, which takes long to read
	landlock lockdown.Landlock // without paths if the kernel has none

	mu   sync.Mutex
	pids map[int]bool // of the first processes of live boxes
}

// New returns a driver. It does nothing yet, so that a worker without boxes leaves
// no trace.
func New(options Options) *Driver {
	d := &Driver{options: options, log: options.Logger, root: os.Geteuid() == 0}
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
	if err != nil || image == "" {
		return err
	}
	root, err := rootfs.Open(ctx, image, h.images())
	if err != nil {
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
	dir, err := filepath.Abs(d.options.Root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	h := &host{dir: dir, pids: make(map[int]bool)}
	if err := d.setUp(ctx, h); err != nil {
		h.close()
		return nil, err
	}
	d.host = h
	return h, nil
}

// lockName is the file that a driver holds a lock on. Its directory may be another
// backend's too.
const lockName = Name + ".lock"

func (d *Driver) setUp(ctx context.Context, h *host) (err error) {
	if h.lock, err = sandbox.Lock(filepath.Join(h.dir, lockName)); err != nil {
		return fmt.Errorf("sandbox directory %s: %w", h.dir, err)
	}
	if h.tag, err = sandbox.Tag(h.lock); err != nil {
		return err
	}
	if h.launcher, err = os.Open(d.launcher()); err != nil {
		return fmt.Errorf("open what starts boxes: %w", err)
	}
	if h.seen, err = rootfs.Open(ctx, "", h.images()); err != nil {
		return err
	}
	if d.root {
		if h.users, err = users.Open(users.Path, d.options.Users); err != nil {
			return fmt.Errorf("find users for boxes: %w", err)
		}
	}
	if h.cgroups, err = cgroup.FindSome("bailey-" + h.tag); err != nil {
		d.log.Info("no control groups for boxes; their limits are watched instead", "reason", err)
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	h.cpuinfo = string(cpuinfo)
	h.filter = lockdown.Calls{
		Sockets: lockdown.Sockets{Unix: true, Network: true}, Box: true,
		// What no control group holds must not be got round.
		Counted: !h.held().Memory, Pinned: !h.held().CPU,
	}.Filter()
	if lockdown.LandlockVersion() > 0 {
		h.landlock.Paths = map[string]lockdown.Access{"/": lockdown.Read | lockdown.Write | lockdown.Control}
	}
	return nil
}

func (h *host) close() {
	for _, file := range []*os.File{h.lock, h.launcher} {
		file.Close() // a nil file only says so
	}
	if h.users != nil {
		h.users.Close()
	}
	if h.seen != nil {
		_ = h.seen.Close() // nothing was made of it
	}
}

// held says which limits are held by control groups, and whether boxes can be frozen.
func (h *host) held() cgroup.Held {
	if h.cgroups == nil {
		return cgroup.Held{}
	}
	return h.cgroups.Held()
}

// checkPrefix begins the names of the work folders of test boxes.
const checkPrefix = Name + "-check-"

// images is where what boxes have for a root is unpacked.
func (h *host) images() string { return filepath.Join(h.dir, "images") }

// launcher returns the executable that starts boxes.
func (d *Driver) launcher() string {
	if d.options.Launcher != "" {
		return d.options.Launcher
	}
	return "/proc/self/exe"
}

// hold notes the first process of a box that lives, or that it lives no more.
func (h *host) hold(pid int, lives bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if lives {
		h.pids[pid] = true
	} else {
		delete(h.pids, pid)
	}
}

// holds reports whether this is the first process of a box that lives.
func (h *host) holds(pid int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pids[pid]
}

// Sweep removes what an earlier worker with the same Root left behind when it was
// killed: processes that are still dying, control groups, files. The boxes of this
// driver are not touched. A worker calls it once, before its first box.
func (d *Driver) Sweep(ctx context.Context) error {
	h, err := d.prepare(ctx)
	if err != nil {
		return err
	}
	var errs []error
	// By their groups first: the frozen do not die otherwise.
	if h.cgroups != nil {
		errs = append(errs, h.cgroups.Sweep(d.claims.Holds))
	}
	if err := h.killLeftovers(ctx); err != nil {
		return errors.Join(append(errs, err)...)
	}
	checks, err := filepath.Glob(filepath.Join(h.dir, checkPrefix+"*"))
	errs = append(errs, err)
	for _, dir := range checks {
		if !d.claims.Holds(filepath.Base(dir)) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// killLeftovers kills the first processes of boxes with this driver's tag that are not
// live, which ends all that is in them.
func (h *host) killLeftovers(ctx context.Context) error {
	for {
		found := 0
		for _, pid := range pids() {
			if sandbox.Kill(pid, func() bool { return isFirstOf(pid, h.tag) && !h.holds(pid) }) {
				found++
			}
		}
		if found == 0 {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("%d processes of earlier boxes do not end: %w", found, err)
		}
	}
}
