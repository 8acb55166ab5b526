package cli

import (
	"context"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/vault"
)

// authorizeFor is how long a person has to be back from the authorization server.
const authorizeFor = 10 * time.Minute

func (p *Program) credentialsAuthorize(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "authorize VAULT URL",
		Short: "Have a person allow the use of an MCP server, by OAuth",
		Long: `Finds out which authorization server the MCP server at URL trusts, and sends you there
with your browser, which comes back to this command; so run it where the browser is.
What you allow is put into the vault as an mcp_oauth credential, which the server
renews by itself where it can. What is behind a tunnel is asked through the server;
the page that you are sent to has to be one that your browser reaches.

With --credential, one that is there and for the same URL gets the new tokens. It
keeps its client: give --client-secret-file if that has a secret, and the --port of the
first time if the authorization server takes no other.

A client is registered with the authorization server if it takes that; otherwise
register one there, with http://127.0.0.1:PORT/callback to come back to, and give
--client-id and --port.`,
		Example: `  bailey vaults credentials authorize vlt_… https://mcp.example.com/mcp
  bailey vaults credentials authorize vlt_… https://mcp.example.com/mcp --client-id abc --client-secret-file secret.txt --port 8765`,
		Args: cobra.ExactArgs(2),
	}
	f := cmd.Flags()
	f.String("name", "", "a `name` to know the credential by")
	credential := f.String("credential", "", "the `id` of the credential that is to have the tokens, in place of a new one")
	clientID := f.String("client-id", "", "the `id` of a client registered with the authorization server")
	clientSecret := f.String("client-secret-file", "", "a `file` with that client's secret (- is standard input)")
	scopes := f.StringArray("scope", nil, "a `scope` to ask for, in place of those the server names; may be repeated")
	port := f.Int("port", 0, "the `port` of this machine that the browser comes back to; 0 takes a free one")
	noBrowser := f.Bool("no-browser", false, "only print the page's address")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		id := api.VaultID(args[0])
		// Before a person is asked for anything.
		if _, err := cl.GetVault(ctx, id); err != nil {
			return err
		}
		through := &tunnelled{server: cl, vault: id, behind: make(map[string]bool)}
		a := vault.Authorization{ServerURL: args[1], ClientID: *clientID, Scopes: *scopes, HTTP: &http.Client{Transport: through, Timeout: time.Minute}}
		if *clientSecret != "" {
			if *clientID == "" && *credential == "" {
				return usageError(cmd, errors.New("--client-secret-file needs --client-id, or --credential"))
			}
			secret, err := p.readSecret(*clientSecret, "the client's secret")
			if err != nil {
				return err
			}
			a.ClientSecret = string(secret)
		}
		var old *api.Credential
		if *credential != "" {
			var err error
			if old, err = cl.GetCredential(ctx, id, api.CredentialID(*credential)); err != nil {
				return err
			}
			if err := authorizeAgain(&a, old); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(ctx, authorizeFor)
		defer cancel()
		back, err := listenBack(*port)
		if err != nil {
			return err
		}
		defer back.close()
		a.RedirectURL = back.url
		a.Visit = func(ctx context.Context, page string) (url.Values, error) {
			if err := through.visitable(page); err != nil {
				return nil, err
			}
			fmt.Fprintf(p.Stderr, "Open this page and allow the use of %s:\n\n  %s\n\n", clean(args[1]), clean(page))
			if !*noBrowser {
				openBrowser(page)
			}
			return back.wait(ctx)
		}
		grant, err := a.Do(ctx)
		if err != nil {
			return fmt.Errorf("not authorized: %w", err)
		}
		var cred *api.Credential
		if old != nil {
			cred, err = cl.UpdateCredential(ctx, id, old.ID, grantUpdate(grant))
		} else {
			in := grantCreate(args[1], grant)
			setOptional(cmd, "name", &in.DisplayName)
			cred, err = cl.CreateCredential(ctx, id, in)
		}
		if err != nil {
			return err
		}
		if grant.RefreshToken == "" {
			fmt.Fprintln(p.Stderr, "The authorization server gave nothing to renew the token with: authorize again when it ends.")
		}
		return p.printCredential(*out, cred)
	})
	return cmd
}

