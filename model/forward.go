package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/anthropics/anthropic-sdk-go/v2/option"
)

// maxForwardBytes bounds a forwarded reply.
const maxForwardBytes = 256 << 20

// forwardedHeaders are the headers of a reply that reach the client, besides
// those with [rateLimitPrefix]. All others stay here: they describe our own
// account at the endpoint, or the connection to it. The endpoint's request id
// is renamed, since the client's request has one of ours.
var forwardedHeaders = map[string]string{
	"Content-Type":   "Content-Type",
	"Retry-After":    "Retry-After",
	"Retry-After-Ms": "Retry-After-Ms",
	"X-Should-Retry": "X-Should-Retry",
	"Request-Id":     "Model-Request-Id",
}

const rateLimitPrefix = "Anthropic-Ratelimit-"

// forwardedQuery are the parameters of a request that reach the endpoint.
var forwardedQuery = []string{"beta", "limit", "after_id", "before_id", "lifecycle"}

// Forward passes one request on to the endpoint with our credentials, and its
// reply back as it comes: status, body, and the headers of a short list. path
// is the decoded path of the request; these are served:
//
//	POST /v1/messages                (streaming or not)
//	POST /v1/messages/count_tokens   (not Bedrock)
//	GET  /v1/models, /v1/models/{id} (not Bedrock, Vertex, Foundry)
//
// Of the client's headers only anthropic-version and anthropic-beta go on, so
// never its key. Bodies are limited to 32 MiB in, 256 MiB back. An error reply
// of the endpoint is a reply, and passed back.
//
// The error is an [*Error], or wraps the error of r.Context(). The caller
// writes it, unless Error.Begun is set: then the reply broke off half way, and
// the only honest thing left is to break off the client's too
// (panic(http.ErrAbortHandler)).
func (c *Client) Forward(w http.ResponseWriter, r *http.Request, path string) error {
	upstream, err := c.route(r.Method, path)
	if err != nil {
		return err
	}
	var body []byte
	if r.Method == http.MethodPost {
		if body, err = c.forwardBody(w, r); err != nil {
			return err
		}
	}

	call := c.watch(r.Context())
	defer call.end()
	res, err := call.send(r.Method, upstream, body, c.forwardOptions(r)...)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode >= 300 && res.StatusCode < 400 {
		return c.statusError(res, nil)
	}
	if res.StatusCode >= 400 {
		return c.forwardError(w, call, res, upstream)
	}
	return c.forwardReply(w, call, res)
}

// route says where a request goes, or that this endpoint cannot take it.
func (c *Client) route(method, path string) (string, error) {
	unsupported := func(what string) error {
		return &Error{Kind: Unsupported, Status: http.StatusNotImplemented,
			Message: fmt.Sprintf("the configured model provider (%s) does not offer %s", c.cfg.Provider, what)}
	}
	id, isModel := strings.CutPrefix(path, "/v1/models/")
	switch {
	case method == http.MethodPost && path == "/v1/messages":
		return "v1/messages", nil
	case method == http.MethodPost && path == "/v1/messages/count_tokens":
		if c.cfg.Provider == Bedrock {
			return "", unsupported("token counting")
		}
		return "v1/messages/count_tokens", nil
	case method == http.MethodGet && (path == "/v1/models" || isModel && id != "" && id != "." && id != ".."):
		if c.cfg.Provider != Anthropic {
			return "", unsupported("a list of models")
		}
		if isModel {
			return "v1/models/" + url.PathEscape(id), nil
		}
		return "v1/models", nil
	}
	return "", &Error{Kind: Unsupported, Status: http.StatusNotFound, Message: fmt.Sprintf("%s %s is not an operation of the model", method, c.clean(path))}
}

