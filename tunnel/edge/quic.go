package edge

import (
	"context"
	"errors"
)

// acceptQUIC takes connectors in that come over QUIC.
func (e *Edge) acceptQUIC(ctx context.Context) error {
	return errors.New("edge: QUIC is not served yet")
}
