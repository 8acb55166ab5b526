package cli

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a model or a tool writes could turn a line round, hide a part of it, or speak
// to the terminal with the controls above ASCII.
func TestForeignTextCannotSteerATerminal(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain, naïve, 漢字":     "plain, naïve, 漢字",
		"a\tb\nc":              "a    b\nc",
		"\x1b[31mred":          "\ufffd[31mred",
		"\u009b31mred":         "\ufffd31mred",
		"\x9b31mred":           "\ufffd31mred",
		"\x7f":                 "\ufffd",
		"\u202eevil":           "\ufffdevil",
		"\u200e\u200f\u061c":   "\ufffd\ufffd\ufffd",
		"\u2066a\u2069":        "\ufffda\ufffd",
		"a\u2028b\u2029c":      "a\ufffdb\ufffdc",
		"\ufeff\u200b\u2060":   "\ufffd\ufffd\ufffd",
		"\U000e0041\U000e007f": "\ufffd\ufffd",
		"👩\u200d💻 \u200c":      "👩\u200d💻 \u200c",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
		raw, err := json.Marshal(map[string]string{"text": in})
		if err != nil {
			t.Fatal(err)
		}
		var before, after any
		safe := cleanJSON(raw)
		if json.Unmarshal(raw, &before) != nil || json.Unmarshal(safe, &after) != nil || !cmp.Equal(before, after) {
			t.Errorf("cleanJSON(%s) = %s", raw, safe)
		}
		if shown := clean(string(safe)); shown != string(safe) {
			t.Errorf("cleanJSON(%q) still steers: %q", raw, safe)
		}
	}
}
