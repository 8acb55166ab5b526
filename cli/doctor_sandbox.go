package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	fieldwork "github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox"
)

// A backendCheck is what the self-test of a backend came to on this machine.
type backendCheck struct {
	name   string
	needed bool // what the worker uses, or what it would by default
	report sandbox.Report
	err    error
}

// checkBackends tests every sandbox of this build, each in a directory of its own
// so that a running worker is not disturbed. What flags say of engines and images goes to
// those that have a use for it; a worker's file speaks of the ones that it lists.
func (p *Program) checkBackends(ctx context.Context, t *triedFlags) ([]backendCheck, error) {
	settings, err := t.sandbox(p, "")
	if err != nil {
		return nil, err
	}
	out := make([]backendCheck, len(p.Backends))
	for i, b := range p.Backends {
		out[i].name, out[i].needed = b.Name, b.Name == cmp.Or(settings.Backend, p.strongest())
		out[i].report, out[i].err = selfTest(ctx, b, settings.Options(fieldwork.Backend(b)))
	}
	return out, nil
}

// selfTestTimeout bounds the test of one backend: a daemon may hang.
const selfTestTimeout = time.Minute

func selfTest(ctx context.Context, b Backend, o BackendOptions) (sandbox.Report, error) {
	dir, err := os.MkdirTemp("", "bailey-doctor-")
	if err != nil {
		return sandbox.Report{}, err
	}
	defer os.RemoveAll(dir)
	driver, err := b.driver(dir, o, slog.New(slog.DiscardHandler))
	if err != nil {
		return sandbox.Report{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, selfTestTimeout)
	defer cancel()
	defer discard(driver)
	return driver.Check(ctx)
}

// discardMax bounds the removal of what was made for a test alone.
const discardMax = 10 * time.Second

// discard removes what a driver that was made for a test would keep for its next life.
// What is left then, the next worker removes.
func discard(driver sandbox.Driver) {
	if d, ok := driver.(sandbox.Discarder); ok {
		ctx, cancel := context.WithTimeout(context.Background(), discardMax)
		defer cancel()
		_ = d.Discard(ctx)
	}
}

// backendFindings turns the self-tests into findings. That the worker's sandbox works,
// or the strongest, is needed; the others are choices.
func backendFindings(checks []backendCheck) []finding {
	out := make([]finding, len(checks))
	for i, c := range checks {
		f := finding{Name: "sandbox " + c.name, Status: findingNote}
		unavailable, ok := errors.AsType[*sandbox.Unavailable](c.err)
		switch {
		case c.err != nil:
			if c.needed {
				f.Status = findingFailed
			}
			f.Detail = c.err.Error()
			if ok {
				f.Detail, f.Remedy = unavailable.Cause, strings.Join(unavailable.Remedy, ", or ")
			}
			if noImage(c.err) {
				f.Detail = "the daemon answers; whether boxes can be made is tried with an image"
				f.Remedy = "name one, such as --image debian:12, or the worker's settings with --worker-config"
			}
		case c.report.Isolation == sandbox.NoIsolation:
			f.Detail = "works, and isolates nothing; a worker uses it only with --sandbox " + c.name
		default:
			f.Status = findingOK
			f.Detail = fmt.Sprintf("%s: %s, a box starts in %s", c.report.Version, c.report.Isolation, c.report.Start.Round(time.Millisecond))
			if len(c.report.Notes) > 0 {
				f.Detail += ". " + strings.Join(c.report.Notes, " ")
			}
		}
		out[i] = f
	}
	return out
}

// noImage reports whether nothing but an image is missing to try a backend.
func noImage(err error) bool {
	unavailable, ok := errors.AsType[*sandbox.Unavailable](err)
	return ok && unavailable.NoImage
}

// limitColumns are the limits that the matrix shows, by their names in a report.
var limitColumns = []string{"memory", "cpu", "processes", "disk", "work_folder"}

// printMatrix prints what each backend can do on this machine.
func (p *Program) printMatrix(checks []backendCheck) error {
	w := tabwriter.NewWriter(p.Stdout, 0, 0, 2, ' ', 0)
	head := []string{"SANDBOX", "ISOLATION"}
	for _, limit := range limitColumns {
		head = append(head, strings.ToUpper(strings.ReplaceAll(limit, "_", " ")))
	}
	head = append(head, "NETWORK RULES", "FREEZE", "CHECKPOINT", "GPU", "START")
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, c := range checks {
		row := []string{c.name}
		if c.err != nil {
			row = append(row, slices.Repeat([]string{"–"}, len(head)-1)...)
			if row[1] = "not usable here"; noImage(c.err) {
				row[1] = "not tried without --image"
			}
			fmt.Fprintln(w, strings.Join(row, "\t"))
			continue
		}
		row = append(row, string(c.report.Isolation))
		for _, limit := range limitColumns {
			row = append(row, map[sandbox.Enforcement]string{
				sandbox.Hard: "hard", sandbox.BestEffort: "best effort", sandbox.NotHeld: "no", "": "no",
			}[c.report.Limits[limit]])
		}
		for _, has := range []bool{c.report.Network, c.report.Freeze, c.report.Checkpoint, c.report.GPU} {
			row = append(row, map[bool]string{true: "yes", false: "no"}[has])
		}
		fmt.Fprintln(w, strings.Join(append(row, c.report.Start.Round(time.Millisecond).String()), "\t"))
	}
	fmt.Fprintln(w)
	return w.Flush()
}
