package scripted

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Limits of the fake.
const (
	maxBodyBytes     = 32 << 20 // of one request, as the real endpoint
	maxRequests      = 1_000    // remembered by Requests
	maxRecordedBytes = 64 << 20 // of their bodies together
	maxCounters      = 10_000   // conversations and turns with faults remembered
	defaultPiece     = 12       // runes of text in one event
)

// Options change how a [Server] behaves. The zero value is as fast and as
// trusting as can be.
type Options struct {
	// Key, if set, must come with every request, as x-api-key or Bearer.
	Key string

	// Models are the ids the models endpoint lists; nil lists one of each line.
	Models []string

	// FirstByte delays every reply, EventDelay every event of a stream.
	FirstByte, EventDelay time.Duration

	// PieceRunes is how many characters come in one event; 0 is 12.
	PieceRunes int
}

// A Server is the fake endpoint: an http.Handler, safe for concurrent use.
type Server struct {
	options Options
	scripts []Script
	nonce   string

	// Guarded by mu.
	mu       sync.Mutex
	ids      int
	requests []Request
	bytes    int
	messages int            // requests for messages so far
	stalled  int            // stalls reached so far
	counters map[string]int // spoilt requests by conversation and turn
	order    []string       // keys of counters, oldest first
	changed  chan struct{}  // closed and replaced at every change of the counts
	gate     chan struct{}  // closed and replaced by Release
}

// A Request is one that was served.
type Request struct {
	Method string
	Path   string
	Header http.Header // as received, with the credentials
	Body   []byte

	// Script and Turn say what was played; Script is "" for the offline answers,
	// and for other operations. Status is the HTTP status of the answer.
	Script string
	Turn   int
	Status int
}

// New returns a server that plays scripts. Where none fits a conversation it
// gives the offline answers: "run COMMAND" and "read FILE" call the tool of
// that purpose and repeat what it said, and anything else gets a sentence that
// says what this is. It panics on a script that does not validate: that is a
// bug of the caller.
func New(options Options, scripts ...Script) *Server {
	for i := range scripts {
		if err := scripts[i].Validate(); err != nil {
			panic("scripted: " + err.Error())
		}
	}
	if options.PieceRunes <= 0 {
		options.PieceRunes = defaultPiece
	}
	if options.Models == nil {
		options.Models = []string{"claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"}
	}
	return &Server{
		options:  options,
		scripts:  scripts,
		nonce:    strings.ToLower(rand.Text()[:10]),
		counters: map[string]int{},
		changed:  make(chan struct{}),
		gate:     make(chan struct{}),
	}
}

// Requests returns the last requests served, oldest first: at most 1,000, and
// 64 MiB of bodies. A request is in it once it is answered or has stalled.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Release lets every reply that is stalled now go on.
func (s *Server) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.gate)
	s.gate = make(chan struct{})
}

// WaitStalled returns when n replies have stalled since the server began.
func (s *Server) WaitStalled(ctx context.Context, n int) error {
	return s.wait(ctx, func() bool { return s.stalled >= n })
}

// WaitMessages returns when n messages have been asked for since the server
// began, answered or not.
func (s *Server) WaitMessages(ctx context.Context, n int) error {
	return s.wait(ctx, func() bool { return s.messages >= n })
}

