package gvisor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/gvisor"
	"github.com/bailey-platform/bailey/tool"
)

// release returns a driver as a release has it: gVisor, agent and launcher each a
// program of its own.
func release(b *testing.B) *gvisor.Driver {
	b.Helper()
	needRuntime(b)
	engine := filepath.Join(filepath.Dir(runtimePath), "runsc")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", engine, "./engine/runsc")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	driver := gvisor.New(gvisor.Options{Root: b.TempDir(), Runtime: engine, Launcher: launcherPath})
	if err := driver.Prepare(b.Context(), ""); err != nil {
		b.Fatal(err)
	}
	return driver
}

// each measures f by itself, and reports how long it took half of the time and almost
// always. What f returns is undone outside of the measurement.
func each(b *testing.B, f func() (undo func())) {
	b.Helper()
	var took []time.Duration
	for b.Loop() {
		begun := time.Now()
		undo := f()
		took = append(took, time.Since(begun))
		if undo != nil {
			b.StopTimer()
			undo()
			b.StartTimer()
		}
	}
	slices.Sort(took)
	for name, at := range map[string]int{"p50-ms": len(took) / 2, "p95-ms": len(took) * 95 / 100} {
		b.ReportMetric(float64(took[at].Microseconds())/1000, name)
	}
	b.ReportMetric(0, "ns/op")
}

// childrenTime is the processor time of all processes that were ours and have ended, which
// says more than the clock where much else runs.
func childrenTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// dial starts a box and meets its agent.
func dial(b *testing.B, driver *gvisor.Driver, s sandbox.Spec) session {
	b.Helper()
	box, err := driver.Start(b.Context(), s)
	if err != nil {
		b.Fatal(err)
	}
	client, err := tool.Dial(b.Context(), stdin(box), stdout(box))
	if err != nil {
		b.Fatal(err)
	}
	return session{b, box, client}
}

func (s session) stop() {
	if err := s.box.Stop(context.Background()); err != nil {
		s.t.Error(err)
	}
}

func (s session) must(name, input string) {
	result, err := s.Call(context.Background(), tool.Call{Tool: name, Input: json.RawMessage(input)})
	if err != nil || result.IsError {
		s.t.Fatalf("%s, %v", result.Content, err)
	}
}

// BenchmarkBox measures what a session waits for. Compare it with runs of bare runsc
// taken at the same time: `runsc run` of /bin/true takes as long as a start does here,
// with the launcher, the root, the agent and its hello.
//
// Where the processor time of a start goes, of some 85 ms when little else runs: the same
// large program starts five times (runsc, the opener of files, the kernel as root and then
// as nobody, and what unmounts /proc behind it), at 5 to 6 ms each, two thirds of which are
// its packages' initialisation; 16 are what is done for the agent and its first command, 5
// the platform, 4 gVisor's trace points, 2 to 3 the launcher. The rest is spread thin: a
// third of all of it is the host's kernel, half of that page faults. The filters of system
// calls, which gVisor built from its module compiles at each start, were 20 of 120 ms, and
// the collections of garbage before a box had started 10.
//
// A call is hand-offs between threads of the agent, each of which is a trap into gVisor,
// and a question to the opener of files for every step of a path, as what is in the
// work folder may change outside. A box at rest has about 18 MiB: gVisor's three
// processes 14, the agent 2, and what the host's kernel keeps of them 2.
func BenchmarkBox(b *testing.B) {
	driver := release(b)
	b.Run("start", func(b *testing.B) {
		for name, network := range map[string]sandbox.Network{"no network": nil, "network": new(exits)} {
			b.Run(name, func(b *testing.B) {
				before := childrenTime(b)
				each(b, func() func() {
					s := spec("bench", b.TempDir())
					s.Network = network
					return dial(b, driver, s).stop
				})
				b.ReportMetric(float64((childrenTime(b)-before).Milliseconds())/float64(b.N), "cpu-ms")
			})
		}
	})

	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "4k"), bytes.Repeat([]byte("x"), 4096), 0o644); err != nil {
		b.Fatal(err)
	}
	s := dial(b, driver, spec("bench-calls", dir))
	b.Cleanup(s.stop)
	stats, err := s.box.Stats()
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("memory at rest: %.1f MiB", float64(stats.MemoryBytes)/(1<<20))
	b.Run("call", func(b *testing.B) {
		for _, c := range []struct{ name, tool, input string }{
			{"bash true", "bash", `{"command":"true"}`},
			{"sh", "bash", `{"command":"sh -c 'echo hi'"}`},
			{"read 4 KiB", "read", `{"file_path":"4k"}`},
			{"write 4 KiB", "write", fmt.Sprintf(`{"file_path":"w","content":%q}`, bytes.Repeat([]byte("x"), 4096))},
		} {
			b.Run(c.name, func(b *testing.B) {
				each(b, func() func() { s.must(c.tool, c.input); return nil })
			})
		}
	})
	freezer := s.box.(sandbox.Freezer)
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("freeze", func(b *testing.B) {
		each(b, func() func() {
			check(freezer.Freeze(b.Context()))
			return func() { check(freezer.Thaw(b.Context())) }
		})
	})
	b.Run("thaw and first answer", func(b *testing.B) {
		check(freezer.Freeze(b.Context()))
		each(b, func() func() {
			check(freezer.Thaw(b.Context()))
			s.must("read", `{"file_path":"4k"}`)
			return func() { check(freezer.Freeze(b.Context())) }
		})
		check(freezer.Thaw(b.Context()))
	})
	image := filepath.Join(b.TempDir(), "image")
	b.Run("checkpoint", func(b *testing.B) {
		check(os.Mkdir(image, 0o700))
		first := true
		each(b, func() func() {
			if !first {
				check(os.RemoveAll(image))
				check(os.Mkdir(image, 0o700))
			}
			first = false
			check(s.box.(sandbox.Checkpointer).Checkpoint(b.Context(), image))
			return nil
		})
	})
	b.Run("restore", func(b *testing.B) {
		if _, err := os.Stat(image); err != nil {
			b.Skip("no checkpoint was made")
		}
		each(b, func() func() {
			box, err := driver.Restore(b.Context(), spec("bench-clone", b.TempDir()), image)
			check(err)
			return func() { check(box.Stop(context.Background())) }
		})
	})
	b.Run("stop", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			s := dial(b, driver, spec("bench-stop", b.TempDir()))
			b.StartTimer()
			s.stop()
		}
	})
}
