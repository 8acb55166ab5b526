package daemon

import (
	_ "embed"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"sync"
)

//go:embed config.go
var configSource string

// fieldComments returns the comment of each field of [Config], in one
// paragraph, by the field's name in Go. The source is read at run time so that
// the manual is written once, where the fields are.
var fieldComments = sync.OnceValue(func() map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", configSource, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		panic("daemon: the embedded config.go does not parse: " + err.Error())
	}
	out := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "Config" {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			name := f.Names[0].Name
			text := strings.Join(strings.Fields(f.Doc.Text()), " ")
			text = strings.TrimPrefix(strings.TrimPrefix(text, name+" "), "is ")
			out[name] = strings.ToUpper(text[:1]) + text[1:]
		}
		return false
	})
	return out
})

const exampleHead = `# Settings of bailey serve, all at their defaults.
#
#   bailey serve --config bailey.yaml
#
# Every key is also a flag (--model-url) and an environment variable
# (BAILEY_MODEL_URL). A flag wins over the environment, the environment over this
# file, this file over the default. A key that is not in this list is refused.
# Secrets are not written here: name a file, or use the environment.
`

// Example returns a configuration file with every key, its default and its
// documentation.
func Example() string {
	var out strings.Builder
	out.WriteString(exampleHead)
	defaults := Defaults()
	for _, s := range defaults.Settings() {
		out.WriteString("\n" + wrap("# ", s.Help))
		if s.Secret {
			fmt.Fprintf(&out, "# (only as %s in the environment)\n", s.Env)
			continue
		}
		value := s.String()
		if s.Type() == typeMap {
			value = "{}"
		} else if value == "" {
			value = `""`
		}
		fmt.Fprintf(&out, "#%s: %s\n", s.Name, value)
	}
	return out.String()
}

// wrap breaks text into lines of at most 78 characters that begin with prefix.
func wrap(prefix, text string) string {
	var out strings.Builder
	line := prefix
	for word := range strings.FieldsSeq(text) {
		if len(line)+len(word) > 78 && line != prefix {
			out.WriteString(strings.TrimRight(line, " ") + "\n")
			line = prefix
		}
		line += word + " "
	}
	out.WriteString(strings.TrimRight(line, " ") + "\n")
	return out.String()
}
