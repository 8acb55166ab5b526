package agent

import (
	"bytes"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/tool"
)

// noSpace is how ENOSPC reads, but for the case of its first letter.
var noSpace = []byte("o space left on device")

// full is the place of the box that is full, if the result says that there was no space
// left somewhere and it is one that goes with the box.
func full(result tool.Result) *tool.Full {
	said := false
	for _, block := range result.Content {
		said = said || bytes.Contains(block, noSpace)
	}
	if !said {
		return nil
	}
	for _, place := range tool.ScratchPlaces {
		var fs unix.Statfs_t
		if unix.Statfs(place, &fs) != nil || fs.Blocks == 0 {
			continue
		}
		if isFull(int64(fs.Bavail), int64(fs.Blocks)) || fs.Files > 0 && isFull(int64(fs.Ffree), int64(fs.Files)) {
			return &tool.Full{Place: place, Bytes: int64(fs.Blocks) * fs.Bsize}
		}
	}
	return nil
}

// isFull reports whether so little is free that it is as good as nothing: what found no
// space may have been large, or have been removed in part.
func isFull(free, of int64) bool { return free <= of/50 }
