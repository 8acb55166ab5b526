package cli

import (
	"strings"
	"testing"
)

func TestFlowBreaksLinesBetweenWords(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		width  int
		pieces []string
		want   string
	}{
		{0, []string{"one two three\nfour"}, "one two three\n  four"},
		{12, []string{"one two three four"}, "one two\n  three four"},
		{12, []string{"one two thr", "ee four"}, "one two\n  three four"}, // a word that comes in pieces
		{12, []string{"o", "n", "e", " ", "t", "wo", "\n", "\n", "x"}, "one two\n  \n  x"},
		{12, []string{"one  two   three"}, "one  two\n  three"},
		{12, []string{"a-word-longer-than-a-line and more"}, "a-word-longer-than-a-line\n  and more"},
		{12, []string{"x a-word-longer-than-a-line"}, "x\n  a-word-longer-than-a-line"},
		{12, []string{"  indented"}, "  indented"},
		{12, []string{"naïve größe äöü"}, "naïve\n  größe äöü"},
	} {
		var out strings.Builder
		f := &flow{w: &out, indent: 2, width: tc.width}
		for _, piece := range tc.pieces {
			f.write(piece)
		}
		f.flush()
		if got := out.String(); got != tc.want {
			t.Errorf("%q at %d: %q, want %q", tc.pieces, tc.width, got, tc.want)
		}
	}
}
