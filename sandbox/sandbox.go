// Package sandbox is the seam between the worker and whatever isolates a
// session's tools. A backend does one job: run this command in a box, with
// these limits, and hand over its standard streams and the only ways out of its
// network. What is said over those streams (package tool), what may pass through
// those ways (package netjail) and who asks for it (package worker) is not its
// business, and no key, token or policy of the control plane ever reaches a
// backend.
//
// What several backends need is in packages beside them: sandbox/rootfs for what
// a box sees as its root, sandbox/cgroup for its limits, sandbox/netns for its
// network, sandbox/cdi for its devices.
//
// Start reading at [Driver]. Every backend passes the contract suite in
// sandbox/sandboxtest. What only some can do is a small interface of its own
// ([Freezer], [LimitCounter], [Checkpointer], [Restorer]), and [Report] says who has it.
package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
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

	// Prepare makes an image ready, so that Start need not: see [Spec.Image]. It may
	// take minutes for a large one, and nothing for one that is ready. Start does it
	// itself if it was not done.
	Prepare(ctx context.Context, image string) error

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

// A Freezer is a box whose processes can be stopped where they are, and set going
// again. Frozen, it takes no CPU time and keeps its memory. Stop works on a frozen
// box. Both are idempotent and safe for concurrent use.
type Freezer interface {
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
}

// A LimitCounter is a box of which the kernel counts how often it ran into limits. It is
// asked after every call, so that what a call ran into is known, and answers without a
// look at the box's processes.
type LimitCounter interface {
	LimitHits() LimitHits
}

// LimitHits are counts since the start of a box, below 0 where nobody counts. Those of a
// box that has ended are 0.
type LimitHits struct {
	Memory    int // processes that the kernel has ended because the box was out of memory
	Processes int // processes and threads that it has not let the box have

	// Ending says that the box does not outlive it: its end is a matter of moments.
	Ending bool
}

// A Checkpointer is a box whose whole state, memory and processes included, can be
// written to a directory, which must exist and be empty. The box runs on.
// Connections are not part of the state, the work folder's content neither.
type Checkpointer interface {
	Checkpoint(ctx context.Context, dir string) error
}

// A Restorer is a driver that starts boxes from a checkpoint, as many as wanted of
// one. The Spec must be that of the box which was checkpointed, but for ID, WorkDir
// and Network. The new box continues where the old one was, with streams of its own.
type Restorer interface {
	Restore(ctx context.Context, spec Spec, dir string) (Box, error)
}

// A Discarder is a driver that keeps something for its next life which is not in its
// directory, and removes it when asked to: for who has made the driver for this once.
// Boxes are to have been stopped.
type Discarder interface {
	Discard(ctx context.Context) error
}

