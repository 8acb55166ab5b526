package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// A stdio serves a program that speaks MCP on its standard streams as Streamable HTTP.
// A client's session has a program of its own, as such programs know one client. Calls of
// the stateless revision of the protocol get a program for as long as they take.
//
// Messages pass through as they are: what client and program say to each other beyond
// JSON-RPC's envelope is theirs. The official SDK's transport for servers could not carry
// them, as it takes what a server says to belong to a call only if the server is its own;
// and its types would drop what they do not know.
type stdio struct {
	// Static.
	g       *Gateway
	name    string
	program *program
	rules   *toolRules
	count   int           // of programs at a time
	idle    time.Duration // how long one lives that nobody asks
	metrics *metrics
	parts   sync.WaitGroup // one for each program

	mu       sync.Mutex
	sessions map[string]*session
	lent     map[*session]bool // true while it serves a call
	running  int
	closed   bool

	// Of programs that end as soon as they are started.
	failures int
	notUntil time.Time
}

// Programs that end within quickly after their start are started again after a while,
// which doubles.
const (
	quickly      = 10 * time.Second
	restartMin   = 500 * time.Millisecond
	restartMax   = 30 * time.Second
	statelessMCP = "2026-07-28" // the first revision without sessions
)

var (
	errGone    = errors.New("the session has ended")
	errTwiceID = errors.New("a call with this id is under way")
)

func (g *Gateway) newStdio(c *Config, name string, from *Route) (*stdio, error) {
	p, err := newProgram(c, from, g.log.With("route", name))
	if err != nil {
		return nil, err
	}
	rules, err := newToolRules(from.Tools.Allow, from.Tools.Deny)
	if err != nil {
		return nil, err
	}
	return &stdio{
		g: g, name: name, program: p, rules: rules, count: from.Process.Sessions, idle: time.Duration(from.Process.Idle), metrics: g.metrics,
		sessions: make(map[string]*session), lent: make(map[*session]bool),
	}, nil
}

// begin starts a program for a session, or takes one that so far was only asked which
// revisions of the protocol it speaks: clients ask that before they begin.
func (s *stdio) begin(id, caller string) (ses *session, refused *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for lent, busy := range s.lent {
		if !busy && lent.fresh && lent.run.alive() {
			delete(s.lent, lent)
			ses = lent
			break
		}
	}
	if ses == nil {
		if ses, refused = s.beginLocked(); refused != nil {
			return nil, refused
		}
	}
	ses.id, ses.caller = id, caller
	s.sessions[id] = ses
	return ses, nil
}

// beginLocked starts a program. The caller holds mu.
func (s *stdio) beginLocked() (*session, *refusal) {
	if s.closed {
		return nil, failed(tunnel.StageUpstreamRefused, nil, "the route has been changed")
	}
	if s.running >= s.count {
		refused := failed(tunnel.StageOverloaded, nil, "%d programs of this route run, which is its limit", s.count)
		refused.retryAfter = time.Second
		return nil, refused
	}
	if wait := time.Until(s.notUntil); wait > 0 {
		refused := failed(tunnel.StageUpstreamRefused, nil, "the program ended soon after it was started, %d times; it is started again in %s", s.failures, wait.Round(time.Second))
		refused.status, refused.retryAfter = http.StatusServiceUnavailable, wait
		return nil, refused
	}
	ses := newSession(s.rules)
	run, err := s.program.start(ses.receive)
	if err != nil {
		s.failed()
		return nil, failed(tunnel.StageUpstreamRefused, err, "the program cannot be started")
	}
	ses.run = run
	s.running++
	s.metrics.processes.WithLabelValues(s.name).Inc()
	s.parts.Go(func() { s.attend(ses) })
	return ses, nil
}

// failed notes that a program did not last. The caller holds mu.
func (s *stdio) failed() {
	s.failures++
	s.notUntil = time.Now().Add(min(restartMin<<min(s.failures-1, 10), restartMax))
}

