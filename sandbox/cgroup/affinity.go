package cgroup

import (
	"math"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// next rotates among the CPUs that boxes are put on.
var next atomic.Uint32

// Confine lets the calling thread, and what it starts, run on no more CPUs than the
// limit fills, which it rounds up. Programs in the box then count that many, and start
// as many workers. It is no limit by itself, as who runs there may undo it; it needs no
// control group and no right.
func Confine(cpus float64) error {
	var all, some unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	want, have := int(math.Ceil(cpus)), all.Count()
	if want >= have {
		return nil
	}
	skip := int(next.Add(uint32(want))) % have
	for cpu := 0; some.Count() < want; cpu = (cpu + 1) % (len(all) * 64) {
		if !all.IsSet(cpu) {
			continue
		}
		if skip > 0 {
			skip--
			continue
		}
		some.Set(cpu)
	}
	return unix.SchedSetaffinity(0, &some)
}
