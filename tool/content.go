package tool

import (
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

// canonical returns the result written anew from the parts it may have, so that
// nothing else an agent puts into it travels on, or says what is wrong with it.
func canonical(r Result) (Result, error) {
	if len(r.Content) > blocksMax {
		return Result{}, fmt.Errorf("%w: %d content blocks, at most %d allowed", ErrFrame, len(r.Content), blocksMax)
	}
	out := Result{Content: make([]json.RawMessage, 0, len(r.Content)), IsError: r.IsError}
	for _, raw := range r.Content {
		var b block
		if err := json.Unmarshal(raw, &b); err != nil {
			return Result{}, fmt.Errorf("%w: content block: %w", ErrFrame, err)
		}
		clean, err := b.canonical()
		if err != nil {
			return Result{}, err
		}
		out.Content = append(out.Content, clean)
	}
	if len(out.Content) == 0 {
		out.Content = append(out.Content, Text(""))
	}
	return out, nil
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
