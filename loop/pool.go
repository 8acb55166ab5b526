package loop

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/mcp"
)

// A pool keeps the connections of this process to the MCP servers of its sessions between
// their turns. Nothing depends on it: what it forgets is connected to again.
type pool struct {
	e *Engine

	mu      sync.Mutex
	links   map[linkKey]*link
	closing sync.WaitGroup // of links
}

// The bounds of what is kept.
const (
	linksMax  = 4096            // beyond them the longest unused one is closed
	linkIdle  = 5 * time.Minute // a link that nobody uses is closed
	toolsFor  = time.Minute     // a list of tools is good for
	sorryFor  = time.Minute     // a server that failed is not tried again within a turn for
	linksOnce = 8               // servers of a session that are asked at the same time
)

type linkKey struct {
	session api.SessionID
	name    string
	url     string
}

// A link is one session's use of one server.
type link struct {
	key    linkKey
	server mcp.Server

	// slot holds one token; its holder may connect, and set session.
	slot    chan struct{}
	session *mcp.Session

	// Guarded by the pool.
	users  int
	used   time.Time
	idle   *time.Timer
	tools  []mcp.Tool
	listed time.Time // zero: never
	failed error     // of the last try
	tried  time.Time
}

func newPool(e *Engine) *pool { return &pool{e: e, links: map[linkKey]*link{}} }

// take returns the link to a server of a session, for use until it is given back.
func (p *pool) take(s *api.Session, server api.MCPServer) *link {
	key := linkKey{s.ID, server.Name, server.URL}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.links[key]
	if l == nil {
		p.makeRoom()
		l = &link{key: key, slot: make(chan struct{}, 1)}
		l.slot <- struct{}{}
		l.server = mcp.Server{Name: server.Name, URL: server.URL, HTTP: p.e.cfg.MCP, Logger: p.e.log.With("session_id", s.ID, "mcp_server", server.Name)}
		l.server.Authorization = func(ctx context.Context, refused string) (string, error) {
			if refused != "" {
				return p.e.cfg.Control.CredentialRefused(ctx, key.session, key.url, refused)
			}
			return p.e.cfg.Control.CredentialFor(ctx, key.session, key.url)
		}
		l.idle = time.AfterFunc(linkIdle, func() { p.drop(l) })
		p.links[key] = l
	}
	l.users++
	l.idle.Stop()
	return l
}

// give gives a link back.
func (p *pool) give(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.users--
	l.used = time.Now()
	if l.users == 0 {
		l.idle.Reset(linkIdle)
	}
}

// makeRoom closes the longest unused link if there are too many. The caller holds mu.
func (p *pool) makeRoom() {
	if len(p.links) < linksMax {
		return
	}
	var oldest *link
	for _, l := range p.links {
		if l.users == 0 && (oldest == nil || l.used.Before(oldest.used)) {
			oldest = l
		}
	}
	if oldest != nil {
		p.remove(oldest)
	}
}

// drop closes a link, unless it is in use.
func (p *pool) drop(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.users == 0 && p.links[l.key] == l {
		p.remove(l)
	}
}

// remove closes a link that nobody uses. The caller holds mu.
func (p *pool) remove(l *link) {
	delete(p.links, l.key)
	l.idle.Stop()
	p.closing.Go(func() {
		if <-l.slot; l.session != nil {
			l.session.Close()
		}
	})
}

// close closes all links. Nobody may use one any more.
func (p *pool) close() {
	p.mu.Lock()
	for _, l := range slices.Collect(maps.Values(p.links)) {
		p.remove(l)
	}
	p.mu.Unlock()
	p.closing.Wait()
}

