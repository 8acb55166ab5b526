package none

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Remember has the driver keep notes of its boxes in a directory of its own, so that
// [Driver.Sweep] finds what they left running when the process that started them was
// killed: the kernel ends the box's first process then, and not those that it started.
// It is called before anything else.
func (d *Driver) Remember(state string) { d.notes = filepath.Join(state, "boxes") }

func (d *Driver) notePath(id string) string { return filepath.Join(d.notes, id) }

// note writes down by what the box's processes are known.
func (b *box) note() error {
	if b.driver.notes == "" {
		return nil
	}
	if err := os.MkdirAll(b.driver.notes, 0o700); err != nil {
		return fmt.Errorf("make a note of the box: %w", err)
	}
	if err := os.WriteFile(b.driver.notePath(b.spec.ID), []byte(b.marker), 0o600); err != nil {
		return fmt.Errorf("make a note of the box: %w", err)
	}
	return nil
}

// Sweep kills what boxes of an earlier process left running, as far as it is still known
// by their mark. No other process may use the same directory meanwhile.
func (d *Driver) Sweep(ctx context.Context) error {
	notes, err := os.ReadDir(d.notes)
	if d.notes == "" || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range notes {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		marker, err := os.ReadFile(d.notePath(n.Name()))
		if err == nil && strings.HasPrefix(string(marker), markerName) {
			err = killMarked(string(marker))
		}
		if err == nil {
			err = os.RemoveAll(d.notePath(n.Name()))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("box %s: %w", n.Name(), err))
		}
	}
	return errors.Join(errs...)
}
