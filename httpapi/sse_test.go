package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
)

// A sessionFixture is a server with one idle session.
type sessionFixture struct {
	*fixture
	session api.SessionID
}

func newSession(tb testing.TB, cfg Config) *sessionFixture {
	tb.Helper()
	f := &sessionFixture{fixture: newFixture(tb, cfg)}
	var agent, env, sess struct{ ID string }
	f.do(tb, "POST", "/v1/agents", `{"name": "a", "model": "m", "tools": [{"type": "agent_toolset_20260401"}]}`, &agent)
	f.do(tb, "POST", "/v1/environments", `{"name": "e", "config": {"type": "self_hosted"}}`, &env)
	f.do(tb, "POST", "/v1/sessions", fmt.Sprintf(`{"agent": %q, "environment_id": %q}`, agent.ID, env.ID), &sess)
	f.session = api.SessionID(sess.ID)
	return f
}

// do makes a call that succeeds.
func (f *fixture) do(tb testing.TB, method, target, body string, out any) {
	tb.Helper()
	res, err := http.DefaultClient.Do(f.request(tb, method, target, body))
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		tb.Fatalf("%s %s: %s %s %v", method, target, res.Status, data, err)
	}
	if err := json.Unmarshal(data, out); err != nil {
		tb.Fatal(err)
	}
}

// say sends a user.message and returns its id.
func (f *sessionFixture) say(tb testing.TB, text string) string {
	tb.Helper()
	quoted, _ := json.Marshal(text)
	var out struct{ Data []struct{ ID string } }
	f.do(tb, "POST", "/v1/sessions/"+string(f.session)+"/events",
		fmt.Sprintf(`{"events": [{"type": "user.message", "content": [{"type": "text", "text": %s}]}]}`, quoted), &out)
	return out.Data[0].ID
}

func (f *sessionFixture) list(tb testing.TB) (ids []string) {
	tb.Helper()
	var out struct{ Data []struct{ ID string } }
	f.do(tb, "GET", "/v1/sessions/"+string(f.session)+"/events?limit=1000", "", &out)
	for _, e := range out.Data {
		ids = append(ids, e.ID)
	}
	return ids
}

// A testFrame is one frame as it came.
type testFrame struct {
	name, id string
	data     []byte
}

func (fr testFrame) event(tb testing.TB) *api.Event {
	tb.Helper()
	e := new(api.Event)
	if err := json.Unmarshal(fr.data, e); err != nil {
		tb.Fatal(err)
	}
	return e
}

type testStream struct {
	res *http.Response
	r   *bufio.Reader
}

// open returns once the header has come.
func (f *sessionFixture) open(tb testing.TB, query, lastEventID string) *testStream {
	tb.Helper()
	req := f.request(tb, "GET", "/v1/sessions/"+string(f.session)+"/events/stream"+query, "")
	if lastEventID != "" {
		req.Header.Set("Last-Event-Id", lastEventID)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != http.StatusOK {
		tb.Fatalf("stream: %s", res.Status)
	}
	s := &testStream{res, bufio.NewReader(res.Body)}
	// Every stream begins with a ping that says where it begins.
	if fr, err := s.frame(); err != nil || fr.name != "ping" || fr.id == "" {
		tb.Fatalf("opening frame %+v, %v", fr, err)
	}
	return s
}

// next returns the next frame that is not a ping.
func (s *testStream) next(tb testing.TB) testFrame {
	tb.Helper()
	fr, err := s.read()
	if err != nil {
		tb.Fatal(err)
	}
	return fr
}

func (s *testStream) read() (testFrame, error) {
	for {
		fr, err := s.frame()
		if err != nil || fr.name != "ping" {
			return fr, err
		}
	}
}

// frame reads strictly what this server writes: event, perhaps id, data, a blank
// line.
func (s *testStream) frame() (fr testFrame, err error) {
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return fr, err
		}
		line = strings.TrimSuffix(line, "\n")
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case line == "" && fr.name != "" && json.Valid(fr.data):
			return fr, nil
		case name == "event" && fr.name == "":
			fr.name = value
		case name == "id" && fr.id == "":
			fr.id = value
		case name == "data" && fr.data == nil:
			fr.data = []byte(value)
		default:
			return fr, fmt.Errorf("unexpected line %q after %+v", line, fr)
		}
	}
}