// forwardBody reads the request's body, and translates the model id in it if
// the endpoint has another name for it.
func (c *Client) forwardBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, &Error{Kind: TooLong, Status: http.StatusRequestEntityTooLarge, Type: "request_too_large",
				Message: fmt.Sprintf("the request body exceeds %d bytes", maxRequestBytes)}
		}
		if r.Context().Err() != nil {
			return nil, fmt.Errorf("model: read request: %w", r.Context().Err())
		}
		return nil, &Error{Kind: Failed, Status: http.StatusBadRequest, Type: "invalid_request_error", Message: "the request body could not be read"}
	}
	var head struct {
		Model string `json:"model"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return nil, &Error{Kind: Failed, Status: http.StatusBadRequest, Type: "invalid_request_error", Message: "the request body is not a JSON object with a model"}
	}
	id, err := c.cfg.modelID(head.Model)
	if err != nil {
		return nil, &Error{Kind: Failed, Status: http.StatusBadRequest, Type: "invalid_request_error", Message: err.Error()}
	}
	if id == head.Model {
		return body, nil
	}
	translated, err := withFields(body, map[string]json.RawMessage{"model": quote(id)})
	if err != nil {
		return nil, &Error{Kind: Failed, Status: http.StatusBadRequest, Type: "invalid_request_error", Message: "the request body is not a JSON object"}
	}
	return translated, nil
}

// forwardOptions carries over what the client may decide about the request.
func (c *Client) forwardOptions(r *http.Request) []option.RequestOption {
	var options []option.RequestOption
	switch version := r.Header.Get("Anthropic-Version"); {
	case version == versionOld && c.cfg.Provider == Bedrock, version == "":
		// Bedrock's own name of it is set already; for "", the SDK's own version is.
	case version == versionOld && c.cfg.Provider == Vertex:
		options = append(options, option.WithHeader("anthropic-version", vertexVersion))
	case version == versionOld && c.cfg.Provider == Anthropic && c.cfg.BaseURL == "":
		// The clients of that version send their key the older way; the API is only
		// documented to take it so.
		options = append(options, option.WithHeader("anthropic-version", version),
			option.WithHeaderDel("Authorization"), option.WithHeader("X-Api-Key", c.cfg.Key))
	default:
		options = append(options, option.WithHeader("anthropic-version", version))
	}
	for _, beta := range r.Header.Values("Anthropic-Beta") {
		options = append(options, option.WithHeaderAdd("anthropic-beta", beta))
	}
	if accept := r.Header.Get("Accept"); strings.Contains(accept, "text/event-stream") {
		options = append(options, option.WithHeader("Accept", "text/event-stream"))
	}
	if c.cfg.Provider == Anthropic {
		query := r.URL.Query()
		for _, name := range forwardedQuery {
			if query.Has(name) {
				options = append(options, option.WithQuery(name, query.Get(name)))
			}
		}
	}
	return options
}

// forwardError passes an error reply back. A 404 that is no answer of the
// Messages API means that the endpoint does not have the operation at all.
func (c *Client) forwardError(w http.ResponseWriter, call *call, res *http.Response, upstream string) error {
	body, err := io.ReadAll(res.Body) // bounded by maxErrorBytes
	if err != nil && call.caller.Err() != nil {
		return c.transportError(call.caller, call.ctx, doingRead, err)
	}
	var envelope struct {
		Error struct {
			Type    string `json:"type"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &envelope) != nil || envelope.Error.Type == "" || envelope.Error.Message == "" {
		switch res.StatusCode {
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
			return &Error{Kind: Unsupported, Status: http.StatusNotImplemented,
				Message: fmt.Sprintf("the configured model endpoint (%s) does not serve /%s", c.host, upstream)}
		}
		return c.statusError(res, body)
	}
	c.copyHeaders(w.Header(), res.Header)
	w.WriteHeader(res.StatusCode)
	// A client that left does not need the rest; nothing else can be told to it.
	_, _ = w.Write([]byte(c.blankKey(string(body))))
	return nil
}

// forwardReply copies a good reply, piece by piece as it arrives.
func (c *Client) forwardReply(w http.ResponseWriter, call *call, res *http.Response) error {
	c.copyHeaders(w.Header(), res.Header)
	media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	streaming := media == "text/event-stream"
	if streaming {
		w.Header().Set("Cache-Control", "no-cache")
	}
	w.WriteHeader(res.StatusCode)
	flusher := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for left := int64(maxForwardBytes); ; {
		n, err := res.Body.Read(buf)
		if left -= int64(n); left < 0 {
			e := tooBig("the whole", maxForwardBytes)
			e.Begun = true
			return e
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return &Error{Kind: Interrupted, Status: res.StatusCode, Message: "the client went away", Begun: true}
			}
			if streaming {
				_ = flusher.Flush() // a writer that cannot flush is still correct, only slower
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			err = c.transportError(call.caller, call.ctx, doingRead, err)
			var e *Error
			if errors.As(err, &e) {
				e.Begun = true
			}
			return err
		}
	}
}

func (c *Client) copyHeaders(to, from http.Header) {
	for name, as := range forwardedHeaders {
		if value := from.Get(name); value != "" {
			to.Set(as, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(from)) {
		if strings.HasPrefix(name, rateLimitPrefix) {
			to[name] = slices.Clone(from[name])
		}
	}
}
