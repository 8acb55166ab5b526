package egress

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// docs/network.md has every preset with its hosts, as the code has.
func TestPresetsAreInTheDocs(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/network.md")
	if err != nil {
		t.Fatal(err)
	}
	row := func(name, before string, values []string) {
		want := fmt.Sprintf("| `%s` | %s`%s` |\n", name, before, strings.Join(values, "`, `"))
		if !strings.Contains(string(doc), want) {
			t.Errorf("docs/network.md has no line\n%s", want)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(presets)) {
		row(name, "", presets[name])
	}
	for name, members := range sets {
		row(name, "the presets ", members)
	}
}
