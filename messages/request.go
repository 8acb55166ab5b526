package messages

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/mcp"
)

// A request is one of a client, and what the model is asked because of it.
type request struct {
	stream   bool
	listings bool // the reply says which tools there were
	listed   []json.RawMessage
	servers  []server

	tools     map[string]offered // by the name that the model knows
	toolList  []json.RawMessage  // of the client, those of servers to be filled in
	messages  []wireMessage
	outputMax int64

	// body is what the model is asked: the client's own, but for what is above.
	body map[string]json.RawMessage
}

type wireMessage struct {
	Role    string            `json:"role"`
	Content []json.RawMessage `json:"content"`
}

// An offered is a server's tool that the model is offered.
type offered struct{ server, bare string }

// A server is one that a request names.
type server struct {
	Type               string             `json:"type"`
	Name               string             `json:"name"`
	URL                string             `json:"url"`
	AuthorizationToken *secret            `json:"authorization_token"`
	ToolConfiguration  *toolConfiguration `json:"tool_configuration"` // of betaFirst

	pinned []mcp.Tool // brought along by the request; nil: the server is asked
}

// A secret is never shown.
type secret string

func (secret) String() string               { return "[secret]" }
func (secret) GoString() string             { return "[secret]" }
func (secret) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

type toolConfiguration struct {
	Enabled      *bool    `json:"enabled"`
	AllowedTools []string `json:"allowed_tools"`
}

func (s *server) authorization() func(context.Context, string) (string, error) {
	if s.AuthorizationToken == nil || *s.AuthorizationToken == "" {
		return nil
	}
	header := "Bearer " + string(*s.AuthorizationToken)
	return func(_ context.Context, refused string) (string, error) {
		if refused != "" {
			return "", nil // renewing it is the client's business
		}
		return header, nil
	}
}

// A toolset chooses among a server's tools.
type toolset struct {
	Type          string                `json:"type"`
	MCPServerName string                `json:"mcp_server_name"`
	DefaultConfig toolConfig            `json:"default_config"`
	Configs       map[string]toolConfig `json:"configs"`
	CacheControl  json.RawMessage       `json:"cache_control"`
	Tools         []listedTool          `json:"tools"`
}

type toolConfig struct {
	Enabled      *bool `json:"enabled"`
	DeferLoading *bool `json:"defer_loading"`
}

// A listedTool is a tool as replies list it and requests bring it back.
type listedTool struct {
	Name        string          `json:"name"`
	Description *string         `json:"description"`
	InputSchema json.RawMessage `json:"input_schema"`
}

// parse reads and checks a request.
func (c *Connector) parse(h http.Header, body []byte) (*request, error) {
	r := &request{tools: map[string]offered{}, outputMax: 1 << 40}
	if err := json.Unmarshal(body, &r.body); err != nil {
		return nil, api.Invalid("the request body is not a JSON object")
	}
	betas := betasOf(h)
	toolsets := slices.Contains(betas, betaToolset) || slices.Contains(betas, betaListing)
	if !toolsets && !slices.Contains(betas, betaFirst) {
		return nil, api.Invalid("mcp_servers: needs the header anthropic-beta: %s", betaToolset)
	}
	r.listings = slices.Contains(betas, betaListing)
	_ = json.Unmarshal(r.body["stream"], &r.stream)
	if json.Unmarshal(r.body["max_tokens"], &r.outputMax) != nil {
		r.outputMax = 1 << 40 // the endpoint says what is wrong with it
	}
	if err := json.Unmarshal(r.body["mcp_servers"], &r.servers); err != nil {
		return nil, api.Invalid("mcp_servers: must be a list of servers")
	}
	if len(r.servers) > serversMax {
		return nil, api.Invalid("mcp_servers: at most %d, got %d", serversMax, len(r.servers))
	}
	seen := map[string]bool{}
	for i, s := range r.servers {
		if err := c.checkServer(s); err != nil {
			return nil, api.Invalid("mcp_servers.%d.%s", i, err)
		}
		if seen[s.Name] {
			return nil, api.Invalid("mcp_servers.%d.name: %q is already used", i, s.Name)
		}
		seen[s.Name] = true
	}
	if raw := r.body["tools"]; len(raw) > 0 && json.Unmarshal(raw, &r.toolList) != nil {
		return nil, api.Invalid("tools: must be a list")
	}
	if err := r.checkToolsets(toolsets); err != nil {
		return nil, err
	}
	delete(r.body, "mcp_servers")
	return r, r.convert()
}

