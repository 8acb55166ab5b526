// Package boxinit is what a process does to become a box: it makes itself a root out
// of mounts, cuts its network off or gives its exits away, gives up what it may do,
// runs the box's program as another user, and stays as the box's first process, as a page
// of code that collects the dead and whose end is the end of all.
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

	Mounts  []Mount // in this order, over the layers
	Devices []Device
	Shared  int64 // size of /dev/shm, in bytes

	// Texts are what the box sees as /proc/meminfo, /proc/cpuinfo and, in as many files
	// as there are, /sys: by the names meminfo, cpuinfo and sys/….
	Texts map[string]string
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

// A Device is a device node of the host's that works in the box.
type Device struct {
	Source string // on the host
	Target string // in the box, beneath /dev
}

// Limits are of each process, or for those in want of a control group.
type Limits struct {
	Processes uint64 // of the command's user, threads included
	OpenFiles uint64
}

// All are the mounts that the root is made of, in the order in which they are sent.
func (r Root) All() []Mount { return append(slices.Clone(r.Layers), r.Mounts...) }
