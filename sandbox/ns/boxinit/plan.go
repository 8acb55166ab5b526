// Package boxinit is what a process does to become a box: it makes itself a root out
// of mounts, cuts its network off or gives its exits away, gives up what it may do,
// runs the box's program as another user, and stays as the box's first process, which
// collects the dead and whose end is the end of all.
//
// It runs in the small executable that boxes are started by, in namespaces that it was
// started in, and so must not know what a driver has on the host besides: it is told
// everything in a [Plan]. The two talk over a socket, see [Line].
//
// Start reading at [RunIfRole], then at box.become.
package boxinit

import (
	"slices"

	"github.com/bailey-platform/bailey/sandbox/lockdown"
)

// A Plan is all that a process is told of the box it is to become.
type Plan struct {
	Command []string
	Env     []string
	Dir     string // to run the command in
	User    int    // user and group of the command
	Change  bool   // to that user, from the one that we are; there are both

	Hostname string
	Root     Root
	Limits   Limits
	Network  bool // make the exits and send them
	Filter   lockdown.Filter
	Landlock lockdown.Landlock
}

// A Root is what the box sees as its root, from the bottom up.
type Root struct {
	// Size and Files bound what is written outside the mounts, in bytes and in number.
	Size, Files int64

	// Layers are directories that lie beneath what is written, one on another, the upper
	// ones first.
	Layers []Mount

	Texts  map[string]string // files that only the box's root could write, and what they hold
	Mounts []Mount           // in this order, over all that
	Shared int64             // size of /dev/shm, in bytes
	Bare   []string          // device nodes of the host, by their paths, in /dev as there
	Covers map[string]string // from files in the box to files in the box that are seen in their place
}

// A Mount is something of the host's that the box sees.
type Mount struct {
	// Source is the path on the host. It is empty when the driver sends the mount,
	// which it does for all or for none.
	Source string
	Target string
	File   bool // rather than a directory
	Write  bool
}

// Limits are of each process, or for those in want of a control group.
type Limits struct {
	Processes uint64 // of the command's user, threads included
	OpenFiles uint64
}

// All are the mounts that the root is made of, in the order in which they are sent.
func (r Root) All() []Mount { return append(slices.Clone(r.Layers), r.Mounts...) }
