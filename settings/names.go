package settings

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Unknown says which names in a mapping no field of a struct has, as [Parse] does. A type
// that reads itself from a node (yaml.Unmarshaler) calls it: what it decodes is not
// looked at otherwise.
func Unknown(node *yaml.Node, into any) error {
	var wrong yaml.TypeError
	unknown(node, reflect.TypeOf(into), &wrong.Errors)
	if len(wrong.Errors) > 0 {
		return &wrong
	}
	return nil
}

var selfReader = reflect.TypeFor[yaml.Unmarshaler]()

func unknown(node *yaml.Node, t reflect.Type, found *[]string) {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case node.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		for _, n := range node.Content {
			unknown(n, t.Elem(), found)
		}
	case node.Kind == yaml.MappingNode && t.Kind() == reflect.Struct:
		fields := make(map[string]reflect.Type)
		fieldsOf(t, fields)
		for i := 0; i+1 < len(node.Content); i += 2 {
			name := node.Content[i]
			of, ok := fields[name.Value]
			switch {
			case name.Tag == "!!merge":
				unknown(node.Content[i+1], t, found)
			case !ok:
				*found = append(*found, fmt.Sprintf("line %d: field %s not found in type %s", name.Line, name.Value, t))
			case !reflect.PointerTo(of).Implements(selfReader):
				unknown(node.Content[i+1], of, found)
			}
		}
	}
}

// fieldsOf are the fields of a struct by their names in a file.
func fieldsOf(t reflect.Type, into map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, rest, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case !f.IsExported() || name == "-":
		case strings.Contains(rest, "inline"):
			fieldsOf(f.Type, into)
		case name == "":
			into[strings.ToLower(f.Name)] = f.Type
		default:
			into[name] = f.Type
		}
	}
}
