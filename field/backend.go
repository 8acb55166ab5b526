package field

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/cdi"
)

// A Backend makes one kind of sandbox. Package main lists those of a build.
type Backend struct {
	Name string // equal to the driver's
	New  func(BackendOptions) (sandbox.Driver, error)

	// Images says that boxes have no root but an image, which then the driver's
	// self-test needs as well.
	Images bool
}

// BackendOptions are what a backend may need to know of this run.
type BackendOptions struct {
	State  string // a directory for the backend's own files; it exists
	Logger *slog.Logger

	// As an operator gave them, mostly not at all; see Sandbox. A backend that has no
	// use for one refuses it.
	Engine   string
	Runtime  string
	AllowOld bool
	Image    string // of a [Backend] with Images
}

// A sweeper is a backend that a killed worker may leave something of behind.
type sweeper interface {
	Sweep(ctx context.Context) error
}

// drivers are the drivers that a configuration asks for, one for each backend with the
// same options, and what their self-tests found.
type drivers struct {
	backends []Backend
	dir      string // of their state
	log      *slog.Logger
	made     map[driverKey]*checked
}

type driverKey struct {
	backend, engine, runtime, image string

	allowOld bool
}

// checked is a driver with the outcome of its self-test.
type checked struct {
	driver sandbox.Driver
	report sandbox.Report
	err    error
}

// driver makes a driver and tests it, once.
func (ds *drivers) driver(ctx context.Context, key driverKey) *checked {
	if c := ds.made[key]; c != nil {
		return c
	}
	c := new(checked)
	ds.made[key] = c
	c.driver, c.err = ds.make(key)
	if s, ok := c.driver.(sweeper); ok && c.err == nil {
		if err := s.Sweep(ctx); err != nil {
			// It may be that nothing can be done with this backend at all, which the
			// self-test explains better.
			if _, c.err = c.driver.Check(ctx); c.err == nil {
				c.err = fmt.Errorf("remove what an earlier worker left behind: %w", err)
			}
		}
	}
	if c.err == nil {
		c.report, c.err = c.driver.Check(ctx)
	}
	return c
}

func (ds *drivers) make(key driverKey) (sandbox.Driver, error) {
	name := key.backend
	if (key != driverKey{backend: key.backend}) {
		h := fnv.New32a()
		_, _ = h.Write([]byte(key.engine + "\x00" + key.runtime))
		if key.image != "" || key.allowOld {
			_, _ = fmt.Fprintf(h, "\x00%s\x00%t", key.image, key.allowOld)
		}
		name = fmt.Sprintf("%s-%08x", name, h.Sum32())
	}
	state := filepath.Join(ds.dir, name)
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("make the sandbox's directory: %w", err)
	}
	b, err := ds.named(key.backend)
	if err != nil {
		return nil, err
	}
	return b.New(BackendOptions{State: state, Logger: ds.log, Engine: key.engine, Runtime: key.runtime, AllowOld: key.allowOld, Image: key.image})
}

// discardMax bounds the removal of what drivers keep.
const discardMax = 10 * time.Second

// discard removes what the drivers would keep for their next life, as there is none. What
// is left then, the next worker removes.
func (ds *drivers) discard() {
	ctx, cancel := context.WithTimeout(context.Background(), discardMax)
	defer cancel()
	for _, c := range ds.made {
		if d, ok := c.driver.(sandbox.Discarder); ok {
			_ = d.Discard(ctx)
		}
	}
}

func (ds *drivers) named(name string) (Backend, error) {
	for _, b := range ds.backends {
		if b.Name == name {
			return b, nil
		}
	}
	return Backend{}, fmt.Errorf("there is no backend %q", name)
}

// A Choice is the backend that an environment got.
type Choice struct {
	Driver   sandbox.Driver
	Report   sandbox.Report
	PassedBy []string // why not those that come before it, a sentence each
}

// A Mismatch is the error of an environment that no backend it may use does justice to.
type Mismatch struct {
	Reasons []string // one a backend
	Remedy  []string
	Errs    []error // of the backends that cannot be used
}

func (e *Mismatch) Unwrap() []error { return e.Errs }

func (e *Mismatch) Error() string {
	text := "no sandbox that this environment may use does what it requires: " + strings.Join(e.Reasons, "; ")
	if len(e.Remedy) > 0 {
		text += "; to mend it: " + strings.Join(e.Remedy, ", or ")
	}
	return text
}

// choose returns the first backend, of the one asked for and then its fallbacks, that
// works here and does all that is required. Nothing else is ever tried.
func (ds *drivers) choose(ctx context.Context, s *Settings) (*Choice, error) {
	want := s.requirements()
	var mismatch Mismatch
	for _, name := range append([]string{s.Sandbox.Backend}, s.Sandbox.Fallback...) {
		b, err := ds.named(name)
		if err != nil {
			return nil, err
		}
		o := s.Sandbox.Options(b)
		c := ds.driver(ctx, driverKey{backend: name, engine: o.Engine, runtime: o.Runtime, image: o.Image, allowOld: o.AllowOld})
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if c.err != nil {
			mismatch.Errs = append(mismatch.Errs, c.err)
		}
		if unavailable, ok := errors.AsType[*sandbox.Unavailable](c.err); ok {
			mismatch.Reasons = append(mismatch.Reasons, fmt.Sprintf("%s cannot be used: %s", name, unavailable.Cause))
			mismatch.Remedy = append(mismatch.Remedy, unavailable.Remedy...)
			continue
		}
		if c.err != nil {
			mismatch.Reasons = append(mismatch.Reasons, fmt.Sprintf("%s cannot be used: %v", name, c.err))
			continue
		}
		if missing := c.report.Missing(want); len(missing) > 0 {
			reason := fmt.Sprintf("%s lacks %s", name, strings.Join(missing, ", "))
			if _, err := cdi.Resolve(s.Sandbox.Devices); err != nil && !c.report.GPU {
				// It is for the devices that a GPU is wanted, and nobody knows these.
				reason += fmt.Sprintf(", for sandbox.devices: %v", err)
			}
			mismatch.Reasons = append(mismatch.Reasons, reason)
			continue
		}
		return &Choice{Driver: c.driver, Report: c.report, PassedBy: mismatch.Reasons}, nil
	}
	if len(mismatch.Remedy) == 0 {
		mismatch.Remedy = []string{"use another backend, or require less (sandbox.require)"}
	}
	return nil, &mismatch
}

// Options are what the settings say to a backend: of engines and runtimes only to the
// one that they name first. State and Logger are left to the caller.
func (s *Sandbox) Options(b Backend) BackendOptions {
	var o BackendOptions
	if b.Name == s.Backend {
		o.Engine, o.Runtime, o.AllowOld = s.Engine, s.Runtime, s.AllowOldEngine
	}
	if b.Images {
		o.Image = s.Image
	}
	return o
}

// requirements are what the settings ask of a backend, said and implied.
func (s *Settings) requirements() sandbox.Requirements {
	r := s.Sandbox.Require
	return sandbox.Requirements{
		Isolation: sandbox.Isolation(r.Isolation), Limits: r.Limits,
		Network:    r.Network || !s.Network.none(),
		Freeze:     r.Freeze,
		Checkpoint: r.Checkpoint,
		GPU:        r.GPU || len(s.Sandbox.Devices) > 0,
	}
}
