package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
)

const (
	apiVersion = "2026-10-21"
	beta       = "managed-agents-2026-04-01,mcp-tunnels-2026-06-22"

	answerMax     = 256 << 20 // bytes of one answer
	attemptsMax   = 3
	backoffFirst  = 500 * time.Millisecond
	backoffMax    = 10 * time.Second
	retryAfterMax = time.Minute // a server that asks for more is not waited for
)

// Config says where the server is and who asks.
type Config struct {
	// BaseURL is the server's address, such as http://127.0.0.1:8484. A path in it
	// is kept as a prefix.
	BaseURL string

	// Key is an API key, an environment key or a session token. It is sent as
	// Authorization: Bearer.
	Key string

	// HTTPClient carries the requests; nil makes a plain one. Its Timeout should be
	// zero, since it would cut streams: bound single calls by their context.
	HTTPClient *http.Client

	// UserAgent is sent with every request; "" is "bailey".
	UserAgent string
}

// String shows the configuration without the key.
func (c Config) String() string { return "client.Config{" + c.BaseURL + "}" }

// GoString is String, so that %#v does not show the key either.
func (c Config) GoString() string { return c.String() }

// A Client talks to one server. It is safe for concurrent use and holds no state
// besides the connections of its HTTP client.
type Client struct {
	base  string // without a slash at its end
	key   string
	agent string
	http  *http.Client
}

// New returns a client, or an error about the address. It sends nothing.
func New(c Config) (*Client, error) {
	base, err := url.Parse(strings.TrimRight(c.BaseURL, "/"))
	if err != nil || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, errors.New("client: the base URL must be like https://host:port, without a user or a query")
	}
	if c.HTTPClient == nil {
		c.HTTPClient = &http.Client{}
	}
	if c.UserAgent == "" {
		c.UserAgent = "bailey"
	}
	// A redirect would carry the key to another host.
	hc := *c.HTTPClient
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{base: base.String(), key: c.Key, agent: c.UserAgent, http: &hc}, nil
}

// Ready is nil when the server and its database answer.
func (c *Client) Ready(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/readyz", nil, nil, nil)
}

// path joins a path of fixed parts and identifiers, and escapes the latter.
func path(format string, ids ...any) string {
	for i, id := range ids {
		ids[i] = url.PathEscape(fmt.Sprint(id))
	}
	return fmt.Sprintf(format, ids...)
}

// do makes one call: in is sent as JSON unless nil, and the answer decoded into
// out unless nil. An error answer is an [*Error].
//
// Reads are tried up to three times. Everything else is tried again only when the
// connection could not be made, so that nothing is ever done twice.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("client: encode the request: %w", err)
		}
	}
	for attempt := 1; ; attempt++ {
		err := c.once(ctx, method, path, query, body, out)
		if err == nil || attempt == attemptsMax || !retryable(method, err) {
			return err
		}
		if err := sleep(ctx, pause(attempt, err)); err != nil {
			return err
		}
	}
}

func (c *Client) once(ctx context.Context, method, path string, query url.Values, body []byte, out any) error {
	req, err := c.request(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return transportError(ctx, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, answerMax+1))
	if err != nil {
		return transportError(ctx, err)
	}
	if len(data) > answerMax {
		return fmt.Errorf("client: the answer of %s exceeds %d bytes", path, answerMax)
	}
	if res.StatusCode != http.StatusOK {
		return answerError(res, data)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("client: decode the answer of %s: %w", path, err)
	}
	return nil
}

func (c *Client) request(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Request, error) {
	// Joined as text: an identifier such as ".." must reach the server as it is.
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	h := req.Header
	if c.key != "" {
		h.Set("Authorization", "Bearer "+c.key)
	}
	h.Set("Anthropic-Version", apiVersion)
	h.Set("Anthropic-Beta", beta)
	h.Set("Accept", "application/json")
	h.Set("User-Agent", c.agent)
	if len(body) > 0 {
		h.Set("Content-Type", "application/json")
	}
	return req, nil
}

// retryable reports whether trying a call again is safe and may help.
func retryable(method string, err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return true
	}
	if method != http.MethodGet {
		return false
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		_, transport := errors.AsType[*url.Error](err)
		return transport || errors.Is(err, io.ErrUnexpectedEOF)
	}
	return e.transient()
}

// pause is how long to wait before the next attempt.
func pause(attempt int, err error) time.Duration {
	if e, ok := errors.AsType[*Error](err); ok && e.Public.RetryAfter > 0 {
		return min(e.Public.RetryAfter, retryAfterMax)
	}
	d := min(backoffFirst<<min(attempt-1, 10), backoffMax)
	return d/2 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// An Error is an error answer of the server. [api.AsError] finds the public error
// in it.
type Error struct {
	Public    *api.Error
	RequestID api.RequestID // "" when what answered was not the server
}

func (e *Error) Error() string {
	if e.RequestID == "" {
		return fmt.Sprintf("%s (HTTP %d)", e.Public.Message, e.Public.Status)
	}
	return fmt.Sprintf("%s (HTTP %d, %s)", e.Public.Message, e.Public.Status, e.RequestID)
}

// Unwrap returns the public error.
func (e *Error) Unwrap() error { return e.Public }

// transient reports whether the same request may succeed later.
func (e *Error) transient() bool {
	if e.Public.Retry != nil {
		return *e.Public.Retry
	}
	switch e.Public.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	}
	return e.Public.Status >= 500
}

// answerError reads an answer that is not a success.
func answerError(res *http.Response, data []byte) error {
	e := &Error{RequestID: api.RequestID(res.Header.Get("Request-Id"))}
	e.Public = &api.Error{Status: res.StatusCode, Type: api.TypeAPI, Message: "the server answered " + res.Status}
	var body api.ErrorBody
	if json.Unmarshal(data, &body) == nil && body.Error.Type != "" {
		e.Public.Type, e.Public.Message, e.Public.Details = body.Error.Type, body.Error.Message, body.Error.Details
	}
	if retry, err := strconv.ParseBool(res.Header.Get("X-Should-Retry")); err == nil {
		e.Public.Retry = &retry
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		e.Public.RetryAfter = time.Duration(min(s, 86_400)) * time.Second
	}
	return e
}

// transportError says that there was no whole answer.
func transportError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("client: no whole answer from the server: %w", err)
}
