package telemetry

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a registry with what every Bailey process reports: the Go
// runtime, the process, and bailey_build_info. Nothing registers elsewhere.
func NewRegistry(b Build) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "bailey_build_info",
			Help:        "Always 1; the labels say what runs.",
			ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "go": b.Go},
		}, func() float64 { return 1 }),
	)
	return reg
}

// An AuditRecord is what metrics say of one.
type AuditRecord interface {
	Err() error  // why it cannot be written, or nil
	Missed() int // records that its best-effort sinks did not get
}

// RegisterAudit offers the figures of an audit record, whose names begin with prefix.
// refused says what is refused while it cannot be written.
func RegisterAudit(reg prometheus.Registerer, prefix, refused string, record AuditRecord) error {
	for _, c := range []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: prefix + "_audit_writable", Help: "1 while the audit record can be written; while it cannot, " + refused + " refused.",
		}, func() float64 {
			if record.Err() != nil {
				return 0
			}
			return 1
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: prefix + "_audit_sinks_missed_total", Help: "Records that best-effort audit sinks did not get.",
		}, func() float64 { return float64(record.Missed()) }),
	} {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