// attend sees to it that a session ends with its program, and its program after a while
// that nobody asks it anything.
func (s *stdio) attend(ses *session) {
	for every := time.NewTicker(max(s.idle/10, 100*time.Millisecond)); ; {
		select {
		case <-ses.run.gone:
			every.Stop()
			s.remove(ses)
			ses.end("the server has ended: " + ses.run.goneError.Error())
			return
		case now := <-every.C:
			if s.idle > 0 && ses.idle(now) > s.idle {
				ses.run.stop()
			}
		}
	}
}

func (s *stdio) remove(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	delete(s.sessions, ses.id)
	delete(s.lent, ses)
	select {
	case <-ses.run.stopping:
		return // it was asked to
	default:
	}
	if time.Since(ses.run.began) < quickly {
		s.failed()
	} else {
		s.failures = 0
	}
}

// close ends all programs. Calls under way get an error.
func (s *stdio) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, ses := range s.sessions {
		ses.run.stop()
	}
	for ses := range s.lent {
		ses.run.stop()
	}
}

// A ticket is how one HTTP request to a stdio route is answered.
type ticket struct {
	of     *stdio
	ses    *session
	stream *stream // nil for a request without an answer
	next   int     // the first event to send

	status  int    // without a stream
	id      string // of a session that begins, to be told
	lent    bool   // ses is for this call alone
	ids     bool   // events have ids: what is missed can be asked for
	asJSON  bool   // the client takes no stream
	gone    chan struct{}
	goneOne sync.Once
}

// depart takes a request in: it finds or starts the program, and hands it the messages.
func (s *stdio) depart(ctx context.Context, ex *exchange) *refusal {
	t := &ticket{of: s, gone: make(chan struct{})}
	ex.stdio = t
	var refused *refusal
	switch string(ex.req.method) {
	case http.MethodPost:
		refused = s.post(ex, t)
	case http.MethodGet:
		refused = s.get(ex, t)
	case http.MethodDelete:
		if t.ses, refused = s.find(ex); refused == nil {
			t.status = http.StatusNoContent
			t.ses.run.stop()
		}
	default:
		refused = &refusal{status: http.StatusMethodNotAllowed, text: "POST, GET and DELETE are understood", fields: []field{newField([]byte("Allow"), []byte("GET, POST, DELETE"))}}
	}
	if refused != nil {
		return refused
	}
	if t.ses != nil {
		t.ses.begin()
	}
	ex.cutBy(func() { t.goneOne.Do(func() { close(t.gone) }) })
	return nil
}

// find returns the session that a request names.
func (s *stdio) find(ex *exchange) (*session, *refusal) {
	id := ex.req.get(sessionID)
	if id == nil {
		return nil, &refusal{status: http.StatusBadRequest, text: sessionIDField + " is needed", ids: [][]byte{nil}, code: codeInvalidRequest}
	}
	s.mu.Lock()
	ses := s.sessions[string(ex.ownSession(id))]
	others := ses != nil && ses.caller != ex.caller
	s.mu.Unlock()
	if ses == nil {
		// The one 404: the session is this replica's and has ended, so that the client is
		// to begin another.
		return nil, &refusal{status: http.StatusNotFound, text: "session not found", ids: [][]byte{nil}, code: codeInvalidRequest}
	}
	if others {
		return nil, &refusal{status: http.StatusForbidden, text: "the session is somebody else's"}
	}
	return ses, nil
}

