package agent

import (
	"runtime"
	"sync"
)

// threads is how many the agent keeps for when it is to do several things at once.
const threads = 16

// keepThreads has the runtime make threads now. What runs in a box may use up all the
// processes that it can have, threads being some, and a Go program that needs another
// thread and cannot have it dies. Threads that have nothing to do wait for more.
func keepThreads() {
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
