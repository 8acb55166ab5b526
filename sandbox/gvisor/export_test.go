package gvisor

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
