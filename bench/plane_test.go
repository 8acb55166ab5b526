package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/daemon"
	"github.com/bailey-platform/bailey/model/scripted"
)

// A plane is a running server with a scripted model behind it.
type plane struct {
	*client.Client
	url, key, model string
	agent           api.AgentID
	env             api.EnvironmentID
}

// startPlane runs a plane in this process until the benchmark ends.
func startPlane(b *testing.B, scripts ...scripted.Script) *plane {
	b.Helper()
	model, err := scripted.New(scripted.Options{}, scripts...).Listen("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	cfg := daemon.Defaults()
	cfg.Listen, cfg.Data, cfg.ModelURL = "127.0.0.1:0", b.TempDir(), model.URL
	d, err := daemon.New(b.Context(), cfg, nil)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { model.Run(ctx) })
	running.Go(func() { d.Run(ctx) })
	b.Cleanup(func() { stop(); running.Wait() })

	p := &plane{url: d.URL(), key: d.FirstKey(), model: model.URL}
	p.Client, err = client.New(client.Config{BaseURL: p.url, Key: p.key})
	if err != nil {
		b.Fatal(err)
	}
	agent, err := p.CreateAgent(b.Context(), api.AgentCreate{
		Name: "bench", Model: &api.ModelConfig{ID: "claude-sonnet-4-5"}, Tools: []api.AgentTool{{Type: api.ToolsetBuiltin}},
	})
	if err != nil {
		b.Fatal(err)
	}
	env, err := p.CreateEnvironment(b.Context(), api.EnvironmentCreate{Name: "bench", Config: &api.EnvironmentConfig{Type: api.EnvSelfHosted}})
	if err != nil {
		b.Fatal(err)
	}
	p.agent, p.env = agent.ID, env.ID
	return p
}

func (p *plane) session(b *testing.B) api.SessionID {
	b.Helper()
	s, err := p.CreateSession(b.Context(), api.SessionCreate{Agent: api.AgentRef{Type: "agent", ID: p.agent}, EnvironmentID: p.env})
	if err != nil {
		b.Fatal(err)
	}
	return s.ID
}

func message(text string) api.EventBody {
	return &api.UserMessage{Content: api.Content{api.TextBlock(text)}}
}

// stream opens a session's event stream and returns once it is open.
func (p *plane) stream(b *testing.B, id api.SessionID) *bufio.Scanner {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), "GET", p.url+"/v1/sessions/"+string(id)+"/events/stream?event_deltas[]=agent.message", nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("x-api-key", p.key)
	req.Header.Set("anthropic-version", "2023-06-01")
	req.Header.Set("anthropic-beta", "managed-agents-2026-04-01")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(res.Body)
		b.Fatalf("stream: %s %s", res.Status, body)
	}
	b.Cleanup(func() { res.Body.Close() })
	sc := bufio.NewScanner(res.Body)
	sc.Buffer(nil, 32<<20)
	return sc
}

// waitLine reads until a line begins with prefix.
func waitLine(b *testing.B, sc *bufio.Scanner, prefix string) {
	b.Helper()
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), prefix) {
			return
		}
	}
	b.Fatalf("the stream ended before %q: %v", prefix, sc.Err())
}

func median(d []time.Duration) time.Duration { return percentile(d, 50) }
func percentile(d []time.Duration, p int) time.Duration {
	slices.Sort(d)
	return d[(len(d)-1)*p/100]
}

func reportMS(b *testing.B, d time.Duration, name string) {
	b.ReportMetric(float64(d.Microseconds())/1000, "ms-"+name)
}

var hello = scripted.Script{Name: "hello", OpenEnd: true, Turns: []scripted.Turn{{Text: "Hello from the script."}}}

