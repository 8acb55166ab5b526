package cloud

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the environments that are served now. They come and go, which
// what is registered with a registry does not.
type metrics struct {
	mu         sync.Mutex
	registries map[*prometheus.Registry]struct{}
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{registries: map[*prometheus.Registry]struct{}{}}
	if r != nil {
		r.MustRegister(m)
	}
	return m
}

func (m *metrics) add(r *prometheus.Registry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.registries[r] = struct{}{}
}

func (m *metrics) remove(r *prometheus.Registry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.registries, r)
}

// Describe says nothing, as what there is changes.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect passes on what each environment has.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for r := range m.registries {
		r.Collect(out)
	}
}