func (c *Connector) checkServer(s server) error {
	u, err := url.Parse(s.URL)
	switch {
	case s.Type != "url":
		return fmt.Errorf("type: must be \"url\"")
	case s.Name == "" || len(s.Name) > 255:
		return fmt.Errorf("name: must have 1 to 255 characters")
	case err != nil || u.Host == "" || len(s.URL) > 2048:
		return fmt.Errorf("url: must be an absolute URL of at most 2048 characters")
	case u.Scheme != "https" && !(u.Scheme == "http" && c.cfg.Plain(u.Hostname())):
		return fmt.Errorf("url: must start with https://")
	case s.AuthorizationToken != nil && strings.ContainsAny(string(*s.AuthorizationToken), "\r\n\x00"):
		return fmt.Errorf("authorization_token: must be one line")
	}
	return nil
}

// checkToolsets holds the rule that every server has one toolset, and every toolset a
// server; in the older form servers have none. Pinned tools are taken over.
func (r *request) checkToolsets(required bool) error {
	sets := map[string]int{}
	for i, raw := range r.toolList {
		set, ok, err := toolsetOf(raw)
		if err != nil {
			return api.Invalid("tools.%d: %s", i, err)
		}
		if !ok {
			continue
		}
		at := slices.IndexFunc(r.servers, func(s server) bool { return s.Name == set.MCPServerName })
		if at < 0 {
			return api.Invalid("tools.%d.mcp_server_name: no server named %q in mcp_servers", i, set.MCPServerName)
		}
		if sets[set.MCPServerName]++; sets[set.MCPServerName] > 1 {
			return api.Invalid("tools.%d.mcp_server_name: a second toolset for %q", i, set.MCPServerName)
		}
		if set.Tools != nil {
			r.servers[at].pin(set.Tools)
		}
	}
	for i, s := range r.servers {
		if sets[s.Name] > 0 {
			continue
		}
		if required {
			return api.Invalid("mcp_servers.%d: %q is not referenced by any mcp_toolset in tools", i, s.Name)
		}
		r.toolList = append(r.toolList, s.ToolConfiguration.toolset(s.Name))
	}
	return nil
}

// toolset says in the newer form what the older one says.
func (c *toolConfiguration) toolset(name string) json.RawMessage {
	yes, no := true, false
	set := toolset{Type: api.ToolsetMCP, MCPServerName: name}
	switch {
	case c == nil:
	case c.Enabled != nil && !*c.Enabled:
		set.DefaultConfig.Enabled = &no
	case c.AllowedTools != nil:
		set.DefaultConfig.Enabled, set.Configs = &no, map[string]toolConfig{}
		for _, tool := range c.AllowedTools {
			set.Configs[tool] = toolConfig{Enabled: &yes}
		}
	}
	raw, err := json.Marshal(set)
	if err != nil {
		panic("messages: a toolset always encodes: " + err.Error())
	}
	return raw
}

func toolsetOf(raw json.RawMessage) (set toolset, ok bool, err error) {
	var head struct{ Type string }
	if json.Unmarshal(raw, &head) != nil || head.Type != api.ToolsetMCP {
		return set, false, nil
	}
	if err := json.Unmarshal(raw, &set); err != nil {
		return set, false, fmt.Errorf("not an mcp_toolset")
	}
	return set, true, nil
}

// pin takes tools from the request instead of the server.
func (s *server) pin(tools []listedTool) {
	s.pinned = make([]mcp.Tool, 0, len(tools))
	for _, t := range tools {
		description := ""
		if t.Description != nil {
			description = *t.Description
		}
		s.pinned = append(s.pinned, mcp.Fit(t.Name, description, t.InputSchema))
	}
}

