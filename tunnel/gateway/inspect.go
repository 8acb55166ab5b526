package gateway

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MCP's methods that are looked at.
const (
	methodToolsCall = "tools/call"
	methodToolsList = "tools/list"
)

// messagesMax bounds the messages of a batch.
const messagesMax = 100

// A message is one JSON-RPC message, as far as a gateway looks at it. Its slices are
// those of the body.
type message struct {
	method    string // "" for an answer to a request of the server's
	id        []byte // JSON; nil for a notification
	name      string // of the tool, prompt or resource that is asked for
	params    []byte
	arguments []byte // of a tool; of other methods, all parameters. Nil for none
}

// opaque is the method of what is no JSON-RPC, on record.
const opaque = "(not JSON-RPC)"

// setup are the methods by which a client finds out what a server is and has. Each of its
// sessions begins with some of them.
var setup = []string{
	"initialize", "server/discover", "ping", "logging/setLevel", methodToolsList, "prompts/list", "resources/list", "resources/templates/list",
}

// counts reports whether a message asks the server for something: it is no answer, none of
// MCP's notifications, and no part of a session's set-up. To leave the id out does not
// help: a server may do what it is asked all the same.
func (m *message) counts() bool {
	return m.method != "" && !strings.HasPrefix(m.method, "notifications/") && !slices.Contains(setup, m.method)
}

// errBatch and the like are what is wrong with a body of JSON.
var (
	errMessage   = errors.New("it is no JSON-RPC message")
	errLongBatch = fmt.Errorf("there are more than %d messages in it", messagesMax)
)

// parseMessages reads a JSON-RPC message or a batch of them. batch says that it was one.
func parseMessages(body []byte, into []message) (messages []message, batch bool, err error) {
	if err := checkJSON(body); err != nil {
		return nil, false, err
	}
	i := skipSpace(body, 0)
	switch body[i] {
	case '{':
		m, err := parseMessage(body[i:])
		if err != nil {
			return nil, false, err
		}
		return append(into[:0], m), false, nil
	case '[':
		messages = into[:0]
		err = elements(body[i:], func(_ int, element []byte) error {
			if element[0] != '{' {
				return errMessage
			}
			if len(messages) == messagesMax {
				return errLongBatch
			}
			m, err := parseMessage(element)
			messages = append(messages, m)
			return err
		})
		if err == nil && len(messages) == 0 {
			err = errMessage
		}
		return messages, true, err
	}
	return nil, false, errMessage
}

var (
	messageNames = []string{"jsonrpc", "method", "id", "params", "result", "error"}
	paramNames   = []string{"name", "uri", "arguments"}
)

func parseMessage(object []byte) (m message, err error) {
	var version, method, id, params, result, failure []byte
	if err := pick(object, messageNames, []*[]byte{&version, &method, &id, &params, &result, &failure}); err != nil {
		return m, err
	}
	if s, ok := asString(version); !ok || s != "2.0" {
		return m, errMessage
	}
	if method == nil {
		if id == nil || (result == nil) == (failure == nil) {
			return m, errMessage
		}
		return message{id: id}, nil
	}
	var ok bool
	if m.method, ok = asString(method); !ok || result != nil || failure != nil {
		return m, errMessage
	}
	if id != nil && id[0] != '"' && id[0] != '-' && (id[0] < '0' || id[0] > '9') {
		return m, errMessage // MCP has no null ids, and nobody has others
	}
	m.id, m.params, m.arguments = id, params, params
	if params == nil {
		return m, nil
	}
	switch m.method {
	case methodToolsCall, "prompts/get", "resources/read":
	default:
		return m, nil
	}
	if params[0] != '{' {
		return m, errMessage
	}
	var name, uri, arguments []byte
	if err := pick(params, paramNames, []*[]byte{&name, &uri, &arguments}); err != nil {
		return m, err
	}
	if m.method == "resources/read" {
		name = uri
	}
	if name != nil {
		if m.name, ok = asString(name); !ok {
			return m, errMessage
		}
	}
	if m.method == methodToolsCall {
		m.arguments = arguments
	}
	return m, nil
}

