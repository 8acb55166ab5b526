package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// binary is the bailey under test, an absolute path that any user may execute.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	for _, pair := range os.Environ() {
		// Settings of whoever runs the tests must not reach what is tested.
		name, _, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "ANTHROPIC_") || strings.HasPrefix(name, "BAILEY_") && !ours(name) {
			os.Unsetenv(name)
		}
	}
	if binary = os.Getenv("BAILEY_BINARY"); binary != "" {
		path, err := filepath.Abs(binary)
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e: BAILEY_BINARY:", err)
			return 1
		}
		binary = path
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "bailey-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "bailey")
	// MkdirTemp leaves the others out; one test runs the binary as another user.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	if err := build(binary); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: build the binary:", err)
		return 1
	}
	return m.Run()
}

func ours(name string) bool {
	switch name {
	case "BAILEY_BINARY", "BAILEY_TEST_POSTGRES", "BAILEY_E2E_LONG":
		return true
	}
	return false
}

// build makes the binary as a release has it: static, without the race detector.
func build(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, ".")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// missing skips a test that needs a part this host does not have, and fails it
// where everything is required.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// long reports whether the slow variants are asked for.
func long() bool { return os.Getenv("BAILEY_E2E_LONG") != "" }

// timeout is a test's patience for anything that should take moments. It is far
// longer than needed, for a busy machine.
const timeout = 90 * time.Second

// within is a context that ends with the test, and after the timeout.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}
