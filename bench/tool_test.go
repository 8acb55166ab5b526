package bench

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model/scripted"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/gvisor"
	"github.com/bailey-platform/bailey/sandbox/none"
	"github.com/bailey-platform/bailey/tool/agent"
	"github.com/bailey-platform/bailey/worker"
)

func TestMain(m *testing.M) {
	gvisor.RunIfRuntime() // this binary is also the runtime of its boxes
	if len(os.Args) > 2 && os.Args[1] == "tool" && os.Args[2] == "serve" {
		os.Exit(agent.Main(os.Args[3:]))
	}
	os.Exit(m.Run())
}

// BenchmarkToolCall measures the round trip of `true`: from the end of one model
// request, which asks for the call, to the start of the next, which has its
// result. That is the plane's writes, the worker's journal and audit record, the
// box, and the way there and back.
func BenchmarkToolCall(b *testing.B) {
	for _, backend := range []struct {
		name string
		new  func(b *testing.B) sandbox.Driver
	}{
		{"gvisor", func(b *testing.B) sandbox.Driver { return gvisor.New(gvisor.Options{Root: b.TempDir()}) }},
		{"none", func(b *testing.B) sandbox.Driver { return none.New(nil) }},
	} {
		b.Run(backend.name, func(b *testing.B) { benchToolCall(b, backend.new(b)) })
	}
}

func benchToolCall(b *testing.B, driver sandbox.Driver) {
	if _, err := driver.Check(b.Context()); err != nil {
		b.Skip(err)
	}
	const calls = 20
	script := scripted.Script{Name: "calls"}
	for range calls {
		script.Turns = append(script.Turns, scripted.Turn{Calls: []scripted.Call{{Name: "bash", Input: map[string]any{"command": "true"}}}})
	}
	script.Turns = append(script.Turns, scripted.Turn{Text: "Done."})
	p := startPlane(b, script)
	key, err := p.CreateKey(b.Context(), p.env, api.KeyCreate{Name: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	w, err := worker.New(worker.Config{
		EnvironmentID: string(p.env), Key: worker.StaticKey(key.Secret), BaseURL: p.url, DataDir: b.TempDir(),
		Driver: driver, Agent: self, AgentArgs: []string{"tool", "serve"},
		MaxIdle: 10 * time.Millisecond, // a session that is done frees its place
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	defer func() { stop(); running.Wait() }()

	var took []time.Duration
	for b.Loop() {
		id := p.session(b)
		sc := p.stream(b, id)
		if _, err := p.Send(b.Context(), id, message("go")); err != nil {
			b.Fatal(err)
		}
		for i := range calls {
			waitLine(b, sc, "event: span.model_request_end")
			began := time.Now()
			waitLine(b, sc, "event: span.model_request_start")
			if i > 0 { // the first call also starts the box
				took = append(took, time.Since(began))
			}
		}
		waitLine(b, sc, "event: agent.message")
	}
	reportMS(b, median(took), "p50")
	reportMS(b, percentile(took, 95), "p95")
}