func (s *Server) wait(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := done(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// note changes counts under the lock and wakes whoever waits for them.
func (s *Server) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// ServeHTTP speaks the Messages API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Request-Id", s.newID("req_"))
	record := Request{Method: r.Method, Path: r.URL.Path, Header: r.Header.Clone()}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	record.Body = body
	switch {
	case err != nil:
		s.fail(w, record, http.StatusRequestEntityTooLarge, "request_too_large", "the request is too large, or broke off")
	case !s.admits(r):
		s.fail(w, record, http.StatusUnauthorized, "authentication_error", "invalid x-api-key")
	case r.Header.Get("Anthropic-Version") == "":
		s.fail(w, record, http.StatusBadRequest, "invalid_request_error", "anthropic-version: header is required")
	case r.Method == http.MethodPost && r.URL.Path == "/v1/messages":
		s.serveMessage(w, r, record)
	case r.Method == http.MethodPost && r.URL.Path == "/v1/messages/count_tokens":
		s.serveCount(w, record)
	case r.Method == http.MethodGet && r.URL.Path == "/v1/models":
		s.serveModels(w, record)
	case r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/models/"):
		s.serveModel(w, record, strings.TrimPrefix(r.URL.Path, "/v1/models/"))
	default:
		s.fail(w, record, http.StatusNotFound, "not_found_error", "there is nothing here")
	}
}

func (s *Server) admits(r *http.Request) bool {
	if s.options.Key == "" {
		return true
	}
	key := r.Header.Get("X-Api-Key")
	if key == "" {
		key, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	return subtle.ConstantTimeCompare([]byte(key), []byte(s.options.Key)) == 1
}

func (s *Server) serveMessage(w http.ResponseWriter, r *http.Request, record Request) {
	s.note(func() { s.messages++ })
	req, err := decode(record.Body, false)
	if err != nil {
		s.fail(w, record, http.StatusBadRequest, "invalid_request_error", err.Error())
		return
	}
	script, turn, n := s.choose(req)
	record.Turn = n
	if script != nil {
		record.Script = script.Name
	}
	if turn == nil {
		s.fail(w, record, http.StatusBadRequest, "invalid_request_error",
			fmt.Sprintf("script %q is over: it has no turn %d", script.Name, n))
		return
	}
	for _, e := range turn.Expect {
		if why := e.check(req); why != "" {
			s.fail(w, record, http.StatusBadRequest, "invalid_request_error",
				fmt.Sprintf("script %q, turn %d: %s", script.Name, n, why))
			return
		}
	}
	fault := s.fault(turn, req.conversation()+"/"+strconv.Itoa(n))
	if !pause(r.Context(), s.options.FirstByte) {
		panic(http.ErrAbortHandler)
	}
	if fault.Kind == FaultStatus {
		if fault.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(fault.RetryAfter.Round(time.Second)/time.Second)))
		}
		s.fail(w, record, fault.Status, orDefault(fault.Type, typeOf(fault.Status)), orDefault(fault.Message, "the script says so"))
		return
	}

	out := turn.render(req, s.newID)
	chunks := [][]byte{out.message()}
	delay := fault.Delay
	w.Header().Set("Content-Type", "application/json")
	if req.Stream {
		chunks = out.events(s.options.PieceRunes)
		delay += s.options.EventDelay
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		w.Header().Set("Cache-Control", "no-cache")
	}
	record.Status = http.StatusOK
	s.remember(record)
	s.play(w, r, chunks, fault, delay)
}

// choose finds the turn for a request, and its number. The script is nil for
// the offline answers, the turn nil for a script that is over.
func (s *Server) choose(req *request) (*Script, *Turn, int) {
	n := req.turn()
	for i := range s.scripts {
		script := &s.scripts[i]
		if !strings.Contains(req.firstText(), script.Marker) {
			continue
		}
		last := req.last().text()
		counted := 0
		for j := range script.Turns {
			turn := &script.Turns[j]
			switch {
			case turn.On != "" && strings.Contains(last, turn.On):
				return script, turn, j
			case turn.On == "":
				counted++
			}
		}
		if n >= counted {
			if script.OpenEnd {
				return nil, offline(req), n
			}
			return script, nil, n
		}
		for j := range script.Turns {
			if script.Turns[j].On != "" {
				continue
			}
			if n == 0 {
				return script, &script.Turns[j], j
			}
			n--
		}
	}
	return nil, offline(req), n
}

