package cradle

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever is renamed or mounted on the host meanwhile, a path in a box's root is found.
func TestPathsAreFoundOnABusyHost(t *testing.T) {
	t.Parallel()
	dir, other := t.TempDir(), t.TempDir()
	for _, name := range []string{"a/b/c", "d"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../a/b/../b/c", filepath.Join(dir, "d/link")); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)

	done := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		one, two := filepath.Join(other, "one"), filepath.Join(other, "two")
		if err := os.Mkdir(one, 0o755); err != nil {
			t.Error(err)
		}
		for {
			select {
			case <-done:
				return
			default:
				_, _ = os.Rename(one, two), os.Rename(two, one)
			}
		}
	})
	for range 20_000 {
		fd, err := find(root, "/d/link", true)
		if err != nil {
			t.Errorf("find: %v", err)
			break
		}
		unix.Close(fd)
	}
	close(done)
	busy.Wait()
}
