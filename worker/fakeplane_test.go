package worker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	testEnv = "env_1"
	testKey = "sk-ant-oat01-key"
)

// fakePlane is a plane with the work and events API, in memory. It keeps the
// rules of a real one where the worker depends on them, and is an
// http.RoundTripper, so that tests run in virtual time.
type fakePlane struct {
	t *testing.T

	mu       sync.Mutex
	key      string
	ttl      time.Duration
	items    []*fakeItem
	sessions map[string]*fakeSession
	requests []fakeRequest
	changed  chan struct{} // closed and replaced whenever something happens
	noWait   bool          // polls answer at once
	ahead    time.Duration // of the worker's clock, in what it says

	// Guarded by faultMu, which is held while one of them is asked.
	faultMu sync.Mutex

	// fault, if set, is asked before each request reaches its route. A reply it
	// returns is sent in place of the route's; an error breaks the connection.
	fault func(r *http.Request) (*fakeReply, error)

	// lose, if set, is asked once a request took effect: true loses the answer.
	lose func(r *http.Request) bool
}

// setFault changes fault under way.
func (p *fakePlane) setFault(fault func(r *http.Request) (*fakeReply, error)) {
	p.faultMu.Lock()
	defer p.faultMu.Unlock()
	p.fault = fault
}

func (p *fakePlane) askFault(r *http.Request) (*fakeReply, error) {
	p.faultMu.Lock()
	defer p.faultMu.Unlock()
	if p.fault == nil {
		return nil, nil
	}
	return p.fault(r)
}

func (p *fakePlane) askLose(r *http.Request) bool {
	p.faultMu.Lock()
	defer p.faultMu.Unlock()
	return p.lose != nil && p.lose(r)
}

type fakeReply struct {
	status int
	body   string
	header http.Header
}

type fakeRequest struct {
	at     time.Time
	method string
	path   string // without the environment or session prefix
	query  string
	header http.Header
	body   string
}

type fakeItem struct {
	id, kind, session string
	secret            string
	state             string // queued, starting, active, stopping, stopped
	polled            time.Time
	last              string // heartbeat chain
	beats             int
	until             time.Time
}

type fakeSession struct {
	id      string
	status  string
	events  []json.RawMessage
	calls   map[string]*fakeCall
	order   []string
	script  [][]toolUse
	streams int

	variables []map[string]any  // nil: the plane does not know the question
	values    map[string]string // by credential

	cut chan struct{} // closed to end the open streams
}

// toolUse is a call as a scripted model makes it.
type toolUse struct {
	id         string
	name       string
	input      string
	permission string // empty leaves it out
	thread     string
	kind       string // default agent.tool_use
}

type fakeCall struct {
	use     toolUse
	result  json.RawMessage // the first accepted
	again   int             // results after it
	invalid bool
}

func newFakePlane(t *testing.T) *fakePlane {
	return &fakePlane{
		t: t, key: testKey, ttl: 30 * time.Second,
		sessions: make(map[string]*fakeSession),
		changed:  make(chan struct{}),
	}
}

// wake tells everybody who waits that something happened. The caller holds mu.
func (p *fakePlane) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// until waits for cond to hold, which is checked whenever something happens.
func (p *fakePlane) until(what string, cond func() bool) {
	p.t.Helper()
	deadline := time.NewTimer(time.Hour)
	defer deadline.Stop()
	for {
		p.mu.Lock()
		ok, changed := cond(), p.changed
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			p.t.Fatalf("never happened: %s", what)
		}
	}
}

// session adds a session that makes the scripted calls, turn by turn, and queues
// its work item.
func (p *fakePlane) session(id string, script ...[]toolUse) *fakeSession {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &fakeSession{id: id, status: "running", calls: make(map[string]*fakeCall), script: script, cut: make(chan struct{})}
	p.sessions[id] = s
	p.emit(s, "session.status_running", nil)
	p.step(s)
	p.queue("work_"+id, "session", id)
	return s
}

