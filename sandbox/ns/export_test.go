package ns

import (
	"os"
	"path/filepath"

	"github.com/bailey-platform/bailey/sandbox"
)

// Tag is how the tests find what the boxes of the driver at dir leave on the host.
func Tag(dir string) string {
	lock, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return "of a driver that was never used"
	}
	defer lock.Close()
	tag, err := sandbox.Tag(lock)
	if err != nil {
		panic(err)
	}
	return tag
}

// Processes are all those of the driver's live boxes, by their ids on the host.
func Processes(d *Driver) []int {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	var all []int
	for pid := range d.host.pids {
		for list := []int{pid}; len(list) > 0; list = list[1:] {
			list = append(list, children(list[0])...)
			all = append(all, list[0])
		}
	}
	return all
}
