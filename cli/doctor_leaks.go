package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/leaks"
)

// checkLeaks looks for what boxes have left behind, and with clean removes what belongs to
// nobody before it says what there is.
func (p *Program) checkLeaks(ctx context.Context, dataDirs []string, clean bool) []finding {
	found, err := leaks.Find(dataDirs...)
	var out []finding
	if clean && err == nil {
		for _, failed := range []error{p.sweep(ctx, dataDirs), leaks.Clean()} {
			if failed != nil {
				out = append(out, finding{"cleaning", findingFailed, failed.Error(), "run as root, and see that the workers' daemons run"})
			}
		}
		before := found
		if found, err = leaks.Find(dataDirs...); err == nil {
			out = append(out, removed(before, found))
		}
	}
	out = append(out, leftBehind(found, clean)...)
	if err != nil {
		out = append(out, finding{"leaks", findingFailed, err.Error(), "run as root to see everything"})
	}
	if len(found) == 0 && err == nil {
		out = append(out, finding{"leaks", findingOK, "no process, control group, mount, network card, container or directory of a box is left behind", ""})
	}
	return out
}

// leftBehind words leaks, one finding for each driver of a worker that was killed.
func leftBehind(found []leaks.Leak, cleaned bool) []finding {
	of := make(map[string][]leaks.Leak)
	for _, l := range found {
		of[l.Driver] = append(of[l.Driver], l)
	}
	var out []finding
	for _, driver := range slices.Sorted(maps.Keys(of)) {
		var names, remedies []string
		for _, l := range of[driver] {
			names = append(names, l.String())
			if !slices.Contains(remedies, l.Remedy) {
				remedies = append(remedies, l.Remedy)
			}
		}
		f := finding{"left behind", findingFailed, fmt.Sprintf("by the driver %s, %s: %s", driver, counts(of[driver]), strings.Join(names, ", ")), strings.Join(remedies, "; ")}
		if driver == "" {
			f.Detail = "by drivers unknown: " + strings.Join(names, ", ")
		}
		if !cleaned {
			f.Remedy = "bailey doctor --leaks --clean removes what is nobody's; by hand: " + f.Remedy
		}
		out = append(out, f)
	}
	return out
}

// counts says how much of each kind leaks are, and of how many boxes.
func counts(all []leaks.Leak) string {
	boxes, kinds := make(map[string]bool), make(map[string]int)
	for _, l := range all {
		boxes[l.Box] = true
		kinds[l.Kind]++
	}
	var words []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		words = append(words, count(kinds[kind], kind))
	}
	return strings.Join(words, ", ") + " of " + count(len(boxes), "box")
}

// removed says how much of each kind is not there any more.
func removed(before, after []leaks.Leak) finding {
	gone := slices.DeleteFunc(slices.Clone(before), func(l leaks.Leak) bool {
		return slices.ContainsFunc(after, func(left leaks.Leak) bool { return left.String() == l.String() })
	})
	if len(gone) == 0 {
		return finding{"removed", findingNote, "nothing: nothing was found that is certain to belong to nobody", ""}
	}
	return finding{"removed", findingOK, counts(gone), ""}
}

// stateRE splits the name of a driver's directory into its backend and what tells its
// settings.
var stateRE = regexp.MustCompile(`^([a-z]+)(-[0-9a-f]{8})?$`)

// sweep has the drivers of workers that are no more remove what they left behind, as the
// next worker on the same directory would.
func (p *Program) sweep(ctx context.Context, dataDirs []string) error {
	var errs []error
	for _, data := range dataDirs {
		errs = append(errs, p.sweepWorker(ctx, data))
	}
	return errors.Join(errs...)
}

func (p *Program) sweepWorker(ctx context.Context, data string) error {
	name := filepath.Join(data, "worker.lock")
	if _, err := os.Stat(name); err != nil || sandbox.Locked(name) {
		return nil // no worker's, or one that lives
	}
	lock, err := sandbox.Lock(name) // so that none starts meanwhile
	if err != nil {
		return fmt.Errorf("%s: %w", data, err)
	}
	defer lock.Close()
	states, err := filepath.Glob(filepath.Join(data, "sandbox", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, state := range states {
		parts := stateRE.FindStringSubmatch(filepath.Base(state))
		i := slices.IndexFunc(p.Backends, func(b Backend) bool { return parts != nil && b.Name == parts[1] })
		if i < 0 {
			continue
		}
		driver, err := p.Backends[i].driver(state, BackendOptions{}, slog.New(slog.DiscardHandler))
		if s, ok := driver.(interface{ Sweep(context.Context) error }); ok && err == nil {
			err = s.Sweep(ctx)
		}
		// A backend that cannot be used here has nothing here either.
		if _, unusable := errors.AsType[*sandbox.Unavailable](err); err != nil && !unusable {
			errs = append(errs, fmt.Errorf("%s: %w", state, err))
		}
	}
	return errors.Join(errs...)
}