func TestStreamHeaders(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{})
	h := f.open(t, "", "").res.Header
	for name, want := range map[string]string{
		"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if h.Get("Request-Id") == "" {
		t.Error("no request id")
	}
}

// Open, then list: between the two nothing is lost, and ids are the same on both.
func TestOpenThenListMissesNothing(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{})
	const total = 60
	sent := make(chan []string)
	half := make(chan struct{})
	go func() {
		var ids []string
		for i := range total {
			ids = append(ids, f.say(t, fmt.Sprint(i)))
			if i == total/3 {
				close(half)
			}
		}
		sent <- ids
	}()
	<-half
	s := f.open(t, "", "")
	have := map[string]bool{}
	for _, id := range f.list(t) {
		have[id] = true
	}
	all := <-sent
	for !have[all[total-1]] {
		have[string(s.next(t).event(t).ID)] = true
	}
	for i, id := range all {
		if !have[id] {
			t.Errorf("message %d is in neither", i)
		}
	}
}

// A client's event comes twice: waiting, and taken.
func TestQueuedEventComesTwiceWithOneID(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{})
	s := f.open(t, "", "")
	id := f.say(t, "hello")
	first := s.next(t).event(t)
	f.write(t, f.session, control.Batch{Append: []api.Draft{{ID: api.EventID(id)}}, Release: true})
	second := s.next(t).event(t)
	if string(first.ID) != id || string(second.ID) != id {
		t.Errorf("ids %s and %s, want %s", first.ID, second.ID, id)
	}
	if first.ProcessedAt != nil || second.ProcessedAt == nil {
		t.Errorf("processed_at: first %v, then %v", first.ProcessedAt, second.ProcessedAt)
	}
}

func TestStreamResumes(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{})
	first := f.open(t, "", "")
	want := []string{f.say(t, "1"), f.say(t, "2")}
	var got []string
	var cursor string
	for range 2 {
		fr := first.next(t)
		got, cursor = append(got, string(fr.event(t).ID)), fr.id
	}
	first.res.Body.Close()
	want = append(want, f.say(t, "3"), f.say(t, "4"))

	second := f.open(t, "", cursor)
	for range 2 {
		got = append(got, string(second.next(t).event(t).ID))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events over a reconnect (-want +got):\n%s", diff)
	}

	replay := f.open(t, "", "0")
	got = nil
	for range 4 {
		got = append(got, string(replay.next(t).event(t).ID))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("replay from the start (-want +got):\n%s", diff)
	}
}

// Text cannot break out of its frame.
func TestHostileTextStaysInItsFrame(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{})
	s := f.open(t, "", "")
	text := "a\n\nevent: session.deleted\ndata: {}\n\n\r\rid: 7\u2028"
	f.say(t, text)
	fr := s.next(t)
	if fr.name != "user.message" || fr.id != "1" {
		t.Errorf("frame %+v", fr)
	}
	if got := fr.event(t).Body.(*api.UserMessage).Content.Text(); got != text {
		t.Errorf("text %q", got)
	}
}

func TestDeletedSessionEndsStream(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{})
	s := f.open(t, "", "")
	var deleted api.Deleted
	f.do(t, "DELETE", "/v1/sessions/"+string(f.session), "", &deleted)
	if fr := s.next(t); fr.name != "session.deleted" {
		t.Errorf("frame %+v", fr)
	}
	if _, err := s.frame(); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestSilentStreamPings(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{PingEvery: 5 * time.Millisecond})
	s := f.open(t, "", "")
	for range 3 {
		if fr, err := s.frame(); err != nil || fr.name != "ping" || fr.id != "" {
			t.Fatalf("frame %+v, %v", fr, err)
		}
	}
	id := f.say(t, "after the pings")
	if got := string(s.next(t).event(t).ID); got != id {
		t.Errorf("event %s, want %s", got, id)
	}
}

func TestShutdownEndsStreamsCleanly(t *testing.T) {
	t.Parallel()
	log := newRecords()
	f := newSession(t, Config{Logger: log.logger()})
	s := f.open(t, "", "")
	f.server.EndStreams()
	if _, err := s.frame(); err != io.EOF {
		t.Errorf("want a clean end, got %v", err)
	}
	if rec := log.await(t, "sessions.events.stream"); rec["outcome"] != endShutdown {
		t.Errorf("record %v", rec)
	}
}

