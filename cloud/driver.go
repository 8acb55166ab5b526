package cloud

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox"
)

// drivers make the backends of one process: each environment's field asks for one as if
// it were alone, and all of them share it, with one self-test and a bound on the boxes
// of all.
type drivers struct {
	// Static.
	backends []field.Backend
	options  field.BackendOptions
	room     chan struct{} // one in it for each box

	mu   sync.Mutex
	made map[string]*driver
}

// driver is a shared backend. It hides what is for whoever has one alone: sweeping.
type driver struct {
	sandbox.Driver
	room chan struct{}

	mu      sync.Mutex
	tested  time.Time // when the self-test was done; zero before
	report  sandbox.Report
	failure error
}

// retestAfter is how long a failed self-test is taken for true.
const retestAfter = 30 * time.Second

// shared returns the list of backends for fields.
func (d *drivers) shared() []field.Backend {
	var list []field.Backend
	for _, b := range d.backends {
		list = append(list, field.Backend{Name: b.Name, New: func(field.BackendOptions) (sandbox.Driver, error) { return d.driver(b) }})
	}
	return list
}

// named returns the shared driver of a backend.
func (d *drivers) named(name string) (sandbox.Driver, error) {
	for _, b := range d.backends {
		if b.Name == name {
			return d.driver(b)
		}
	}
	return nil, fmt.Errorf("there is no backend %q in this build", name)
}

func (d *drivers) driver(b field.Backend) (sandbox.Driver, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if made := d.made[b.Name]; made != nil {
		return made.public(), nil
	}
	o := d.options
	o.State += "/" + b.Name
	inner, err := b.New(o)
	if err != nil {
		return nil, err
	}
	made := &driver{Driver: inner, room: d.room}
	d.made[b.Name] = made
	return made.public(), nil
}

// public is d with what else its backend can do.
func (d *driver) public() sandbox.Driver {
	if r, ok := d.Driver.(sandbox.Restorer); ok {
		return &restoringDriver{d, r}
	}
	return d
}

// Check is the backend's, done once if it went well.
func (d *driver) Check(ctx context.Context) (sandbox.Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.tested.IsZero() && (d.failure == nil || time.Since(d.tested) < retestAfter) {
		return d.report, d.failure
	}
	// What an earlier server left behind goes first, before any box of this one.
	if s, ok := d.Driver.(interface{ Sweep(context.Context) error }); ok && d.tested.IsZero() {
		err := s.Sweep(ctx)
		if _, unavailable := errors.AsType[*sandbox.Unavailable](err); err != nil && !unavailable { // which Check says better
			return sandbox.Report{}, fmt.Errorf("remove what an earlier server left behind: %w", err)
		}
	}
	report, err := d.Driver.Check(ctx)
	if ctx.Err() != nil {
		return report, ctx.Err()
	}
	d.report, d.failure, d.tested = report, err, time.Now()
	return report, err
}

// errNoRoom is why a box is not started.
var errNoRoom = errors.New("this server has as many boxes as it can; try again when other sessions are done, or ask its operator for more (cloud-boxes)")

// roomWait is how long a box waits for another one to end.
const roomWait = 30 * time.Second

// Start starts a box when there is room for it.
func (d *driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	return d.start(ctx, func() (sandbox.Box, error) { return d.Driver.Start(ctx, spec) })
}

func (d *driver) start(ctx context.Context, begin func() (sandbox.Box, error)) (sandbox.Box, error) {
	late := time.NewTimer(roomWait)
	defer late.Stop()
	select {
	case d.room <- struct{}{}:
	case <-late.C:
		return nil, errNoRoom
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	box, err := begin()
	if err != nil {
		<-d.room
		return nil, err
	}
	go func() {
		box.Wait()
		<-d.room
	}()
	return box, nil
}

// restoringDriver is a driver whose boxes can be made from checkpoints.
type restoringDriver struct {
	*driver
	restorer sandbox.Restorer
}

func (d *restoringDriver) Restore(ctx context.Context, spec sandbox.Spec, dir string) (sandbox.Box, error) {
	return d.start(ctx, func() (sandbox.Box, error) { return d.restorer.Restore(ctx, spec, dir) })
}
