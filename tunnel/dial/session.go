package dial

import (
	"container/list"
	"sync"
)

// sessionHeader is MCP's session id. Which replica of a gateway a session lives behind
// is seen by who answered when it began.
const sessionHeader = "Mcp-Session-Id"

// sessions remember the connector of each MCP session, the last used of them.
type sessions struct {
	mu    sync.Mutex
	of    map[sessionKey]*list.Element
	order *list.List // of known, the last used first
}

type sessionKey struct{ host, session string }

type known struct {
	key       sessionKey
	connector string
}

const (
	sessionsMax   = 8192
	sessionLenMax = 1024 // bytes; longer ones are not remembered
)

func newSessions() *sessions {
	return &sessions{of: make(map[sessionKey]*list.Element), order: list.New()}
}

// learn notes who answered for a session.
func (s *sessions) learn(host, session, connector string) {
	if session == "" || connector == "" || len(session) > sessionLenMax {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sessionKey{host, session}
	if e := s.of[key]; e != nil {
		e.Value.(*known).connector = connector
		s.order.MoveToFront(e)
		return
	}
	s.of[key] = s.order.PushFront(&known{key, connector})
	if s.order.Len() > sessionsMax {
		oldest := s.order.Remove(s.order.Back()).(*known)
		delete(s.of, oldest.key)
	}
}

// connector is who answered for a session last, or "".
func (s *sessions) connector(host, session string) string {
	if session == "" {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.of[sessionKey{host, session}]
	if e == nil {
		return ""
	}
	s.order.MoveToFront(e)
	return e.Value.(*known).connector
}
