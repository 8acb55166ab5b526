package dial

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// A want is what a new inner connection is to be, and what became of it.
type want struct {
	to        *target
	connector string // that should get it; "" leaves it to the edge
	drain     func() // what to do when the edge or the connector will leave

	stream *tunnel.Stream
	fresh  bool              // its connection was made for this, and did not lie ready
	ca     *x509.Certificate // that certified the gateway
}

// innerMax bounds the making of an inner connection, from the edge on, and edgeMax what
// one edge may take of that while there are others to ask.
const (
	innerMax = 15 * time.Second
	edgeMax  = 5 * time.Second
)

// innerTLS opens a stream and begins the inner TLS on it, at the first edge where that
// succeeds. Nothing of a request is sent until the gateway has proved who it is, so
// all of this can be tried again.
func (d *Dialer) innerTLS(ctx context.Context, w *want) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, innerMax)
	defer cancel()
	if w.connector != "" {
		conn, err := d.atSomeEdge(ctx, w, true)
		if e := tunnel.AsError(err); e == nil || e.Stage != tunnel.StageNoConnector {
			return conn, err
		}
		// The connector is nowhere any more: another has to do.
	}
	return d.atSomeEdge(ctx, w, false)
}

// atSomeEdge tries one edge after the other. With only set no other connector than the
// wanted will do.
func (d *Dialer) atSomeEdge(ctx context.Context, w *want, only bool) (*tls.Conn, error) {
	err := error(&tunnel.Error{Stage: tunnel.StageNoConnector, Detail: "no gateway is connected", RetryAfter: 2 * time.Second})
	edges := d.edgesOf(w.to.route)
	for i, e := range edges {
		try, done := ctx, func() {}
		if i < len(edges)-1 {
			try, done = context.WithTimeout(ctx, edgeMax)
		}
		var conn *tls.Conn
		conn, err = d.atEdge(try, e, w, only)
		late := try.Err() != nil && ctx.Err() == nil
		done()
		if err == nil {
			return conn, nil
		}
		if late {
			// It, or the gateway behind it, is gone without a word.
			d.log.Debug("no stream at an edge in time", "edge", e.name(), "error", err)
			err = e.fail(err)
			continue
		}
		te := tunnel.AsError(err)
		if te == nil || ctx.Err() != nil {
			return nil, err
		}
		switch te.Stage {
		case tunnel.StageEdgeUnreachable, tunnel.StageDraining, tunnel.StageOverloaded, tunnel.StageNoConnector, tunnel.StageConnectorLost:
			d.log.Debug("no stream at an edge", "edge", e.name(), "error", err)
		default:
			return nil, err // another edge leads to the same gateway
		}
	}
	return nil, err
}

// atEdge tries twice: a connection that lay ready may turn out broken, and what was
// remembered of a gateway out of date, its CA archived for one.
func (d *Dialer) atEdge(ctx context.Context, e *edge, w *want, only bool) (*tls.Conn, error) {
	conn, resumed, err := d.handshake(ctx, e, w, only, false)
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	te := tunnel.AsError(err)
	broken := te != nil && !w.fresh && (te.Stage == tunnel.StageEdgeUnreachable || te.Stage == tunnel.StageConnectorLost)
	if !resumed && !broken {
		return nil, err
	}
	conn, _, err = d.handshake(ctx, e, w, only, true)
	return conn, err
}

// handshake opens a stream at an edge and begins the inner TLS, with fresh set by
// nothing that was there before. Of a handshake that failed, resumed says whether it was
// to resume a session.
func (d *Dialer) handshake(ctx context.Context, e *edge, w *want, only, fresh bool) (conn *tls.Conn, resumed bool, err error) {
	if err := e.open(ctx, w, only, fresh); err != nil {
		return nil, false, err
	}
	var refusal error
	cfg := &tls.Config{
		ServerName: w.to.host,
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		// The rules for a gateway's certificate are not those of the web, which would
		// accept intermediates and ignore key identifiers. VerifyConnection applies
		// them, to resumed sessions too.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			resumed = state.DidResume
			ca, err := tunnel.VerifyLeaf(state.PeerCertificates, w.to.route.CAs, w.to.host, time.Now())
			if err != nil {
				refusal = err
				return err
			}
			w.ca = ca
			if !state.DidResume && d.cfg.OnLeaf != nil {
				d.cfg.OnLeaf(w.to.route.TunnelID, w.to.host, state.PeerCertificates[0], ca)
			}
			return nil
		},
		DynamicRecordSizingDisabled: true,
	}
	if d.cfg.HTTP2 {
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	if !fresh {
		cfg.ClientSessionCache = d.inner
	}
	inner := tls.Client(w.stream, cfg)
	if err := inner.HandshakeContext(ctx); err != nil {
		w.stream.Close()
		err = innerError(ctx, err, refusal)
		if te := tunnel.AsError(err); te != nil && te.Stage == tunnel.StageConnectorLost && te.Err != nil && w.stream.Opened() == nil {
			err = e.fail(te.Err) // it was the edge that went without a word
		}
		return nil, resumed, err
	}
	return inner, resumed, nil
}

// innerError says what a failed handshake means.
func innerError(ctx context.Context, err, refusal error) error {
	switch {
	case refusal != nil:
		return &tunnel.Error{Stage: tunnel.StageInnerTLS, Detail: "the gateway's certificate is refused", Err: refusal}
	case tunnel.AsError(err) != nil:
		return tunnel.AsError(err) // the stream failed, and knows why
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case ctx.Err() != nil:
		return &tunnel.Error{Stage: tunnel.StageTimeout, Detail: "the gateway did not answer in time", Err: ctx.Err()}
	}
	return &tunnel.Error{Stage: tunnel.StageInnerTLS, Detail: "the handshake with the gateway failed", Err: err}
}

// keyOf is what calls of a session have in common, and what an edge may see of it:
// nothing that leads back to the session's id.
func keyOf(to *target) string {
	if to.session == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(string(to.route.TunnelID) + "\x00" + to.host + "\x00" + to.session))
	return hex.EncodeToString(sum[:16])
}
