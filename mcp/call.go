package mcp

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bailey-platform/bailey/api"
)

// A Result is what a tool answered. Its blocks are those of the public API: text, image
// and document; what is neither is described in a text.
type Result struct {
	Content api.Content
	IsError bool
}

// Call calls a tool with a JSON object as input. What the tool, or the server on behalf of
// it, answers is a Result, also if that is a failure. An error is an [*Error]: whoever gets
// one has to look at its MayHaveRun.
//
// The request is sent once. It is sent again only where the server has said that it did
// not look at the first: 401 to its credential, 404 to a session that it has ended, or 400
// with an error of the protocol that names the session and answers no request.
// Ending ctx tells the server that no result is wanted.
func (s *Session) Call(ctx context.Context, name string, input json.RawMessage) (Result, error) {
	var out Result
	err := s.use(ctx, doingCall, s.server.CallTimeout, func(ctx context.Context, c *conn) error {
		res, err := c.CallTool(ctx, &sdk.CallToolParams{Name: name, Arguments: input})
		if err != nil {
			t := traceOf(ctx)
			if refusal := refusalIn(err); refusal != nil && ctx.Err() == nil && !t.denied() && !t.unseen(err) {
				out = Failed("The server refused the call: " + said(refusal))
				return nil
			}
			return err
		}
		out = newResult(res)
		return nil
	})
	return out, err
}

// Failed is the result of a call that came to nothing, in words.
func Failed(text string) Result {
	return Result{Content: api.Content{api.TextBlock(text)}, IsError: true}
}

func newResult(res *sdk.CallToolResult) Result {
	if res.NeedsInput() {
		return Failed("The tool asks for further input in the middle of its call, which is not supported here. It was not carried on.")
	}
	out := Result{IsError: res.IsError}
	left := filesMax
	for _, c := range res.Content {
		out.Content = append(out.Content, block(c, &left))
	}
	if len(res.Content) == 0 && res.StructuredContent != nil {
		if text, err := json.Marshal(res.StructuredContent); err == nil {
			out.Content = append(out.Content, api.TextBlock(string(text)))
		}
	}
	return out
}

// imageTypes are those that the Messages API takes.
var imageTypes = []string{"image/jpeg", "image/png", "image/gif", "image/webp"}

// The bounds of images and documents, in bytes of base64: what the Messages API refuses in
// one message it would refuse in every later one of the conversation.
const (
	fileMax  = 5 << 20  // of one
	filesMax = 10 << 20 // of all in a result
)

// block is a piece of a result as a block of the public API. left is what images and
// documents may still take.
func block(c sdk.Content, left *int) json.RawMessage {
	switch c := c.(type) {
	case *sdk.TextContent:
		return api.TextBlock(c.Text)
	case *sdk.ImageContent:
		return file("image", c.MIMEType, c.Data, left)
	case *sdk.AudioContent:
		return note("audio", c.MIMEType, len(c.Data), notSupported)
	case *sdk.ResourceLink:
		lines := []string{"Resource: " + c.URI}
		for _, part := range []string{c.Name, c.Title, c.Description, c.MIMEType} {
			if part != "" && part != c.URI {
				lines = append(lines, part)
			}
		}
		return api.TextBlock(strings.Join(lines, "\n"))
	case *sdk.EmbeddedResource:
		switch r := c.Resource; {
		case r == nil:
			return api.TextBlock("(an empty resource)")
		case len(r.Blob) == 0:
			return api.TextBlock("Resource " + r.URI + ":\n" + r.Text)
		default:
			return file("resource "+r.URI, r.MIMEType, r.Blob, left)
		}
	}
	return api.TextBlock(fmt.Sprintf("(%T left out: this kind of content is not supported)", c))
}

// file is an image or a document, by what its bytes are: the Messages API refuses one that
// is not what it is said to be.
func file(what, said string, data []byte, left *int) json.RawMessage {
	kind, found := "", http.DetectContentType(data)
	switch {
	case slices.Contains(imageTypes, found):
		kind = api.BlockImage
	case found == "application/pdf" && what != "image":
		kind = api.BlockDocument
	default:
		return note(what, said, len(data), notSupported)
	}
	size := base64.StdEncoding.EncodedLen(len(data))
	if size > min(fileMax, *left) {
		return note(what, said, len(data), "it is too large")
	}
	*left -= size
	return base64Block(kind, found, data)
}

const notSupported = "this kind of content is not supported"

func note(what, kind string, size int, why string) json.RawMessage {
	return api.TextBlock(fmt.Sprintf("(%s of type %q and %d bytes left out: %s)", what, kind, size, why))
}

func base64Block(kind, media string, data []byte) json.RawMessage {
	type source struct {
		Type      string `json:"type"`
		MediaType string `json:"media_type"`
		Data      string `json:"data"`
	}
	b, err := json.Marshal(struct {
		Type   string `json:"type"`
		Source source `json:"source"`
	}{kind, source{"base64", media, base64.StdEncoding.EncodeToString(data)}})
	if err != nil {
		panic("mcp: a block of strings always encodes: " + err.Error())
	}
	return b
}
