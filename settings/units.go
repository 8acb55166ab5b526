package settings

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A Size is a number of bytes, written such as 512MiB or 2G. It is a flag's value too.
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"", 1},
}

// Set reads a size.
func (s *Size) Set(text string) error {
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 1 || n > (1<<62)/u.bytes {
			break
		}
		*s = Size(n * u.bytes)
		return nil
	}
	return fmt.Errorf("%q is not a size such as 512MiB or 2GiB", text)
}

func (s *Size) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*s), 10)
}

// Type is what the help calls the value.
func (s *Size) Type() string { return "size" }

// UnmarshalYAML reads a size from a file.
func (s *Size) UnmarshalYAML(node *yaml.Node) error {
	return readScalar(node, s.Set)
}

// A Duration is a time with its unit, such as 30s, 5m or 90d. "never" is one below 0,
// for settings where that has a meaning.
type Duration time.Duration

// Never is the duration that is written "never".
const Never = Duration(-1)

// Set reads a duration.
func (d *Duration) Set(text string) error {
	if text == "never" {
		*d = Never
		return nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n <= 100_000 {
			*d = Duration(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	}
	n, err := time.ParseDuration(text)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a time such as 30s, 5m, 12h or 90d", text)
	}
	*d = Duration(n)
	return nil
}

// UnmarshalYAML reads a duration from a file.
func (d *Duration) UnmarshalYAML(node *yaml.Node) error {
	return readScalar(node, d.Set)
}

func readScalar(node *yaml.Node, set func(string) error) error {
	err := fmt.Errorf("must be a single value")
	if node.Kind == yaml.ScalarNode {
		err = set(node.Value)
	}
	if err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %v", node.Line, err)}}
	}
	return nil
}