// authorizeAgain has a person asked on behalf of a credential's own client, for which it
// is for ever. It refuses a credential that could not take the tokens.
func authorizeAgain(a *vault.Authorization, cred *api.Credential) error {
	const instead = "; authorize without --credential for another"
	r := cred.Auth.Refresh
	switch {
	case cred.Auth.Type != api.AuthMCPOAuth:
		return fmt.Errorf("credential %s is of type %s, and takes no tokens%s", cred.ID, cred.Auth.Type, instead)
	case cred.ArchivedAt != nil:
		return fmt.Errorf("credential %s is archived%s", cred.ID, instead)
	case api.ServerKey(cred.Auth.MCPServerURL) != api.ServerKey(a.ServerURL):
		return fmt.Errorf("credential %s is for %s%s", cred.ID, cred.Auth.MCPServerURL, instead)
	case r == nil:
		return fmt.Errorf("credential %s has nothing to renew a token with, and cannot be given it: archive it%s", cred.ID, instead)
	case a.ClientID != "" && a.ClientID != r.ClientID:
		return fmt.Errorf("credential %s is of the client %s, and takes no tokens of another: leave --client-id out, or archive it%s", cred.ID, r.ClientID, instead)
	case r.TokenEndpointAuth.Type != api.TokenAuthNone && a.ClientSecret == "":
		return fmt.Errorf("the client %s of credential %s has a secret: give it with --client-secret-file", r.ClientID, cred.ID)
	}
	a.ClientID, a.TokenEndpoint = r.ClientID, r.TokenEndpoint
	return nil
}

// grantCreate is what a person allowed, as a new credential.
func grantCreate(serverURL string, g *vault.Grant) api.CredentialCreate {
	auth := api.CredentialAuthCreate{
		Type: api.AuthMCPOAuth, MCPServerURL: serverURL, AccessToken: api.Secret(g.AccessToken), ExpiresAt: future(g.ExpiresAt),
	}
	if g.RefreshToken != "" {
		auth.Refresh = &api.CredentialRefreshCreate{
			TokenEndpoint: g.TokenEndpoint, ClientID: g.ClientID, RefreshToken: api.Secret(g.RefreshToken),
			TokenEndpointAuth: api.TokenEndpointAuthCreate{Type: g.AuthMethod},
		}
		if g.Scope != "" {
			auth.Refresh.Scope = &g.Scope
		}
		if g.Resource != "" {
			auth.Refresh.Resource = &g.Resource
		}
		if g.AuthMethod != vault.AuthNone {
			secret := api.Secret(g.ClientSecret)
			auth.Refresh.TokenEndpointAuth.ClientSecret = &secret
		}
	}
	return api.CredentialCreate{Auth: auth}
}

// grantUpdate is the same for a credential that is there, whose client was used.
func grantUpdate(g *vault.Grant) api.CredentialUpdate {
	auth := api.CredentialAuthUpdate{
		Type: api.AuthMCPOAuth, AccessToken: api.Some(api.Secret(g.AccessToken)), ExpiresAt: api.Opt[time.Time]{Set: true, Null: true},
	}
	if ends := future(g.ExpiresAt); ends != nil {
		auth.ExpiresAt = api.Some(*ends)
	}
	if g.RefreshToken != "" {
		auth.Refresh = api.Some(api.CredentialRefreshUpdate{RefreshToken: api.Some(api.Secret(g.RefreshToken))})
	}
	return api.CredentialUpdate{Auth: api.Some(auth)}
}

// A comeback waits on this machine for a browser that comes back.
type comeback struct {
	url    string
	server *http.Server
	got    chan url.Values
}

func listenBack(port int) (*comeback, error) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, fmt.Errorf("wait for the browser: %w", err)
	}
	b := &comeback{url: fmt.Sprintf("http://%s/callback", l.Addr()), got: make(chan url.Values, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /callback", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		text := "Done. You can close this window and go back to the terminal."
		switch {
		case q.Get("error") != "":
			text = "The authorization server refused. The terminal says more."
		case q.Get("code") == "":
			http.Error(w, "no code", http.StatusBadRequest)
			return
		}
		select {
		case b.got <- q:
		default: // the first one counts
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer") // the code is in the address
		fmt.Fprintf(w, "<!doctype html><title>Bailey</title><p>%s</p>", html.EscapeString(text))
	})
	b.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	go func() { _ = b.server.Serve(l) }() // until close
	return b, nil
}

func (b *comeback) wait(ctx context.Context) (url.Values, error) {
	select {
	case q := <-b.got:
		return q, nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("nobody came back within %s", authorizeFor)
		}
		return nil, ctx.Err()
	}
}

// close lets the last page go out first.
func (b *comeback) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if b.server.Shutdown(ctx) != nil {
		b.server.Close()
	}
}

// openBrowser tries to open a page. Who has no browser here reads its address.
func openBrowser(page string) {
	if u, err := url.Parse(page); err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return
	}
	name := "xdg-open"
	if runtime.GOOS == "darwin" {
		name = "open"
	}
	cmd := exec.Command(name, page)
	if cmd.Start() == nil {
		go func() { _ = cmd.Wait() }() // it may stay as long as the browser does
	}
}
