package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
)

// DecodeStrict reads exactly one JSON value into v. Unknown fields, trailing
// bytes and wrong types are an [Error] that names the field.
func DecodeStrict(data []byte, v any) error {
	if tooDeep(data) {
		return Invalid("the body is nested more than %d levels deep", depthMax)
	}
	data = SoundText(data)
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return decodeError(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Invalid("the body holds more than one JSON value")
	}
	return nil
}

// depthMax bounds the nesting of what clients send: what is kept is nested a little
// deeper, and every reader has a limit of its own.
const depthMax = 200

func tooDeep(data []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > depthMax {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// SoundText returns JSON in which every escaped half of a surrogate pair that stands
// alone is replaced by U+FFFD, as decoding it would. Parts of what comes from outside
// are kept and passed on as the JSON they came in, and not every reader of that is as
// forgiving as ours: a model's endpoint refuses the whole conversation.
func SoundText(data []byte) []byte {
	if !bytes.Contains(data, []byte(`\ud`)) && !bytes.Contains(data, []byte(`\uD`)) {
		return data
	}
	var out []byte
	kept := 0 // of data, in out
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		unit, ok := escapedUnit(data[i:])
		if !ok || !utf16.IsSurrogate(unit) {
			i++ // past what is escaped
			continue
		}
		if low, ok := escapedUnit(data[i+6:]); ok && utf16.DecodeRune(unit, low) != unicode.ReplacementChar {
			i += 11
			continue
		}
		out = append(append(out, data[kept:i]...), `\ufffd`...)
		kept = i + 6
		i += 5
	}
	if out == nil {
		return data
	}
	return append(out, data[kept:]...)
}

// escapedUnit reads \uXXXX at the beginning of data.
func escapedUnit(data []byte) (rune, bool) {
	if len(data) < 6 || data[0] != '\\' || data[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(data[2:6]), 16, 16)
	return rune(n), err == nil
}

func decodeError(err error) error {
	if e := AsError(err); e != nil {
		return e
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if e.Field == "" {
			return Invalid("the body must be a JSON object, not a JSON %s", e.Value)
		}
		return Invalid("%s: wrong type: got a JSON %s", e.Field, e.Value)
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return Invalid("the body is not valid JSON: %s at byte %d", e.Error(), e.Offset)
	}
	if errors.Is(err, io.EOF) {
		return Invalid("the body is empty; a JSON object is required")
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return Invalid("the body is not valid JSON: it ends in the middle of a value")
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return Invalid("%s: extra inputs are not permitted", strings.Trim(field, `"`))
	}
	return Invalid("the body could not be read: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// An Opt is a field of an update: absent (leave as it is), null (clear or
// default), or a value.
type Opt[T any] struct {
	Set   bool // the field was present
	Null  bool // and was null
	Value T
}

// Some returns a present, non-null field.
func Some[T any](v T) Opt[T] { return Opt[T]{Set: true, Value: v} }

func (o *Opt[T]) UnmarshalJSON(data []byte) error {
	o.Set = true
	if bytes.Equal(data, []byte("null")) {
		o.Null = true
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	return dec.Decode(&o.Value)
}

func (o Opt[T]) MarshalJSON() ([]byte, error) {
	if !o.Set || o.Null {
		return []byte("null"), nil
	}
	return json.Marshal(o.Value)
}

// IsZero lets `omitzero` leave an absent field out.
func (o Opt[T]) IsZero() bool { return !o.Set }

// Metadata is a flat map of strings kept with an object: at most 16 pairs, keys of
// 1 to 64 and values of up to 512 characters.
type Metadata map[string]string

const (
	metadataPairsMax = 16
	metadataKeyMax   = 64
	metadataValueMax = 512
)

// Check applies the limits of [Metadata].
func (m Metadata) Check() error {
	if len(m) > metadataPairsMax {
		return Invalid("metadata: at most %d pairs, got %d", metadataPairsMax, len(m))
	}
	for k, v := range m {
		if k == "" || runeLen(k) > metadataKeyMax {
			return Invalid("metadata: a key must be 1 to %d characters", metadataKeyMax)
		}
		if runeLen(v) > metadataValueMax {
			return Invalid("metadata.%s: at most %d characters", k, metadataValueMax)
		}
	}
	return nil
}

// A MetadataPatch changes single pairs: a string sets, null deletes.
type MetadataPatch map[string]*string

// Apply returns m with the patch applied, and whether that changed anything. m
// itself is left alone.
func (p MetadataPatch) Apply(m Metadata) (Metadata, bool) {
	out, changed := Metadata{}, false
	for k, v := range m {
		out[k] = v
	}
	for k, v := range p {
		old, had := out[k]
		switch {
		case v == nil && had:
			delete(out, k)
			changed = true
		case v != nil && (!had || old != *v):
			out[k] = *v
			changed = true
		}
	}
	return out, changed
}

func runeLen(s string) int { return len([]rune(s)) }

// checkLen applies a length limit in characters.
func checkLen(field, s string, least, most int) error {
	if n := runeLen(s); n < least || n > most {
		if least == 0 {
			return Invalid("%s: at most %d characters, got %d", field, most, n)
		}
		return Invalid("%s: must be %d to %d characters, got %d", field, least, most, n)
	}
	return nil
}

// at puts the path of a nested field before a validation error.
func at(err error, format string, args ...any) error {
	if e := AsError(err); e != nil {
		c := *e
		c.Message = fmt.Sprintf(format, args...) + "." + e.Message
		return &c
	}
	return err
}
