package mcp

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"mime"
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
	for _, c := range res.Content {
		out.Content = append(out.Content, block(c))
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

// block is a piece of a result as a block of the public API.
func block(c sdk.Content) json.RawMessage {
	switch c := c.(type) {
	case *sdk.TextContent:
		return api.TextBlock(c.Text)
	case *sdk.ImageContent:
		if slices.Contains(imageTypes, media(c.MIMEType)) && len(c.Data) > 0 {
			return base64Block(api.BlockImage, media(c.MIMEType), c.Data)
		}
		return note("image", c.MIMEType, len(c.Data))
	case *sdk.AudioContent:
		return note("audio", c.MIMEType, len(c.Data))
	case *sdk.ResourceLink:
		lines := []string{"Resource: " + c.URI}
		for _, part := range []string{c.Name, c.Title, c.Description, c.MIMEType} {
			if part != "" && part != c.URI {
				lines = append(lines, part)
			}
		}
		return api.TextBlock(strings.Join(lines, "\n"))
	case *sdk.EmbeddedResource:
		return resource(c.Resource)
	}
	return api.TextBlock(fmt.Sprintf("(%T left out: this kind of content is not supported)", c))
}

func resource(r *sdk.ResourceContents) json.RawMessage {
	kind := ""
	if r != nil {
		kind = media(r.MIMEType)
	}
	switch {
	case r == nil:
		return api.TextBlock("(an empty resource)")
	case len(r.Blob) == 0:
		return api.TextBlock("Resource " + r.URI + ":\n" + r.Text)
	case slices.Contains(imageTypes, kind):
		return base64Block(api.BlockImage, kind, r.Blob)
	case kind == "application/pdf":
		return base64Block(api.BlockDocument, kind, r.Blob)
	}
	return note("resource "+r.URI, r.MIMEType, len(r.Blob))
}

func note(what, kind string, size int) json.RawMessage {
	return api.TextBlock(fmt.Sprintf("(%s of type %q and %d bytes left out: this kind of content is not supported)", what, kind, size))
}

func media(kind string) string {
	m, _, err := mime.ParseMediaType(kind)
	if err != nil {
		return ""
	}
	return m
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