func (s *stdio) post(ex *exchange, t *ticket) *refusal {
	if !ex.seen {
		return &refusal{status: http.StatusUnsupportedMediaType, text: "a JSON-RPC message is needed, as application/json"}
	}
	stateless := string(ex.req.get(protocolVersion)) >= statelessMCP
	initialize := len(ex.messages) == 1 && ex.messages[0].method == "initialize" && ex.messages[0].id != nil
	var refused *refusal
	switch {
	case initialize && ex.req.get(sessionID) == nil:
		t.id = rand.Text()
		t.ses, refused = s.begin(t.id, ex.caller)
	case stateless && ex.req.get(sessionID) == nil:
		t.ses, refused = s.lend(len(ex.messages) == 1 && ex.messages[0].method == "server/discover")
		t.lent = true
	default:
		t.ses, refused = s.find(ex)
	}
	if refused != nil {
		return refused
	}
	t.ids = !stateless
	t.asJSON = !accepts(&ex.req, "text/event-stream")
	calls := 0
	for i := range ex.messages {
		if m := &ex.messages[i]; m.method != "" && m.id != nil {
			calls++
		}
	}
	if calls > 0 {
		st, err := t.ses.expect(t, rand.Text(), ex.messages, ex.batch)
		if err != nil {
			t.giveBack()
			if errors.Is(err, errGone) {
				return &refusal{status: http.StatusNotFound, text: "session not found", ids: [][]byte{nil}, code: codeInvalidRequest}
			}
			return ex.invalid(codeInvalidRequest, err)
		}
		t.stream = st
	} else {
		t.status = http.StatusAccepted
	}
	if err := s.send(ex, t); err != nil {
		if t.stream != nil {
			t.ses.mu.Lock()
			t.ses.drop(t.stream)
			t.ses.mu.Unlock()
		}
		t.giveBack()
		refused := failed(tunnel.StageOverloaded, err, "the program does not take its input")
		refused.retryAfter = time.Second
		return refused
	}
	return nil
}

// send hands the messages of a request to the program, each in a line, as later revisions
// of the protocol have no batches.
func (s *stdio) send(ex *exchange, t *ticket) error {
	if !ex.batch {
		return t.ses.run.send(oneLine(ex.content))
	}
	return elements(ex.content[skipSpace(ex.content, 0):], func(_ int, one []byte) error {
		return t.ses.run.send(oneLine(one))
	})
}

// lend returns a program for one call: one that is free, or a new one. discover says that
// the call only asks which revisions of the protocol there are.
func (s *stdio) lend(discover bool) (ses *session, refused *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for lent, busy := range s.lent {
		if !busy && lent.run.alive() {
			ses = lent
			break
		}
	}
	if ses == nil {
		if ses, refused = s.beginLocked(); refused != nil {
			return nil, refused
		}
		ses.fresh = true
	}
	ses.fresh = ses.fresh && discover
	s.lent[ses] = true
	return ses, nil
}

// giveBack ends the ticket's hold on its program.
func (t *ticket) giveBack() {
	if !t.lent {
		return
	}
	s := t.of
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.lent[t.ses]; there {
		s.lent[t.ses] = false
	}
}

func (s *stdio) get(ex *exchange, t *ticket) *refusal {
	ses, refused := s.find(ex)
	if refused != nil {
		return refused
	}
	if !accepts(&ex.req, "text/event-stream") {
		return &refusal{status: http.StatusNotAcceptable, text: "text/event-stream has to be accepted"}
	}
	t.ses, t.ids = ses, true
	if last := ex.req.get(lastEventID); last != nil {
		st, next, ok := ses.find(string(last))
		if !ok {
			return &refusal{status: http.StatusBadRequest, text: "what came after this event is not kept any more"}
		}
		t.stream, t.next = st, next
		return nil
	}
	ses.mu.Lock()
	defer ses.mu.Unlock()
	t.stream = ses.streams[unasked]
	t.next = max(t.stream.first, t.stream.passed)
	return nil
}

// accepts reports whether a request says that it takes a type.
func accepts(h *head, want string) bool {
	for _, f := range h.fields {
		if f.kind != accept {
			continue
		}
		for part := range bytes.SplitSeq(f.value, []byte{','}) {
			switch mediaType(part) {
			case want, "*/*", want[:bytes.IndexByte([]byte(want), '/')] + "/*":
				return true
			}
		}
	}
	return false
}

