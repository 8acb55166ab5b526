package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/messages"
	"github.com/bailey-platform/bailey/model"
)

// What the http.Server in front of a [Server] should be set to. It must have no
// ReadTimeout or WriteTimeout: streams outlive both, and this package sets its own
// deadlines for bodies and for every write.
const (
	ReadHeaderTimeout = 10 * time.Second
	IdleTimeout       = 2 * time.Minute
	MaxHeaderBytes    = 64 << 10
)

// The defaults of a zero [Config].
const (
	defaultStreamsMax   = 10_000
	defaultPingEvery    = 15 * time.Second
	defaultWriteTimeout = 20 * time.Second
)

// A Config says what a [Server] is made of. Control is required.
type Config struct {
	Control *control.Control
	Model   *model.Client // nil: messages and models answer 404
	Logger  *slog.Logger  // nil: no records

	// Messages answers requests for a message that name MCP servers. Nil: they are handed
	// to the endpoint like all others.
	Messages *messages.Connector

	// Audit gets a record of every operation that changes something before it is
	// done; without a record it is refused with 503. Nil: none is kept. AuditReads
	// has the others recorded as well.
	Audit      *audit.Log
	AuditReads bool

	Registerer prometheus.Registerer // nil: no metrics
	Metrics    http.Handler          // answers GET /metrics; nil: 404

	// OpenMetrics lets everybody read the metrics. Otherwise an API key is needed, as
	// Authorization: Bearer.
	OpenMetrics bool

	// StreamsMax bounds the open event streams; 0 means 10,000. One more is
	// answered 529.
	StreamsMax int

	// PingEvery is the longest silence on a stream; 0 means 15 seconds.
	PingEvery time.Duration

	// WriteTimeout is how long one write may wait for a client that does not
	// read before its connection is cut; 0 means 20 seconds.
	WriteTimeout time.Duration

	// WritesPerMinute and ReadsPerMinute bound the requests of one API key; 0
	// means no bound. Reads are GET requests. Credentials of workers are not
	// counted.
	WritesPerMinute, ReadsPerMinute int
}

// A Server is the http.Handler of the public API. It is safe for concurrent use
// and owns no goroutine.
type Server struct {
	// Static after New.
	control      *control.Control
	model        *model.Client
	messages     *messages.Connector
	log          *slog.Logger
	metrics      *metrics
	mux          *http.ServeMux
	rates        *rates
	audit        *auditor
	smallBodies  *semaphore.Weighted // see [request.room]
	largeBodies  *semaphore.Weighted
	streamsMax   int64
	pingEvery    time.Duration
	writeTimeout time.Duration

	streams  atomic.Int64   // open now
	hijacked sync.WaitGroup // requests that http.Server.Shutdown does not wait for

	// ending is done once EndStreams was called.
	ending     context.Context
	endStreams context.CancelFunc
}

