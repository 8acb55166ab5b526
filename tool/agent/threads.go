package agent

import (
	"runtime"
	"sync"
)

// busy is how many threads of the agent can be waiting for the kernel at once: one reads
// requests, one writes replies, [filesMax] are at files, and the shells have two.
const busy = 2 + filesMax + 2

// keepThreads has the runtime make threads now: those, and one to run on each CPU
// meanwhile. What runs in a box may use up all the processes that it can have, threads
// being some, and a Go program that needs another thread and cannot have it dies. Threads
// that have nothing to do wait for more. They are not free: sixteen took a third of a
// millisecond and 0.2 MB of each box.
func keepThreads() {
	threads := busy + runtime.GOMAXPROCS(0)
	var made, gone sync.WaitGroup
	made.Add(threads)
	for range threads {
		gone.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			made.Done()
			made.Wait() // each on its own, as they are locked
		})
	}
	gone.Wait()
}
