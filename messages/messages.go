// Package messages answers requests of the Messages API that name MCP servers. The model
// behind this server may know nothing of MCP: it is offered the servers' tools as tools of
// the client, the calls it makes are made here, and it is asked again until it has
// answered. The client sees one message, in the form that the official SDKs have for it.
//
// Nothing is kept from one request to the next. The package knows nothing of sessions,
// agents, vaults or tunnels: credentials come with the request, and an [http.Client] that
// reaches the servers is given.
//
// Start reading at [Connector.Serve], then request.go for what the request becomes and
// reply.go for how the answers become one.
package messages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/mcp"
	"github.com/bailey-platform/bailey/model"
)

// A Config says what a [Connector] is made of. Model and HTTP are required.
type Config struct {
	Model *model.Client
	HTTP  *http.Client // reaches MCP servers
	// Plain reports whether a server at this host may be spoken to without TLS. Nil: none.
	Plain  func(host string) bool
	Logger *slog.Logger
}

// A Connector serves requests. It is safe for concurrent use and holds no state.
type Connector struct{ cfg Config }

// New returns a connector.
func New(cfg Config) *Connector {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Plain == nil {
		cfg.Plain = func(string) bool { return false }
	}
	return &Connector{cfg}
}

// The bounds of one request.
const (
	serversMax    = 20
	requestsMax   = 10  // of the model; the client is then to ask whether to go on
	callsMax      = 256 // of one answer of the model
	callsOnce     = 16  // that run at the same time
	toolsMax      = 1024
	resultMax     = 100_000 // bytes of the text of one result
	pingEvery     = 15 * time.Second
	mcpUsePrefix  = "mcptoolu_"
	toolUsePrefix = "toolu_"
)

// A Call is a call of an MCP tool, as it is put on record.
type Call struct {
	ID     string // of the mcp_tool_use block
	Server string
	Tool   string
	Input  []byte
	Start  time.Time
}

// A Recorder puts a call on record before it is made: with an error it is not. What it
// returns puts on record what came of it, before that is passed on, and is called once.
// It is called concurrently.
type Recorder func(Call) (end func(outcome string, output []byte) error, err error)

// Serve answers a request whose body names MCP servers: see [Wants]. Calls are put on
// record by record; nil is for no record. The error is an
// [*api.Error], a [*model.Error], or wraps the error of r.Context(). The caller writes it,
// unless begun is set: then half of the reply is out, and the only honest thing left is to
// break it off.
func (c *Connector) Serve(w http.ResponseWriter, r *http.Request, body []byte, record Recorder) (begun bool, err error) {
	req, err := c.parse(r.Header, body)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	servers, err := c.connect(ctx, req)
	defer func() { go servers.close() }() // the client does not wait for what is only a courtesy
	if err != nil {
		return false, err
	}
	if err := req.offer(servers); err != nil {
		return false, err
	}
	out := newReply(w, req)
	err = c.run(r.WithContext(ctx), req, servers, record, out)
	var failed *model.Error
	if out.begun && req.stream && errors.As(err, &failed) {
		// A stream has a way to say that the rest is not to come.
		c.cfg.Logger.Warn("a reply broke off", "error", err)
		return true, out.fail(failed)
	}
	return out.begun, err
}

// run asks the model until it has answered.
func (c *Connector) run(r *http.Request, req *request, servers servers, record Recorder, out *reply) error {
	r = r.Clone(r.Context())
	r.Header["Anthropic-Beta"] = withoutBetas(r.Header.Values("Anthropic-Beta"))
	for n := 1; ; n++ {
		res, err := c.cfg.Model.Relay(r, req.body, out.event)
		if err != nil {
			return err
		}
		calls, foreign := req.callsOf(res)
		if len(calls) == 0 || res.StopReason != "tool_use" {
			return out.end(res.StopReason)
		}
		results := c.runCalls(r.Context(), servers, calls, record, out)
		if err := r.Context().Err(); err != nil {
			return fmt.Errorf("messages: run tools: %w", err)
		}
		for i, call := range calls {
			if err := out.result(call, results[i]); err != nil {
				return err
			}
		}
		switch {
		case foreign:
			return out.end("tool_use") // the client's own tools are its to run
		case n == requestsMax:
			return out.end("pause_turn")
		case !req.proceed(res, calls, results):
			return out.end("max_tokens")
		}
	}
}

// A result is what came of a call, as far as it is passed on: clients know no other blocks
// in one than texts.
type result struct {
	text    string // resultMax bytes at most, and a note of what is left out
	isError bool
}

