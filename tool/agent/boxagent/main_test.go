package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/tool"
)

// Every box starts this program and waits for it: what it links is paid for each time.
func TestTheAgentLinksLittle(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	const ours = "github.com/bailey-platform/bailey/tool"
	for _, path := range strings.Fields(string(out)) {
		if path != ours && !strings.HasPrefix(path, ours+"/") && path != "golang.org/x/sys/unix" {
			t.Errorf("the agent links %s", path)
		}
	}
	out, err = exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(strings.Fields(string(out)), "net/http") {
		t.Error("the agent links net/http")
	}
}

// From nothing to an agent that says hello, and what that has of memory for itself then.
func BenchmarkStart(b *testing.B) {
	agent := filepath.Join(b.TempDir(), "boxagent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(agent)
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	var memory int
	for b.Loop() {
		cmd := exec.Command(agent, "tool", "serve", "--workdir", "/")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		begun := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		var hello tool.Reply
		if err := tool.ReadFrame(stdout, &hello); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		_, after, _ := strings.Cut(string(status), "RssAnon:")
		if _, err := fmt.Sscan(after, &memory); err != nil {
			b.Fatal(err)
		}
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds())/1000, "min-ms")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(memory)/1024, "anon-MB")
	b.ReportMetric(float64(info.Size())/1e6, "program-MB")
}
