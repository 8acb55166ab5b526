package agent

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// decode reads a tool's input. None at all is an empty object. What is of the wrong type
// but can be taken for the right one is, as models write numbers into strings and the
// other way round.
func decode(input json.RawMessage, into any) error {
	if len(input) == 0 || string(input) == "null" {
		return nil
	}
	return json.Unmarshal(input, into)
}

// A text is a string.
type text string

func (t *text) UnmarshalJSON(data []byte) error {
	var s string
	switch data[0] {
	case '"':
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
	case '{', '[':
		return fmt.Errorf("%.20s is no string", data)
	case 'n': // null
	default:
		s = string(data)
	}
	*t = text(s)
	return nil
}

// A number is a whole one. What is none counts as absent.
type number int64

func (n *number) UnmarshalJSON(data []byte) error {
	s := string(data)
	if data[0] == '"' {
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil && f > -1e15 && f < 1e15 {
		*n = number(f)
	}
	return nil
}

// A truth is true or false.
type truth bool

func (f *truth) UnmarshalJSON(data []byte) error {
	*f = string(data) == "true" || string(data) == `"true"`
	return nil
}
