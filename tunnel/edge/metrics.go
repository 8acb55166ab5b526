package edge

import "github.com/prometheus/client_golang/prometheus"

// Register offers figures of the edge that running returns; nil is none yet.
func Register(registry prometheus.Registerer, running func() *Edge) {
	for _, figure := range []struct {
		name, help string
		of         func(Stats) int
	}{
		{"bailey_edge_tunnels", "Tunnels with a connector at this edge.", func(s Stats) int { return s.Tunnels }},
		{"bailey_edge_attachments", "Connectors attached to this edge.", func(s Stats) int { return s.Attachments }},
		{"bailey_edge_streams", "Streams through this edge.", func(s Stats) int { return s.Streams }},
	} {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: figure.name, Help: figure.help}, func() float64 {
			if e := running(); e != nil {
				return float64(figure.of(e.Stats()))
			}
			return 0
		}))
	}
}