// New returns a Server. It panics on a nil Control.
func New(c Config) *Server {
	if c.Control == nil {
		panic("httpapi: Config.Control is required")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.StreamsMax == 0 {
		c.StreamsMax = defaultStreamsMax
	}
	if c.PingEvery == 0 {
		c.PingEvery = defaultPingEvery
	}
	if c.WriteTimeout == 0 {
		c.WriteTimeout = defaultWriteTimeout
	}
	s := &Server{
		control:      c.Control,
		model:        c.Model,
		messages:     c.Messages,
		log:          c.Logger,
		metrics:      newMetrics(c.Registerer),
		mux:          http.NewServeMux(),
		rates:        newRates(c.WritesPerMinute, c.ReadsPerMinute),
		audit:        newAuditor(c.Audit, c.AuditReads),
		smallBodies:  semaphore.NewWeighted(bodiesSmallMax),
		largeBodies:  semaphore.NewWeighted(bodiesLargeMax),
		streamsMax:   int64(c.StreamsMax),
		pingEvery:    c.PingEvery,
		writeTimeout: c.WriteTimeout,
	}
	s.ending, s.endStreams = context.WithCancel(context.Background())

	byPath := map[string]map[string]*route{}
	for i := range routes {
		method, path := routes[i].split()
		if byPath[path] == nil {
			byPath[path] = map[string]*route{}
		}
		byPath[path][method] = &routes[i]
	}
	for path, methods := range byPath {
		s.mux.HandleFunc(path, s.pathHandler(methods))
	}
	s.mux.HandleFunc("/", s.unknownPath)
	s.mux.HandleFunc("GET /healthz", s.healthz)
	s.mux.HandleFunc("GET /readyz", s.readyz)
	switch {
	case c.Metrics == nil:
	case c.OpenMetrics:
		s.mux.Handle("GET /metrics", c.Metrics)
	default:
		s.mux.HandleFunc("GET /metrics", s.metricsForKeys(c.Metrics))
	}
	return s
}

// EndStreams ends every open event stream cleanly, so that a shutdown does not
// wait for them. Clients come back and resume elsewhere. It is meant for
// http.Server.RegisterOnShutdown.
func (s *Server) EndStreams() { s.endStreams() }

// Wait returns when what EndStreams has ended is over.
func (s *Server) Wait() { s.hijacked.Wait() }

// ServeHTTP is the way of every request: [Server.serve] for those of the API, a
// plain answer for the operator's.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// An earlier request on this connection has left the deadline of its last
	// write, which may have passed.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})

	// The mux would redirect a path that is not clean; here it does not exist.
	if path.Clean(r.URL.Path) != r.URL.Path || !strings.HasPrefix(r.URL.Path, "/") {
		s.unknownPath(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) unknownPath(w http.ResponseWriter, r *http.Request) {
	s.serve(w, r, nil, api.NotFound("no operation has this path"))
}

// pathHandler serves the methods of one path.
func (s *Server) pathHandler(methods map[string]*route) http.HandlerFunc {
	var allowed []string
	for method, rt := range methods {
		if rt.handle != nil {
			allowed = append(allowed, method)
		}
	}
	slices.Sort(allowed)
	allow := strings.Join(allowed, ", ")

	return func(w http.ResponseWriter, r *http.Request) {
		rt := methods[r.Method]
		switch {
		case rt == nil && allow == "":
			s.unknownPath(w, r)
		case rt == nil:
			w.Header().Set("Allow", allow)
			e := api.Invalid("method not allowed; this path takes %s", allow)
			e.Status = http.StatusMethodNotAllowed
			s.serve(w, r, nil, e)
		case rt.handle == nil:
			s.serve(w, r, rt, api.NotFound("%s is not offered by this server yet", rt.op))
		default:
			s.serve(w, r, rt, nil)
		}
	}
}

// serve answers one request and leaves one record of it. With an err it only
// reports that; rt may then be nil.
func (s *Server) serve(hw http.ResponseWriter, hr *http.Request, rt *route, err error) {
	w := newResponse(hw, s.writeTimeout)
	rec := newRecord(hr, rt)
	h := w.Header()
	h.Set("Request-Id", string(rec.id))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	defer s.finish(w, rec)

	var out any
	if err == nil {
		out, err = s.call(w, hr, rt, rec)
	}
	if err == nil {
		rec.made = madeBy(out)
	}
	if err == nil && !w.began() {
		err = w.json(http.StatusOK, out)
	}
	if err != nil {
		s.fail(w, rec, err)
	}
}

// call does everything between the route and its handler.
func (s *Server) call(w *response, hr *http.Request, rt *route, rec *record) (any, error) {
	ctx := hr.Context()
	open := slices.Contains(rt.keys, "")
	if !open {
		var err error
		if rec.who, err = s.authenticate(hr); err != nil {
			return nil, err
		}
		w.Header().Set("Anthropic-Organization-Id", organizationID)
		w.Header().Set("Anthropic-Workspace-Id", workspaceID)

		if err := checkVersion(hr.Header); err != nil {
			return nil, err
		}
	}
	if rt.beta != "" && !hasBeta(hr.Header, rt.beta) {
		return nil, api.NotFound("no operation has this path without the header anthropic-beta: %s", rt.beta)
	}
	if err := checkWorkspace(hr.Header); err != nil && !open {
		return nil, err
	}
	if !slices.Contains(rt.keys, rec.who.Kind) {
		return nil, api.Forbidden("%s cannot be called with this kind of credential", rt.op)
	}
	if err := s.rates.take(rec.who, hr.Method, time.Now()); err != nil {
		return nil, err
	}
	for _, name := range rt.params() {
		id := hr.PathValue(name)
		if api.CheckID(name, id) != nil {
			return nil, api.NotFound("no %s has this id", name)
		}
		rec.ids = append(rec.ids, slog.String(name+"_id", id))
	}
	r := &request{Request: hr, s: s, w: w, who: rec.who, rec: rec}
	defer r.release()
	if err := s.audit.announce(rt, r); err != nil {
		return nil, err
	}
	return rt.handle(s, ctx, r)
}

// authenticate finds out who asks.
func (s *Server) authenticate(r *http.Request) (control.Principal, error) {
	cred, err := credential(r.Header)
	if err != nil {
		return control.Principal{}, err
	}
	who, err := s.control.Authenticate(r.Context(), cred.secret)
	if err != nil {
		return who, err
	}
	return who, cred.checkKind(who.Kind)
}

// metricsForKeys lets only the holders of an API key see h.
func (s *Server) metricsForKeys(h http.Handler) http.HandlerFunc {
	rt := &route{op: "metrics"}
	return func(w http.ResponseWriter, r *http.Request) {
		who, err := s.authenticate(r)
		if err == nil && who.Kind != api.KeyAPI {
			err = api.Forbidden("the metrics need an API key")
		}
		if err != nil {
			s.serve(w, r, rt, err)
			return
		}
		h.ServeHTTP(w, r)
	}
}

// healthz says that the process serves requests.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) { health(w, nil) }

// readyz says that the database answers too, and that the audit record can be
// written.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	err := errors.Join(s.control.Ready(r.Context()), s.audit.err())
	if err != nil {
		s.log.WarnContext(r.Context(), "not ready", "error", err)
	}
	health(w, err)
}

func health(w http.ResponseWriter, err error) {
	code, status := http.StatusOK, "ok"
	if err != nil {
		code, status = http.StatusServiceUnavailable, "unavailable"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// A prober that left needs no answer.
	_ = json.NewEncoder(w).Encode(map[string]string{"status": status})
}
