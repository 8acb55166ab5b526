package ns_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/ns"
	"github.com/bailey-platform/bailey/tool"
)

// The targets of these are, on a quiet machine of two cores: 5 ms from a start to an
// agent that answers, with a network (95 of 100 within 7); 200 ms for fifty boxes
// started, used and stopped at once; 1.2 ms for the first shell of a box that waits;
// 1.5 MB for a box that waits.

var benched atomic.Int64

// attached takes the exits and serves nothing.
type attached struct{}

func (attached) Attach(sandbox.Exits) error { return nil }

func benchSpec(tb testing.TB) sandbox.Spec {
	return sandbox.Spec{
		ID:      fmt.Sprintf("bench-%d-%d", os.Getpid(), benched.Add(1)),
		Command: []string{sandbox.AgentPath, "tool", "serve", "--workdir", sandbox.WorkPath},
		Agent:   agentPath,
		WorkDir: tb.TempDir(),
		Env:     []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + sandbox.HomePath},
		Network: attached{},
	}
}

func boot(d *ns.Driver, spec sandbox.Spec) (sandbox.Box, *tool.Client, error) {
	box, err := d.Start(context.Background(), spec)
	if err != nil {
		return nil, nil, err
	}
	stdin, stdout := box.Stdio()
	client, err := tool.Dial(context.Background(), stdin, stdout)
	return box, client, err
}

func shell(client *tool.Client) error {
	_, err := client.Call(context.Background(), tool.Call{Tool: "bash", Input: json.RawMessage(`{"command":"echo hi"}`)})
	return err
}

func benchDriver(b *testing.B) *ns.Driver {
	needLauncher(b)
	d := open(b.TempDir())
	if _, err := d.Check(b.Context()); err != nil {
		b.Fatal(err)
	}
	return d
}

// percentiles reports the median, what 95 of 100 are within, and the least, which says
// the most on a machine that has other things to do.
func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	for name, part := range map[string]int{"min-ms": 0, "p50-ms": 50, "p95-ms": 95} {
		b.ReportMetric(float64(took[(len(took)-1)*part/100].Microseconds())/1000, name)
	}
}

// From nothing to an agent that answers.
func BenchmarkStart(b *testing.B) {
	d := benchDriver(b)
	var took []time.Duration
	for b.Loop() {
		spec := benchSpec(b)
		begun := time.Now()
		box, _, err := boot(d, spec)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
		if err := box.Stop(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	percentiles(b, took)
}

// Fifty at once: started, a command each, stopped.
func BenchmarkFifty(b *testing.B) {
	d := benchDriver(b)
	var specs []sandbox.Spec
	for range 50 {
		specs = append(specs, benchSpec(b))
	}
	for b.Loop() {
		var wg sync.WaitGroup
		for _, spec := range specs {
			wg.Go(func() {
				box, client, err := boot(d, spec)
				if err == nil {
					err = shell(client)
				}
				if err != nil {
					b.Error(err)
					return
				}
				if err := box.Stop(context.Background()); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "wall-ms")
}

// The processor time of a box, from its start by a first command to its end, ours included.
// It says more than the clock where there is other work, and what many at once come to.
func BenchmarkProcessors(b *testing.B) {
	for _, command := range []bool{false, true} {
		b.Run(fmt.Sprintf("command=%t", command), func(b *testing.B) {
			d := benchDriver(b)
			spec := benchSpec(b)
			before := processors(b)
			for b.Loop() {
				box, client, err := boot(d, spec)
				if err == nil && command {
					err = shell(client)
				}
				if err != nil {
					b.Fatal(err)
				}
				// What is killed with a box is counted nowhere, so it ends of itself.
				client.Close()
				box.Wait()
				if err := box.Stop(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((processors(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/box")
		})
	}
}

// processors is the processor time of this process and of all that it, and what it had
// started, waited for.
func processors(b *testing.B) time.Duration {
	var spent time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var usage unix.Rusage
		if err := unix.Getrusage(who, &usage); err != nil {
			b.Fatal(err)
		}
		spent += time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	return spent
}

// The first shell of a box that was waiting, and of one that was frozen. Most of it is
// bash itself, which such a box has not run before; later ones have it running.
func BenchmarkClaim(b *testing.B) {
	for _, frozen := range []bool{false, true} {
		b.Run(fmt.Sprintf("frozen=%t", frozen), func(b *testing.B) {
			d := benchDriver(b)
			var took []time.Duration
			for b.Loop() {
				box, client, err := boot(d, benchSpec(b))
				if err != nil {
					b.Fatal(err)
				}
				freezer, ok := box.(sandbox.Freezer)
				if frozen {
					if !ok {
						b.Skip("boxes cannot be frozen here")
					}
					if err := freezer.Freeze(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				begun := time.Now()
				if frozen {
					if err := freezer.Thaw(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				if err := shell(client); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begun))
				if err := box.Stop(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			percentiles(b, took)
		})
	}
}

// A command in a box that runs.
func BenchmarkShell(b *testing.B) {
	d := benchDriver(b)
	box, client, err := boot(d, benchSpec(b))
	if err != nil {
		b.Fatal(err)
	}
	defer box.Stop(context.Background())
	for b.Loop() {
		if err := shell(client); err != nil {
			b.Fatal(err)
		}
	}
}

// What a box takes that waits, of fifty: shared pages counted in parts (PSS).
func BenchmarkIdleMemory(b *testing.B) {
	d := benchDriver(b)
	const count = 50
	var total int64
	for b.Loop() {
		total = 0
		var boxes []sandbox.Box
		for range count {
			box, _, err := boot(d, benchSpec(b))
			if err != nil {
				b.Fatal(err)
			}
			boxes = append(boxes, box)
		}
		for _, pid := range ns.Processes(d) {
			total += pss(pid)
		}
		for _, box := range boxes {
			if err := box.Stop(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(total)/count/1024, "MB/box")
}

// pss is in kB.
func pss(pid int) int64 {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		var kB int64
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kB); err == nil {
			return kB
		}
	}
	return 0
}