// answer writes the answer of a ticket.
func (t *ticket) answer(ex *exchange, to answerer) error {
	defer t.ses.over()
	defer t.giveBack()
	var fields []field
	if t.id != "" {
		fields = append(fields, newField([]byte(sessionIDField), []byte(ex.g.replica+tunnel.ReplicaEnd+t.id)))
	}
	fields = append(fields, ex.g.replicaField)
	fields = append(fields, ex.route.answer.set...)
	if t.stream == nil {
		ex.status = t.status
		if err := to.begin(t.status, fields, 0, t.status != http.StatusNoContent); err != nil {
			return err
		}
		return to.end(nil)
	}
	t.claim()
	defer t.release()
	ex.status = http.StatusOK
	if t.asJSON {
		return t.answerJSON(fields, to)
	}
	fields = append(fields, newField([]byte("Content-Type"), []byte("text/event-stream")), newField([]byte("Cache-Control"), []byte("no-cache, no-transform")))
	if err := to.begin(http.StatusOK, fields, unknownLength, true); err != nil {
		return err
	}
	var buf []byte
	for {
		events, done, news := t.take()
		for _, data := range events {
			n := -1
			if t.ids {
				n = t.next
			}
			buf = event(buf[:0], t.stream.id, n, data)
			if err := to.write(buf); err != nil {
				return err
			}
			t.next++
		}
		if done {
			return to.end(nil)
		}
		if len(events) > 0 {
			continue // there may be more, which goes along
		}
		if err := to.flush(); err != nil {
			return err
		}
		select {
		case <-news:
		case <-t.gone:
			t.left()
			return errGone
		case <-ex.leaving():
			return to.end(nil)
		}
	}
}

// left is what happens when the caller goes before the answer is there. In the stateless
// revision that ends the call; before, the client may come back for it.
func (t *ticket) left() {
	if t.lent {
		t.ses.cancel(t.stream)
		t.ses.run.stop() // it may be busy with what nobody waits for
	}
}

// take returns events that were not sent yet. Those that it returned before are done with.
// done says that there will be no more.
func (t *ticket) take() (events [][]byte, done bool, news <-chan struct{}) {
	s := t.ses
	s.mu.Lock()
	defer s.mu.Unlock()
	st := t.stream
	if st.reader != t {
		return nil, true, nil // somebody else reads it now
	}
	t.next = max(t.next, st.first)
	st.passed = t.next
	for size := 0; size < takeMax && t.next-st.first+len(events) < len(st.events); {
		e := st.events[t.next-st.first+len(events)]
		events = append(events, e)
		size += len(e)
	}
	return events, st.done && t.next-st.first+len(events) >= len(st.events), st.news
}

// answers returns the answers to all calls of a stream that holds nothing else, once they
// are there.
func (t *ticket) answers() (all [][]byte, done bool, news <-chan struct{}) {
	s := t.ses
	s.mu.Lock()
	defer s.mu.Unlock()
	st := t.stream
	if st.reader != t {
		return nil, true, nil
	}
	if !st.done {
		return nil, false, st.news
	}
	return slices.Clone(st.events), true, nil
}

// claim makes the ticket the reader of its stream. Of what belongs to no call and what is
// resumed, the newest reader is the one: an older one may have lost its connection and not
// know.
func (t *ticket) claim() {
	s := t.ses
	s.mu.Lock()
	defer s.mu.Unlock()
	t.stream.reader = t
	t.stream.tell()
}

func (t *ticket) release() {
	s := t.ses
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.stream.reader == t {
		t.stream.reader = nil
	}
}

// answerJSON waits for all answers and gives them at once, to a client that takes no
// stream. What the program says besides is lost to it.
func (t *ticket) answerJSON(fields []field, to answerer) error {
	for {
		answers, done, news := t.answers()
		if !done {
			select {
			case <-news:
				continue
			case <-t.gone:
				t.left()
				return errGone
			}
		}
		if len(answers) == 0 {
			return errGone
		}
		content := answers[0]
		if t.stream.batch {
			content = jsonArray(answers)
		}
		fields = append(fields, newField([]byte("Content-Type"), []byte("application/json")))
		if err := to.begin(http.StatusOK, fields, int64(len(content)), true); err != nil {
			return err
		}
		if err := to.write(content); err != nil {
			return err
		}
		return to.end(nil)
	}
}
