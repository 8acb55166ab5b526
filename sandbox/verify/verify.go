// Package verify attacks a sandbox backend from inside its boxes and says what came of
// it: the suite behind `bailey sandbox verify`, which an operator runs on their own
// host to see the isolation hold there.
//
// A probe tries one way out, in a box, and reports what it saw. It is judged by the
// bait that was laid outside as well: whether the process that was to be killed lives,
// whether the file that was to be changed is the same, whether the host that was not to
// be reached heard from anybody. A suite that cannot fail proves nothing, so its tests
// run it on a backend that isolates nothing, and demand that it fails.
//
// All of it happens in a laboratory ([Enter]): a network namespace of its own, in which
// every address there is, public, private or a cloud's metadata service, is played by
// this process. Nothing is ever sent to a real network, whether or not a box is closed.
// What the probes do is bounded, so that a backend which holds nothing is not the end
// of the host.
//
// The package must not know how any backend works. Start reading at [Run]; what is
// tried is in the files named after the groups.
package verify

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
)

// Options say what to attack, and with what.
type Options struct {
	Driver sandbox.Driver

	// Image is what boxes see as their root, as in [sandbox.Spec].
	Image string

	// Prober is the host path of a static executable that calls [Probe] when it is
	// called with ProberArgs. Every user must be able to read and run it.
	Prober     string
	ProberArgs []string

	// Dir is an empty directory for bait and work folders.
	Dir string

	// Lab is where this process is, from [Enter]. Nil leaves the network out.
	Lab *Lab

	Only   []string     // groups or ids of checks; empty means all
	Each   func(Row)    // told of each row as it is done; may be nil
	Logger *slog.Logger // nil discards
}

// A Status is what came of a check.
type Status string

const (
	Held    Status = "held"    // what was tried failed, as it should
	Broken  Status = "broken"  // it worked, or nothing shows that it did not
	Skipped Status = "skipped" // it could not be tried, or is not promised; Saw says why
)

// A Row is one check and what came of it.
type Row struct {
	ID     string        `json:"id"`    // "filesystem/symlink"
	Group  string        `json:"group"` // "filesystem"
	Tried  string        `json:"tried"` // what was tried, for a person
	Status Status        `json:"status"`
	Saw    string        `json:"saw"` // what was seen
	Took   time.Duration `json:"took_ns"`
}

// A Report is what came of all checks.
type Report struct {
	Backend   string            `json:"backend"`
	Version   string            `json:"version"`
	Isolation sandbox.Isolation `json:"isolation"`
	Root      bool              `json:"root"`
	Host      string            `json:"host"` // kernel and architecture
	Program   string            `json:"program"`
	At        time.Time         `json:"at"`
	Rows      []Row             `json:"rows"`
}

// Count returns how many rows have the status.
func (r Report) Count(s Status) (n int) {
	for _, row := range r.Rows {
		if row.Status == s {
			n++
		}
	}
	return n
}

// A check is one way out that is tried.
type check struct {
	id    string // "group/name"
	tried string

	// applies says why the check says nothing about this backend here, or "".
	applies func(sandbox.Report) string

	// spec changes the box that the check gets to itself. Nil means that it shares one.
	spec func(*sandbox.Spec)

	// network says that the box has a network, with the laboratory's policy.
	network bool

	// probe runs in the box.
	probe func(*prober) outcome

	// judge sees it from outside, after the probe. Nil leaves the verdict to the probe.
	judge func(*host, outcome) outcome

	// lost is the cause that a box may be lost for without that being a fault, as the
	// limit that the check tries is the box's. Empty means that it must not be lost.
	lost sandbox.Cause
}

func (c check) group() string { group, _, _ := strings.Cut(c.id, "/"); return group }

// An outcome is what a probe or a judge says.
type outcome struct {
	Status Status `json:"status"`
	Saw    string `json:"saw"`

	// Values are what the probe tells the judge.
	Values map[string]string `json:"values,omitempty"`
}

func held(format string, args ...any) outcome {
	return outcome{Status: Held, Saw: fmt.Sprintf(format, args...)}
}

func broken(format string, args ...any) outcome {
	return outcome{Status: Broken, Saw: fmt.Sprintf(format, args...)}
}

