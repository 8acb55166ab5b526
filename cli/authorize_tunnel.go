package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

// A tunnelled is the transport of an authorization: what is behind a tunnel of the server's
// is asked by the server, and all else from here. It is safe for concurrent use.
type tunnelled struct {
	server *client.Client
	vault  api.VaultID

	mu     sync.Mutex
	behind map[string]bool // by host; what is not in it was not asked yet
}

// RoundTrip implements http.RoundTripper.
func (t *tunnelled) RoundTrip(req *http.Request) (*http.Response, error) {
	behind, err := t.isBehind(req.Context(), req.URL)
	if err != nil {
		return nil, fmt.Errorf("ask the server whether %s is behind a tunnel: %w", req.URL.Host, err)
	}
	if !behind {
		return http.DefaultTransport.RoundTrip(req)
	}
	var body []byte
	if req.Body != nil {
		body, err = io.ReadAll(io.LimitReader(req.Body, api.OAuthBodyMax+1))
		req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	kind, _, _ := strings.Cut(req.Header.Get("Content-Type"), ";")
	answer, err := t.server.OAuthRequest(req.Context(), t.vault, api.OAuthRequest{
		Method: req.Method, URL: req.URL.String(), ContentType: kind, Authorization: api.Secret(req.Header.Get("Authorization")), Body: api.Secret(body),
	})
	if err != nil {
		return nil, fmt.Errorf("through the tunnel: %w", err)
	}
	head := http.Header{"Content-Type": {answer.ContentType}}
	if answer.Challenge != "" {
		head.Set("WWW-Authenticate", answer.Challenge)
	}
	return &http.Response{
		StatusCode: answer.Status, Status: fmt.Sprintf("%d %s", answer.Status, http.StatusText(answer.Status)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: head, Body: io.NopCloser(strings.NewReader(answer.Body)), ContentLength: int64(len(answer.Body)), Request: req,
	}, nil
}

// isBehind finds out whether a host is behind a tunnel. What the server is asked holds
// nothing of the request, which may have secrets for another host, and makes it ask nobody.
func (t *tunnelled) isBehind(ctx context.Context, u *url.URL) (bool, error) {
	if u.Scheme != "https" {
		return false, nil
	}
	if behind, known := t.is(u); known {
		return behind, nil
	}
	_, err := t.server.OAuthRequest(ctx, t.vault, api.OAuthRequest{URL: "https://" + u.Host})
	public := api.AsError(err)
	// A server that does not know the question has no such way.
	elsewhere := public != nil && (public.Details["error_code"] == api.CodeNotBehindTunnel || public.Status == http.StatusNotFound)
	if err != nil && !elsewhere && !apiError(api.TypeInvalidRequest)(err) {
		return false, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.behind[u.Host] = !elsewhere
	return !elsewhere, nil
}

func (t *tunnelled) is(u *url.URL) (behind, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	behind, known = t.behind[u.Host]
	return behind, known
}

var errPageBehind = errors.New("its page is behind the tunnel, where no browser gets: the authorization_endpoint in its metadata has to be one that a browser reaches")

// visitable refuses a page that a browser cannot reach.
func (t *tunnelled) visitable(page string) error {
	u, err := url.Parse(page)
	if err != nil {
		return err
	}
	if behind, _ := t.is(u); behind {
		return errPageBehind
	}
	return nil
}