// offer puts the servers' tools in the place of their toolsets, and makes the body of the
// first request.
func (r *request) offer(all servers) error {
	var list []json.RawMessage
	for _, raw := range r.toolList {
		set, ok, _ := toolsetOf(raw) // checked before
		if !ok {
			list = append(list, raw)
			continue
		}
		first := len(list)
		for _, tool := range all[set.MCPServerName].tools {
			enabled, deferred := set.of(tool.Name)
			name := mcp.ModelName(set.MCPServerName, tool.Name)
			if _, twice := r.tools[name]; !enabled || twice {
				continue // a server may list a tool on two pages
			}
			if len(r.tools) == toolsMax {
				return api.Invalid("mcp_servers: they have more than %d enabled tools; leave some out by the configs of their toolsets", toolsMax)
			}
			r.tools[name] = offered{set.MCPServerName, tool.Name}
			list = append(list, definition(name, tool, deferred))
		}
		if r.listings && set.Tools == nil && !r.pinned(set.MCPServerName) {
			r.listed = append(r.listed, listing(set.MCPServerName, all[set.MCPServerName].tools))
		}
		if len(list) > first && len(set.CacheControl) > 0 && string(set.CacheControl) != "null" {
			list[len(list)-1] = withField(list[len(list)-1], "cache_control", set.CacheControl)
		}
	}
	r.toolList = list
	return r.encode()
}

func (r *request) pinned(name string) bool {
	return slices.ContainsFunc(r.servers, func(s server) bool { return s.Name == name && s.pinned != nil })
}

// listing is the block that says what a server has listed.
func listing(name string, tools []mcp.Tool) json.RawMessage {
	list := make([]json.RawMessage, len(tools))
	for i, t := range tools {
		list[i], _ = json.Marshal(listedTool{t.Name, &t.Listed.Description, t.Listed.InputSchema}) // it came as JSON
	}
	return object("mcp_tool_listing", "mcp_server_name", name, "tools", list)
}

// of returns what a toolset says of a tool.
func (t *toolset) of(tool string) (enabled, deferred bool) {
	enabled = true
	for _, c := range []toolConfig{t.DefaultConfig, t.Configs[tool]} {
		if c.Enabled != nil {
			enabled = *c.Enabled
		}
		if c.DeferLoading != nil {
			deferred = *c.DeferLoading
		}
	}
	return enabled, deferred
}

func definition(name string, tool mcp.Tool, deferred bool) json.RawMessage {
	raw, err := json.Marshal(struct {
		Name         string          `json:"name"`
		Description  string          `json:"description,omitempty"`
		InputSchema  json.RawMessage `json:"input_schema"`
		DeferLoading bool            `json:"defer_loading,omitempty"`
	}{name, tool.Description, tool.InputSchema, deferred})
	if err != nil {
		panic("messages: a tool that was checked always encodes: " + err.Error())
	}
	return raw
}

func withField(object json.RawMessage, name string, value json.RawMessage) json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(object, &fields) != nil {
		return object
	}
	fields[name] = value
	raw, err := json.Marshal(fields)
	if err != nil {
		return object
	}
	return raw
}

// encode writes what changed into the body.
func (r *request) encode() (err error) {
	set := func(name string, v any) {
		raw, e := json.Marshal(v)
		if e != nil {
			err = api.Invalid("%s: not sound JSON", name)
		}
		r.body[name] = raw
	}
	set("messages", r.messages)
	if len(r.toolList) > 0 {
		set("tools", r.toolList)
	} else {
		delete(r.body, "tools")
		delete(r.body, "tool_choice")
	}
	if r.outputMax < 1<<40 {
		set("max_tokens", r.outputMax)
	}
	return err
}

// convert says in the words of the plain Messages API what the conversation says of MCP:
// each call becomes one of a tool of the client, and its result is what the user says next.
func (r *request) convert() error {
	var in []struct {
		Role    string
		Content json.RawMessage
	}
	if err := json.Unmarshal(r.body["messages"], &in); err != nil {
		return api.Invalid("messages: must be a list of messages")
	}
	var due []json.RawMessage // results for the next message of the user
	for i, m := range in {
		blocks, err := blocksOf(m.Content)
		if err != nil {
			return api.Invalid("messages.%d.content: %s", i, err)
		}
		if m.Role != "assistant" {
			blocks, due = slices.Concat(due, blocks), nil
			r.messages = append(r.messages, wireMessage{m.Role, blocks})
			continue
		}
		if len(due) > 0 {
			r.messages = append(r.messages, wireMessage{"user", due})
		}
		due = r.convertSaid(blocks)
	}
	if len(due) > 0 {
		r.messages = append(r.messages, wireMessage{"user", due})
	}
	return nil
}

