package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// FileMax bounds a file of settings in bytes.
const FileMax = 1 << 20

// Invalid is the error of a configuration that cannot be meant: what is wrong with it,
// a line for each thing.
type Invalid struct {
	Path     string   // of the file; empty if the problem is not one of its lines
	Problems []string // those of a file with "line N: " before them
}

func (e *Invalid) Error() string {
	before := ""
	if e.Path != "" {
		before = e.Path + ": "
	}
	return before + strings.Join(e.Problems, "\n"+before)
}

// ReadFile reads a file of at most [FileMax] bytes.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, FileMax+1))
	if err == nil && len(data) > FileMax {
		err = fmt.Errorf("larger than %d bytes", FileMax)
	}
	return data, err
}

// Parse reads a file's text into a struct: one document, a mapping, and every name in it
// one that the struct has. It returns the document for a second look at parts of it, nil
// if there is nothing in it but comments, and what is wrong, for [Invalid]. example is
// where a person finds all settings, such as docs/worker.yaml.
func Parse(text []byte, into any, example string) (root *yaml.Node, problems []string) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, Problems(err, example)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, []string{"there is more than one document"}
	}
	if root = doc.Content[0]; root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	} else if root.Kind != yaml.MappingNode {
		return nil, []string{fmt.Sprintf("line %d: must be a list of `name: value` lines", root.Line)}
	}
	dec = yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil {
		return nil, Problems(err, example)
	}
	return root, nil
}

var (
	unknownField = regexp.MustCompile(`^(line \d+: )field (\S+) not found in type .+$`)
	wrongType    = regexp.MustCompile("^(line \\d+: )cannot unmarshal !!(\\w+)(?: `.*`)? into (.+)$")
	secretField  = regexp.MustCompile(`^(key|token|secret|password|value|environment-key)$`)
)

// Problems words what the decoder says for people.
func Problems(err error, example string) []string {
	var wrong *yaml.TypeError
	if !errors.As(err, &wrong) {
		text := strings.TrimPrefix(err.Error(), "yaml: ")
		if strings.HasSuffix(text, "found character that cannot start any token") {
			text += " (a tab? YAML is indented with spaces)"
		}
		return []string{text}
	}
	var all []string
	for _, text := range wrong.Errors {
		if m := unknownField.FindStringSubmatch(text); m != nil {
			text = fmt.Sprintf("%sthere is no setting %q here; %s has them all", m[1], m[2], example)
			if secretField.MatchString(m[2]) {
				text = fmt.Sprintf("%s%q: a secret is not written into this file: name the file, variable or command that it comes from, as %s does", m[1], m[2], example)
			}
		}
		if m := wrongType.FindStringSubmatch(text); m != nil {
			text = m[1] + wanted(m[2], m[3])
		}
		all = append(all, text)
	}
	return all
}

// wanted says what has to stand where something of another kind, by its YAML tag, was
// given for a Go type. It does not show that: it may be secret.
func wanted(given, goType string) string {
	kinds := map[string]string{"str": "a text", "seq": "a list", "map": "`name: value` lines", "int": "a number", "float": "a number", "bool": "true or false", "null": "nothing"}
	want := ""
	switch {
	case strings.HasPrefix(goType, "[]"):
		want = "a list, such as [a, b]"
	case goType == "bool":
		want = "true or false"
	case goType == "float64":
		want = "a number"
	case strings.HasPrefix(goType, "int"), strings.HasPrefix(goType, "uint"):
		want = "a whole number"
	case strings.HasPrefix(goType, "map["):
		want = kinds["map"]
	case goType == "string", given == "map":
		want = "a single value"
	case given == "seq":
		return "must not be a list"
	default:
		want = kinds["map"]
	}
	is, ok := kinds[given]
	if !ok {
		is = "something else"
	}
	return fmt.Sprintf("must be %s, and is %s", want, is)
}

// Line returns the line at which a setting is given in a document that Parse returned, by
// its names from the outermost one on with dots between them, or of the innermost of them
// that is there. It is 0 if the first is not.
func Line(root *yaml.Node, setting string) (line int) {
	at := root
next:
	for name := range strings.SplitSeq(setting, ".") {
		for at != nil && at.Kind == yaml.AliasNode {
			at = at.Alias
		}
		if at == nil || at.Kind != yaml.MappingNode {
			return line
		}
		for i := 0; i+1 < len(at.Content); i += 2 {
			if at.Content[i].Value == name {
				line, at = at.Content[i].Line, at.Content[i+1]
				continue next
			}
		}
		return line
	}
	return line
}
