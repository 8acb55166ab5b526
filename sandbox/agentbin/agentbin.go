// Package agentbin finds the executable that runs in boxes. A release carries it
// inside itself (build tag embedagent): a program of its own that is nothing but the
// tools, since every box has to start it and starting all of bailey there takes
// longer. A plain `go build` or `go run` has no such thing and uses itself. Either is
// called with the same arguments, `tool serve` and its flags.
//
// Start reading at [Path].
package agentbin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Embedded reports whether this binary carries the small agent.
func Embedded() bool { return len(embedded) > 0 }

// Path returns the path of the agent on this host. The one that is carried along is
// written to dir, which is made if need be and shared with nobody less trusted than
// us, under a name of its contents; one that is there already is used. Every user
// may read and run it, as a box is another user than a worker that is root.
func Path(dir string) (string, error) {
	if !Embedded() {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find our own executable for the boxes' agent: %w", err)
		}
		return self, nil
	}
	path, err := extract(dir, embedded)
	if err != nil {
		return "", fmt.Errorf("write the boxes' agent: %w", err)
	}
	return path, nil
}

func extract(dir string, program []byte) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	sum := sha256.Sum256(program)
	path := filepath.Join(dir, "boxagent-"+hex.EncodeToString(sum[:8]))
	switch there, err := os.ReadFile(path); {
	case err == nil && bytes.Equal(there, program):
		return path, os.Chmod(path, 0o755)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	// Renamed into place, so that nobody starts half of it.
	file, err := os.CreateTemp(dir, ".boxagent-")
	if err != nil {
		return "", err
	}
	defer os.Remove(file.Name()) // fails once it is renamed
	_, err = file.Write(program)
	if err := errors.Join(err, file.Chmod(0o755), file.Close()); err != nil {
		return "", err
	}
	return path, os.Rename(file.Name(), path)
}