// checkHeaders reports whether the fields Mcp-Method and Mcp-Name, if they are there, say
// what the body says: whoever looks at one must not be told another thing than whoever
// looks at the other.
func checkHeaders(h *head, messages []message, batch bool) error {
	method, ok := h.one(mcpMethod)
	name, ok2 := h.one(mcpName)
	if !ok || !ok2 {
		return errors.New("Mcp-Method or Mcp-Name stands there twice")
	}
	if method == nil && name == nil {
		return nil
	}
	if batch || len(messages) != 1 {
		return errors.New("Mcp-Method and Mcp-Name are for a single message")
	}
	m := &messages[0]
	if method != nil && string(method) != m.method {
		return errors.New("Mcp-Method is not the method of the body")
	}
	if name != nil {
		if decoded, ok := decodeField(name); !ok || decoded != m.name {
			return errors.New("Mcp-Name is not the name in the body")
		}
	}
	return nil
}

// decodeField reads a value that may be in the encoding that MCP has for what a header
// cannot hold.
func decodeField(value []byte) (string, bool) {
	s := string(value)
	inner, ok := strings.CutPrefix(s, "=?base64?")
	if !ok {
		return s, true
	}
	if inner, ok = strings.CutSuffix(inner, "?="); !ok {
		return s, true
	}
	b, err := base64.StdEncoding.DecodeString(inner)
	return string(b), err == nil
}

// rpcErrors is a JSON-RPC error for each id: one as such, several as a batch.
func rpcErrors(ids [][]byte, code int, text string) []byte {
	type rpcError struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	one := func(id []byte) []byte {
		if len(id) == 0 {
			id = []byte("null")
		}
		b, _ := json.Marshal(struct {
			Version string          `json:"jsonrpc"`
			ID      json.RawMessage `json:"id"`
			Error   rpcError        `json:"error"`
		}{"2.0", id, rpcError{code, text}}) // id is valid
		return b
	}
	if len(ids) == 0 {
		return one(nil)
	}
	if len(ids) == 1 {
		return one(ids[0])
	}
	all := make([][]byte, len(ids))
	for i, id := range ids {
		all[i] = one(id)
	}
	return append(append([]byte{'['}, bytes.Join(all, []byte{','})...), ']')
}

// mediaType is the type of a Content-Type field in lower case, without parameters.
func mediaType(value []byte) string {
	t, _, _ := bytes.Cut(value, []byte{';'})
	return strings.ToLower(string(bytes.TrimSpace(t)))
}

// errType and errCharset are why a body is not taken for what it says it is.
var (
	errType    = errors.New("Content-Type is not one type with parameters as HTTP has them")
	errCharset = errors.New("the body is in another charset than UTF-8, and cannot be looked at here")
)

// checkContentType reports whether whoever reads a body by its type reads the same bytes
// as the gateway, which takes all of them for UTF-8: in another charset the same bytes can
// be another message. So that no two readers find another charset in it, the grammar is
// the narrow one of RFC 9110 §8.3.1, without the escapes and continuations (RFC 2231) that
// only some know.
func checkContentType(h *head) error {
	value, ok := h.one(contentType)
	if !ok {
		return errType
	}
	if len(value) == 0 {
		return nil
	}
	kind, rest, more := bytes.Cut(value, []byte{';'})
	first, second, ok := bytes.Cut(bytes.TrimSpace(kind), []byte{'/'})
	if !ok || !isToken(first) || !isToken(second) {
		return errType
	}
	for told := false; more; {
		var parameter []byte
		parameter, rest, more = cutParameter(rest)
		if parameter = bytes.TrimSpace(parameter); len(parameter) == 0 {
			continue
		}
		name, value, ok := bytes.Cut(parameter, []byte{'='})
		if !ok || !isToken(name) || bytes.IndexByte(name, '*') >= 0 {
			return errType
		}
		if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
			if value = value[1 : n-1]; bytes.ContainsAny(value, `"\`) {
				return errType
			}
		} else if !isToken(value) {
			return errType
		}
		if !bytes.EqualFold(name, []byte("charset")) {
			continue
		}
		if told || !bytes.EqualFold(value, []byte("utf-8")) {
			return errCharset
		}
		told = true
	}
	return nil
}

// cutParameter cuts at the first semicolon that is not quoted.
func cutParameter(s []byte) (parameter, rest []byte, more bool) {
	quoted := false
	for i, c := range s {
		switch {
		case c == '"':
			quoted = !quoted
		case c == ';' && !quoted:
			return s[:i], s[i+1:], true
		}
	}
	return s, nil, false
}