// convertSaid appends what the model said, with the results that came in between, and
// returns those at the end.
func (r *request) convertSaid(blocks []json.RawMessage) (due []json.RawMessage) {
	var said []json.RawMessage
	open := map[string]bool{} // calls without a result
	flush := func() {
		if len(said) > 0 {
			r.messages = append(r.messages, wireMessage{"assistant", said})
		}
		said = nil
	}
	for _, raw := range blocks {
		var b struct {
			Type       string          `json:"type"`
			ID         string          `json:"id"`
			Name       string          `json:"name"`
			ServerName string          `json:"server_name"`
			Input      json.RawMessage `json:"input"`
			ToolUseID  string          `json:"tool_use_id"`
			IsError    bool            `json:"is_error"`
			Content    json.RawMessage `json:"content"`
			MCPServer  string          `json:"mcp_server_name"`
			Tools      []listedTool    `json:"tools"`
		}
		_ = json.Unmarshal(raw, &b) // the endpoint says what is wrong with it
		if b.Type == "mcp_tool_result" {
			delete(open, b.ToolUseID)
			due = append(due, toolResult(b.ToolUseID, textIn(b.Content), b.IsError))
			continue
		}
		if b.Type == "mcp_tool_listing" {
			for i := range r.servers {
				if s := &r.servers[i]; s.Name == b.MCPServer && s.pinned == nil {
					s.pin(b.Tools)
				}
			}
			continue
		}
		if len(due) > 0 {
			// A further answer of the model, after it had the results.
			flush()
			r.messages = append(r.messages, wireMessage{"user", due})
			due = nil
		}
		if b.Type == "mcp_tool_use" {
			open[b.ID] = true
			if len(b.Input) == 0 {
				b.Input = json.RawMessage("{}")
			}
			raw, _ = json.Marshal(map[string]any{"type": "tool_use", "id": b.ID, "name": mcp.ModelName(b.ServerName, b.Name), "input": b.Input})
		}
		said = append(said, raw)
	}
	flush()
	for id := range open {
		due = append(due, toolResult(id, "This call was not made.", true))
	}
	return due
}

func blocksOf(raw json.RawMessage) ([]json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '"' {
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return nil, fmt.Errorf("not a text")
		}
		return []json.RawMessage{api.TextBlock(text)}, nil
	}
	var blocks []json.RawMessage
	if err := json.Unmarshal(raw, &blocks); err != nil {
		return nil, fmt.Errorf("must be a text or a list of blocks")
	}
	return blocks, nil
}

// textIn is the text of a result's content: a text, or blocks of it.
func textIn(raw json.RawMessage) string {
	if len(raw) == 0 || string(raw) == "null" {
		return ""
	}
	blocks, err := blocksOf(raw)
	if err != nil {
		return ""
	}
	return api.Content(blocks).Text()
}

// textOf is the text of a result, in the middle of which something may be left out.
func textOf(res mcp.Result) string {
	var parts []string
	for _, raw := range res.Content {
		var b struct{ Type, Text string }
		if json.Unmarshal(raw, &b) == nil && b.Type == api.BlockText {
			parts = append(parts, b.Text)
		} else {
			parts = append(parts, fmt.Sprintf("(%s left out: only texts are passed on)", b.Type))
		}
	}
	text := strings.Join(parts, "\n")
	if len(text) > resultMax {
		head, tail := resultMax*3/4, len(text)-resultMax/4
		text = strings.ToValidUTF8(text[:head], "") + fmt.Sprintf("\n\n[… %d bytes left out here …]\n\n", tail-head) + strings.ToValidUTF8(text[tail:], "")
	}
	return text
}

func toolResult(id, text string, isError bool) json.RawMessage {
	if strings.TrimSpace(text) == "" {
		text = "(no output)"
	}
	raw, err := json.Marshal(struct {
		Type      string            `json:"type"`
		ToolUseID string            `json:"tool_use_id"`
		Content   []json.RawMessage `json:"content"`
		IsError   bool              `json:"is_error,omitempty"`
	}{"tool_result", id, []json.RawMessage{api.TextBlock(text)}, isError})
	if err != nil {
		panic("messages: a result of strings always encodes: " + err.Error())
	}
	return raw
}
