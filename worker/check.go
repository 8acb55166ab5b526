package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
)

// A Finding is one thing that [Check] looked at.
type Finding struct {
	Name   string // what was looked at: "key", "clock", "disk", "box", …
	OK     bool
	Detail string // what was found
	Remedy string // what to do about it; empty if OK
}

const (
	clockSkewMax = 30 * time.Second
	diskFreeMin  = 1 << 30 // bytes
)

// Check looks at everything a worker with this configuration needs, without
// claiming work and without getting in the way of a worker that runs already. It
// starts one box. The error is about the configuration itself.
func Check(ctx context.Context, c Config) ([]Finding, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	findings := []Finding{checkDisk(c.DataDir), checkAgent(c.Agent), checkBox(ctx, c)}
	return append(findings, checkPlane(ctx, c)...), nil
}

// checkPlane asks the plane something that only the environment's key may ask.
func checkPlane(ctx context.Context, c Config) []Finding {
	keys := &keyring{source: c.Key}
	asked := time.Now()
	now, err := newPlane(c, keys).stats(ctx)
	took := time.Since(asked)
	key := Finding{Name: "key", OK: err == nil, Detail: fmt.Sprintf("%s accepts the environment key (%s)", c.BaseURL, took.Round(time.Millisecond))}
	if err != nil {
		key.Detail = err.Error()
		switch {
		case unauthorized(err):
			key.Remedy = "create a new environment key and give it to this worker"
		case gone(err):
			key.Remedy = "check the environment id, and that the base URL is the plane's"
		default:
			key.Remedy = "check the base URL, and that this host may connect to it"
		}
		return []Finding{key}
	}
	if now.IsZero() {
		return []Finding{key}
	}
	// The header has whole seconds; half the round trip is the best guess at when
	// it was written.
	skew := time.Since(now) - took/2
	clock := Finding{Name: "clock", OK: skew.Abs() <= clockSkewMax, Detail: fmt.Sprintf("this host's clock is within %s of the plane's", clockSkewMax)}
	if !clock.OK {
		clock.Detail = fmt.Sprintf("this host's clock is %s off the plane's", skew.Round(time.Second))
		clock.Remedy = "synchronise the clock: the audit record's times come from it"
	}
	return []Finding{key, clock}
}

func checkDisk(dir string) Finding {
	f := Finding{Name: "disk", Remedy: "make the data directory writable for this user, with room to spare"}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.Detail = err.Error()
		return f
	}
	path := filepath.Join(dir, "check-"+rand.Text()[:8])
	if err := errors.Join(replaceFile(path, []byte("check\n"), true), os.Remove(path)); err != nil {
		f.Detail = err.Error()
		return f
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		f.Detail = err.Error()
		return f
	}
	free := fs.Bavail * uint64(fs.Bsize)
	f.Detail = fmt.Sprintf("%s is writable, %d MiB free", dir, free>>20)
	if f.OK = free >= diskFreeMin; f.OK {
		f.Remedy = ""
	}
	return f
}

func checkAgent(path string) Finding {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return Finding{Name: "agent", Detail: err.Error(), Remedy: "name the executable that runs inside boxes"}
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return Finding{Name: "agent", Detail: path + " is not executable", Remedy: "name the executable that runs inside boxes"}
	}
	return Finding{Name: "agent", OK: true, Detail: path}
}

func checkBox(ctx context.Context, c Config) Finding {
	r, err := c.Driver.Check(ctx)
	var unavailable *sandbox.Unavailable
	switch {
	case errors.As(err, &unavailable):
		return Finding{Name: "box", Detail: unavailable.Backend + ": " + unavailable.Cause, Remedy: strings.Join(unavailable.Remedy, ", or ")}
	case err != nil:
		return Finding{Name: "box", Detail: err.Error(), Remedy: "see the worker's log"}
	}
	return Finding{Name: "box", OK: true, Detail: fmt.Sprintf("%s %s: isolation %s, a box starts in %s", r.Backend, r.Version, r.Isolation, r.Start.Round(time.Millisecond))}
}
