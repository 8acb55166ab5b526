package control

import (
	"context"
	"encoding/json"
	"errors"
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
	body, err := io.ReadAll(io.LimitReader(resp.Body, api.OAuthBodyMax))
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
// behind a tunnel is not looked at.
func checkOAuthRequest(r *api.OAuthRequest) error {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "":
		return api.Invalid("url: must be one at https, without a user or fragment")
	case len(r.URL) > oauthURLMax || len(r.Body) > api.OAuthBodyMax || len(r.Authorization) > api.CredentialTokenMax:
		return api.Invalid("the request is too long")
	case r.Method == "GET" && r.Body == "" && r.Authorization == "" && metadataPath(u):
		return nil
	case r.Method == "POST" && r.ContentType == "application/json" && r.Authorization == "" && (r.Body == vault.ProbeBody || registers(r.Body)):
		return nil
	case r.Method == "POST" && r.ContentType == "application/x-www-form-urlencoded" && redeems(r.Body):
		return nil
	}
	return api.Invalid("this is no request of an authorization: metadata at a well-known path, initialize without a credential, the registration of a client that comes back to this machine, or a code for the token endpoint")
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

func registers(body api.Secret) bool {
	var m struct {
		Method *string
		URIs   []string `json:"redirect_uris"`
	}
	if json.Unmarshal([]byte(body), &m) != nil || m.Method != nil || len(m.URIs) == 0 {
		return false
	}
	for _, s := range m.URIs {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" {
			return false
		}
		if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !ip.IsLoopback() {
			return false
		}
	}
	return true
}

func redeems(body api.Secret) bool {
	form, err := url.ParseQuery(string(body))
	return err == nil && form.Get("grant_type") == "authorization_code" && form.Get("code") != ""
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
