package gvisor_test

import (
	"os"
	"os/exec"
	"testing"
)

// The engine's own tests do not run with the race detector, with which gVisor does not
// work, and so not with everybody else's.
func TestEngine(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "go", "test", "./engine/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