// A stream that control ends says why.
func TestCutOffStreamSaysWhy(t *testing.T) {
	t.Parallel()
	log := newRecords()
	f := newSession(t, Config{Logger: log.logger()})
	s := f.open(t, "", "")
	if err := f.control.Close(); err != nil {
		t.Fatal(err)
	}
	fr, err := s.frame()
	if err != nil || fr.name != "error" {
		t.Fatalf("frame %+v, %v", fr, err)
	}
	var body api.ErrorBody
	if err := json.Unmarshal(fr.data, &body); err != nil {
		t.Fatal(err)
	}
	if body.Error.Type != api.TypeOverloaded || string(body.RequestID) != s.res.Header.Get("Request-Id") {
		t.Errorf("error %+v", body)
	}
	if rec := log.await(t, "sessions.events.stream"); rec["outcome"] != endCut {
		t.Errorf("record %v", rec)
	}
}

func TestTooManyStreams(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{StreamsMax: 1})
	s := f.open(t, "", "")
	path := "/v1/sessions/" + string(f.session) + "/events/stream"
	res, err := http.DefaultClient.Do(f.request(t, "GET", path, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 529 || res.Header.Get("Retry-After") != "5" {
		t.Errorf("%s, retry-after %q", res.Status, res.Header.Get("Retry-After"))
	}
	// The others are not disturbed.
	f.say(t, "still here")
	s.next(t)
}

// A client that does not read is cut off; the server does not keep what it missed.
func TestSlowReaderIsCutOff(t *testing.T) {
	t.Parallel()
	log := newRecords()
	f := newSession(t, Config{Logger: log.logger(), WriteTimeout: 100 * time.Millisecond})
	// The same server with small buffers, so that little is enough to fill them.
	small := httptest.NewUnstartedServer(f.server)
	small.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if err := c.(*net.TCPConn).SetWriteBuffer(4 << 10); err != nil {
			t.Error(err)
		}
		return ctx
	}
	small.Start()
	t.Cleanup(small.Close)
	conn := (&fixture{url: small.URL, key: f.key}).dial(t, f.session)
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 64<<10)
	for range 100 {
		f.say(t, big)
		if len(log.of("sessions.events.stream")) > 0 {
			break
		}
	}
	if rec := log.await(t, "sessions.events.stream"); rec["outcome"] != endSlow {
		t.Errorf("record %v", rec)
	}
}

// dial opens a stream without a client that reads it, once its header has come.
func (f *fixture) dial(tb testing.TB, session api.SessionID) net.Conn {
	tb.Helper()
	u, err := url.Parse(f.url)
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		tb.Fatal(err)
	}
	if err := f.request(tb, "GET", "/v1/sessions/"+string(session)+"/events/stream", "").Write(conn); err != nil {
		tb.Fatal(err)
	}
	var head []byte
	for b := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, b[0]) {
		if _, err := conn.Read(b); err != nil {
			tb.Fatal(err)
		}
	}
	return conn
}

