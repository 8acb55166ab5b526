package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"
)

// JSON is walked here by the byte and not decoded, for two reasons: what is passed on
// stays what was sent, and what two programs could read differently is seen. Of a name
// that stands twice in an object some readers take the first value and some the last; some
// match names whatever their case. Where it matters, neither is let through.

var (
	errNotJSON  = errors.New("the body is no JSON text")
	errTwice    = errors.New("a name stands in an object twice")
	errSpelling = errors.New("a name is spelt like another but for its case")
)

// checkJSON reports whether text is one JSON value in valid UTF-8. What follows walks
// only such text.
func checkJSON(text []byte) error {
	if !json.Valid(text) || !utf8.Valid(text) {
		return errNotJSON
	}
	return nil
}

// skipSpace returns the index of the next byte that is no white space.
func skipSpace(text []byte, i int) int {
	for i < len(text) && (text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the index after the value that begins at i.
func skipValue(text []byte, i int) int {
	switch text[i] {
	case '"':
		return skipString(text, i)
	case '{', '[':
		for depth := 0; ; i++ {
			switch text[i] {
			case '"':
				i = skipString(text, i) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
	}
	for i < len(text) && strings.IndexByte(",]} \t\r\n", text[i]) < 0 {
		i++
	}
	return i
}

func skipString(text []byte, i int) int {
	for i++; ; i++ {
		next := bytes.IndexAny(text[i:], `"\`)
		i += next
		if text[i] == '"' {
			return i + 1
		}
		i++ // whatever is escaped
	}
}

// members calls do with the name, decoded, and the value of each member of an object.
func members(object []byte, do func(name string, value []byte) error) error {
	i := skipSpace(object, 0) + 1
	for {
		i = skipSpace(object, i)
		if object[i] == '}' {
			return nil
		}
		end := skipString(object, i)
		name := unquote(object[i:end])
		i = skipSpace(object, end) + 1 // the colon
		i = skipSpace(object, i)
		end = skipValue(object, i)
		if err := do(name, object[i:end]); err != nil {
			return err
		}
		i = skipSpace(object, end)
		if object[i] == ',' {
			i++
		}
	}
}

// elements calls do with each element of an array and where it begins.
func elements(array []byte, do func(at int, element []byte) error) error {
	i := skipSpace(array, 0) + 1
	for {
		i = skipSpace(array, i)
		if array[i] == ']' {
			return nil
		}
		end := skipValue(array, i)
		if err := do(i, array[i:end]); err != nil {
			return err
		}
		i = skipSpace(array, end)
		if array[i] == ',' {
			i++
		}
	}
}

// unquote returns what a JSON string says.
func unquote(quoted []byte) string {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1])
	}
	var s string
	_ = json.Unmarshal(quoted, &s) // it is valid
	return s
}

// asString returns what a value says if it is a string.
func asString(value []byte) (string, bool) {
	if len(value) < 2 || value[0] != '"' {
		return "", false
	}
	return unquote(value), true
}

// pick takes the members of an object that names names. A name that stands twice, or in
// another case, is an error.
func pick(object []byte, names []string, into []*[]byte) error {
	return members(object, func(name string, value []byte) error {
		for i, n := range names {
			if name == n {
				if *into[i] != nil {
					return errTwice
				}
				*into[i] = value
				return nil
			}
			if strings.EqualFold(name, n) {
				return errSpelling
			}
		}
		return nil
	})
}
