package field

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/netjail"
)

const (
	fetchTimeout = 15 * time.Second // of a command
	staleMax     = 10 * time.Minute // a value is used so long after it should have been renewed
	retryAfter   = 5 * time.Second  // after an attempt that failed; until then it is not tried again
)

// bind makes the jail's credentials of those of a configuration. env looks up the
// worker's own variables.
func bind(list []Credential, env func(string) (string, bool)) (bound []netjail.Credential, secrets []*secret) {
	for _, c := range list {
		s := &secret{from: c.From, env: env, refresh: time.Duration(c.Refresh)}
		secrets = append(secrets, s)
		bound = append(bound, netjail.Credential{
			Name: c.Name, Hosts: c.Hosts, Value: s.value,
			AtHand: len(c.From.Command) == 0, // a command may ask somebody, or be counted
			Where: netjail.Where{
				Header: slices.Contains(c.Where, "header"), Body: slices.Contains(c.Where, "body"), Query: slices.Contains(c.Where, "query"),
			},
		})
	}
	return bound, secrets
}

// secret is the value of a credential, kept for a while. Its methods may be called by
// several goroutines; it is fetched for all of them at once.
type secret struct {
	// Static.
	from    Source
	env     func(string) (string, bool)
	refresh time.Duration

	mu       sync.Mutex
	last     string
	at       time.Time     // when it was fetched
	failure  error         // of the last attempt
	tried    time.Time     // when that failed
	fetching chan struct{} // closed at the end of the attempt under way; nil if there is none
}

// value returns the secret, or the error of ctx if that ends first. While it cannot be
// renewed, the last one is used for some time more.
func (s *secret) value(ctx context.Context) (string, error) {
	for {
		value, wait, err := s.look()
		if wait == nil {
			return value, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// look returns what is known of the secret by now, or what to wait for.
func (s *secret) look() (value string, wait <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	age := time.Since(s.at)
	switch {
	case s.last != "" && age < s.refresh:
		return s.last, nil, nil
	case s.failure == nil || time.Since(s.tried) >= retryAfter:
		if s.fetching == nil {
			s.fetching = make(chan struct{})
			go s.renew()
		}
		return "", s.fetching, nil
	case s.last != "" && age < s.refresh+staleMax:
		return s.last, nil, nil
	}
	return "", nil, s.failure
}

// renew fetches the secret. It is nobody's who waits for it: that one leaves does not
// matter to the others.
func (s *secret) renew() {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	value, err := s.fetch(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure = err; err != nil {
		s.tried = time.Now()
	} else {
		s.last, s.at = value, time.Now()
	}
	close(s.fetching)
	s.fetching = nil
}

// fetch gets the secret from where it is. Errors tell where that is, and nothing of what
// was there.
func (s *secret) fetch(ctx context.Context) (value string, err error) {
	var from string
	switch {
	case s.from.Env != "":
		from = "the variable " + s.from.Env
		var ok bool
		if value, ok = s.env(s.from.Env); !ok {
			return "", fmt.Errorf("%s is not set", from)
		}
	case s.from.File != "":
		from = s.from.File
		value, err = readSecret(s.from.File)
	default:
		from = s.from.Command[0]
		value, err = s.run(ctx)
	}
	if err != nil {
		return "", err
	}
	value = strings.TrimSpace(value)
	switch {
	case len(value) < netjail.ValueMin || len(value) > netjail.ValueMax:
		return "", fmt.Errorf("%s holds %d bytes; a credential has %d to %d", from, len(value), netjail.ValueMin, netjail.ValueMax)
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", fmt.Errorf("%s holds more than one line, or control characters", from)
	}
	return value, nil
}

func readSecret(path string) (string, error) {
	// What is no file may have nothing to say for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return "", err
	} else if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, netjail.ValueMax+2))
	return string(data), err
}

// run runs the source's command.
func (s *secret) run(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, s.from.Command[0], s.from.Command[1:]...)
	cmd.WaitDelay = time.Second
	out := &bounded{left: netjail.ValueMax + 2}
	cmd.Stdout = out // standard error may hold anything, so it goes nowhere
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.New("it did not end in time")
		}
		return "", fmt.Errorf("run %s: %w", s.from.Command[0], err)
	}
	return out.String(), nil
}

// bounded keeps the first bytes that are written to it.
type bounded struct {
	bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	b.Buffer.Write(p[:n])
	return len(p), nil
}