func failed(format string, args ...any) result { return result{fmt.Sprintf(format, args...), true} }

// runCalls makes the calls of one answer, a few at a time, and keeps the client's
// connection in use meanwhile.
func (c *Connector) runCalls(ctx context.Context, servers servers, calls []call, record Recorder, out *reply) []result {
	results := make([]result, len(calls))
	done := make(chan struct{})
	go func() {
		defer close(done)
		room := make(chan struct{}, callsOnce)
		var all sync.WaitGroup
		for i, call := range calls {
			all.Go(func() {
				room <- struct{}{}
				defer func() { <-room }()
				results[i] = c.recordCall(ctx, servers, call, record)
			})
		}
		all.Wait()
	}()
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return results
		case <-tick.C:
			out.ping()
		}
	}
}

// recordCall makes a call, on record.
func (c *Connector) recordCall(ctx context.Context, servers servers, call call, record Recorder) result {
	if call.spoilt != "" {
		return failed("This call was not made, because of its input: %s. Call the tool again with a JSON object that fits its schema.", call.spoilt)
	}
	if record == nil {
		res, _ := c.runCall(ctx, servers, call)
		return res
	}
	end, err := record(Call{call.id(), call.tool.server, call.tool.bare, call.input, time.Now()})
	if err != nil {
		c.cfg.Logger.Error("a call of an MCP tool was refused: the audit record was not written", "mcp_server", call.tool.server, "error", err)
		return failed("The audit record cannot be written, so nothing was run. The operator of this server has to see to it.")
	}
	res, outcome := c.runCall(ctx, servers, call)
	if err := end(outcome, []byte(res.text)); err != nil {
		c.cfg.Logger.Error("the result of an MCP tool was withheld: the audit record was not written", "mcp_server", call.tool.server, "error", err)
		return failed("The tool ran, but the audit record of it cannot be written, so its output is withheld. The operator of this server has to see to it.")
	}
	return res
}

// runCall makes a call, and says in a word for the record what came of it.
func (c *Connector) runCall(ctx context.Context, servers servers, call call) (_ result, outcome string) {
	res, err := servers[call.tool.server].session.Call(ctx, call.tool.bare, call.input)
	var e *mcp.Error
	switch {
	case err == nil && res.IsError:
		return result{textOf(res), true}, "error"
	case err == nil:
		return result{textOf(res), false}, "ok"
	}
	c.cfg.Logger.Warn("a call of an MCP tool failed", "mcp_server", call.tool.server, "error", err)
	if errors.As(err, &e) && e.MayHaveRun {
		return failed("%s. Whether the call had an effect is unknown, and it was not repeated.", e), "interrupted"
	}
	return failed("%s. The call was not run.", err), "refused"
}

// A linked is a server that a request names, connected to.
type linked struct {
	session *mcp.Session
	tools   []mcp.Tool
}

type servers map[string]*linked

// connect connects to the servers of a request and lists the tools of those whose tools the
// request does not bring along.
func (c *Connector) connect(ctx context.Context, req *request) (servers, error) {
	all := servers{}
	errs := make([]error, len(req.servers))
	var mu sync.Mutex
	var wait sync.WaitGroup
	for i, s := range req.servers {
		wait.Go(func() {
			l := &linked{tools: s.pinned}
			l.session, errs[i] = mcp.Connect(ctx, mcp.Server{
				Name: s.Name, URL: s.URL, HTTP: c.cfg.HTTP, Logger: c.cfg.Logger.With("mcp_server", s.Name), Authorization: s.authorization(),
			})
			if errs[i] == nil {
				mu.Lock()
				all[s.Name] = l
				mu.Unlock()
				if s.pinned == nil {
					l.tools, errs[i] = l.session.Tools(ctx)
				}
			}
		})
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			return all, unreachable(err)
		}
	}
	return all, nil
}

func (s servers) close() {
	var wait sync.WaitGroup
	for _, l := range s {
		wait.Go(func() { l.session.Close() })
	}
	wait.Wait()
}

// unreachable tells the client what is wrong with a server: what it can mend itself as a
// mistake of its request, all else as that of a hop behind this one.
func unreachable(err error) error {
	var e *mcp.Error
	if !errors.As(err, &e) {
		return err
	}
	out := api.Invalid("%s", e.Error())
	retry := false
	switch e.Kind {
	case mcp.Canceled:
		return fmt.Errorf("messages: %w", err)
	case mcp.Timeout:
		out.Status, out.Type, retry = http.StatusGatewayTimeout, api.TypeAPI, true
	case mcp.Connection:
		out.Status, out.Type, retry = http.StatusBadGateway, api.TypeAPI, e.Status == 0 || e.Status >= 500
		if way, ok := errors.AsType[hop](err); ok {
			out.Status = way.HTTPStatus()
		}
	}
	out.Retry = &retry
	return out
}

