package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A Plane is an [edge.Plane] over HTTP.
type Plane struct {
	// Static after construction.
	cfg   Config
	log   *slog.Logger
	stale chan struct{}          // holds a value when the plane's authority has changed
	news  chan []api.EdgeAddress // holds the newest list of edges that connectors are to be told

	replaced chan struct{} // closed when another process has the edge's name
	once     sync.Once     // closes it

	cert    atomic.Pointer[tls.Certificate] // made by the plane
	dialers atomic.Pointer[x509.CertPool]

	joining sync.Mutex // held while the edge registers again

	mu       sync.Mutex // guards what follows
	id       api.EdgeID
	renewAt  time.Time
	revision string
	live     map[api.AttachmentID]api.TunnelID // attached, as far as the edge has told
	orphans  []api.EdgeCut                     // attached to an edge that the plane has forgotten
	counted  int64                             // the last report that the plane has counted
	edges    string                            // the revision of the list of edges that connectors have
}

func (p *Plane) edgeID() api.EdgeID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.id
}

func (p *Plane) certificate() (*tls.Certificate, error) {
	if p.cfg.Certificate != nil {
		return p.cfg.Certificate()
	}
	return p.cert.Load(), nil
}

func (p *Plane) dialerCAs() *x509.CertPool { return p.dialers.Load() }

func (p *Plane) goodUntil() time.Time {
	if c := p.cert.Load(); c != nil && c.Leaf != nil {
		return c.Leaf.NotAfter
	}
	return time.Time{}
}

// Attach implements [edge.Plane].
func (p *Plane) Attach(ctx context.Context, a api.EdgeAttach) (*api.EdgeGrant, error) {
	ctx, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	id := p.edgeID()
	grant, err := p.cfg.Client.AttachTunnel(ctx, id, a)
	if err != nil {
		return nil, p.understand(ctx, id, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live[grant.ID] = grant.TunnelID
	if p.id != id { // the edge has another one meanwhile
		p.orphans = append(p.orphans, forgotten(grant.ID, grant.TunnelID))
	}
	return grant, nil
}

// Detach implements [edge.Plane].
func (p *Plane) Detach(ctx context.Context, id api.AttachmentID, d api.EdgeDetach) error {
	ctx, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	edge := p.edgeID()
	if err := p.cfg.Client.DetachTunnel(ctx, edge, id, d); err != nil {
		return p.understand(ctx, edge, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.live, id)
	return nil
}

// Report implements [edge.Plane]. It is called for one report at a time, and again for
// the same one until it was counted. The numbers that the plane sees are of this
// registration: they begin at 1 when the edge had to register again.
func (p *Plane) Report(ctx context.Context, r api.EdgeReport) error {
	p.mu.Lock()
	id := p.id
	r.Sequence = p.counted + 1
	p.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	out, err := p.cfg.Client.ReportEdge(call, id, r)
	if err != nil {
		return p.understand(ctx, id, err)
	}
	p.mu.Lock()
	if p.id == id {
		p.counted = r.Sequence
	}
	changed := out.Revision != p.revision
	p.mu.Unlock()
	if changed {
		select {
		case p.stale <- struct{}{}:
		default:
		}
	}
	if out.Gone {
		p.once.Do(func() { close(p.replaced) })
	}
	return nil
}

// Cuts implements [edge.Plane]. With the cuts comes where connectors can attach, which
// they are told when it has changed.
func (p *Plane) Cuts(ctx context.Context) ([]api.EdgeCut, error) {
	p.mu.Lock()
	id, orphans, revision := p.id, p.orphans, p.edges
	p.orphans = nil
	p.mu.Unlock()
	if len(orphans) > 0 {
		return orphans, nil
	}
	call, cancel := context.WithTimeout(ctx, api.EdgeChangesMax+callMax)
	defer cancel()
	out, err := p.cfg.Client.EdgeChanges(call, id, revision, api.EdgeChangesMax)
	if err != nil {
		return nil, p.understand(ctx, id, err)
	}
	if out.EdgesRevision != revision {
		p.mu.Lock()
		p.edges = out.EdgesRevision
		p.mu.Unlock()
		p.toTell(out.Edges)
	}
	return out.Cuts, nil
}

// toTell has connectors told of other edges; a list that none was told yet is dropped.
// It is called by one goroutine at a time.
func (p *Plane) toTell(edges []api.EdgeAddress) {
	if len(edges) == 0 {
		return
	}
	select {
	case <-p.news:
	default:
	}
	p.news <- edges
}

// errAgain is what the edge is told when the plane has to be asked once more.
var errAgain = errors.New("the plane had forgotten this edge, which has registered again")

// understand makes an error of the plane fit for the edge, which takes an *api.Error
// with a 4xx status for the last word on what it has asked: one about the edge itself is
// none. id is the edge that it was asked for.
func (p *Plane) understand(ctx context.Context, id api.EdgeID, err error) error {
	e := api.AsError(err)
	if e == nil {
		return err
	}
	switch e.Status {
	case http.StatusNotFound:
		p.joinAgain(ctx, id)
		return errAgain
	case http.StatusGone:
		p.once.Do(func() { close(p.replaced) })
		return ErrReplaced
	case http.StatusUnauthorized:
		return errors.New("the plane refuses this edge's key: " + e.Message)
	}
	return err
}

// joinAgain registers an edge that the plane has forgotten, once for all who notice.
// What is attached has to attach anew, since nobody else keeps its token.
func (p *Plane) joinAgain(ctx context.Context, was api.EdgeID) {
	p.joining.Lock()
	defer p.joining.Unlock()
	if p.edgeID() != was {
		return // somebody was faster
	}
	p.log.Warn("the plane has forgotten this edge; registering again", "edge_id", was)
	if err := p.registerOnce(ctx); err != nil {
		p.log.Warn("the edge could not register again; trying again", "error", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, tunnel := range p.live {
		p.orphans = append(p.orphans, forgotten(id, tunnel))
	}
	clear(p.live)
}

func forgotten(id api.AttachmentID, tunnel api.TunnelID) api.EdgeCut {
	return api.EdgeCut{AttachmentID: id, TunnelID: tunnel, Reason: "the plane has forgotten this edge: attach again"}
}
