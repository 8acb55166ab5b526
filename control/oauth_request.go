package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/vault"
)

// oauthRequestMax bounds one request of an authorization.
const oauthRequestMax = 30 * time.Second

// OAuthRequest makes a request of a person's authorization at a host behind a tunnel. It
// takes a principal that may put credentials into the vault, who could have the server make
// such requests with one as well: nothing opens up that was closed. No credential of the
// vault is used, and redirects are not followed.
func (c *Control) OAuthRequest(ctx context.Context, p Principal, id api.VaultID, in api.OAuthRequest) (*api.OAuthAnswer, error) {
	v, err := c.GetVault(ctx, p, id)
	if err != nil {
		return nil, err
	}
	if v.ArchivedAt != nil {
		return nil, api.Invalid("vault %s is archived", id)
	}
	if c.cfg.HTTP == nil {
		return nil, api.Invalid("this server makes no connections to MCP servers")
	}
	if u, err := url.Parse(in.URL); err == nil {
		if _, _, ok := tunnel.SplitHost(u.Hostname(), c.cfg.TunnelDomain); !ok {
			return nil, api.InvalidCode(api.CodeNotBehindTunnel, "the host is behind no tunnel of this server: ask it yourself")
		}
	}
	if err := checkOAuthRequest(&in); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, oauthRequestMax)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, in.Method, in.URL, strings.NewReader(string(in.Body)))
	if err != nil {
		return nil, api.Invalid("url: cannot be used")
	}
	req.Header.Set("Accept", "application/json, text/event-stream")
	for name, value := range map[string]string{"Content-Type": in.ContentType, "Authorization": string(in.Authorization)} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	client := *c.cfg.HTTP
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return nil, notReached(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, api.OAuthBodyMax+1))
	if err == nil && len(body) > api.OAuthBodyMax {
		err = fmt.Errorf("the host answers with more than %d bytes", api.OAuthBodyMax)
	}
	if err != nil {
		return nil, notReached(err)
	}
	return &api.OAuthAnswer{
		Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type"), Challenge: resp.Header.Get("WWW-Authenticate"), Body: strings.ToValidUTF8(string(body), ""),
	}, nil
}

// oauthURLMax bounds the URL, in bytes.
const oauthURLMax = 2048

// wellKnown are where metadata is, of a server and of its authorization server.
var wellKnown = []string{"/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"}

// checkOAuthRequest refuses what is no request of an authorization. Whether the host is
// behind a tunnel is not looked at. The body becomes one that can be read only as it was
// here: a host may otherwise find in it what was not seen, such as the call of a tool.
func checkOAuthRequest(r *api.OAuthRequest) error {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "":
		return api.Invalid("url: must be one at https, without a user or fragment")
	case len(r.URL) > oauthURLMax || len(r.Body) > api.OAuthBodyMax || len(r.Authorization) > api.CredentialTokenMax:
		return api.Invalid("the request is too long")
	}
	good := false
	switch {
	case r.Method == "GET":
		good = r.Body == "" && r.Authorization == "" && metadataPath(u)
	case r.Method != "POST":
	case r.ContentType == "application/json" && r.Authorization == "":
		if good = r.Body == vault.ProbeBody; !good {
			r.Body, good = registration(r.Body)
		}
	case r.ContentType == "application/x-www-form-urlencoded":
		r.Body, good = redemption(r.Body)
	}
	if !good {
		return api.Invalid("this is no request of an authorization: metadata at a well-known path, initialize without a credential, the registration of a client that comes back to this machine, or a code for the token endpoint")
	}
	return nil
}

func metadataPath(u *url.URL) bool {
	if u.RawQuery != "" || strings.Contains(u.Path, "..") || strings.ContainsRune(u.EscapedPath(), '%') {
		return false
	}
	for _, known := range wellKnown {
		if strings.HasPrefix(u.Path, known) || strings.HasSuffix(u.Path, known) {
			return true
		}
	}
	return false
}

// registration is the registration of a client that comes back to the person's machine,
// with each of its names once.
func registration(body api.Secret) (api.Secret, bool) {
	var m map[string]json.RawMessage
	var uris []string
	if json.Unmarshal([]byte(body), &m) != nil || json.Unmarshal(m["redirect_uris"], &uris) != nil || len(uris) == 0 {
		return "", false
	}
	for name := range m {
		if strings.EqualFold(name, "method") { // a call of JSON-RPC, or to some who read it
			return "", false
		}
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" {
			return "", false
		}
		if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !ip.IsLoopback() {
			return "", false
		}
	}
	once, err := json.Marshal(m)
	return api.Secret(once), err == nil
}

// redemption is the form that redeems a code, escaped so that it is nothing else.
func redemption(body api.Secret) (api.Secret, bool) {
	form, err := url.ParseQuery(string(body))
	if err != nil || len(form["grant_type"]) != 1 || form.Get("grant_type") != "authorization_code" || form.Get("code") == "" {
		return "", false
	}
	return api.Secret(form.Encode()), true
}

// notReached is the public error of a host that did not answer, without its URL.
func notReached(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	status := http.StatusBadGateway
	if e := tunnel.AsError(err); e != nil {
		status = e.HTTPStatus()
	}
	return &api.Error{Status: status, Type: api.TypeAPI, Message: err.Error()}
}
