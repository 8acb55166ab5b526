package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var (
	quotedCommand = regexp.MustCompile("`bailey ([a-z][^`]*)`")
	typedCommand  = regexp.MustCompile(`(?m)^(?:\$ )?bailey ([a-z].*)$`)
)

// notSource are folders that are not read: what is made in a checkout, and test data.
var notSource = []string{"testdata", "node_modules", "bin", "dist", "out", "bailey-data", "bailey-worker"}

// notForHands are no commands for people: lines of a record, what runs in a box, and the
// example of how to add a noun.
var notForHands = map[string]bool{"audit rekey": true, "tool serve": true, "deployments": true}

// Every command that a document, an error or a remedy names can be typed: it is there, and
// so are its flags.
func TestCommandsThatAreNamedAreThere(t *testing.T) {
	t.Parallel()
	root := (&Program{Env: func(string) (string, bool) { return "", false }}).root()
	named := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != ".." && strings.HasPrefix(name, ".") || slices.Contains(notSource, name) {
				return filepath.SkipDir
			}
			return nil
		}
		ext := filepath.Ext(name)
		if ext != ".md" && ext != ".yaml" && (ext != ".go" || strings.HasSuffix(name, "_test.go")) || name == "CHANGELOG.md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found := quotedCommand.FindAllStringSubmatch(string(text), -1)
		if ext == ".md" {
			found = append(found, typedCommand.FindAllStringSubmatch(string(text), -1)...)
		}
		for _, m := range found {
			named++
			if why := notTyped(root, m[1]); why != "" {
				t.Errorf("%s: bailey %s: %s", path, m[1], why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if named < 100 {
		t.Errorf("only %d commands were found", named)
	}
}

// notTyped says why a command cannot be typed as it is named, or "".
func notTyped(root *cobra.Command, text string) string {
	if i := strings.IndexAny(text, "#|>\"+"); i >= 0 {
		text = text[:i] // a comment, a shell's business, or where a string in a program ends
	}
	words := strings.Fields(strings.TrimSuffix(strings.ReplaceAll(strings.TrimSpace(text), "//", ""), "\\"))
	if len(words) > 0 && notForHands[strings.Join(words[:min(2, len(words))], " ")] {
		return ""
	}
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err.Error()
	}
	if cmd == root || cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return "there is no such command"
	}
	flags := make(map[string]bool)
	for _, word := range rest {
		name, isFlag := strings.CutPrefix(word, "--")
		if !isFlag {
			continue
		}
		name, _, _ = strings.Cut(strings.TrimRight(name, ".,;:)"), "=")
		flags[name] = true
		if cmd.Flag(name) == nil && cmd.InheritedFlags().Lookup(name) == nil {
			return "it has no flag --" + name
		}
	}
	if strings.HasSuffix(cmd.CommandPath(), "keys create") && len(rest) > 0 && !flags["name"] {
		return "it needs --name"
	}
	return ""
}
