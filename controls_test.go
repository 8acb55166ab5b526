package main_test

import (
	"go/ast"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryTestOfTheControlsExists holds docs/controls.md to the code. Tests are named
// there as `package.TestName`; those of the house have no package.
func TestEveryTestOfTheControlsExists(t *testing.T) {
	text, err := os.ReadFile("docs/controls.md")
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]*pkg{}
	for _, p := range list(t) {
		dirs[p.name()] = p
	}
	known := map[string][]string{}
	tests := func(name string) []string {
		p := dirs[name]
		if p == nil {
			return nil
		}
		if known[name] == nil {
			known[name] = []string{""}
			for _, file := range parse(t, p.Dir, slices.Concat(p.TestGoFiles, p.XTestGoFiles)) {
				for _, d := range file.Decls {
					if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
						known[name] = append(known[name], f.Name.Name)
					}
				}
			}
		}
		return known[name]
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`(?:([a-z0-9/]+)\\.)?((?:Test|Fuzz)[A-Za-z0-9_]+)`").FindAllStringSubmatch(string(text), -1) {
		named[m[0]] = true
		if !slices.Contains(tests(m[1]), m[2]) {
			t.Errorf("docs/controls.md names %s, which is no test", m[0])
		}
	}
	if len(named) < 50 {
		t.Errorf("docs/controls.md names %d tests: %v", len(named), slices.Sorted(maps.Keys(named)))
	}
	// A row says who meets it.
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| AU-") || strings.HasPrefix(line, "| AC-") || strings.HasPrefix(line, "| SC-") || strings.HasPrefix(line, "| SI-") || strings.HasPrefix(line, "| CC") {
			if !strings.Contains(line, "`Test") && !strings.Contains(line, ".Test") && !strings.Contains(line, "| the operator's | |") {
				t.Errorf("a row of docs/controls.md names no test: %s", line)
			}
		}
	}
}
