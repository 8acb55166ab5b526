package mcp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// A Tool is one that a server lists.
type Tool struct {
	Name        string
	Description string          // at most 8 KiB, besides a schema that is quoted in it
	InputSchema json.RawMessage // one that the Messages API accepts

	// Listed is what the server lists.
	Listed struct {
		Description string
		InputSchema json.RawMessage
	}
}

// Tools asks the server for its tools. A list with a name twice, or without end, is an
// error; so is one beyond the bounds of this package. Schemas that the Messages API would
// refuse are replaced by one for any object, and quoted in the description: the server
// checks what it is sent in any case. A server that is not for tools at all has none.
func (s *Session) Tools(ctx context.Context) ([]Tool, error) {
	var tools []Tool
	err := s.use(ctx, doingList, s.server.ListTimeout, func(ctx context.Context, c *conn) error {
		s.stale.Store(false)
		tools = nil
		size, seen := 0, map[string]bool{}
		params := &sdk.ListToolsParams{}
		for page := 1; ; page++ {
			list, err := c.ListTools(ctx, params)
			if refusal := refusalIn(err); refusal != nil && refusal.Code == jsonrpc.CodeMethodNotFound && c.InitializeResult().Capabilities.Tools == nil {
				return nil
			}
			if err != nil {
				return err
			}
			for _, t := range list.Tools {
				tool, err := newTool(t)
				if err != nil {
					return traced(ctx, err)
				}
				size += len(t.Name) + len(t.Description) + len(tool.Listed.InputSchema)
				if len(tools) == toolsMax || size > listMax {
					return traced(ctx, fmt.Errorf("%w: it lists more than %d tools, or %d MiB of them", errTooLarge, toolsMax, listMax>>20))
				}
				if seen[t.Name] {
					return traced(ctx, fmt.Errorf("it lists the tool %.128q twice", t.Name))
				}
				seen[t.Name] = true
				tools = append(tools, tool)
			}
			if list.NextCursor == "" {
				return nil
			}
			if page == pagesMax || list.NextCursor == params.Cursor {
				return traced(ctx, fmt.Errorf("%w: its list of tools has no end within %d pages", errTooLarge, pagesMax))
			}
			params = &sdk.ListToolsParams{Cursor: list.NextCursor}
		}
	})
	if err != nil {
		return nil, err
	}
	return tools, nil
}

// traced takes an error of ours down, so that it is what is reported.
func traced(ctx context.Context, err error) error {
	traceOf(ctx).fail(err)
	return err
}

const (
	descriptionMax = 8 << 10
	schemaMax      = 256 << 10 // bytes; a larger one is neither offered nor quoted
	quotedMax      = 4 << 10   // bytes of a schema that is quoted
)

func newTool(t *sdk.Tool) (Tool, error) {
	if t == nil || t.Name == "" {
		return Tool{}, errors.New("it lists a tool without a name")
	}
	listed, err := json.Marshal(t.InputSchema)
	if err != nil {
		return Tool{}, fmt.Errorf("tool %.128q: %w", t.Name, err)
	}
	return Fit(t.Name, t.Description, listed), nil
}

// Fit makes a tool in a form that the Messages API accepts of one that was listed. What is
// listed need not be sound.
func Fit(name, description string, listed json.RawMessage) Tool {
	out := Tool{Name: name, Description: cut(strings.ToValidUTF8(description, ""), descriptionMax), InputSchema: listed}
	out.Listed.Description, out.Listed.InputSchema = description, listed
	var schema map[string]any
	_ = json.Unmarshal(listed, &schema) // what is none is unfit
	if schema != nil && schema["type"] == nil {
		// Without a type it is one of objects: nothing else can be an input.
		schema["type"] = "object"
		out.InputSchema, _ = json.Marshal(schema)
	}
	if fits(schema) {
		return out
	}
	out.InputSchema = json.RawMessage(`{"type":"object"}`)
	if len(schema) > 0 {
		out.Description = strings.TrimSpace(out.Description + "\n\nThe input has to fit this JSON Schema: " + cut(string(listed), quotedMax))
	}
	return out
}

var propertyName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,64}$`)

// fits reports whether the Messages API takes a schema.
func fits(schema map[string]any) bool {
	if len(schema) == 0 || schema["type"] != "object" {
		return false
	}
	for _, k := range []string{"oneOf", "anyOf", "allOf"} {
		if _, ok := schema[k]; ok {
			return false
		}
	}
	if p, ok := schema["properties"]; ok {
		properties, ok := p.(map[string]any)
		if !ok {
			return false
		}
		for name := range properties {
			if !propertyName.MatchString(name) {
				return false
			}
		}
	}
	text, err := json.Marshal(schema)
	return err == nil && len(text) <= schemaMax && depth(text) <= depthMax
}

// depthMax bounds how deep a schema is nested.
const depthMax = 64

func depth(text []byte) int {
	dec := json.NewDecoder(bytes.NewReader(text))
	now, most := 0, 0
	for {
		tok, err := dec.Token()
		if err != nil {
			return most
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			now++
			most = max(most, now)
		case json.Delim('}'), json.Delim(']'):
			now--
		}
	}
}

func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// namePrefix begins the names of all MCP tools for a model. Custom tools cannot have it.
const namePrefix = "mcp__"

// nameMax is how long the Messages API takes names of tools.
const nameMax = 128

var unfitName = regexp.MustCompile(`[^a-zA-Z0-9_-]`)

// ModelName is the name under which a model is offered a server's tool:
// mcp__<server>__<tool>. What the Messages API does not accept in a name is replaced, and
// one that is too long is cut; a few digits that stand for the whole keep those apart.
func ModelName(server, tool string) string {
	plain := namePrefix + server + "__" + tool
	name := unfitName.ReplaceAllString(plain, "_")
	// A server's name with two underscores could make two of one name.
	if name == plain && len(name) <= nameMax && !strings.Contains(server, "__") {
		return name
	}
	sum := sha256.Sum256([]byte(server + "\x00" + tool))
	mark := "_" + hex.EncodeToString(sum[:4])
	return name[:min(len(name), nameMax-len(mark))] + mark
}
