package none_test

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/none"
	"github.com/bailey-platform/bailey/sandbox/sandboxtest"
	"github.com/bailey-platform/bailey/tool"
	"github.com/bailey-platform/bailey/tool/agent"
)

// The test binary is its own agent.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "tool" && os.Args[2] == "serve" {
		os.Exit(agent.Main(os.Args[3:]))
	}
	os.Exit(m.Run())
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestContract(t *testing.T) {
	t.Parallel()
	sandboxtest.Run(t, func(*testing.T) sandbox.Driver { return none.New(nil) }, self(t))
}

// What a Spec says of paths in the box is so, as far as it can be without mounts.
func TestPathsAreTheHosts(t *testing.T) {
	t.Parallel()
	work, shared, inner := t.TempDir(), t.TempDir(), t.TempDir()
	box, err := none.New(nil).Start(t.Context(), sandbox.Spec{
		ID: "paths",
		Command: []string{"/bin/sh", "-c", `printf '%s\n' "$HOME" "$A" "$B" "$C" "$D" "$PWD" "$@"`, "sh",
			sandbox.WorkPath, "/mnt/shared/inner/y", sandbox.AgentPath, "/workspaces"},
		Agent:    self(t),
		WorkDir:  work,
		ReadOnly: map[string]string{"/mnt/shared": shared, "/mnt/shared/inner": inner},
		Env: []string{"HOME=" + sandbox.HomePath, "A=" + sandbox.WorkPath + "/a/b", "B=/mnt/shared/x",
			"C=/mnt/sharedx", "D=not " + sandbox.WorkPath},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Stop(context.Background())
	_, stdout := box.Stdio()
	out, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	want := []string{"", work + "/a/b", shared + "/x", "/mnt/sharedx", "not " + sandbox.WorkPath, work, work, inner + "/y", self(t), "/workspaces"}
	if len(lines) != len(want) {
		t.Fatalf("output %q", out)
	}
	for i := range want {
		if i == 0 && filepath.IsAbs(lines[0]) && lines[0] != sandbox.HomePath {
			want[0] = lines[0]
		}
		if lines[i] != want[i] {
			t.Errorf("line %d: %q, want %q", i, lines[i], want[i])
		}
	}
	box.Wait()
	if _, err := os.Stat(lines[0]); err == nil {
		t.Error("the home directory is left")
	}
}

// What a command detached is gone with its box.
func TestStopEndsDetachedProcesses(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	box, err := none.New(nil).Start(t.Context(), sandbox.Spec{
		ID:      "detached",
		Command: []string{sandbox.AgentPath, "tool", "serve", "--workdir", sandbox.WorkPath},
		Agent:   self(t),
		WorkDir: work,
		Env:     []string{"PATH=" + os.Getenv("PATH")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Stop(context.Background())
	stdin, stdout := box.Stdio()
	client, err := tool.Dial(t.Context(), stdin, stdout)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Call(t.Context(), tool.Call{Tool: "bash",
		Input: json.RawMessage(`{"command":"mkfifo p; (setsid sh -c 'echo $$ >pid; : >p; exec sleep 300' &); : <p"}`)}); err != nil {
		t.Fatal(err)
	}
	if err := box.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid, err := os.ReadFile(filepath.Join(work, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
	if err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("it lives on: %s", stat)
	}
}
