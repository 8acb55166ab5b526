package sandbox

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
)

// Validate checks what every backend needs of a Spec, and that what it names on the
// host is there. Backends check the rest.
func (s Spec) Validate() error {
	switch {
	case len(s.ID) < 1 || len(s.ID) > 64 || strings.Trim(s.ID, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return fmt.Errorf("box id %q: want 1 to 64 of a-z, 0-9 and -", s.ID)
	case len(s.Command) == 0 || !path.IsAbs(s.Command[0]):
		return fmt.Errorf("box command %q: want an absolute path", s.Command)
	}
	if err := s.Limits.Validate(); err != nil {
		return err
	}
	if err := directory(s.WorkDir); err != nil {
		return fmt.Errorf("work folder: %w", err)
	}
	if s.Agent != "" {
		info, err := os.Stat(s.Agent)
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		if !filepath.IsAbs(s.Agent) || !info.Mode().IsRegular() {
			return fmt.Errorf("agent %q: want the absolute path of a file", s.Agent)
		}
	}
	for target, source := range s.ReadOnly {
		if err := directory(source); err != nil {
			return fmt.Errorf("read-only directory: %w", err)
		}
		if !path.IsAbs(target) || path.Clean(target) != target || target == "/" || target == WorkPath {
			return fmt.Errorf("read-only directory: cannot appear as %q", target)
		}
	}
	for target, source := range s.Files {
		info, err := os.Stat(source)
		if err != nil {
			return fmt.Errorf("mounted file: %w", err)
		}
		if !filepath.IsAbs(source) || !info.Mode().IsRegular() {
			return fmt.Errorf("mounted file %q: want the absolute path of a file", source)
		}
		if !path.IsAbs(target) || path.Clean(target) != target || target == "/" || target == AgentPath {
			return fmt.Errorf("mounted file: cannot appear as %q", target)
		}
	}
	for _, v := range s.Env {
		if i := strings.Index(v, "="); i < 1 || strings.ContainsRune(v, 0) {
			return fmt.Errorf("box environment: %.20q is not KEY=value", v)
		}
	}
	return nil
}

func directory(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(name) || !info.IsDir() {
		return fmt.Errorf("%q: want the absolute path of a directory", name)
	}
	return nil
}

// Claims are what the live boxes of a driver hold alone: their ids and work folders.
// The zero value holds nothing. It is safe for concurrent use.
type Claims struct {
	mu      sync.Mutex
	folders map[string]string // by id
}

// Take claims the id and the work folder of a box, or says who has them.
func (c *Claims) Take(spec Spec) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.folders[spec.ID]; ok {
		return fmt.Errorf("box %s is running already", spec.ID)
	}
	folder := filepath.Clean(spec.WorkDir)
	for id, taken := range c.folders {
		if taken == folder {
			return fmt.Errorf("work folder %s belongs to box %s", folder, id)
		}
	}
	if c.folders == nil {
		c.folders = make(map[string]string)
	}
	c.folders[spec.ID] = folder
	return nil
}

// Give gives back what the box with this id holds.
func (c *Claims) Give(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.folders, id)
}

// Holds reports whether a box with this id is live.
func (c *Claims) Holds(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.folders[id]
	return ok
}