func (p *fakePlane) queue(id, kind, session string) *fakeItem {
	secret, _ := json.Marshal(map[string]string{"sessions_token": "token-" + id, "session_ingress_token": "x"})
	it := &fakeItem{id: id, kind: kind, session: session, state: "queued", secret: base64.URLEncoding.EncodeToString(secret)}
	p.items = append(p.items, it)
	p.wake()
	return it
}

// state returns the state of the latest work item of a session.
func (p *fakePlane) state(session string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.item(session).state
}

// item returns the latest work item of a session. The caller holds mu.
func (p *fakePlane) item(session string) *fakeItem {
	for _, it := range slices.Backward(p.items) {
		if it.session == session {
			return it
		}
	}
	return &fakeItem{}
}

// emit appends an event. The caller holds mu.
func (p *fakePlane) emit(s *fakeSession, kind string, fields map[string]any) string {
	ev := map[string]any{"type": kind, "id": fmt.Sprintf("sevt_%s_%d", s.id, len(s.events)), "processed_at": time.Now().Add(p.ahead).UTC()}
	for k, v := range fields {
		ev[k] = v
	}
	b, err := json.Marshal(ev)
	if err != nil {
		p.t.Error(err)
	}
	s.events = append(s.events, b)
	p.wake()
	return ev["id"].(string)
}

// say does emit for tests.
func (p *fakePlane) say(session, kind string, fields map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.emit(p.sessions[session], kind, fields)
}

// step makes the next turn's calls, or ends the turn. The caller holds mu.
func (p *fakePlane) step(s *fakeSession) {
	if len(s.script) == 0 {
		p.emit(s, "session.status_idle", map[string]any{"stop_reason": map[string]any{"type": "end_turn"}})
		s.status = "idle"
		return
	}
	turn := s.script[0]
	s.script = s.script[1:]
	var waiting []string
	for _, u := range turn {
		p.ask(s, u)
		waiting = append(waiting, u.id)
	}
	p.emit(s, "session.status_idle", map[string]any{"stop_reason": map[string]any{"type": "requires_action", "event_ids": waiting}})
}

// ask emits one call.
func (p *fakePlane) ask(s *fakeSession, u toolUse) {
	if u.kind == "" {
		u.kind = "agent.tool_use"
	}
	if u.input == "" {
		u.input = "{}"
	}
	fields := map[string]any{"id": u.id, "name": u.name, "input": json.RawMessage(u.input)}
	if u.permission != "" {
		fields["evaluated_permission"] = u.permission
	}
	if u.thread != "" {
		fields["session_thread_id"] = u.thread
	}
	s.calls[u.id] = &fakeCall{use: u}
	s.order = append(s.order, u.id)
	p.emit(s, u.kind, fields)
}

// interrupt invalidates every call so far.
func (p *fakePlane) interrupt(session string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sessions[session]
	for _, c := range s.calls {
		c.invalid = c.result == nil
	}
	p.emit(s, "user.interrupt", nil)
	p.emit(s, "session.status_idle", map[string]any{"stop_reason": map[string]any{"type": "end_turn"}})
}

func (s *fakeSession) open() bool {
	for _, c := range s.calls {
		if c.result == nil && !c.invalid && c.use.permission != "deny" && c.use.kind == "agent.tool_use" {
			return true
		}
	}
	return false
}

// result returns the text of a call's result and whether it is an error.
func (p *fakePlane) result(session, call string) (text string, isError, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.sessions[session].calls[call]
	if c == nil || c.result == nil {
		return "", false, false
	}
	var r struct {
		Content []struct{ Text string }
		IsError bool `json:"is_error"`
	}
	if err := json.Unmarshal(c.result, &r); err != nil {
		p.t.Error(err)
	}
	var texts []string
	for _, b := range r.Content {
		texts = append(texts, b.Text)
	}
	return strings.Join(texts, "\n"), r.IsError, true
}

// count returns how many requests a filter lets through.
func (p *fakePlane) count(method, suffix string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.requests {
		if r.method == method && strings.HasSuffix(r.path, suffix) {
			n++
		}
	}
	return n
}

// cutStreams ends all open event streams of a session.
func (p *fakePlane) cutStreams(session string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sessions[session]
	close(s.cut)
	s.cut = make(chan struct{})
}

