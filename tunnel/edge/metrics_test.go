package edge_test

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/tunnel/edge"
)

// The names of metrics are those that are written down.
func TestMetricsAreWrittenDown(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/tunnels.md")
	if err != nil {
		t.Fatal(err)
	}
	var written, names []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(bailey_edge_[a-z_]+)`").FindAllStringSubmatch(string(text), -1) {
		written = append(written, m[1])
	}
	registry := prometheus.NewRegistry()
	edge.Register(registry, func() *edge.Edge { return nil })
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		names = append(names, f.GetName())
	}
	slices.Sort(written)
	if len(names) == 0 || !slices.Equal(written, names) {
		t.Errorf("written down are %v, and there are %v", written, names)
	}
}
