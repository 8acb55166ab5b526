package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Lock takes the lock of a directory that one driver uses at a time, which is the file
// at path, for as long as the file is open.
func Lock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.New("another worker uses it; give this one a --data directory of its own")
		}
		return nil, err
	}
	return file, nil
}

// Tag names the driver that uses dir in what it makes on the host: processes, control
// groups, containers. It has 16 hexadecimal digits, of which the first 8 do where names
// are to be short.
func Tag(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:8])
}