// RoundTrip serves one request.
func (p *fakePlane) RoundTrip(r *http.Request) (*http.Response, error) {
	var sent []byte
	if r.Body != nil {
		var err error
		if sent, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		_ = r.Body.Close()
		r.Body = io.NopCloser(strings.NewReader(string(sent)))
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	fault, err := p.askFault(r)
	if err != nil {
		return nil, err
	}
	if fault != nil {
		p.note(r, string(sent))
		h := fault.header
		if h == nil {
			h = http.Header{}
		}
		if h.Get("Content-Type") == "" {
			h.Set("Content-Type", "application/json")
		}
		return &http.Response{StatusCode: fault.status, Header: h, Body: io.NopCloser(strings.NewReader(fault.body)), Request: r}, nil
	}
	p.note(r, string(sent))
	answer := &body{more: make(chan struct{}, 1)}
	w := &responder{header: http.Header{}, body: answer, ready: make(chan struct{})}
	ctx, cancel := context.WithCancel(r.Context())
	answer.closed = cancel
	context.AfterFunc(ctx, func() { answer.end(context.Cause(ctx)) })
	go func() {
		p.serve(w, r.WithContext(ctx), string(sent))
		w.WriteHeader(http.StatusOK)
		answer.end(io.EOF)
	}()
	select {
	case <-w.ready:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if p.askLose(r) {
		cancel()
		return nil, errors.New("connection reset")
	}
	w.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	return &http.Response{StatusCode: w.status, Header: w.header, Body: answer, Request: r}, nil
}

func (p *fakePlane) note(r *http.Request, body string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, fakeRequest{
		at: time.Now(), method: r.Method, path: r.URL.Path, query: r.URL.RawQuery, header: r.Header.Clone(), body: body,
	})
	p.wake()
}

// responder is an http.ResponseWriter that never blocks.
type responder struct {
	header http.Header
	status int
	body   *body
	ready  chan struct{}
	once   sync.Once
}

func (w *responder) Header() http.Header { return w.header }
func (w *responder) WriteHeader(status int) {
	w.once.Do(func() { w.status = status; close(w.ready) })
}
func (w *responder) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

// body is a pipe with room for everything.
type body struct {
	mu     sync.Mutex
	data   []byte
	err    error
	more   chan struct{}
	closed func()
}

func (b *body) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	b.data = append(b.data, p...)
	b.tell()
	return len(p), nil
}

func (b *body) Read(p []byte) (int, error) {
	for {
		b.mu.Lock()
		n, err := copy(p, b.data), b.err
		b.data = b.data[n:]
		b.mu.Unlock()
		if n > 0 || err != nil {
			if n > 0 {
				err = nil
			} else {
				b.tell()
			}
			return n, err
		}
		<-b.more
	}
}

func (b *body) Close() error {
	b.closed()
	return nil
}

func (b *body) end(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
	b.tell()
}

func (b *body) tell() {
	select {
	case b.more <- struct{}{}:
	default:
	}
}

func fail(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"type": "error", "error": map[string]any{"type": "invalid_request_error", "message": message}})
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (p *fakePlane) serve(w http.ResponseWriter, r *http.Request, body string) {
	if r.Header.Get("X-Api-Key") != "" {
		p.t.Error("request with an X-Api-Key header")
	}
	if !strings.Contains(r.Header.Get("Anthropic-Beta"), betaHeader) {
		p.t.Errorf("%s %s without the beta header", r.Method, r.URL.Path)
	}
	bearer := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	route := r.Method + " " + strings.Join(path[min(3, len(path)):], "/")
	p.mu.Lock()
	key := p.key
	p.mu.Unlock()
	switch {
	case path[1] == "environments" && path[2] == testEnv && len(path) > 4:
		if bearer != key && !strings.HasPrefix(bearer, "token-") {
			fail(w, http.StatusUnauthorized, "invalid key")
			return
		}
		switch {
		case route == "GET work/poll":
			p.poll(w, r)
		case route == "GET work/stats":
			reply(w, map[string]any{"type": "work_queue_stats"})
		default:
			p.work(w, r, path[4], path[5])
		}
	case path[1] == "sessions" && len(path) > 2:
		if bearer != key && !strings.HasPrefix(bearer, "token-") {
			fail(w, http.StatusUnauthorized, "invalid key")
			return
		}
		p.mu.Lock()
		s := p.sessions[path[2]]
		p.mu.Unlock()
		switch {
		case s == nil:
			fail(w, http.StatusNotFound, "no such session")
		case route == "GET ":
			p.mu.Lock()
			defer p.mu.Unlock()
			reply(w, map[string]any{"id": s.id, "type": "session", "status": s.status})
		case route == "GET events":
			p.list(w, r, s)
		case route == "GET events/stream":
			p.stream(w, r, s)
		case route == "POST events":
			p.post(w, body, s)
		default:
			fail(w, http.StatusNotFound, "no route "+route)
		}
	default:
		fail(w, http.StatusNotFound, "no route "+r.URL.Path)
	}
}

