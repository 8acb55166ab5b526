package daemon

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/telemetry"
)

// A Setting is one field of a [Config] under the name it has on the command
// line, in the environment and in the file. It has the methods of a flag's
// value.
type Setting struct {
	Name   string // "model-url"
	Env    string // "BAILEY_MODEL_URL"
	Help   string // the field's comment, in one paragraph
	Secret bool   // from the environment only, and never shown

	value reflect.Value // of the field
}

// Settings returns c's fields as settings that read and write c.
func (c *Config) Settings() []Setting {
	fields := reflect.ValueOf(c).Elem()
	comments := fieldComments()
	out := make([]Setting, fields.NumField())
	for i := range out {
		f := fields.Type().Field(i)
		name := f.Tag.Get("name")
		_, secret := fields.Field(i).Interface().(Secret)
		out[i] = Setting{
			Name:   name,
			Env:    "BAILEY_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")),
			Help:   comments[f.Name],
			Secret: secret,
			value:  fields.Field(i),
		}
	}
	return out
}

// String is the value as Set takes it; a secret's is a placeholder.
func (s Setting) String() string {
	if !s.value.IsValid() {
		return "" // pflag asks the zero value, too
	}
	if m, ok := s.value.Interface().(map[string]string); ok {
		pairs := make([]string, 0, len(m))
		for _, k := range slices.Sorted(maps.Keys(m)) {
			pairs = append(pairs, k+"="+m[k])
		}
		return strings.Join(pairs, ",")
	}
	return fmt.Sprint(s.value.Interface())
}

// Shown is the value for a person's eyes: a password in a URL is hidden.
func (s Setting) Shown() string { return string(telemetry.Redact([]byte(s.String()))) }

// Set reads the value from text.
func (s Setting) Set(text string) error {
	switch v := s.value.Addr().Interface().(type) {
	case *string:
		*v = text
	case *Secret:
		*v = Secret(strings.TrimSpace(text))
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is not true or false", text)
		}
		*v = b
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		*v = n
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 30s or 5m", text)
		}
		*v = d
	case *map[string]string:
		m := map[string]string{}
		if text == "" {
			*v = m
			return nil
		}
		for pair := range strings.SplitSeq(text, ",") {
			k, val, ok := strings.Cut(strings.TrimSpace(pair), "=")
			if !ok || k == "" || val == "" {
				return fmt.Errorf("%q is not name=value", pair)
			}
			m[k] = val
		}
		*v = m
	default:
		panic("daemon: Config has a field of a type that settings do not know: " + s.Name)
	}
	return nil
}

const typeMap = "name=value,..."

// Type names the kind of value, for help texts.
func (s Setting) Type() string {
	switch s.value.Interface().(type) {
	case bool:
		return "bool"
	case int:
		return "int"
	case time.Duration:
		return "duration"
	case map[string]string:
		return typeMap
	}
	switch {
	case strings.HasSuffix(s.Name, "-file"), s.Name == "tls-cert", s.Name == "tls-key", s.Name == "cloud-config":
		return "file"
	case s.Name == "data":
		return "dir"
	case strings.HasSuffix(s.Name, "-url"), s.Name == "db":
		return "url"
	case s.Name == "listen", s.Name == "tunnel-listen":
		return "host:port"
	}
	return "string"
}
