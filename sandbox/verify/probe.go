package verify

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A prober is the side inside a box.
type prober struct{ facts facts }

// Probe is what runs in a box: it reads checks to try from stdin, a line of JSON each,
// and writes to stdout what came of them. It returns when stdin ends.
func Probe(stdin io.Reader, stdout io.Writer) error {
	lines := bufio.NewScanner(stdin)
	lines.Buffer(nil, answerMax)
	all := map[string]check{foreignCall.id: foreignCall}
	for _, c := range checks() {
		all[c.id] = c
	}
	for lines.Scan() {
		var q question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return err
		}
		c, ok := all[q.ID]
		if !ok {
			return fmt.Errorf("there is no check %q", q.ID)
		}
		answer, err := json.Marshal(attempt(c, q.Facts))
		if err != nil {
			return err
		}
		if _, err := stdout.Write(append(answer, '\n')); err != nil {
			return err
		}
	}
	return lines.Err()
}

// attempt runs a probe, on a thread that is thrown away with whatever was done to it.
func attempt(c check, f facts) (out outcome) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				out = broken("the probe itself failed: %v", r)
			}
		}()
		runtime.LockOSThread()
		out = c.probe(&prober{f})
	}()
	<-done
	return out
}

func (p *prober) secret() []byte { return []byte(p.facts.SecretHead + p.facts.SecretTail) }

// readsSecret tries to read the secret from files and says where it was found.
func (p *prober) readsSecret(names ...string) (where []string) {
	for _, name := range names {
		data, err := readSome(name, 1<<20)
		if err == nil && bytes.Contains(data, p.secret()) {
			where = append(where, name)
		}
	}
	return where
}

// readSome reads no more than max bytes of a file, and waits for no writer of a pipe.
func readSome(name string, max int64) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var out []byte
	buf := make([]byte, 64<<10)
	for int64(len(out)) < max {
		n, err := unix.Read(fd, buf)
		if n > 0 {
			out = append(out, buf[:n]...)
		}
		if err != nil || n <= 0 {
			return out, err
		}
	}
	return out, nil
}

// unread is the outcome of trying to read the secret from all of names.
func (p *prober) unread(names ...string) outcome {
	if where := p.readsSecret(names...); len(where) > 0 {
		return broken("read a file of the host by %s", strings.Join(where, ", "))
	}
	return held("not to be read by %d ways, such as %s", len(names), names[0])
}

// denied is the outcome of things that were all to be refused: what was not is named.
func denied(tries map[string]func() error) outcome {
	var done, errs []string
	for _, name := range slices.Sorted(maps.Keys(tries)) {
		if err := tries[name](); err == nil {
			done = append(done, name)
		} else {
			errs = append(errs, name+": "+reason(err))
		}
	}
	if len(done) > 0 {
		return broken("allowed: %s", strings.Join(done, ", "))
	}
	return held("%s", strings.Join(errs, "; "))
}

// reason is an error without what the probe's author knows anyway.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// workFile returns a path in the box's work folder for a probe's own use.
func workFile(name string) string {
	dir, err := os.Getwd()
	if err != nil {
		dir = "."
	}
	return filepath.Join(dir, name)
}