func (p *fakePlane) poll(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Anthropic-Worker-Id") == "" {
		p.t.Error("poll without a worker id")
	}
	var block time.Duration
	if _, err := fmt.Sscanf(r.URL.Query().Get("block_ms"), "%d", &block); err != nil || block < 1 || block > 999 {
		p.t.Errorf("poll with block_ms %q", r.URL.Query().Get("block_ms"))
	}
	timer := time.NewTimer(block * time.Millisecond)
	defer timer.Stop()
	for {
		p.mu.Lock()
		now := time.Now()
		for _, it := range p.items {
			lapsed := it.state == "active" && now.After(it.until)
			stale := it.state == "queued" && (it.polled.IsZero() || now.Sub(it.polled) > 5*time.Second)
			if !lapsed && !stale {
				continue
			}
			it.state, it.polled, it.last = "queued", now, ""
			reply(w, p.itemJSON(it, it.secret))
			p.wake()
			p.mu.Unlock()
			return
		}
		changed, noWait := p.changed, p.noWait
		p.mu.Unlock()
		if !noWait {
			select {
			case <-changed:
				continue
			case <-r.Context().Done():
				return
			case <-timer.C:
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "null")
		return
	}
}

func (p *fakePlane) itemJSON(it *fakeItem, secret string) map[string]any {
	m := map[string]any{
		"id": it.id, "type": "work", "environment_id": testEnv, "state": it.state, "metadata": map[string]string{},
		"data": map[string]any{"type": it.kind, "id": it.session, "mode": "private"}, "secret": nil, "created_at": time.Now().Add(p.ahead),
		"acknowledged_at": nil, "actor": map[string]string{"type": "api_key"},
	}
	if secret != "" {
		m["secret"] = secret
	}
	return m
}

func (p *fakePlane) work(w http.ResponseWriter, r *http.Request, id, op string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.wake()
	n := slices.IndexFunc(p.items, func(it *fakeItem) bool { return it.id == id })
	if n < 0 {
		fail(w, http.StatusNotFound, "no such work")
		return
	}
	it := p.items[n]
	switch op {
	case "ack":
		if it.state == "stopped" {
			fail(w, http.StatusConflict, "stopped")
			return
		}
		if it.state == "queued" {
			it.state = "starting"
		}
		reply(w, p.itemJSON(it, ""))
	case "heartbeat":
		p.heartbeat(w, r, it)
	case "stop":
		it.state = "stopped"
		w.WriteHeader(http.StatusNoContent)
	case "variables":
		s := p.sessions[it.session]
		switch path := strings.Split(r.URL.Path, "/variables"); {
		case s == nil || s.variables == nil:
			fail(w, http.StatusNotFound, "no route "+op)
		case path[1] == "":
			reply(w, map[string]any{"data": s.variables})
		default:
			value, ok := s.values[strings.TrimSuffix(strings.TrimPrefix(path[1], "/"), "/value")]
			if !ok {
				fail(w, http.StatusNotFound, "no such variable")
				return
			}
			reply(w, map[string]any{"type": "variable_value", "value": value})
		}
	default:
		fail(w, http.StatusNotFound, "no route "+op)
	}
}

