package cloud

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
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
	room     *room

	mu   sync.Mutex
	made map[string]*driver
}

// driver is a shared backend. It hides what is for whoever has one alone: sweeping.
type driver struct {
	sandbox.Driver

	mu      sync.Mutex
	tested  time.Time // when the self-test was done; zero before
	report  sandbox.Report
	failure error
}

// retestAfter is how long a failed self-test is taken for true.
const retestAfter = 30 * time.Second

// shared returns the list of backends for the field of an environment.
func (d *drivers) shared(of api.EnvironmentID) []field.Backend {
	var list []field.Backend
	for _, b := range d.backends {
		list = append(list, field.Backend{Name: b.Name, New: func(field.BackendOptions) (sandbox.Driver, error) {
			shared, err := d.driver(b)
			if err != nil {
				return nil, err
			}
			return shared.lent(d.room, of), nil
		}})
	}
	return list
}

// named returns the shared driver of a backend.
func (d *drivers) named(name string) (*driver, error) {
	for _, b := range d.backends {
		if b.Name == name {
			return d.driver(b)
		}
	}
	return nil, fmt.Errorf("there is no backend %q in this build", name)
}

func (d *drivers) driver(b field.Backend) (*driver, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if made := d.made[b.Name]; made != nil {
		return made, nil
	}
	o := d.options
	o.State += "/" + b.Name
	inner, err := b.New(o)
	if err != nil {
		return nil, err
	}
	made := &driver{Driver: inner}
	d.made[b.Name] = made
	return made, nil
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

// lent is d as one environment has it, with what else its backend can do.
func (d *driver) lent(room *room, of api.EnvironmentID) sandbox.Driver {
	l := &lentDriver{d, room, of}
	if r, ok := d.Driver.(sandbox.Restorer); ok {
		return &restoringDriver{l, r}
	}
	return l
}

// A lentDriver starts boxes of one environment when there is room for them.
type lentDriver struct {
	*driver
	room *room
	of   api.EnvironmentID
}

func (d *lentDriver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	return d.start(ctx, func() (sandbox.Box, error) { return d.Driver.Start(ctx, spec) })
}

func (d *lentDriver) start(ctx context.Context, begin func() (sandbox.Box, error)) (sandbox.Box, error) {
	if err := d.room.take(ctx, d.of); err != nil {
		return nil, err
	}
	box, err := begin()
	if err != nil {
		d.room.give(d.of)
		return nil, err
	}
	go func() {
		box.Wait()
		d.room.give(d.of)
	}()
	return box, nil
}

// restoringDriver is one whose boxes can be made from checkpoints.
type restoringDriver struct {
	*lentDriver
	restorer sandbox.Restorer
}

func (d *restoringDriver) Restore(ctx context.Context, spec sandbox.Spec, dir string) (sandbox.Box, error) {
	return d.start(ctx, func() (sandbox.Box, error) { return d.restorer.Restore(ctx, spec, dir) })
}
