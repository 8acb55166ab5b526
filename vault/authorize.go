package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/oauthex"
	"golang.org/x/oauth2"
)

// An Authorization asks a person for leave to use an MCP server, by OAuth's
// authorization code flow as the MCP specification has it: the server is asked which
// authorization server it trusts (RFC 9728), that one what it can (RFC 8414, OpenID
// discovery), a client is registered there if none is given (RFC 7591), and the person is
// sent there, with PKCE (S256) and the server as the resource (RFC 8707).
type Authorization struct {
	ServerURL   string // of the MCP server
	RedirectURL string // where the person's browser comes back to

	// Client is one that was registered beforehand. With no ID one is registered.
	ClientID, ClientSecret string

	// TokenEndpoint, if it is not "", is the one that knows the client. If the server has
	// another give out its tokens, that one is shown neither the client's secret nor what
	// the person has allowed.
	TokenEndpoint string

	// Scopes, if there are any, are asked for in place of those that the server names.
	Scopes []string

	// Visit has the person open a URL, and returns the query that the browser came back
	// to RedirectURL with.
	Visit func(ctx context.Context, url string) (back url.Values, err error)

	// HTTP makes every request.
	HTTP *http.Client
}

// A Grant is what a person has allowed: a token, and what renews it.
type Grant struct {
	Token
	TokenEndpoint string
	AuthMethod    string
	ClientID      string
	ClientSecret  string
	Scope         string // that was granted, if that was said
	Resource      string
}

// Do runs the flow. It returns when the person has been to the authorization server and
// back, or ctx ends.
func (a Authorization) Do(ctx context.Context) (*Grant, error) {
	var g Grant
	config := &auth.AuthorizationCodeHandlerConfig{
		RedirectURL:           a.RedirectURL,
		RequestRefreshToken:   true,
		AcceptUnadvertisedIss: true,
		Client:                a.client(),
		AuthorizationCodeFetcher: func(ctx context.Context, args *auth.AuthorizationArgs) (*auth.AuthorizationResult, error) {
			asked, err := url.Parse(args.URL)
			if err != nil {
				return nil, errors.New("the authorization server has a URL that cannot be used")
			}
			g.Resource = asked.Query().Get("resource")
			back, err := a.Visit(ctx, args.URL)
			if err != nil {
				return nil, err
			}
			if code := back.Get("error"); code != "" {
				return nil, fmt.Errorf("the authorization server refused: %.100s %.300s", code, back.Get("error_description"))
			}
			return &auth.AuthorizationResult{Code: back.Get("code"), State: back.Get("state"), Iss: back.Get("iss")}, nil
		},
		NewTokenSource: func(_ context.Context, c *oauth2.Config, t *oauth2.Token) (oauth2.TokenSource, error) {
			g.Token = Token{t.AccessToken, t.RefreshToken, t.Expiry}
			g.TokenEndpoint, g.ClientID, g.ClientSecret = c.Endpoint.TokenURL, c.ClientID, c.ClientSecret
			g.AuthMethod = authMethod(c)
			if g.Scope, _ = t.Extra("scope").(string); g.Scope == "" {
				g.Scope = strings.Join(c.Scopes, " ")
			}
			return oauth2.StaticTokenSource(t), nil
		},
	}
	if len(a.Scopes) > 0 {
		config.ScopeFilter = func([]string) []string { return a.Scopes }
	}
	if a.ClientID != "" {
		config.PreregisteredClient = &oauthex.ClientCredentials{ClientID: a.ClientID}
		if a.ClientSecret != "" {
			config.PreregisteredClient.ClientSecretAuth = &oauthex.ClientSecretAuth{ClientSecret: a.ClientSecret}
		}
	} else {
		config.DynamicClientRegistrationConfig = &auth.DynamicClientRegistrationConfig{Metadata: &oauthex.ClientRegistrationMetadata{
			RedirectURIs: []string{a.RedirectURL}, ClientName: "Bailey",
			GrantTypes: []string{"authorization_code", "refresh_token"}, ResponseTypes: []string{"code"},
			TokenEndpointAuthMethod: AuthNone,
		}}
	}
	handler, err := auth.NewAuthorizationCodeHandler(config)
	if err != nil {
		return nil, err
	}
	req, resp, err := a.ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the MCP server: %w", err)
	}
	taken := resp.StatusCode < 300
	if err := handler.Authorize(ctx, req, resp); err != nil && taken {
		return nil, fmt.Errorf("the MCP server answers without a token, so it may need none (%w)", err)
	} else if err != nil {
		return nil, err
	}
	if g.AccessToken == "" { // the SDK does nothing about a 403 that asks for no scope
		return nil, fmt.Errorf("the MCP server answered %d, and that is not for want of a token", resp.StatusCode)
	}
	return &g, nil
}

// ProbeBody is what an MCP server is asked, to learn how it refuses: to initialize, which
// does nothing yet.
const ProbeBody = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"bailey","version":"1"}}}`

// client makes the requests to authorization servers. What is sent to one, such as the
// client's secret, is for no other.
func (a Authorization) client() *http.Client {
	c := *a.HTTP
	c.Transport = &onlyTo{a.TokenEndpoint, c.Transport}
	c.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		switch {
		case next.Method != http.MethodGet:
			return fmt.Errorf("%s redirects to %s, which is not followed", via[0].URL.Host, next.URL.Redacted())
		case a.HTTP.CheckRedirect != nil:
			return a.HTTP.CheckRedirect(next, via)
		case len(via) > redirectsMax:
			return fmt.Errorf("%s redirects more than %d times", via[0].URL.Host, redirectsMax)
		}
		return nil
	}
	return &c
}

const redirectsMax = 5

// An onlyTo is a transport that posts to one URL alone; "" is any.
type onlyTo struct {
	url   string
	under http.RoundTripper
}

func (t *onlyTo) RoundTrip(r *http.Request) (*http.Response, error) {
	if at := r.URL.String(); t.url != "" && r.Method == http.MethodPost && at != t.url {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, fmt.Errorf("the server has its tokens given out at %s, and the client is that of %s", at, t.url)
	}
	if t.under == nil {
		return http.DefaultTransport.RoundTrip(r)
	}
	return t.under.RoundTrip(r)
}

// ask sends the MCP server a request without a token. Its refusal says who gives them
// out; a server that does not refuse is looked up by its well-known URLs all the same.
func (a Authorization) ask(ctx context.Context) (*http.Request, *http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.ServerURL, strings.NewReader(ProbeBody))
	if err != nil {
		return nil, nil, errors.New("its URL cannot be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	resp, err := unredirected(a.HTTP).Do(req)
	if err != nil {
		return nil, nil, unwrapURL(err)
	}
	return req, resp, nil
}

// authMethod is how the flow's client proves who it is.
func authMethod(c *oauth2.Config) string {
	switch {
	case c.ClientSecret == "":
		return AuthNone
	case c.Endpoint.AuthStyle == oauth2.AuthStyleInParams:
		return AuthPost
	}
	return AuthBasic
}
