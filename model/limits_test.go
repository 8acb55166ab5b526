package model

import (
	"errors"
	"strconv"
	"strings"
	"testing"
)

// The limits are tried close to their end: filling them takes seconds.

func TestMessageWithoutEnd(t *testing.T) {
	t.Parallel()
	events := map[string]string{
		"text":   `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi"}}`,
		"empty":  `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""}}`,
		"fields": `{"type":"content_block_delta","index":0,"delta":{"type":"x_delta","x":"hi"}}`,
		"block":  `{"type":"content_block_start","index":NEXT,"content_block":{"type":"text","text":""}}`,
	}
	for name, event := range events {
		m := message{started: true, size: maxMessageBytes - 200, blocks: []block{{raw: []byte(`{"type":"text"}`), kind: "text", open: true}}}
		var err error
		for range 4 {
			data := strings.Replace(event, "NEXT", strconv.Itoa(len(m.blocks)), 1)
			if _, err = m.apply([]byte(data), func(Delta) {}); err != nil {
				break
			}
		}
		var e *Error
		if !errors.As(err, &e) || e.Kind != Garbage || e.Retryable || e.Message != "the content of the reply exceeds the limit of 32 MiB" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// forever repeats a text.
type forever string

func (f forever) Read(p []byte) (int, error) { return copy(p, f), nil }

func TestStreamWithoutEnd(t *testing.T) {
	t.Parallel()
	r := newEventReader(forever(": still here\n\ndata: {}\n\n"))
	r.left = 1 << 20
	var err error
	for err == nil {
		_, err = r.next()
	}
	var e *Error
	if !errors.As(err, &e) || e.Kind != Garbage || e.Message != "the whole stream of the reply exceeds the limit of 256 MiB" {
		t.Errorf("got %v", err)
	}
}
