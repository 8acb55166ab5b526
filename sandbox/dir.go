package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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

// Locked reports whether a living driver holds the lock that is the file at path.
func Locked(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	return errors.Is(unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Tag names the driver that holds a lock in what it makes on the host: processes and
// control groups. It goes by the file itself, as in another mount namespace another
// file, and so another worker's, may have the same path. It has 8 hexadecimal digits.
func Tag(lock *os.File) (string, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(lock.Fd()), &stat); err != nil {
		return "", err
	}
	return digest(fmt.Appendf(nil, "%d %d", stat.Dev, stat.Ino))[:8], nil
}

// PathTag names the driver that uses dir in what outlives the host's next start, such as
// the containers of a daemon, which knows the host by the same paths. It has 16
// hexadecimal digits.
func PathTag(dir string) string { return digest([]byte(dir)) }

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}