// What previews show of a message is the beginning of it, and the message comes
// last.
func TestPreviewsArePrefixes(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{})
	f.say(t, "go")
	watching := f.open(t, "?event_deltas[]=agent.message&event_deltas%5B%5D=agent.thinking", "")
	plain := f.open(t, "", "")

	turn, err := f.control.ClaimTurn(t.Context(), f.session, "test", nil, func(control.View) (control.Batch, error) {
		return control.Batch{Append: []api.Draft{{Body: &api.SpanModelRequestStart{}}}}, nil
	})
	if err != nil || turn == nil {
		t.Fatal(turn, err)
	}
	defer turn.Close()
	id := f.control.NewEventID()
	final := "Hello, streaming world\n"
	turn.PreviewStart(api.EvAgentMessage, id)
	for _, part := range []string{"Hello", ", stream", "ing wor"} {
		turn.PreviewText(id, 0, part)
	}
	err = turn.Commit(t.Context(), func(control.View) (control.Batch, error) {
		return control.Batch{Release: true, Append: []api.Draft{{ID: id, Body: &api.AgentMessage{Content: api.Content{api.TextBlock(final)}}}}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	turn.PreviewText(id, 0, "ld") // late

	var names []string
	var text strings.Builder
	for {
		fr := watching.next(t)
		names = append(names, fr.name)
		switch fr.name {
		case "event_start":
			var p api.PreviewStart
			if err := json.Unmarshal(fr.data, &p); err != nil || p.Event.ID != id || fr.id != "" {
				t.Errorf("start %s, %v", fr.data, err)
			}
		case "event_delta":
			var p api.PreviewDelta
			if err := json.Unmarshal(fr.data, &p); err != nil || p.EventID != id || fr.id != "" {
				t.Errorf("delta %s, %v", fr.data, err)
			}
			text.WriteString(api.Content{p.Delta.Content}.Text())
		}
		if fr.name == "agent.message" {
			if fr.event(t).ID != id || fr.id == "" {
				t.Errorf("message %+v", fr)
			}
			break
		}
	}
	if !strings.HasPrefix(final, text.String()) {
		t.Errorf("previews %q are not the beginning of %q", text.String(), final)
	}
	starts := 0
	for _, n := range names {
		if n == "event_start" {
			starts++
		}
	}
	if starts > 1 {
		t.Errorf("%d starts in %v", starts, names)
	}
	for {
		fr := plain.next(t)
		if fr.name == "agent.message" {
			break
		}
		if strings.HasPrefix(fr.name, "event_") {
			t.Errorf("a stream that asked for no previews got %s", fr.data)
		}
	}
	f.say(t, "end")
	for {
		fr := watching.next(t)
		if fr.name == "user.message" {
			break
		}
		if strings.HasPrefix(fr.name, "event_") {
			t.Errorf("after its message: %s", fr.data)
		}
	}
}

func TestClosedStreamIsRecordedOnce(t *testing.T) {
	t.Parallel()
	log := newRecords()
	f := newSession(t, Config{Logger: log.logger()})
	s := f.open(t, "", "")
	s.res.Body.Close()
	rec := log.await(t, "sessions.events.stream")
	if rec["outcome"] != endClient || rec["status"] != int64(200) || rec["session_id"] != string(f.session) {
		t.Errorf("record %v", rec)
	}
	if n := f.server.streams.Load(); n != 0 {
		t.Errorf("%d streams still counted", n)
	}
}

// BenchmarkIdleStream measures the memory of an open stream while nothing happens.
// The other end is a bare connection in the same process.
func BenchmarkIdleStream(b *testing.B) {
	f := newSession(b, Config{Logger: slog.New(slog.DiscardHandler)})
	heap, stack := memory()
	var conns []net.Conn
	for b.Loop() {
		conns = append(conns, f.dial(b, f.session))
	}
	heapNow, stackNow := memory()
	b.ReportMetric(float64(heapNow-heap)/float64(len(conns)), "heap-B/stream")
	b.ReportMetric(float64(stackNow-stack)/float64(len(conns)), "stack-B/stream")
	for _, c := range conns {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			b.Fatal(err)
		}
	}
}

// memory is what the heap and the stacks hold now. Stacks shrink by half at each
// collection.
func memory() (heap, stack int64) {
	for range 4 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.StackInuse)
}

// HTTP/2, which clients speak to us over TLS, resets a stream whose write deadline
// passes, even in silence.
func TestSilentHTTP2StreamSurvives(t *testing.T) {
	t.Parallel()
	f := newSession(t, Config{WriteTimeout: 300 * time.Millisecond, PingEvery: 700 * time.Millisecond})
	hs := httptest.NewUnstartedServer(f.server)
	hs.EnableHTTP2 = true
	hs.StartTLS()
	t.Cleanup(hs.Close)
	t.Cleanup(f.server.EndStreams)
	req := f.request(t, "GET", "/v1/sessions/"+string(f.session)+"/events/stream", "")
	req.URL.Scheme, req.URL.Host = "https", strings.TrimPrefix(hs.URL, "https://")
	res, err := hs.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.ProtoMajor != 2 {
		t.Fatalf("spoke %s", res.Proto)
	}
	s := &testStream{res, bufio.NewReader(res.Body)}
	if fr, err := s.frame(); err != nil || fr.name != "ping" {
		t.Fatalf("frame %+v, %v", fr, err)
	}
}