// BenchmarkFirstToken compares the time to the first streamed text: asked of the
// model endpoint directly, and through a session (from the POST of the message to
// the first preview on an open stream). Both in turn, in one run.
func BenchmarkFirstToken(b *testing.B) {
	p := startPlane(b, hello)
	body, err := json.Marshal(map[string]any{
		"model": "claude-sonnet-4-5", "max_tokens": 1000, "stream": true,
		"messages": []any{map[string]any{"role": "user", "content": "hi"}},
	})
	if err != nil {
		b.Fatal(err)
	}
	direct := func() time.Duration {
		began := time.Now()
		req, _ := http.NewRequestWithContext(b.Context(), "POST", p.model+"/v1/messages", bytes.NewReader(body))
		req.Header.Set("anthropic-version", "2023-06-01")
		req.Header.Set("content-type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer res.Body.Close()
		sc := bufio.NewScanner(res.Body)
		waitLine(b, sc, "event: content_block_delta")
		d := time.Since(began)
		io.Copy(io.Discard, res.Body)
		return d
	}
	through := func() time.Duration {
		id := p.session(b)
		sc := p.stream(b, id)
		began := time.Now()
		if _, err := p.Send(b.Context(), id, message("hi")); err != nil {
			b.Fatal(err)
		}
		waitLine(b, sc, "event: event_delta")
		d := time.Since(began)
		waitLine(b, sc, "event: session.status_idle")
		return d
	}
	direct()
	through()
	var raw, plane []time.Duration
	for b.Loop() {
		raw = append(raw, direct())
		plane = append(plane, through())
	}
	reportMS(b, median(raw), "direct")
	reportMS(b, median(plane), "plane")
	reportMS(b, median(plane)-median(raw), "added")
}

// BenchmarkClaim measures the time from a session's creation to its work item
// arriving at a waiting poller.
func BenchmarkClaim(b *testing.B) {
	p := startPlane(b, hello)
	key, err := p.CreateKey(b.Context(), p.env, api.KeyCreate{Name: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	arrived := make(chan time.Time)
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	waiting := make(chan struct{}, 1)
	go func() {
		for ctx.Err() == nil {
			select {
			case waiting <- struct{}{}:
			default:
			}
			req, _ := http.NewRequestWithContext(ctx, "GET", p.url+"/v1/environments/"+string(p.env)+"/work/poll?block_ms=999", nil)
			req.Header.Set("Authorization", "Bearer "+key.Secret)
			req.Header.Set("anthropic-version", "2023-06-01")
			req.Header.Set("anthropic-beta", "managed-agents-2026-04-01")
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return
			}
			item, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if !bytes.Equal(bytes.TrimSpace(item), []byte("null")) {
				select {
				case arrived <- time.Now():
				case <-ctx.Done():
				}
			}
		}
	}()
	var took []time.Duration
	for b.Loop() {
		<-waiting
		began := time.Now()
		p.session(b)
		took = append(took, (<-arrived).Sub(began))
	}
	reportMS(b, median(took), "p50")
	reportMS(b, percentile(took, 95), "p95")
}

// BenchmarkIdle measures what idle sessions and open streams cost in memory.
func BenchmarkIdle(b *testing.B) {
	const sessions, streams = 10_000, 1_000
	p := startPlane(b, hello)
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc+m.StackInuse) / (1 << 20)
	}
	empty := heap()
	var first []api.SessionID
	for i := range sessions {
		id := p.session(b)
		if i < streams {
			first = append(first, id)
		}
	}
	withSessions := heap()
	// Raw connections, so that the far end of the streams weighs little.
	var conns []net.Conn
	addr := strings.TrimPrefix(p.url, "http://")
	for _, id := range first {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		conns = append(conns, c)
		fmt.Fprintf(c, "GET /v1/sessions/%s/events/stream HTTP/1.1\r\nHost: %s\r\nx-api-key: %s\r\nanthropic-version: 2023-06-01\r\nanthropic-beta: managed-agents-2026-04-01\r\n\r\n", id, addr, p.key)
		buf := make([]byte, 512)
		if n, err := c.Read(buf); err != nil || !bytes.Contains(buf[:n], []byte("200 OK")) {
			b.Fatalf("stream: %q %v", buf[:n], err)
		}
	}
	withStreams := heap()
	for _, c := range conns {
		c.Close()
	}
	for b.Loop() { // the figures are of the state, not of an operation
	}
	b.ReportMetric(empty, "MiB-empty")
	b.ReportMetric(withSessions, "MiB-10k-sessions")
	b.ReportMetric(withStreams, "MiB-and-1k-streams")
	b.ReportMetric((withStreams-withSessions)*1024/streams, "KiB/stream")
}
