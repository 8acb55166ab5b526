package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A Finding is one thing that [Check] looked at.
type Finding struct {
	Name   string // what was looked at: "key", "clock", "disk", "box", …
	OK     bool
	Detail string // what was found
	Remedy string // what to do about it; empty if OK
}

const clockSkewMax = 30 * time.Second

// Check looks at what a worker with this configuration needs, besides boxes (see
// sandbox.Driver.Check), without claiming work and without getting in the way of a
// worker that runs already. The error is about the configuration itself.
func Check(ctx context.Context, c Config) ([]Finding, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	findings := []Finding{checkDisk(c, c.DataDir)}
	if c.WorkDir != filepath.Join(c.DataDir, "work") {
		findings = append(findings, checkDisk(c, c.WorkDir))
	}
	findings = append(findings, checkAgent(c.Agent))
	return append(findings, checkPlane(ctx, c)...), nil
}

// checkPlane asks the plane something that only the environment's key may ask.
func checkPlane(ctx context.Context, c Config) []Finding {
	keys := &keyring{source: c.Key}
	if _, err := keys.bearer(); err != nil {
		return []Finding{{Name: "key", Detail: err.Error(), Remedy: "put the environment key where the configuration says that it is (key-file, key-env), for this user to read; `bailey environments keys create ENVIRONMENT --name NAME` makes one"}}
	}
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

func checkDisk(c Config, dir string) Finding {
	f := Finding{Name: "disk", Remedy: "make the directory writable for this user, with room to spare"}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.Detail = err.Error()
		return f
	}
	path := filepath.Join(dir, "check-"+rand.Text()[:8])
	if err := errors.Join(replaceFile(path, []byte("check\n"), true), os.Remove(path)); err != nil {
		f.Detail = err.Error()
		return f
	}
	room := &space{data: dir, folders: dir, reserve: c.DiskReserve}
	free, _, err := room.free(dir)
	if err == nil {
		err = room.low()
	}
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	return Finding{Name: "disk", OK: true, Detail: fmt.Sprintf("%s is writable, %d MiB free", dir, free>>20)}
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