func (p *fakePlane) heartbeat(w http.ResponseWriter, r *http.Request, it *fakeItem) {
	ended := it.state == "stopping" || it.state == "stopped"
	expected := r.URL.Query().Get("expected_last_heartbeat")
	fits := expected == it.last && it.last != "" || it.last == "" && expected == "NO_HEARTBEAT"
	switch {
	case ended:
	case it.state == "queued":
		fail(w, http.StatusPreconditionFailed, "queued")
		return
	case !fits:
		fail(w, http.StatusPreconditionFailed, fmt.Sprintf("Heartbeat precondition failed: expected %s, actual was %s", expected, it.last))
		return
	default:
		ttl := p.ttl
		if want := r.URL.Query().Get("desired_ttl_seconds"); want != "" {
			var n int
			_, _ = fmt.Sscan(want, &n)
			ttl = time.Duration(n) * time.Second
		}
		it.beats++
		it.state, it.last, it.until = "active", fmt.Sprintf("beat %d/%s", it.beats, time.Now().Add(p.ahead).Format(time.RFC3339Nano)), time.Now().Add(ttl)
	}
	reply(w, map[string]any{
		"type": "work_heartbeat", "last_heartbeat": it.last, "lease_extended": !ended, "state": it.state, "ttl_seconds": int(p.ttl / time.Second),
	})
}

func (p *fakePlane) list(w http.ResponseWriter, r *http.Request, s *fakeSession) {
	if q := r.URL.Query(); q.Get("limit") != "1000" || q.Get("order") != "asc" {
		p.t.Errorf("events listed with %q", r.URL.RawQuery)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Three a page, so that every history of some length has several.
	from := 0
	if page := r.URL.Query().Get("page"); page != "" {
		_, _ = fmt.Sscanf(page, "page_%d", &from)
	}
	to := min(from+3, len(s.events))
	var next any
	if to < len(s.events) {
		next = fmt.Sprintf("page_%d", to)
	}
	reply(w, map[string]any{"data": s.events[from:to], "next_page": next})
}

func (p *fakePlane) stream(w http.ResponseWriter, r *http.Request, s *fakeSession) {
	// Before the answer, from which on no event may be missed.
	p.mu.Lock()
	sent, cut := len(s.events), s.cut
	s.streams++
	p.wake()
	p.mu.Unlock()
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	for {
		p.mu.Lock()
		batch, changed := s.events[sent:], p.changed
		sent = len(s.events)
		p.mu.Unlock()
		for _, ev := range batch {
			var head struct{ Type string }
			_ = json.Unmarshal(ev, &head)
			if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", head.Type, ev); err != nil {
				return
			}
		}
		select {
		case <-changed:
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (p *fakePlane) post(w http.ResponseWriter, body string, s *fakeSession) {
	var req struct {
		Events []json.RawMessage `json:"events"`
	}
	if err := json.Unmarshal([]byte(body), &req); err != nil || len(req.Events) != 1 {
		p.t.Errorf("posted %.100q: want one event a request", body)
	}
	var ev struct {
		Type      string `json:"type"`
		ToolUseID string `json:"tool_use_id"`
		Content   []any
	}
	if err := json.Unmarshal(req.Events[0], &ev); err != nil || ev.Type != "user.tool_result" || len(ev.Content) == 0 {
		p.t.Errorf("posted %.100q: want a tool result with content", body)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.wake()
	c := s.calls[ev.ToolUseID]
	switch {
	case c == nil || c.use.kind != "agent.tool_use":
		p.t.Errorf("result for %q, which is no call of ours", ev.ToolUseID)
		fail(w, http.StatusBadRequest, "unknown tool_use_id")
		return
	case c.invalid:
		fail(w, http.StatusBadRequest, "the call was interrupted")
		return
	case c.result != nil:
		c.again++
	default:
		c.result = req.Events[0]
		p.emit(s, "user.tool_result", map[string]any{"tool_use_id": ev.ToolUseID, "content": ev.Content})
		if !s.open() {
			p.step(s)
		}
	}
	reply(w, map[string]any{"data": []any{}})
}

// failConnect is a fault for every request.
func failConnect(*http.Request) (*fakeReply, error) { return nil, errors.New("connection refused") }

var discard = slog.New(slog.DiscardHandler)
