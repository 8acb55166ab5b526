package connect

import "context"

// udp is what is known of UDP to an edge.
type udp struct{}

// A quicLink is a link's connection of QUIC.
type quicLink struct{}

func (q *quicLink) accept(context.Context) {}
func (q *quicLink) close()                 {}