// connected returns the connection of a link that is taken, made now if there is none.
func (p *pool) connected(ctx context.Context, l *link, env api.EnvironmentID) (*mcp.Session, error) {
	if p.e.cfg.MCP == nil {
		return nil, &mcp.Error{Server: l.key.name, Kind: mcp.Connection, Doing: "initialize", Message: "this server has no way to MCP servers"}
	}
	// Asked every time, as the environment may be changed at any.
	if err := p.e.cfg.Control.MCPAllowed(ctx, env, api.MCPServer{Type: "url", Name: l.key.name, URL: l.key.url}); err != nil {
		if e := api.AsError(err); e != nil {
			return nil, &mcp.Error{Server: l.key.name, Kind: mcp.Connection, Doing: "initialize", Message: e.Message, Err: err}
		}
		return nil, err
	}
	select {
	case <-l.slot:
		defer func() { l.slot <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l.session == nil {
		s, err := mcp.Connect(ctx, l.server)
		if err != nil {
			return nil, err
		}
		l.session = s
	}
	return l.session, nil
}

// list returns the tools of a server. again says that a server which failed a moment ago
// is to be tried again; else that failure is returned, with old set.
func (p *pool) list(ctx context.Context, s *api.Session, server api.MCPServer, again bool) (tools []mcp.Tool, old bool, err error) {
	l := p.take(s, server)
	defer p.give(l)
	if tools, known, err := p.known(l, again); known {
		return tools, true, err
	}
	conn, err := p.connected(ctx, l, s.EnvironmentID)
	if err == nil {
		tools, err = conn.Tools(ctx)
	}
	if ctx.Err() != nil {
		return nil, false, err // it says nothing of the server
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l.tried, l.failed = time.Now(), err
	if err != nil {
		l.listed = time.Time{}
		return nil, false, err
	}
	l.tools, l.listed = tools, l.tried
	return tools, false, nil
}

// known returns what was found out about a server a moment ago.
func (p *pool) known(l *link, again bool) (tools []mcp.Tool, ok bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case l.failed != nil && !again && time.Since(l.tried) < sorryFor:
		return nil, true, l.failed
	case l.failed == nil && time.Since(l.listed) < toolsFor && !p.stale(l):
		return l.tools, true, nil
	}
	return nil, false, nil
}

// stale reports whether the server has said that its tools changed. The caller holds mu.
func (p *pool) stale(l *link) bool {
	select {
	case <-l.slot:
		defer func() { l.slot <- struct{}{} }()
		return l.session != nil && l.session.Stale()
	default:
		return false // somebody connects
	}
}

// A toolbox is the tools of a session's MCP servers, as they answered.
type toolbox struct {
	tools    map[string][]mcp.Tool // by the server's name
	problems []api.Draft           // that clients are to be told of
}

// of returns the tools of a server.
func (b *toolbox) of(server string) []mcp.Tool {
	if b == nil {
		return nil
	}
	return b.tools[server]
}

// peek returns the toolbox of a session if no server has to be asked for it, or nil.
func (p *pool) peek(s *api.Session, again bool) *toolbox {
	box := &toolbox{tools: map[string][]mcp.Tool{}}
	for _, server := range s.Agent.MCPServers {
		p.mu.Lock()
		l := p.links[linkKey{s.ID, server.Name, server.URL}]
		p.mu.Unlock()
		if l == nil {
			return nil
		}
		tools, ok, _ := p.known(l, again)
		if !ok {
			return nil
		}
		box.tools[server.Name] = tools
	}
	return box
}

// fill asks the servers of a session for their tools.
func (p *pool) fill(ctx context.Context, s *api.Session, again bool) *toolbox {
	box := &toolbox{tools: map[string][]mcp.Tool{}}
	problems := make([]*api.Draft, len(s.Agent.MCPServers))
	room := make(chan struct{}, linksOnce)
	var mu sync.Mutex
	var all sync.WaitGroup
	for i, server := range s.Agent.MCPServers {
		all.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			tools, old, err := p.list(ctx, s, server, again)
			mu.Lock()
			defer mu.Unlock()
			if box.tools[server.Name] = tools; err != nil && !old {
				d := p.e.mcpProblem(server.Name, err)
				problems[i] = &d
			}
		})
	}
	all.Wait()
	for _, d := range problems {
		if d != nil {
			box.problems = append(box.problems, *d)
		}
	}
	return box
}

// mcpProblem tells clients that a server cannot be used. It is tried again whenever the
// session begins to run.
func (e *Engine) mcpProblem(server string, err error) api.Draft {
	kind := api.ErrorMCPConnection
	message := "MCP server '" + server + "' could not be used. The server's log says why."
	var failed *mcp.Error
	if errors.As(err, &failed) {
		message = failed.Error()
		if failed.Kind == mcp.Authentication {
			kind = api.ErrorMCPAuthentication
		}
	}
	d := errorDraft(kind, message, api.RetryRetrying)
	d.ID = e.cfg.Control.NewEventID()
	d.Body.(*api.SessionError).Error.MCPServerName = server
	return d
}