// fault counts this request against the turn's faults and returns the one it
// gets; the zero Fault for none.
func (s *Server) fault(turn *Turn, key string) Fault {
	if len(turn.Faults) == 0 {
		return Fault{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.counters[key]; !ok {
		if len(s.order) == maxCounters {
			delete(s.counters, s.order[0])
			s.order = s.order[1:]
		}
		s.order = append(s.order, key)
	}
	n := s.counters[key]
	s.counters[key]++
	for _, f := range turn.Faults {
		times := max(f.Times, 1)
		if n < times || f.Times == -1 {
			return f
		}
		n -= times
	}
	return Fault{}
}

// play sends chunks and does what the fault says on the way.
func (s *Server) play(w http.ResponseWriter, r *http.Request, chunks [][]byte, fault Fault, delay time.Duration) {
	flush := http.NewResponseController(w).Flush
	spoils := fault.Kind != "" && fault.Kind != FaultSlow
	left := fault.After
	for _, chunk := range chunks {
		if !pause(r.Context(), delay) {
			panic(http.ErrAbortHandler)
		}
		if spoils && len(chunk) > left {
			_, _ = w.Write(chunk[:left])
			_ = flush()
			if !s.spoil(w, r, fault) {
				return
			}
			chunk, spoils = chunk[left:], false
		}
		left -= len(chunk)
		if _, err := w.Write(chunk); err != nil {
			return
		}
		_ = flush()
	}
	if spoils {
		s.spoil(w, r, fault)
	}
}

// spoil does the fault and reports whether the reply goes on after it.
func (s *Server) spoil(w http.ResponseWriter, r *http.Request, fault Fault) bool {
	switch fault.Kind {
	case FaultCut:
		panic(http.ErrAbortHandler) // the way to break a connection
	case FaultError:
		fmt.Fprintf(w, "event: error\ndata: %s\n\n", errorBody(fault.Type, orDefault(fault.Message, "the script says so"), ""))
	case FaultGarbage:
		_, _ = io.WriteString(w, fault.Garbage)
	case FaultStall:
		s.mu.Lock()
		gate := s.gate
		s.mu.Unlock()
		s.note(func() { s.stalled++ })
		select {
		case <-gate:
			return true
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	return false
}

func (s *Server) serveCount(w http.ResponseWriter, record Request) {
	req, err := decode(record.Body, true)
	if err != nil {
		s.fail(w, record, http.StatusBadRequest, "invalid_request_error", err.Error())
		return
	}
	s.answer(w, record, map[string]any{"input_tokens": req.size/4 + 1})
}

func (s *Server) serveModels(w http.ResponseWriter, record Request) {
	data := []any{}
	for _, id := range s.options.Models {
		data = append(data, modelInfo(id))
	}
	page := map[string]any{"data": data, "has_more": false, "first_id": nil, "last_id": nil}
	if n := len(s.options.Models); n > 0 {
		page["first_id"], page["last_id"] = s.options.Models[0], s.options.Models[n-1]
	}
	s.answer(w, record, page)
}

func (s *Server) serveModel(w http.ResponseWriter, record Request, id string) {
	if !slices.Contains(s.options.Models, id) {
		s.fail(w, record, http.StatusNotFound, "not_found_error", "model: "+id)
		return
	}
	s.answer(w, record, modelInfo(id))
}

func modelInfo(id string) map[string]any {
	return map[string]any{
		"type": "model", "id": id, "display_name": id + " (scripted)", "created_at": "2026-01-01T00:00:00Z",
		"lifecycle": "active", "max_input_tokens": 200_000, "max_tokens": 64_000,
	}
}

func (s *Server) answer(w http.ResponseWriter, record Request, value any) {
	record.Status = http.StatusOK
	s.remember(record)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(mustJSON(value)) // a client that left needs no answer
}

func (s *Server) fail(w http.ResponseWriter, record Request, status int, kind, message string) {
	record.Status = status
	s.remember(record)
	w.Header().Set("Content-Type", "application/json")
	id := w.Header().Get("Request-Id")
	w.WriteHeader(status)
	_, _ = w.Write(errorBody(kind, message, id))
}

func errorBody(kind, message, requestID string) []byte {
	body := map[string]any{"type": "error", "error": map[string]any{"type": kind, "message": message}}
	if requestID != "" {
		body["request_id"] = requestID
	}
	return mustJSON(body)
}

// typeOf is the usual error type of a status.
func typeOf(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusPaymentRequired:
		return "billing_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusGatewayTimeout:
		return "timeout_error"
	case 529:
		return "overloaded_error"
	}
	if status >= 500 {
		return "api_error"
	}
	return "invalid_request_error"
}

func (s *Server) remember(record Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, record)
	s.bytes += len(record.Body)
	for len(s.requests) > maxRequests || s.bytes > maxRecordedBytes {
		s.bytes -= len(s.requests[0].Body)
		s.requests = s.requests[1:]
	}
}

// newID makes ids that no other server of this kind makes: whoever asks twice
// gets two messages, as from a real model.
func (s *Server) newID(prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids++
	return fmt.Sprintf("%s01%s%08d", prefix, s.nonce, s.ids)
}

// pause waits, and reports whether the client is still there.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func orDefault(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// A Listener is a [Server] on a port of this machine.
type Listener struct {
	URL string

	listener net.Listener
	server   *http.Server
}

// Listen binds addr ("127.0.0.1:0" for any free port), which must be on
// loopback: a fake has no business on a network. Connections wait until Run.
func (s *Server) Listen(addr string) (*Listener, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("scripted: %w", err)
	}
	tcp, ok := listener.Addr().(*net.TCPAddr)
	if !ok || !tcp.IP.IsLoopback() {
		listener.Close()
		return nil, fmt.Errorf("scripted: %s is not a loopback address", addr)
	}
	return &Listener{
		URL:      "http://" + tcp.String(),
		listener: listener,
		server:   &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second},
	}, nil
}

// Run serves until ctx ends, then breaks off what is under way and returns nil
// when that is gone. It returns early only if serving fails.
func (l *Listener) Run(ctx context.Context) error {
	// Replies watch their context, so that none outlives ctx for long.
	l.server.BaseContext = func(net.Listener) context.Context { return ctx }
	served := make(chan error, 1)
	go func() { served <- l.server.Serve(l.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("scripted: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = l.server.Shutdown(grace) // what does not end in time is closed next
	l.server.Close()
	<-served
	return nil
}