// A hop is an error of something on the way to a server that knows the status for it.
type hop interface {
	error
	HTTPStatus() int
}

// The betas of the Messages API by which a request may name MCP servers.
const (
	betaFirst   = "mcp-client-2025-04-04" // tools are chosen at the server
	betaToolset = "mcp-client-2025-11-20" // tools are chosen by an mcp_toolset
	betaListing = "mcp-client-2026-09-15" // and replies say which tools there were
)

func betasOf(h http.Header) []string {
	var all []string
	for _, line := range h.Values("Anthropic-Beta") {
		for beta := range strings.SplitSeq(line, ",") {
			all = append(all, strings.TrimSpace(beta))
		}
	}
	return all
}

// withoutBetas leaves out what is served here: the endpoint need not know it.
func withoutBetas(lines []string) []string {
	var kept []string
	for _, line := range lines {
		var betas []string
		for beta := range strings.SplitSeq(line, ",") {
			if beta = strings.TrimSpace(beta); beta != "" && !strings.HasPrefix(beta, "mcp-client-") {
				betas = append(betas, beta)
			}
		}
		if len(betas) > 0 {
			kept = append(kept, strings.Join(betas, ","))
		}
	}
	return kept
}

// Wants reports whether a request is one of this package: whether it names MCP servers.
func Wants(body []byte) bool {
	if !strings.Contains(string(body), "mcp_servers") {
		return false
	}
	var head struct {
		Servers []json.RawMessage `json:"mcp_servers"`
	}
	return json.Unmarshal(body, &head) == nil && len(head.Servers) > 0
}

// A call is one that the model makes of a server's tool.
type call struct {
	ref    string // the model's id of it
	tool   offered
	input  json.RawMessage
	spoilt string
}

// id is that of the call as the client sees it.
func (c *call) id() string { return mcpUsePrefix + strings.TrimPrefix(c.ref, toolUsePrefix) }

// callsOf returns the calls of a message that are to be made here. foreign says that it has
// others, too.
func (r *request) callsOf(res *model.Response) (calls []call, foreign bool) {
	for i, raw := range res.Content {
		var b struct {
			Type, ID, Name string
			Input          json.RawMessage
		}
		if json.Unmarshal(raw, &b) != nil || b.Type != "tool_use" {
			continue
		}
		tool, ok := r.tools[b.Name]
		switch {
		case !ok:
			foreign = true
		case len(calls) < callsMax:
			calls = append(calls, call{ref: b.ID, tool: tool, input: b.Input, spoilt: res.Spoilt[i]})
		}
	}
	return calls, foreign
}

// proceed makes the request for what follows the results of calls, and reports whether the
// client's bound of the output allows it.
func (r *request) proceed(res *model.Response, calls []call, results []result) bool {
	r.outputMax -= res.Usage.OutputTokens
	if r.outputMax <= 0 {
		return false
	}
	var answers []json.RawMessage
	for i, call := range calls {
		answers = append(answers, toolResult(call.ref, results[i].text, results[i].isError))
	}
	// A call beyond the bound of them is answered as well, as every call has to be.
	known := map[string]bool{}
	for _, c := range calls {
		known[c.ref] = true
	}
	for _, raw := range res.Content {
		var b struct{ Type, ID string }
		if json.Unmarshal(raw, &b) == nil && b.Type == "tool_use" && !known[b.ID] {
			answers = append(answers, toolResult(b.ID, fmt.Sprintf("This call was not made: one answer may make %d calls.", callsMax), true))
		}
	}
	r.messages = append(r.messages, wireMessage{"assistant", sound(res.Content)}, wireMessage{"user", answers})
	r.encode()
	return true
}

// sound leaves out what cannot be sent back: texts of nothing.
func sound(content []json.RawMessage) []json.RawMessage {
	return slices.DeleteFunc(slices.Clone(content), func(raw json.RawMessage) bool {
		var b struct{ Type, Text string }
		return len(raw) < 256 && json.Unmarshal(raw, &b) == nil && b.Type == "text" && strings.TrimSpace(b.Text) == ""
	})
}
