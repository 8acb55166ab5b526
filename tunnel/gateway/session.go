package gateway

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A session is a program and whoever talks to it. Each call of a client's has a stream of
// events: what the program says about it, and its answer in the end. What belongs to no
// call goes to a stream of its own, which the client asks for with GET. Events are kept
// for a while, so that a client whose connection broke can ask for what it missed.
type session struct {
	run   *process
	rules *toolRules

	// Guarded by the stdio's mu.
	id     string // without the replica's name; "" for a program that is lent for one call
	caller string
	fresh  bool // it was asked for nothing but the revisions it speaks

	mu      sync.Mutex
	calls   map[string]*stream // by the id of the call, as JSON
	tokens  map[string]*stream // by the progress token, as JSON
	streams map[string]*stream
	order   []*stream // the oldest first
	bytes   int       // of all events that are kept
	open    int       // answers under way
	used    time.Time
	ended   bool
}

// Bounds of what a session keeps.
const (
	eventsMax  = 8 << 20             // bytes of events that somebody may ask for again
	waitingMax = eventsMax + lineMax // bytes of all events: any one message can wait for its reader
	takeMax    = 1 << 20             // bytes of events that a reader has at a time, or one event
	streamsMax = 256
	callsMax   = 256 // under way
)

// unasked is the id of the stream of what belongs to no call.
const unasked = "0"

// A stream is the events of one call, or of none.
type stream struct {
	of    *session
	id    string
	left  int // calls without an answer
	batch bool
	bare  bool // the client takes answers only

	first  int // the number of events[0]
	events [][]byte
	bytes  int // of events
	passed int // the number of the first event that no reader was done with
	done   bool
	news   chan struct{} // closed and replaced when there is more
	reader *ticket       // who reads it now
}

func newSession(rules *toolRules) *session {
	s := &session{
		rules: rules, calls: make(map[string]*stream), tokens: make(map[string]*stream),
		streams: make(map[string]*stream), used: time.Now(),
	}
	s.stream(unasked)
	return s
}

// stream makes one. The caller holds mu, or is alone.
func (s *session) stream(id string) *stream {
	st := &stream{of: s, id: id, news: make(chan struct{})}
	s.streams[id] = st
	s.order = append(s.order, st)
	return st
}

// expect makes a stream for the calls of a ticket, before they are sent.
func (s *session) expect(t *ticket, id string, messages []message, batch bool) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, errGone
	}
	if len(s.calls)+len(messages) > callsMax {
		return nil, fmt.Errorf("%d calls are under way, which is the most", len(s.calls))
	}
	for i := range messages {
		if m := &messages[i]; m.method != "" && m.id != nil && s.calls[string(m.id)] != nil {
			return nil, errTwiceID
		}
	}
	s.forget()
	st := s.stream(id)
	st.batch, st.bare, st.reader = batch, t.asJSON, t
	for i := range messages {
		m := &messages[i]
		if m.method == "" || m.id == nil {
			continue
		}
		if s.calls[string(m.id)] == st { // twice in one batch
			s.drop(st)
			return nil, errTwiceID
		}
		st.left++
		s.calls[string(m.id)] = st
		if token := progressToken(m); token != "" {
			s.tokens[token] = st
		}
	}
	return st, nil
}

// forget drops the oldest streams that are done while there are too many, or too much in
// them. The caller holds mu.
func (s *session) forget() {
	for i := 0; i < len(s.order) && (s.bytes > eventsMax || len(s.order) >= streamsMax); {
		st := s.order[i]
		if !st.done || st.reader != nil {
			i++
			continue
		}
		s.bytes -= st.bytes
		delete(s.streams, st.id)
		s.order = append(s.order[:i], s.order[i+1:]...)
	}
}

// progressToken is the token by which the program will tell how a call goes.
func progressToken(m *message) string {
	if m.params == nil || m.params[0] != '{' {
		return ""
	}
	var meta, token []byte
	if pick(m.params, []string{"_meta"}, []*[]byte{&meta}) != nil || meta == nil || meta[0] != '{' {
		return ""
	}
	if pick(meta, []string{"progressToken"}, []*[]byte{&token}) != nil {
		return ""
	}
	return string(token)
}

