package sandboxtest

import (
	"os"
	"syscall"
)

// owner returns the id of the user who owns a file.
func owner(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
