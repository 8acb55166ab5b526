package edge_test

import (
	"testing"

	"github.com/bailey-platform/bailey/tunnel/edge"
)

func TestACallGoesThroughAndIsCounted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.edge(edge.Limits{})
	l.connector("one")
	l.dial()
	for range 3 {
		if by := l.mustCall(); by != "one" {
			t.Fatalf("answered by %q", by)
		}
	}
	eventually(t, "the plane knows what has passed", func() bool {
		to, from, opened := l.plane.traffic()
		return to > 300 && from > 300 && opened == 1
	})
}