func skipped(format string, args ...any) outcome {
	return outcome{Status: Skipped, Saw: fmt.Sprintf(format, args...)}
}

// checks returns all there are, in the order they are run and reported in.
func checks() []check {
	return slices.Concat(filesystemChecks, processChecks, kernelChecks, networkChecks, secretChecks, resourceChecks)
}

// Groups returns the names of the groups of checks.
func Groups() []string {
	var names []string
	for _, c := range checks() {
		if !slices.Contains(names, c.group()) {
			names = append(names, c.group())
		}
	}
	return names
}

const (
	boxPatience   = 2 * time.Minute  // to start a box
	probePatience = 90 * time.Second // of one probe
)

// Run attacks the backend and returns what came of it. The error is of what kept it
// from being tried; a backend that does not hold is a report.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	selected, err := choose(o.Only)
	if err != nil {
		return Report{}, err
	}
	self, err := o.Driver.Check(ctx)
	if err != nil {
		return Report{}, err
	}
	if err := o.Driver.Prepare(ctx, o.Image); err != nil {
		return Report{}, err
	}
	report := Report{
		Backend: self.Backend, Version: self.Version, Isolation: self.Isolation, Root: self.Root,
		Host: hostName(), At: time.Now().UTC(),
	}
	h, err := layBait(o, self)
	if err != nil {
		return Report{}, fmt.Errorf("lay the bait: %w", err)
	}
	defer h.close()
	for _, c := range selected {
		if err := ctx.Err(); err != nil {
			return report, context.Cause(ctx)
		}
		began := time.Now()
		out := h.try(ctx, c)
		row := Row{ID: c.id, Group: c.group(), Tried: c.tried, Status: out.Status, Saw: out.Saw, Took: time.Since(began)}
		report.Rows = append(report.Rows, row)
		if o.Each != nil {
			o.Each(row)
		}
	}
	return report, nil
}

// choose returns the checks with the groups or ids given.
func choose(only []string) ([]check, error) {
	all := checks()
	if len(only) == 0 {
		return all, nil
	}
	var chosen []check
	for _, name := range only {
		before := len(chosen)
		for _, c := range all {
			if c.id == name || c.group() == name {
				chosen = append(chosen, c)
			}
		}
		if len(chosen) == before {
			return nil, fmt.Errorf("there is no check or group %q; groups are %s", name, strings.Join(Groups(), ", "))
		}
	}
	return chosen, nil
}

// try runs one check.
func (h *host) try(ctx context.Context, c check) outcome {
	if c.applies != nil {
		if why := c.applies(h.report); why != "" {
			return skipped("%s", why)
		}
	}
	if c.network && h.lab == nil {
		return skipped("there is no laboratory for networks here")
	}
	if c.network && !h.report.Network {
		// No network at all is no way out, but for boxes that have the host's.
		if h.report.Isolation != sandbox.NoIsolation && h.report.Limits["network"] == sandbox.Hard {
			return skipped("the backend gives boxes no network here, so there are no rules to get around")
		}
	}
	if err := h.forget(); err != nil {
		return skipped("no process can be started to be attacked: %v", err)
	}
	b, err := h.boxFor(ctx, c)
	if err != nil {
		return broken("the box for it did not start: %v", err)
	}
	out, err := b.ask(ctx, c.id, h.facts())
	if c.spec != nil {
		defer b.stop()
	}
	if err != nil {
		exit, ended := b.exit()
		h.lose(b)
		switch {
		case ended && c.lost != "" && exit.Cause == c.lost:
			return held("the box was ended for it: %s", exit.Detail)
		case ended:
			return broken("the box was lost: %s %s", exit.Cause, exit.Detail)
		case errors.Is(err, context.DeadlineExceeded):
			return broken("no answer within %s", probePatience)
		}
		return broken("the box does not answer: %v", err)
	}
	if c.judge != nil {
		out = c.judge(h, out)
	}
	return out
}

// marker returns a text that is found nowhere by chance.
func marker(of string) string {
	var random [12]byte
	_, _ = rand.Read(random[:])
	return "bailey-verify-" + of + "-" + hex.EncodeToString(random[:])
}

// hostName returns what the host runs.
func hostName() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return "Linux " + strings.TrimSpace(string(release))
}
