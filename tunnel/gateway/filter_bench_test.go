package gateway

import (
	"bytes"
	"testing"
)

// BenchmarkFilterSmallEvents is of a stream of the smallest events there are, as much of it
// as is read at once: what an event costs must not depend on how many come with it.
func BenchmarkFilterSmallEvents(b *testing.B) {
	rules, err := newToolRules(nil, []string{"x"})
	if err != nil {
		b.Fatal(err)
	}
	part := bytes.Repeat([]byte(":\n\n"), bufLarge/3)
	b.SetBytes(int64(len(part)))
	f := eventFilter{rules: rules}
	for b.Loop() {
		if err := f.add(part, func([]byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
