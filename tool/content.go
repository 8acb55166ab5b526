package tool

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
)

// The content blocks a built-in tool may return.
type (
	block struct {
		Type   string  `json:"type"`
		Text   string  `json:"text,omitempty"`
		Source *source `json:"source,omitempty"`
	}
	source struct {
		Type      string `json:"type"`
		MediaType string `json:"media_type"`
		Data      string `json:"data"`
	}
)

// The media types of the blocks that are not text.
var (
	imageTypes    = []string{"image/png", "image/jpeg", "image/gif", "image/webp"}
	documentTypes = []string{"application/pdf"}
)

// noOutput stands in for the empty text blocks that the sessions API refuses.
const noOutput = "(no output)"

// Text returns a text block.
func Text(text string) json.RawMessage {
	if text == "" {
		text = noOutput
	}
	return mustMarshal(block{Type: "text", Text: text})
}

// Media returns an image or document block that holds data. It reports false for
// a media type that neither of them may have.
func Media(mediaType string, data []byte) (json.RawMessage, bool) {
	b := block{Source: &source{Type: "base64", MediaType: mediaType}}
	switch {
	case slices.Contains(imageTypes, mediaType):
		b.Type = "image"
	case slices.Contains(documentTypes, mediaType):
		b.Type = "document"
	default:
		return nil, false
	}
	b.Source.Data = base64.StdEncoding.EncodeToString(data)
	return mustMarshal(b), true
}

// ErrorResult is the result of a call that failed for the reason given.
func ErrorResult(text string) Result {
	return Result{Content: []json.RawMessage{Text(text)}, IsError: true}
}

// blocksMax bounds the blocks of one result. Our agent never sends more than one.
const blocksMax = 16

// decodeResult decodes what an agent says a call came to. The blocks are written anew
// from the parts they may have, so that nothing else travels on, and one at a time,
// as a frame of nothing but commas would otherwise cost a multiple of its size.
func decodeResult(raw json.RawMessage) (Result, error) {
	var parts struct {
		Content  json.RawMessage `json:"content"`
		IsError  bool            `json:"is_error"`
		TimedOut bool            `json:"timed_out"`
		Full     *Full           `json:"full"`
	}
	if err := decode(raw, &parts); err != nil {
		return Result{}, err
	}
	result := Result{IsError: parts.IsError, TimedOut: parts.TimedOut}
	if parts.Full != nil && slices.Contains(ScratchPlaces, parts.Full.Place) {
		result.Full = parts.Full
	}
	blocks := json.NewDecoder(bytes.NewReader(parts.Content))
	if start, err := blocks.Token(); err != nil || start != json.Delim('[') {
		return Result{}, fmt.Errorf("%w: a result without content", ErrFrame)
	}
	for blocks.More() {
		if len(result.Content) == blocksMax {
			return Result{}, fmt.Errorf("%w: more than %d content blocks", ErrFrame, blocksMax)
		}
		var b block
		if err := blocks.Decode(&b); err != nil {
			return Result{}, fmt.Errorf("%w: content block: %w", ErrFrame, err)
		}
		clean, err := b.canonical()
		if err != nil {
			return Result{}, err
		}
		result.Content = append(result.Content, clean)
	}
	if len(result.Content) == 0 {
		result.Content = append(result.Content, Text(""))
	}
	return result, nil
}

func (b block) canonical() (json.RawMessage, error) {
	if b.Type == "text" {
		return Text(b.Text), nil
	}
	if b.Source == nil || b.Source.Type != "base64" {
		return nil, fmt.Errorf("%w: content block of type %.20q without a base64 source", ErrFrame, b.Type)
	}
	data, err := base64.StdEncoding.DecodeString(b.Source.Data)
	if err != nil {
		return nil, fmt.Errorf("%w: content block: %w", ErrFrame, err)
	}
	clean, ok := Media(b.Source.MediaType, data)
	if !ok {
		return nil, fmt.Errorf("%w: content block of media type %.40q", ErrFrame, b.Source.MediaType)
	}
	return clean, nil
}

// mustMarshal encodes a value that always has an encoding.
func mustMarshal(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}
