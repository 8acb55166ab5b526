package e2e

import (
	"bytes"
	"context"
	"flag"
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

// scratch is a directory for the whole run, which any user may enter.
var scratch string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if scenario := os.Getenv(conformanceScenario); scenario != "" {
		if err := conformanceClient(scenario, os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if long() {
		timeout = 15 * time.Minute
	}
	// The tests wait far more than they compute.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err) // a flag of package testing; the command line still overrules it
	}
	for _, pair := range os.Environ() {
		// Settings of whoever runs the tests must not reach what is tested.
		name, _, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "ANTHROPIC_") || strings.HasPrefix(name, "BAILEY_") && !ours(name) {
			os.Unsetenv(name)
		}
	}
	var err error
	if scratch, err = os.MkdirTemp("", "bailey-e2e-"); err == nil {
		defer os.RemoveAll(scratch)
		// MkdirTemp leaves others out, and one test runs the binary as another user.
		err = os.Chmod(scratch, 0o755)
	}
	if err == nil {
		binary, err = findBinary()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return m.Run()
}

func findBinary() (string, error) {
	if path := os.Getenv("BAILEY_BINARY"); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(scratch, "bailey")
	return path, build(path)
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
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", path, ".")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the binary: %w\n%s", err, out)
	}
	return nil
}

// missing skips a test that needs a part this host does not have, and fails it
// where everything is required.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// long reports whether the slow variants are asked for.
func long() bool { return os.Getenv("BAILEY_E2E_LONG") != "" }

// timeout is a test's patience for anything that should take moments. It is far
// longer than needed, for a busy machine. The slow variants take longer by design.
var timeout = 90 * time.Second

// within is a context that ends with the test, and after the timeout.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}

func TestBothGenerationsOfTheSDKAreTestedAlike(t *testing.T) {
	t.Parallel()
	sources, err := filepath.Glob("*sdkv2_test.go")
	if err != nil || len(sources) < 2 {
		t.Fatalf("sources %v, %v", sources, err)
	}
	for _, source := range sources {
		want, err := exec.Command("./sdkv1.sh", source).Output()
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Replace(source, "sdkv2", "sdkv1", 1)
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what sdkv1.sh makes of %s: run go generate ./e2e", name, source)
		}
	}
}
