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
	"time"

	"github.com/bailey-platform/bailey/netjail"
)

const (
	commandTimeout = 15 * time.Second
	staleMax       = 10 * time.Minute // a value is used so long after it should have been renewed
	retryAfter     = 5 * time.Second  // between two attempts to renew it, meanwhile
)

// bind makes the jail's credentials of those of a configuration. env looks up the
// worker's own variables.
func bind(list []Credential, env func(string) (string, bool)) (bound []netjail.Credential, secrets []*secret) {
	for _, c := range list {
		s := &secret{from: c.From, env: env, refresh: time.Duration(c.Refresh)}
		secrets = append(secrets, s)
		bound = append(bound, netjail.Credential{
			Name: c.Name, Hosts: c.Hosts, Value: s.value,
			Where: netjail.Where{
				Header: slices.Contains(c.Where, "header"), Body: slices.Contains(c.Where, "body"), Query: slices.Contains(c.Where, "query"),
			},
		})
	}
	return bound, secrets
}

// secret is the value of a credential, kept for a while. Its methods may be called by
// several goroutines; one of them fetches it for all.
type secret struct {
	// Static.
	from    Source
	env     func(string) (string, bool)
	refresh time.Duration

	mu    sync.Mutex
	last  string
	at    time.Time // when it was fetched
	tried time.Time // when that last failed
}

// value returns the secret. While it cannot be renewed, the last one is used for some
// time more.
func (s *secret) value(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != "" && time.Since(s.at) < s.refresh {
		return s.last, nil
	}
	stale := s.last != "" && time.Since(s.at) < s.refresh+staleMax
	if stale && time.Since(s.tried) < retryAfter {
		return s.last, nil
	}
	value, err := s.fetch(ctx)
	if err != nil {
		s.tried = time.Now()
		if stale {
			return s.last, nil
		}
		return "", err
	}
	s.last, s.at = value, time.Now()
	return value, nil
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
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, netjail.ValueMax+2))
	return string(data), err
}

// run runs the source's command.
func (s *secret) run(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
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
