// Package sandbox is the seam between the worker and whatever isolates a
// session's tools. A backend does one job: run this command in a box, with
// these limits and no network, and hand over its standard streams. What is said
// over those streams (package tool) and who asks for it (package worker) is not
// its business, and no key, token or policy of the control plane ever reaches
// a backend.
//
// Start reading at [Driver]. Every backend passes the contract suite in
// sandbox/sandboxtest.
package sandbox

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// A Driver starts boxes of one kind. Implementations are safe for concurrent
// use by several goroutines.
type Driver interface {
	// Name is the backend's name as an operator writes it: "gvisor", "none".
	Name() string

	// Check runs the backend's self-test on this host: it starts a real box and
	// sees it answer. A backend that cannot be used returns an [*Unavailable]
	// naming the cause and the remedy; it never falls back to something weaker.
	Check(ctx context.Context) (Report, error)

	// Start starts Spec.Command in a new box and returns once the command runs.
	// ctx bounds the start only; a running box is ended by Stop. On error nothing
	// of the box is left on the host.
	Start(ctx context.Context, spec Spec) (Box, error)
}

// A Box is one running box, owned by one caller. Stop may be called from any
// goroutine, and more than once.
type Box interface {
	// Stdio returns the command's standard input and output. They stay valid
	// until the box ends; then writes fail and reads return io.EOF.
	Stdio() (stdin io.WriteCloser, stdout io.Reader)

	// Wait blocks until the box has ended and says why. It may be called by
	// several goroutines; all get the same answer.
	Wait() Exit

	// Stop ends the box with everything in it and removes what the backend made
	// for it on the host (mounts, cgroups, files of its own; never the work
	// folder). It returns when that is done. Stopping an ended box is no error.
	Stop(ctx context.Context) error

	// Stats reports what the box uses now. Fields a backend cannot measure are 0.
	Stats() (Stats, error)
}

// A Spec says what to run and within which bounds. A zero limit means the
// backend's default; there is no way to ask for "unlimited".
type Spec struct {
	// ID names the box on the host, for people and for cleaning up: 1 to 64 of
	// [a-z0-9-]. Unique among live boxes.
	ID string

	// Command is the program and its arguments as seen inside the box. The first
	// element must be an absolute path that exists there.
	Command []string

	// Agent is a host path of a static executable that appears in the box,
	// read-only, at [AgentPath].
	Agent string

	// WorkDir is the host directory mounted read-write at [WorkPath]. It must
	// exist, it outlives the box, and no other live box may use it.
	WorkDir string

	// ReadOnly maps paths inside the box to host directories, mounted read-only.
	ReadOnly map[string]string

	// Env is the whole environment inside the box ("KEY=value"); nothing is
	// inherited from the worker. It must hold no secret.
	Env []string

	Limits Limits

	// Stderr receives what the command writes to standard error, for the
	// worker's log. Nil discards it. It is never shown to the model.
	Stderr io.Writer
}

// Where the box sees what the Spec names.
const (
	WorkPath  = "/workspace"
	AgentPath = "/.bailey/agent"

	// HomePath is a writable directory that goes with the box, for HOME.
	HomePath = "/home/agent"
)

// Limits bound a box as a whole. Enforcement is reported by [Report.Limits].
type Limits struct {
	MemoryBytes int64         // resident memory of the whole box; default 2 GiB
	CPUs        float64       // cores' worth of CPU time; default 2
	Processes   int           // processes and threads; default 1024
	DiskBytes   int64         // scratch space outside the work folder; default 1 GiB
	Lifetime    time.Duration // the box is stopped with [CauseTime] after this; default 24 h
}

// Defaults fills the zero fields.
func (l Limits) Defaults() Limits {
	if l.MemoryBytes == 0 {
		l.MemoryBytes = 2 << 30
	}
	if l.CPUs == 0 {
		l.CPUs = 2
	}
	if l.Processes == 0 {
		l.Processes = 1024
	}
	if l.DiskBytes == 0 {
		l.DiskBytes = 1 << 30
	}
	if l.Lifetime == 0 {
		l.Lifetime = 24 * time.Hour
	}
	return l
}

// MemoryMin is the least memory a box can have, in bytes: what an isolating backend
// needs for itself and a shell.
const MemoryMin = 64 << 20

// Validate refuses limits that no box can have. A worker asks at its start.
func (l Limits) Validate() error {
	switch {
	case l.MemoryBytes < 0 || l.CPUs < 0 || l.Processes < 0 || l.DiskBytes < 0 || l.Lifetime < 0:
		return fmt.Errorf("a box limit is negative: memory %d bytes, %g CPUs, %d processes, disk %d bytes, lifetime %s",
			l.MemoryBytes, l.CPUs, l.Processes, l.DiskBytes, l.Lifetime)
	case l.MemoryBytes > 0 && l.MemoryBytes < MemoryMin:
		return fmt.Errorf("a box needs at least %d MiB of memory, and %d bytes are given", MemoryMin>>20, l.MemoryBytes)
	}
	return nil
}

// Exit says how a box ended.
type Exit struct {
	Cause  Cause
	Code   int    // exit status of the command; meaningful for CauseExited
	Detail string // one line for a person; may be empty
}

// A Cause is why a box ended.
type Cause string

const (
	CauseExited  Cause = "exited"        // the command ended by itself
	CauseStopped Cause = "stopped"       // Stop was called
	CauseMemory  Cause = "out_of_memory" // the memory limit was hit
	CauseTime    Cause = "lifetime"      // Limits.Lifetime passed
	CauseCrashed Cause = "crashed"       // the backend itself failed
)

// Stats is a box's use of the host.
type Stats struct {
	MemoryBytes int64
	CPUTime     time.Duration
	Processes   int
}

// A Report is what a backend's self-test found: facts, printed by
// `bailey doctor` and checked against what an environment requires.
type Report struct {
	Backend   string        // Driver.Name
	Version   string        // of the engine
	Isolation string        // "user-space kernel", "none", …
	Root      bool          // running with root's privileges on the host
	Start     time.Duration // how long the self-test's box took to answer
	Limits    map[string]Enforcement
	Notes     []string // what an operator should know, a sentence each
}

// Enforcement says how well a limit holds on this host.
type Enforcement string

const (
	Hard       Enforcement = "hard"        // cannot be exceeded
	BestEffort Enforcement = "best-effort" // usually holds; a determined program may exceed it
	NotHeld    Enforcement = "none"        // not enforced here
)

// Unavailable is the error of a backend that cannot be used on this host.
type Unavailable struct {
	Backend string
	Cause   string   // what was tried and what happened
	Remedy  []string // what to do about it, a command or a sentence each
}

func (e *Unavailable) Error() string {
	msg := fmt.Sprintf("sandbox backend %q cannot be used on this host: %s", e.Backend, e.Cause)
	if len(e.Remedy) > 0 {
		msg += "; to mend it: " + strings.Join(e.Remedy, ", or ")
	}
	return msg
}
