// Package agentbin finds the executables that boxes are made of. A release carries
// them within itself, each a program of its own that does nothing else: every box
// starts them afresh, gVisor several times over, and starting the whole of bailey
// each time takes longer. A plain `go build` or `go run` carries nothing and stands
// in for all of them, called in the same way.
//
// The build tags embedagent, embedlauncher and embedengine put them in, each after the
// Makefile has built it into this directory.
//
// Start reading at [Path].
package agentbin

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Path returns the path of the agent on this host, which is called with `tool serve`
// and its flags. The one that is carried along is written to dir, which is made if
// need be and must be closed to whom we do not trust; without one it is our own
// executable. Every user may read and run it, as a box is another user than a worker
// that is root.
func Path(dir string) (string, error) {
	if agent == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find our own executable for the boxes' agent: %w", err)
		}
		return self, nil
	}
	path, err := extract(dir, "boxagent", agent)
	if err != nil {
		return "", fmt.Errorf("write the boxes' agent: %w", err)
	}
	return path, nil
}

// Engine returns the path of a gVisor that does nothing else, written to dir as
// [Path] does, or "" if none is carried along and that is our own executable's task.
func Engine(dir string) (string, error) {
	if engine == "" {
		return "", nil
	}
	path, err := extract(dir, "runsc", engine)
	if err != nil {
		return "", fmt.Errorf("write gVisor: %w", err)
	}
	return path, nil
}

// Launcher returns the path of an executable that starts the parts of boxes (package
// sandbox/launcher) and does nothing else, written to dir as [Path] does, or "" if none
// is carried along and that is our own executable's task.
func Launcher(dir string) (string, error) {
	if launcher == "" {
		return "", nil
	}
	path, err := extract(dir, "boxlauncher", launcher)
	if err != nil {
		return "", fmt.Errorf("write the boxes' launcher: %w", err)
	}
	return path, nil
}

// extract writes a program to dir, under a name that tells its versions apart, unless
// it is there. Other versions are removed; who runs one keeps it.
func extract(dir, name, program string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	// A reader that is only that, as a string's own would copy all of it at once.
	if _, err := io.Copy(sum, struct{ io.Reader }{strings.NewReader(program)}); err != nil {
		return "", err
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%08x", name, sum.Sum32()))
	there, err := filepath.Glob(filepath.Join(dir, name+"-????????"))
	if err != nil {
		return "", err
	}
	for _, old := range there {
		if old != path {
			if err := os.Remove(old); err != nil {
				return "", err
			}
		}
	}
	switch same, err := holds(path, program); {
	case err != nil:
		return "", err
	case same:
		return path, os.Chmod(path, 0o755)
	}
	// Renamed into place, so that nobody starts half of it.
	file, err := os.CreateTemp(dir, "."+name+"-")
	if err != nil {
		return "", err
	}
	defer os.Remove(file.Name()) // fails once it is renamed
	_, err = file.WriteString(program)
	if err := errors.Join(err, file.Chmod(0o755), file.Close()); err != nil {
		return "", err
	}
	return path, os.Rename(file.Name(), path)
}

// holds reports whether the file is there and holds the content.
func holds(path, content string) (bool, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(file, buf)
		if len(content) < n || content[:n] != string(buf[:n]) {
			return false, nil
		}
		content = content[n:]
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return content == "", nil
		case err != nil:
			return false, err
		}
	}
}
