package control

import (
	"sync"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// The topics of notifications. A notification is a hint to look at the database,
// never the truth itself.
const (
	topicTurns = "turns" // a session may be due
	topicEdges = "edges" // another edge is there, or one is not any more
	topicCloud = "cloud" // a cloud environment may have got its first work, or another configuration
	topicTrust = "trust" // a CA of a tunnel is not trusted any more
)

func topicSession(id api.SessionID) string       { return "session " + string(id) }    // its log has grown, or it is gone
func topicInterrupt(id api.SessionID) string     { return "interrupt " + string(id) }  // its turn is to stop what it does
func topicWork(env api.EnvironmentID) string     { return "work " + string(env) }      // an item may be claimable
func topicKey(id api.KeyID) string               { return "key " + string(id) }        // it was revoked
func topicEdge(id api.EdgeID) string             { return "edge " + string(id) }       // it has something to cut, or is gone
func topicShell(id api.SessionID) string         { return "shell " + string(id) }      // somebody wants one; of this process only
func topicCredential(id api.CredentialID) string { return "credential " + string(id) } // its secrets have changed, or somebody is done renewing them
func (c *Control) Due() <-chan struct{}          { return c.hub.turns.C }

// A hub hands notifications to whoever waits in this process.
type hub struct {
	turns *signal // subscribed for the life of the hub
	cloud *signal // likewise
	trust *signal // likewise

	mu     sync.Mutex
	closed bool
	topics map[string]map[*signal]struct{}
	views  map[api.SessionID]map[*Follower]struct{} // who wants previews
}

// A signal coalesces: C holds at most one notification.
type signal struct{ C chan struct{} }

func newSignal() *signal { return &signal{make(chan struct{}, 1)} }

func (s *signal) fire() {
	select {
	case s.C <- struct{}{}:
	default:
	}
}

func newHub() *hub {
	h := &hub{
		turns:  newSignal(),
		cloud:  newSignal(),
		trust:  newSignal(),
		topics: map[string]map[*signal]struct{}{},
		views:  map[api.SessionID]map[*Follower]struct{}{},
	}
	h.subscribe(topicTurns, h.turns)
	h.subscribe(topicCloud, h.cloud)
	h.subscribe(topicTrust, h.trust)
	return h
}

func (h *hub) subscribe(topic string, s *signal) (cancel func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.topics[topic] == nil {
		h.topics[topic] = map[*signal]struct{}{}
	}
	h.topics[topic][s] = struct{}{}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.topics[topic], s)
		if len(h.topics[topic]) == 0 {
			delete(h.topics, topic)
		}
	}
}

// publish wakes everybody who waits for a topic. It never blocks.
func (h *hub) publish(topic string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if topic == store.TopicAll {
		h.fireAll()
		return
	}
	for s := range h.topics[topic] {
		s.fire()
	}
}

// fireAll wakes everybody. The caller holds mu.
func (h *hub) fireAll() {
	for _, subs := range h.topics {
		for s := range subs {
			s.fire()
		}
	}
}

// follow adds a follower that wants previews.
func (h *hub) follow(id api.SessionID, f *Follower) (cancel func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.views[id] == nil {
		h.views[id] = map[*Follower]struct{}{}
	}
	h.views[id][f] = struct{}{}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.views[id], f)
		if len(h.views[id]) == 0 {
			delete(h.views, id)
		}
	}
}

// preview hands a frame to every follower of a session that wants previews.
func (h *hub) preview(id api.SessionID, p preview) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.views[id] {
		f.offer(p)
	}
}

// previewed reports whether anybody wants previews of a session.
func (h *hub) previewed(id api.SessionID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.views[id]) > 0
}

// close wakes everybody for good.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.fireAll()
}

func (h *hub) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}
