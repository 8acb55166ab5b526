package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/runtimes"
)

// An engine is the runtime of a driver.
type engine struct {
	runtimes.Runtime
	path  string
	flags []string // ahead of its command
	notes []string // what an operator should know of it
}

// identify asks a runtime what it is, and refuses it if it is not for us, or so old that
// only accepted makes it so.
func identify(ctx context.Context, path string, root, accepted bool) (*engine, error) {
	runtime, err := runtimes.Identify(ctx, path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, &sandbox.Unavailable{Backend: Name, Cause: err.Error(), Remedy: []string{"name the path of a runtime that is there, such as crun or runc (sandbox.engine)"}}
	}
	if err != nil {
		return nil, err
	}
	e := &engine{Runtime: runtime, path: path}
	u := &sandbox.Unavailable{Backend: Name}
	switch e.Family {
	case runtimes.Runc:
		// What it may not do to control groups is no error then.
		e.flags = []string{"--rootless=true"}
		if !root {
			u.Cause = "runc wants a root in the box's user namespace besides the box's user, and an ordinary user has one id to give"
			u.Remedy = []string{"give crun as the engine", "run as root"}
			return nil, u
		}
	case runtimes.Crun:
		e.flags = []string{"--cgroup-manager=disabled"}
	case runtimes.Runsc:
		u.Cause = fmt.Sprintf("%s is gVisor, which needs a network card, control groups and a life of its own", path)
		u.Remedy = []string{`use the backend "gvisor", which has it built in`,
			`use the backend "docker" with the runtime "runsc", if it must be this one`}
		return nil, u
	case runtimes.Kata:
		u.Cause = fmt.Sprintf("%s (%s) cannot run a bundle: since its version 2, Kata is driven by containerd alone", path, e.Words)
		u.Remedy = []string{`use the backend "docker" with the runtime "io.containerd.kata.v2"`}
		return nil, u
	default:
		e.notes = append(e.notes, fmt.Sprintf("Our tests have not been run with %q.", e.Words))
	}
	if e.Family == runtimes.Other {
		e.notes = append(e.notes, "Nothing is known here of its defects.")
	}
	for _, hole := range e.Holes() {
		if hole.Grave && !accepted {
			u.Cause = hole.String()
			u.Remedy = []string{
				fmt.Sprintf("install %s %s or later", e.Family, hole.Mended[len(hole.Mended)-1]),
				"if your distribution has mended it under the old version, accept that (sandbox.allow-old-engine)",
			}
			return nil, u
		}
		e.notes = append(e.notes, hole.String())
	}
	return e, nil
}
