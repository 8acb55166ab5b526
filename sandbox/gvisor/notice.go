package gvisor

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// notice gives word on the channel whenever a file in a directory has been written,
// until stop is called. To look again and again is most of what starting a box would
// cost us, so that is done only where the host has no more room for watching: it has
// some for 128 to each user, unless told otherwise.
func notice(dir string) (word <-chan struct{}, stop func()) {
	words, done := make(chan struct{}, 1), make(chan struct{})
	say := func() {
		select {
		case words <- struct{}{}:
		default: // there is one waiting
		}
	}
	events, err := watchWrites(dir)
	if err != nil {
		go func() {
			ticker := time.NewTicker(2 * time.Millisecond)
			defer ticker.Stop()
			for {
				select {
				case <-ticker.C:
					say()
				case <-done:
					return
				}
			}
		}()
		return words, func() { close(done) }
	}
	go func() {
		buf := make([]byte, 4<<10) // room for at least one event with the longest of names
		for {
			if _, err := events.Read(buf); err != nil {
				return // stopped
			}
			say()
		}
	}()
	return words, func() { events.Close() }
}

func watchWrites(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	events := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE); err != nil {
		events.Close()
		return nil, err
	}
	return events, nil
}
