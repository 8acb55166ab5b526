package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"github.com/bailey-platform/bailey/api"
)

// OpenShell opens a shell into the box of a session, which may take a worker a minute.
// The caller closes it.
func (c *Client) OpenShell(ctx context.Context, id api.SessionID, size api.ShellSize) (*ShellConn, error) {
	query := url.Values{"columns": {strconv.Itoa(size.Columns)}, "rows": {strconv.Itoa(size.Rows)}}
	return c.dialShell(ctx, path("/v1/sessions/%s/shell", id), query)
}

// NextShell is for workers: it waits up to block for somebody who wants a shell into
// the session of a work item, and returns nil if nobody does. It makes one attempt.
func (c *Client) NextShell(ctx context.Context, env api.EnvironmentID, work api.WorkID, block time.Duration) (*api.Shell, error) {
	query := url.Values{"block_ms": {strconv.FormatInt(block.Milliseconds(), 10)}}
	var out *api.Shell
	err := c.once(ctx, http.MethodGet, path("/v1/environments/%s/work/%s/shells/next", env, work), query, nil, &out)
	return out, err
}

// AttachShell is for workers: it makes them the other end of a shell. The caller closes
// it, after a note of type [api.ShellExit].
func (c *Client) AttachShell(ctx context.Context, env api.EnvironmentID, work api.WorkID, shell api.ShellID) (*ShellConn, error) {
	return c.dialShell(ctx, path("/v1/environments/%s/work/%s/shells/%s/attach", env, work, shell), nil)
}

func (c *Client) dialShell(ctx context.Context, path string, query url.Values) (*ShellConn, error) {
	req, err := c.request(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, err
	}
	conn, res, err := websocket.Dial(ctx, req.URL.String(), &websocket.DialOptions{
		HTTPClient: c.http, HTTPHeader: req.Header, Subprotocols: []string{api.ShellProtocol},
	})
	if err != nil {
		if res != nil && res.StatusCode >= 400 {
			data, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
			return nil, answerError(res, data)
		}
		return nil, transportError(ctx, err)
	}
	if conn.Subprotocol() != api.ShellProtocol {
		conn.CloseNow()
		return nil, fmt.Errorf("client: the server does not speak %s", api.ShellProtocol)
	}
	conn.SetReadLimit(api.ShellDataMax + 1)
	return &ShellConn{conn}, nil
}

// A ShellConn is one end of a shell. Receive is for one goroutine at a time, Send for
// any number; when a context of either ends, so does the connection.
type ShellConn struct{ conn *websocket.Conn }

// Receive returns the next frame. The error is io.EOF when the other end has closed in
// order.
func (s *ShellConn) Receive(ctx context.Context) (f api.ShellFrame, err error) {
	kind, data, err := s.conn.Read(ctx)
	switch {
	case websocket.CloseStatus(err) == websocket.StatusNormalClosure:
		return f, io.EOF
	case err != nil:
		return f, transportError(ctx, err)
	case kind == websocket.MessageBinary:
		f.Data = data
		return f, nil
	}
	f.Note = new(api.ShellNote)
	if err := json.Unmarshal(data, f.Note); err != nil {
		return f, fmt.Errorf("client: decode a note of a shell: %w", err)
	}
	return f, nil
}

// Send sends a frame.
func (s *ShellConn) Send(ctx context.Context, f api.ShellFrame) error {
	kind, data := websocket.MessageBinary, f.Data
	if f.Note != nil {
		var err error
		kind = websocket.MessageText
		if data, err = json.Marshal(f.Note); err != nil {
			return fmt.Errorf("client: encode a note of a shell: %w", err)
		}
	}
	if err := s.conn.Write(ctx, kind, data); err != nil {
		return transportError(ctx, err)
	}
	return nil
}

// Close ends the connection.
func (s *ShellConn) Close() { s.conn.Close(websocket.StatusNormalClosure, "") }