// receive takes a message of the program's to the stream it belongs to.
func (s *session) receive(line []byte) {
	if line[0] == '[' {
		_ = elements(line, func(_ int, one []byte) error {
			if one[0] == '{' {
				s.receive(one)
			}
			return nil
		})
		return
	}
	var method, id, params []byte
	if pick(line, []string{"method", "id", "params"}, []*[]byte{&method, &id, &params}) != nil {
		return
	}
	if s.rules != nil && method == nil {
		filtered, err := s.rules.filterMessage(line, line)
		if err != nil {
			return
		}
		line = filtered
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if method == nil {
		if st := s.calls[string(id)]; st != nil {
			delete(s.calls, string(id))
			st.left--
			st.done = st.left == 0
			st.add(line)
		}
		return
	}
	st := s.streams[unasked]
	if name, _ := asString(method); name == "notifications/progress" && params != nil && params[0] == '{' {
		var token []byte
		if pick(params, []string{"progressToken"}, []*[]byte{&token}) == nil {
			if of := s.tokens[string(token)]; of != nil && !of.bare {
				st = of
			}
		}
	} else if st.reader == nil || len(s.calls) == 1 {
		// What a program asks while it serves a call most likely is about it. A client
		// that reads nothing else reads the answer to its call.
		for _, call := range s.order {
			if call.left > 0 && !call.bare {
				st = call // the newest
			}
		}
	}
	st.add(line)
}

// add adds an event. The caller holds the session's mu.
func (st *stream) add(line []byte) {
	st.put(line)
	if st.done {
		st.forgetTokens()
	}
	st.tell()
	st.of.bound()
}

// put appends an event. The caller holds the session's mu.
func (st *stream) put(line []byte) {
	st.events = append(st.events, bytes.Clone(line))
	st.bytes += len(line)
	st.of.bytes += len(line)
}

func (st *stream) forgetTokens() {
	for token, of := range st.of.tokens {
		if of == st {
			delete(st.of.tokens, token)
		}
	}
}

// shift drops the oldest event. The caller holds the session's mu.
func (st *stream) shift() {
	n := len(st.events[0])
	st.events[0] = nil // the array stays
	st.events = st.events[1:]
	st.first++
	st.bytes -= n
	st.of.bytes -= n
}

// bound sees to it that the session keeps no more than it may: first goes what its readers
// have had, the oldest first, then what nobody reads, and in the end what is read too
// slowly. The caller holds mu.
func (s *session) bound() {
	s.forget()
	for _, st := range s.order {
		for s.bytes > eventsMax && len(st.events) > 0 && st.first < st.passed {
			st.shift()
		}
	}
	if st := s.streams[unasked]; st.reader == nil {
		for s.bytes > eventsMax/2 && len(st.events) > 1 {
			st.shift()
		}
	}
	for s.bytes > waitingMax {
		slices.MaxFunc(s.order, func(a, b *stream) int { return cmp.Compare(a.bytes, b.bytes) }).giveUp()
	}
}

// giveUp drops what waits in a stream. The reader of what belongs to no call is ended, and
// may come again; calls come to an error. The caller holds the session's mu.
func (st *stream) giveUp() {
	s := st.of
	s.run.log.Warn("what the program says is not read, and was dropped", "bytes", st.bytes, "call", st.id != unasked)
	var ids [][]byte
	for i, e := range st.events {
		var method, id []byte
		if st.first+i >= st.passed && pick(e, []string{"method", "id"}, []*[]byte{&method, &id}) == nil && method == nil {
			ids = append(ids, bytes.Clone(id))
		}
	}
	for len(st.events) > 0 {
		st.shift()
	}
	if st.id == unasked {
		st.reader = nil
		st.tell()
		return
	}
	s.cancelLocked(st, "too much waits for its caller")
	for id, of := range s.calls {
		if of == st {
			ids = append(ids, []byte(id))
			delete(s.calls, id)
		}
	}
	st.left, st.done = 0, true
	st.forgetTokens()
	for _, id := range ids {
		st.put(rpcErrors([][]byte{id}, codeInternal, fmt.Sprintf("more than %d bytes wait for the caller, who does not read them; the call may have had its effect", waitingMax)))
	}
	st.tell()
}

func (st *stream) tell() {
	close(st.news)
	st.news = make(chan struct{})
}

// end ends the session: calls under way get an error.
func (s *session) end(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	for id, st := range s.calls {
		delete(s.calls, id)
		st.left--
		st.done = st.left == 0
		st.add(rpcErrors([][]byte{[]byte(id)}, codeInternal, why))
	}
	for _, st := range s.streams {
		st.done = true
		st.tell()
	}
}

// idle is how long nobody has asked anything of the session; 0 while somebody does.
func (s *session) idle(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open > 0 || len(s.calls) > 0 {
		return 0
	}
	return now.Sub(s.used)
}

// begin and over count the answers under way.
func (s *session) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
}

func (s *session) over() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.used = time.Now()
}

// find returns the stream and the number of the event that a client saw last, from the
// id of that event.
func (s *session) find(eventID string) (st *stream, next int, ok bool) {
	id, n, found := strings.Cut(eventID, "_")
	seen, err := strconv.Atoi(n)
	if !found || err != nil || seen < 0 {
		return nil, 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st = s.streams[id]
	if st == nil || seen+1 < st.first {
		return nil, 0, false
	}
	return st, seen + 1, true
}

// drop forgets a stream whose calls are not sent. The caller holds mu.
func (s *session) drop(st *stream) {
	for id, of := range s.calls {
		if of == st {
			delete(s.calls, id)
		}
	}
	st.left, st.done, st.reader = 0, true, nil
}

// cancel tells the program that nobody waits for the answers of a stream.
func (s *session) cancel(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancelLocked(st, "the caller has gone")
}

func (s *session) cancelLocked(st *stream, why string) {
	for id, of := range s.calls {
		if of == st {
			note := fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%s,"reason":%q}}`, id, why)
			_ = s.run.send([]byte(note)) // a program that is stuck is stopped for another reason
		}
	}
}

// event is an event of a stream as it is sent.
func event(to []byte, id string, n int, data []byte) []byte {
	if n >= 0 {
		to = append(to, "id: "...)
		to = append(to, id...)
		to = append(to, '_')
		to = strconv.AppendInt(to, int64(n), 10)
		to = append(to, '\n')
	}
	if len(data) > 0 {
		to = append(to, "event: message\n"...)
	}
	to = append(to, "data: "...)
	to = append(to, data...)
	return append(to, "\n\n"...)
}

// jsonArray is messages as a batch.
func jsonArray(messages [][]byte) []byte {
	raw := make([]json.RawMessage, len(messages))
	for i, m := range messages {
		raw[i] = m
	}
	b, _ := json.Marshal(raw) // they are valid
	return b
}