// A Network takes over the ways out of a box. Start calls Attach once, before the
// command runs; if it fails, so does Start.
//
// The backend closes the exits when the box has ended, and only then. A network that
// can serve them no more has to see to it that the box is stopped: what leaves a box
// through exits that nobody serves is refused, but the box does not end by itself.
type Network interface {
	Attach(Exits) error
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

	// Image is what the box sees as its root, with what it writes there kept apart
	// and thrown away: "" for the host's own programs and nothing else of the host;
	// else the absolute path of a directory, of a tar archive (which may be
	// compressed) or of an OCI image layout. Backends with a daemon also take the
	// name of an image that the daemon has. It needs /bin/bash for the tools.
	Image string

	// ReadOnly maps paths inside the box to host directories, mounted read-only.
	ReadOnly map[string]string

	// Files maps paths inside the box to host files, mounted read-only in place of
	// what the image has there.
	Files map[string]string

	// Network takes the ways out of the box's network. Nil means that there are
	// none: the box has its own loopback and nothing else.
	Network Network

	// Devices names devices of the host that the box gets, by their Container Device
	// Interface names ("nvidia.com/gpu=all"). Without any it sees none.
	Devices []string

	// Env is the environment inside the box ("KEY=value"), over the variables that the
	// image itself brings, see [Spec.EnvIn]; nothing is inherited from the worker. It must
	// hold no secret.
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

// User is the user and group, by number, that a box's command runs as. A worker that
// is root gives its work folders to this owner on the host; it is of a range that no
// system hands out. A backend that gives each box users of its own maps them.
const User = 61000

// Limits bound a box as a whole. Enforcement is reported by [Report.Limits].
type Limits struct {
	MemoryBytes int64         // resident memory of the whole box; default 2 GiB
	CPUs        float64       // cores' worth of CPU time; default 2
	Processes   int           // processes and threads; default 1024
	DiskBytes   int64         // scratch space outside the work folder, /dev/shm included; default 1 GiB
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

// sharedMax is the most that a box has for shared memory, in bytes.
const sharedMax = 64 << 20

// Scratch divides what a box may write outside its work folder between /dev/shm, which is
// a file system of its own, and all other places. It is in memory, so half of that is left
// to the programs. Both limits must be set.
func (l Limits) Scratch() (files, shared int64) {
	all := min(l.DiskBytes, l.MemoryBytes/2)
	shared = min(sharedMax, all/4)
	return all - shared, shared
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
	CauseDisk    Cause = "disk_full"     // a limit on disk space was hit and the box could not go on
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
	Isolation Isolation     // what is between a box and the host
	Root      bool          // running with root's privileges on the host
	Start     time.Duration // how long the self-test's box took to answer
	Limits    map[string]Enforcement

	// What boxes can do here.
	Network    bool // Spec.Network is served: everything of the box passes through it
	Freeze     bool // boxes are [Freezer]
	Checkpoint bool // boxes are [Checkpointer] and the driver is a [Restorer]
	GPU        bool // Spec.Devices may name a GPU of this host

	Notes []string // what an operator should know, a sentence each
}

// Isolation says what is between a box and the host.
type Isolation string

// The kinds of isolation, the strongest first.
const (
	OwnKernel    Isolation = "user-space kernel" // the box's system calls are served by a kernel of its own
	SharedKernel Isolation = "namespaces"        // the host's kernel serves the box, in namespaces and behind a filter
	Restricted   Isolation = "restricted"        // a process of the host with fewer rights; weak
	NoIsolation  Isolation = "none"
)

// isolations are in ascending order of strength.
var isolations = []Isolation{NoIsolation, Restricted, SharedKernel, OwnKernel}

// AtLeast reports whether i is as strong as want or stronger. What is not one of the
// kinds is weaker than any.
func (i Isolation) AtLeast(want Isolation) bool {
	return slices.Index(isolations, i) >= slices.Index(isolations, want)
}

// Requirements are what an environment asks of a backend. The zero value asks for
// nothing.
type Requirements struct {
	Isolation  Isolation // at least this
	Limits     []string  // these limits must be hard
	Network    bool
	Freeze     bool
	Checkpoint bool
	GPU        bool
}

// Missing returns what r lacks of what is required, a phrase each; none if it has all.
func (r Report) Missing(want Requirements) []string {
	var missing []string
	if want.Isolation != "" && !r.Isolation.AtLeast(want.Isolation) {
		missing = append(missing, fmt.Sprintf("isolation of at least %q (it has %q)", want.Isolation, r.Isolation))
	}
	for _, limit := range want.Limits {
		if held := r.Limits[limit]; held != Hard {
			missing = append(missing, fmt.Sprintf("a hard limit on %s (it is %q)", limit, cmp.Or(held, NotHeld)))
		}
	}
	for _, ability := range []struct {
		name      string
		want, has bool
	}{
		{"network rules", want.Network, r.Network},
		{"freezing", want.Freeze, r.Freeze},
		{"checkpoints", want.Checkpoint, r.Checkpoint},
		{"a GPU", want.GPU, r.GPU},
	} {
		if ability.want && !ability.has {
			missing = append(missing, ability.name)
		}
	}
	return missing
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

	// NoImage says that all it lacks is an image: it has no other root for boxes, and
	// none was named.
	NoImage bool
}

func (e *Unavailable) Error() string {
	msg := fmt.Sprintf("sandbox backend %q cannot be used on this host: %s", e.Backend, e.Cause)
	if len(e.Remedy) > 0 {
		msg += "; to mend it: " + strings.Join(e.Remedy, ", or ")
	}
	return msg
}
