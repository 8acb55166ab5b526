package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
)

func newVault(t *testing.T) *vault.Vault {
	t.Helper()
	v, err := vault.New(vault.Options{Key: "file:" + filepath.Join(t.TempDir(), "vault.key")})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// auditLog opens a record. records closes it and returns what is in it.
func auditLog(t *testing.T) (log *audit.Log, records func() []*audit.Entry) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	log, err := audit.Open(path, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log, func() (all []*audit.Entry) {
		t.Helper()
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := audit.OpenSegments(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for e, err := range audit.Entries(r, audit.Filter{}) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, e)
		}
		return all
	}
}

// newVaultWorld is a world that can keep secrets, and reach servers.
func newVaultWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	if cfg.Vault == nil {
		cfg.Vault = newVault(t)
	}
	cfg.HTTP = &http.Client{}
	return newWorld(t, cfg)
}

func (w *world) vault() api.VaultID {
	w.t.Helper()
	return must1[*api.Vault](w.t)(w.CreateVault(w.ctx, w.admin, api.VaultCreate{DisplayName: "v"})).ID
}

// put puts a credential, by its JSON, into a vault.
func (w *world) put(v api.VaultID, auth string) (*api.Credential, error) {
	w.t.Helper()
	var in api.CredentialCreate
	if err := api.DecodeStrict([]byte(`{"auth":`+auth+`}`), &in); err != nil {
		return nil, err
	}
	return w.CreateCredential(w.ctx, w.admin, v, in)
}

func (w *world) update(v api.VaultID, id api.CredentialID, body string) (*api.Credential, error) {
	w.t.Helper()
	var in api.CredentialUpdate
	if err := api.DecodeStrict([]byte(body), &in); err != nil {
		return nil, err
	}
	return w.UpdateCredential(w.ctx, w.admin, v, id, in)
}

// sessionWith makes a session that has vaults.
func (w *world) sessionWith(vaults ...api.VaultID) api.SessionID {
	w.t.Helper()
	s, err := w.createWith(vaults...)
	if err != nil {
		w.t.Fatal(err)
	}
	return s.ID
}

func (w *world) createWith(vaults ...api.VaultID) (*api.Session, error) {
	w.t.Helper()
	s, _ := w.session()
	return w.CreateSession(w.ctx, w.admin, api.SessionCreate{
		Agent: api.AgentRef{Type: "agent", ID: s.Agent.ID}, EnvironmentID: s.EnvironmentID, VaultIDs: vaults,
	})
}

func static(url, token string) string {
	return fmt.Sprintf(`{"type":"static_bearer","mcp_server_url":%q,"token":%q}`, url, token)
}

func wantErr(t *testing.T, err error, status int, text string) {
	t.Helper()
	e := api.AsError(err)
	if e == nil || e.Status != status || !strings.Contains(e.Message, text) {
		t.Errorf("error %v, want a %d with %q", err, status, text)
	}
}

func TestVaults(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	_, err := w.CreateVault(w.ctx, w.admin, api.VaultCreate{})
	wantErr(t, err, 400, "display_name")
	v := must1[*api.Vault](t)(w.CreateVault(w.ctx, w.admin, api.VaultCreate{DisplayName: "team", Metadata: api.Metadata{"a": "1"}}))

	no := "2"
	got := must1[*api.Vault](t)(w.UpdateVault(w.ctx, w.admin, v.ID, api.VaultUpdate{
		DisplayName: api.Some("other"), Metadata: api.MetadataPatch{"a": nil, "b": &no},
	}))
	want := *v
	want.DisplayName, want.Metadata, want.UpdatedAt = "other", api.Metadata{"b": "2"}, got.UpdatedAt
	if diff := cmp.Diff(&want, got); diff != "" || !got.UpdatedAt.After(v.UpdatedAt) {
		t.Errorf("updated:\n%s", diff)
	}
	again := must1[*api.Vault](t)(w.UpdateVault(w.ctx, w.admin, v.ID, api.VaultUpdate{DisplayName: api.Some("other")}))
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("an update that changes nothing changed something:\n%s", diff)
	}
	_, err = w.UpdateVault(w.ctx, w.admin, v.ID, api.VaultUpdate{DisplayName: api.Opt[string]{Set: true, Null: true}})
	wantErr(t, err, 400, "display_name")

	if _, err := w.DeleteVault(w.ctx, w.admin, v.ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.GetVault(w.ctx, w.admin, v.ID)
	wantErr(t, err, 404, string(v.ID))
	_, err = w.GetVault(w.ctx, Principal{Kind: api.KeyEnvironment}, v.ID)
	wantErr(t, err, 403, "API key")
}

func TestCredentialsAreUniqueAmongThoseInUse(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	v := w.vault()
	first := must1[*api.Credential](t)(w.put(v, static("https://MCP.example.com:443/x/", "token-1")))
	_, err := w.put(v, static("https://mcp.example.com/x", "token-2"))
	wantErr(t, err, 409, string(first.ID))
	if e := api.AsError(err); e.Retry == nil || *e.Retry {
		t.Error("the conflict does not say that trying again cannot help")
	}
	_, err = w.put(v, `{"type":"mcp_oauth","mcp_server_url":"https://mcp.example.com/x","access_token":"t"}`)
	wantErr(t, err, 409, string(first.ID))
	for _, other := range []string{"https://mcp.example.com/y", "https://mcp.example.com:8443/x", "http://mcp.example.com/x", "https://a.mcp.example.com/x", "https://mcp.example.com/x?a=1"} {
		must1[*api.Credential](t)(w.put(v, static(other, "token")))
	}
	must1[*api.Credential](t)(w.put(w.vault(), static("https://mcp.example.com/x", "token-2"))) // another vault

	// What is archived makes room.
	archived := must1[*api.Credential](t)(w.ArchiveCredential(w.ctx, w.admin, v, first.ID))
	if archived.ArchivedAt == nil {
		t.Error("it is not archived")
	}
	again := must1[*api.Credential](t)(w.ArchiveCredential(w.ctx, w.admin, v, first.ID))
	if diff := cmp.Diff(archived, again); diff != "" {
		t.Errorf("archiving again changed:\n%s", diff)
	}
	must1[*api.Credential](t)(w.put(v, static("https://mcp.example.com/x", "token-2")))
	_, err = w.update(v, first.ID, `{"display_name":"x"}`)
	wantErr(t, err, 400, "archived")

	const variable = `{"type":"environment_variable","secret_name":"TOKEN","secret_value":"secret value","networking":{"type":"unrestricted"}}`
	must1[*api.Credential](t)(w.put(v, variable))
	_, err = w.put(v, variable)
	wantErr(t, err, 409, "TOKEN")
}

func TestAVaultHasTwentyCredentialsAtMost(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	v := w.vault()
	var last *api.Credential
	for i := range api.VaultCredentialsMax {
		last = must1[*api.Credential](t)(w.put(v, static(fmt.Sprintf("https://h/%d", i), "t")))
	}
	_, err := w.put(v, static("https://h/more", "t"))
	wantErr(t, err, 400, "20")
	must1[*api.Credential](t)(w.ArchiveCredential(w.ctx, w.admin, v, last.ID))
	must1[*api.Credential](t)(w.put(v, static("https://h/more", "t")))
}

func TestConcurrentCredentialsForOneServer(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	v := w.vault()
	var mu sync.Mutex
	made := 0
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			_, err := w.put(v, static("https://h/x", "t"))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if e := api.AsError(err); e == nil || e.Status != 409 {
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil || made != 1 {
		t.Errorf("%d of 8 were made, %v", made, err)
	}
}

func TestCredentialUpdates(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	v := w.vault()
	bearer := must1[*api.Credential](t)(w.put(v, static("https://h/bearer", "t")))
	oauth := must1[*api.Credential](t)(w.put(v, `{"type":"mcp_oauth","mcp_server_url":"https://h/oauth","access_token":"a","refresh":{
		"token_endpoint":"https://as/token","client_id":"c","refresh_token":"r","scope":"read","token_endpoint_auth":{"type":"client_secret_basic","client_secret":"s"}}}`))
	bare := must1[*api.Credential](t)(w.put(v, `{"type":"mcp_oauth","mcp_server_url":"https://h/bare","access_token":"a"}`))
	public := must1[*api.Credential](t)(w.put(v, `{"type":"mcp_oauth","mcp_server_url":"https://h/public","access_token":"a","refresh":{
		"token_endpoint":"https://as/token","client_id":"c","refresh_token":"r","token_endpoint_auth":{"type":"none"}}}`))
	variable := must1[*api.Credential](t)(w.put(v, `{"type":"environment_variable","secret_name":"TOKEN","secret_value":"secret value",
		"networking":{"type":"limited","allowed_hosts":["api.example.com","192.0.2.1","*.example.org"]},"injection_location":{"header":true}}`))

	tests := []struct {
		name string
		of   *api.Credential
		body string
		want string // of auth, if it is accepted
		err  string
	}{
		{"another type", bearer, `{"auth":{"type":"mcp_oauth"}}`, "", "cannot be changed"},
		{"another server", bearer, `{"auth":{"type":"static_bearer","mcp_server_url":"https://x"}}`, "", "mcp_server_url"},
		{"a secret taken away", bearer, `{"auth":{"type":"static_bearer","token":null}}`, "", "cannot be cleared"},
		{"a token of two lines", bearer, `{"auth":{"type":"static_bearer","token":"a\nb"}}`, "", "header"},
		{"a token", bearer, `{"auth":{"type":"static_bearer","token":"new"}}`, `{"type":"static_bearer","mcp_server_url":"https://h/bearer"}`, ""},
		{"a time in the past", oauth, `{"auth":{"type":"mcp_oauth","expires_at":"2020-01-01T00:00:00Z"}}`, "", "future"},
		{"scope and time", oauth, `{"auth":{"type":"mcp_oauth","access_token":"b","expires_at":"2027-01-01T02:00:00+02:00","refresh":{"scope":""}}}`,
			`{"type":"mcp_oauth","mcp_server_url":"https://h/oauth","expires_at":"2027-01-01T00:00:00Z","refresh":{"token_endpoint":"https://as/token",
			"token_endpoint_auth":{"type":"client_secret_basic"},"client_id":"c","scope":null,"resource":null}}`, ""},
		{"the other way to send a secret", oauth, `{"auth":{"type":"mcp_oauth","refresh":{"token_endpoint_auth":{"type":"client_secret_post","client_secret":"s2"}}}}`,
			`{"type":"mcp_oauth","mcp_server_url":"https://h/oauth","expires_at":"2027-01-01T00:00:00Z","refresh":{"token_endpoint":"https://as/token",
			"token_endpoint_auth":{"type":"client_secret_basic"},"client_id":"c","scope":null,"resource":null}}`, ""},
		{"another client", oauth, `{"auth":{"type":"mcp_oauth","refresh":{"client_id":"x"}}}`, "", "client_id"},
		{"a refresh that is not there", bare, `{"auth":{"type":"mcp_oauth","refresh":{"scope":"x"}}}`, "", "auth.refresh"},
		{"a secret of a public client", public, `{"auth":{"type":"mcp_oauth","refresh":{"token_endpoint_auth":{"type":"client_secret_post","client_secret":"s"}}}}`, "", "cannot be changed"},
		{"nowhere to put it", variable, `{"auth":{"type":"environment_variable","injection_location":{"header":false}}}`, "", "at least one"},
		{"null for a place", variable, `{"auth":{"type":"environment_variable","injection_location":{"body":null}}}`, "", "null"},
		{"another place", variable, `{"auth":{"type":"environment_variable","injection_location":{"body":true}}}`,
			`{"type":"environment_variable","secret_name":"TOKEN","networking":{"type":"limited","allowed_hosts":["api.example.com","192.0.2.1","*.example.org"]},"injection_location":{"body":true,"header":true}}`, ""},
		{"all hosts", variable, `{"auth":{"type":"environment_variable","networking":{"type":"unrestricted"}}}`,
			`{"type":"environment_variable","secret_name":"TOKEN","networking":{"type":"unrestricted"},"injection_location":{"body":true,"header":true}}`, ""},
		{"hosts of all", variable, `{"auth":{"type":"environment_variable","networking":{"type":"unrestricted","allowed_hosts":["x.y"]}}}`, "", "allowed_hosts"},
	}
	for _, tt := range tests {
		got, err := w.update(v, tt.of.ID, tt.body)
		if tt.err != "" {
			wantErr(t, err, 400, tt.err)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		auth, _ := json.Marshal(got.Auth)
		if !sameJSON(t, auth, []byte(tt.want)) {
			t.Errorf("%s: %s, want %s", tt.name, auth, tt.want)
		}
		if !got.UpdatedAt.After(tt.of.UpdatedAt) {
			t.Errorf("%s: updated_at did not move", tt.name)
		}
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		t.Fatal(err)
	}
	return cmp.Equal(x, y)
}

func TestCredentialCreateRefusals(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	v := w.vault()
	oauth := func(rest string) string {
		return `{"type":"mcp_oauth","mcp_server_url":"https://h","access_token":"a",` + rest + `}`
	}
	refresh := func(rest string) string {
		return oauth(`"refresh":{"token_endpoint":"https://as/t","client_id":"c","refresh_token":"r",` + rest + `}`)
	}
	env := func(rest string) string {
		return `{"type":"environment_variable","secret_name":"A","secret_value":"long enough",` + rest + `}`
	}
	for auth, text := range map[string]string{
		`{"type":"password"}`: "auth.type",
		`"static_bearer"`:     "auth",
		`{"type":"static_bearer","mcp_server_url":"https://h"}`: "auth.token",
		static("ftp://h", "t"):                                               "mcp_server_url",
		static("https://u:p@h", "t"):                                         "mcp_server_url",
		static("https://h/#x", "t"):                                          "mcp_server_url",
		static("h", "t"):                                                     "mcp_server_url",
		static("https://"+strings.Repeat("h", 2048), "t"):                    "mcp_server_url",
		static("https://h", strings.Repeat("t", 8193)):                       "auth.token",
		static("https://h", "two words"):                                     "header",
		oauth(`"expires_at":"2020-01-01T00:00:00Z"`):                         "future",
		oauth(`"token":"t"`):                                                 "token",
		refresh(`"token_endpoint_auth":{"type":"private_key_jwt"}`):          "token_endpoint_auth",
		refresh(`"token_endpoint_auth":{"type":"none","client_secret":"s"}`): "client_secret",
		refresh(`"token_endpoint_auth":{"type":"client_secret_post"}`):       "client_secret",
		oauth(`"refresh":{"token_endpoint":"http://as/t","client_id":"c","refresh_token":"r","token_endpoint_auth":{"type":"none"}}`): "https",
		env(`"networking":{"type":"limited","allowed_hosts":[]}`):                                                                     "allowed_hosts",
		env(`"networking":{"type":"limited","allowed_hosts":["https://x"]}`):                                                          "allowed_hosts.0",
		env(`"networking":{"type":"limited","allowed_hosts":["::1"]}`):                                                                "allowed_hosts.0",
		env(`"networking":{"type":"all"}`):                                                                                            "networking.type",
		env(`"injection_location":{"body":true}`):                                                                                     "networking",
		env(`"networking":{"type":"unrestricted"},"injection_location":null`):                                                         "null",
		env(`"networking":{"type":"unrestricted"},"injection_location":{}`):                                                           "at least one",
		`{"type":"environment_variable","secret_name":"1A","secret_value":"long enough","networking":{"type":"unrestricted"}}`:        "secret_name",
		`{"type":"environment_variable","secret_name":"A","secret_value":"short","networking":{"type":"unrestricted"}}`:               "secret_value",
	} {
		_, err := w.put(v, auth)
		wantErr(t, err, 400, text)
		if err != nil && (strings.Contains(err.Error(), "long enough") || strings.Contains(err.Error(), "two words")) {
			t.Errorf("the error quotes a secret: %v", err)
		}
	}
	_, err := w.put("vlt_none", static("https://h", "t"))
	wantErr(t, err, 404, "vlt_none")
}

func TestNoSecretIsStoredOpenly(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	v := w.vault()
	cred := must1[*api.Credential](t)(w.put(v, `{"type":"mcp_oauth","mcp_server_url":"https://h","access_token":"SECRET-a","refresh":{
		"token_endpoint":"https://as/token","client_id":"c","refresh_token":"SECRET-r","token_endpoint_auth":{"type":"client_secret_post","client_secret":"SECRET-s"}}}`))
	shown, _ := json.Marshal(cred)
	if strings.Contains(string(shown), "SECRET") {
		t.Errorf("the answer has a secret: %s", shown)
	}
	var rows []*store.Secret
	err := w.db.Read(w.ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Secrets(string(cred.ID))
		return err
	})
	if err != nil || len(rows) != 3 {
		t.Fatalf("%d secrets, %v", len(rows), err)
	}
	for _, row := range rows {
		if strings.Contains(row.Sealed, "SECRET") || row.KeyID == "" {
			t.Errorf("stored: %+v", row)
		}
	}
	secrets, err := w.unseal(w.ctx, rows)
	if diff := cmp.Diff(api.Secrets{"access_token": "SECRET-a", "refresh_token": "SECRET-r", "client_secret": "SECRET-s"}, secrets); diff != "" || err != nil {
		t.Errorf("opened: %v\n%s", err, diff)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", secrets, secrets, secrets, secrets["access_token"]); strings.Contains(text, "SECRET") {
		t.Errorf("printing shows secrets: %s", text)
	}
	must1[*api.Credential](t)(w.ArchiveCredential(w.ctx, w.admin, v, cred.ID))
	err = w.db.Read(w.ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Secrets(string(cred.ID))
		return err
	})
	if err != nil || len(rows) != 0 {
		t.Errorf("after archiving there are %d secrets, %v", len(rows), err)
	}
}

func TestSessionsTakeVaultsThatAreInUse(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	a, b := w.vault(), w.vault()
	s, err := w.createWith(b, a)
	if err != nil || !slices.Equal(s.VaultIDs, []api.VaultID{b, a}) {
		t.Fatalf("vault_ids %v, %v", s, err)
	}
	_, err = w.createWith(a, "vlt_none")
	wantErr(t, err, 404, "vlt_none")
	_, err = w.createWith("not an id")
	wantErr(t, err, 400, "vault_ids.0")
	_, err = w.createWith(make([]api.VaultID, api.SessionVaultsMax+1)...)
	wantErr(t, err, 400, "at most 50")
	must1[*api.Vault](t)(w.ArchiveVault(w.ctx, w.admin, a))
	_, err = w.createWith(b, a)
	wantErr(t, err, 400, "archived")
	_, err = w.UpdateSession(w.ctx, w.admin, s.ID, api.SessionUpdate{VaultIDs: api.Some([]string{})})
	wantErr(t, err, 400, "not yet supported")
}

func TestCredentialFor(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	a, b := w.vault(), w.vault()
	inA := must1[*api.Credential](t)(w.put(a, static("https://docs.example.com/mcp", "from-a")))
	must1[*api.Credential](t)(w.put(b, static("https://docs.example.com/mcp/", "from-b")))
	must1[*api.Credential](t)(w.put(b, static("https://only.example.com/b", "only-b")))
	s := w.sessionWith(a, b)

	want := func(url, header string) {
		t.Helper()
		if got, err := w.CredentialFor(w.ctx, s, url); err != nil || got != header {
			t.Errorf("for %s: %q, %v; want %q", url, got, err, header)
		}
	}
	for _, url := range []string{
		"https://docs.example.com/mcp", "https://docs.example.com/mcp/", "HTTPS://DOCS.example.com:443/mcp//",
	} {
		want(url, "Bearer from-a")
	}
	for _, url := range []string{
		"https://docs.example.com/", "https://docs.example.com/MCP", "https://docs.example.com/mcp/x", "https://docs.example.com:8443/mcp",
		"https://x.docs.example.com/mcp", "http://docs.example.com/mcp", "https://example.com/mcp", "", "::",
	} {
		want(url, "")
	}
	want("https://only.example.com/b", "Bearer only-b")

	// What happens to a credential reaches a session that has begun.
	must1[*api.Credential](t)(w.update(a, inA.ID, `{"auth":{"type":"static_bearer","token":"rotated"}}`))
	want("https://docs.example.com/mcp", "Bearer rotated")
	if got, err := w.CredentialRefused(w.ctx, s, "https://docs.example.com/mcp", "Bearer from-a"); err != nil || got != "Bearer rotated" {
		t.Errorf("after 401 for the old one: %q, %v", got, err)
	}
	if got, err := w.CredentialRefused(w.ctx, s, "https://docs.example.com/mcp", "Bearer rotated"); err != nil || got != "" {
		t.Errorf("after 401 for the only one: %q, %v", got, err)
	}
	must1[*api.Credential](t)(w.ArchiveCredential(w.ctx, w.admin, a, inA.ID))
	want("https://docs.example.com/mcp", "Bearer from-b")
	must1[*api.Vault](t)(w.ArchiveVault(w.ctx, w.admin, b))
	want("https://docs.example.com/mcp", "")
	if _, err := w.DeleteVault(w.ctx, w.admin, a); err != nil {
		t.Fatal(err)
	}
	want("https://docs.example.com/mcp", "")
}

func TestArchivingAVaultArchivesItsCredentials(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{})
	v := w.vault()
	cred := must1[*api.Credential](t)(w.put(v, static("https://h", "t")))
	archived := must1[*api.Vault](t)(w.ArchiveVault(w.ctx, w.admin, v))
	got := must1[*api.Credential](t)(w.GetCredential(w.ctx, w.admin, v, cred.ID))
	if archived.ArchivedAt == nil || got.ArchivedAt == nil {
		t.Errorf("archived: vault %v, credential %v", archived.ArchivedAt, got.ArchivedAt)
	}
	_, err := w.put(v, static("https://h/2", "t"))
	wantErr(t, err, 400, "archived")
	_, err = w.UpdateVault(w.ctx, w.admin, v, api.VaultUpdate{DisplayName: api.Some("x")})
	wantErr(t, err, 400, "archived")
	page := must1[api.Page[*api.Credential]](t)(w.ListCredentials(w.ctx, w.admin, v, false, api.PageRequest{}))
	all := must1[api.Page[*api.Credential]](t)(w.ListCredentials(w.ctx, w.admin, v, true, api.PageRequest{}))
	if len(page.Data) != 0 || len(all.Data) != 1 {
		t.Errorf("listed %d, and %d with archived ones", len(page.Data), len(all.Data))
	}
}

// Whoever waits for a credential hears of its end, however it comes.
func TestTheEndOfACredentialIsTold(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*world, api.VaultID, api.CredentialID) error{
		"archived": func(w *world, v api.VaultID, id api.CredentialID) error {
			_, err := w.ArchiveCredential(w.ctx, w.admin, v, id)
			return err
		},
		"deleted": func(w *world, v api.VaultID, id api.CredentialID) error {
			_, err := w.DeleteCredential(w.ctx, w.admin, v, id)
			return err
		},
		"vault archived": func(w *world, v api.VaultID, _ api.CredentialID) error {
			_, err := w.ArchiveVault(w.ctx, w.admin, v)
			return err
		},
		"vault deleted": func(w *world, v api.VaultID, _ api.CredentialID) error {
			_, err := w.DeleteVault(w.ctx, w.admin, v)
			return err
		},
	} {
		w := newVaultWorld(t, Config{})
		v := w.vault()
		cred := must1[*api.Credential](t)(w.put(v, static("https://h", "t")))
		told := newSignal()
		w.hub.subscribe(topicCredential(cred.ID), told)
		if err := end(w, v, cred.ID); err != nil {
			t.Fatal(err)
		}
		select {
		case <-told.C:
		default:
			t.Errorf("%s: nobody was told", name)
		}
	}
}

// -- renewal ------------------------------------------------------------------------

// A fakeAS stands for an authorization server that takes each refresh token once.
type fakeAS struct {
	*httptest.Server
	mu      sync.Mutex
	current string // the refresh token that is good
	n       int
	answer  func(w http.ResponseWriter) bool // in place of the usual, if it returns true
	asked   chan struct{}                    // if not nil: received from before it answers
	forms   []string
}

func newFakeAS(t *testing.T) *fakeAS {
	as := &fakeAS{current: "r0"}
	as.Server = httptest.NewServer(http.HandlerFunc(as.serve))
	t.Cleanup(as.Close)
	return as
}

func (as *fakeAS) serve(w http.ResponseWriter, r *http.Request) {
	if as.asked != nil {
		<-as.asked
	}
	as.mu.Lock()
	defer as.mu.Unlock()
	_ = r.ParseForm()
	as.forms = append(as.forms, r.PostForm.Encode())
	w.Header().Set("Content-Type", "application/json")
	if as.answer != nil && as.answer(w) {
		return
	}
	if r.PostForm.Get("refresh_token") != as.current {
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"error":"invalid_grant","error_description":"%s was used before"}`, r.PostForm.Get("refresh_token"))
		return
	}
	as.n++
	as.current = fmt.Sprintf("r%d", as.n)
	fmt.Fprintf(w, `{"access_token":"a%d","refresh_token":"r%d","token_type":"Bearer","expires_in":3600}`, as.n, as.n)
}

func (as *fakeAS) count() int {
	as.mu.Lock()
	defer as.mu.Unlock()
	return len(as.forms)
}

// oauth puts an mcp_oauth credential into a vault that expires in ten minutes.
func (w *world) oauth(v api.VaultID, as *fakeAS) *api.Credential {
	w.t.Helper()
	return must1[*api.Credential](w.t)(w.put(v, fmt.Sprintf(`{"type":"mcp_oauth","mcp_server_url":"https://h/mcp","access_token":"a0","expires_at":%q,"refresh":{
		"token_endpoint":"%s/token","client_id":"c","refresh_token":"r0","resource":"https://h/mcp","token_endpoint_auth":{"type":"none"}}}`,
		w.cfg.Clock().Add(10*time.Minute).Format(time.RFC3339), as.URL)))
}

func TestATokenIsRenewedOnceHoweverManyWait(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	w := newVaultWorld(t, Config{})
	v := w.vault()
	cred := w.oauth(v, as)
	s := w.sessionWith(v)
	if got, err := w.CredentialFor(w.ctx, s, "https://h/mcp"); err != nil || got != "Bearer a0" || as.count() != 0 {
		t.Fatalf("while it is good: %q, %v, asked %d times", got, err, as.count())
	}
	w.pass(9*time.Minute + 30*time.Second)
	var g errgroup.Group
	for range 20 {
		g.Go(func() error {
			got, err := w.CredentialFor(w.ctx, s, "https://h/mcp")
			if err == nil && got != "Bearer a1" {
				err = fmt.Errorf("got %q", got)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if as.count() != 1 {
		t.Errorf("the token endpoint was asked %d times: %q", as.count(), as.forms)
	}
	if want := "client_id=c&grant_type=refresh_token&refresh_token=r0&resource=https%3A%2F%2Fh%2Fmcp"; as.forms[0] != want {
		t.Errorf("asked %q, want %q", as.forms[0], want)
	}
	got := must1[*api.Credential](t)(w.GetCredential(w.ctx, w.admin, v, cred.ID))
	if ends := got.Auth.ExpiresAt; ends == nil || time.Until(*ends) < 50*time.Minute {
		t.Errorf("it ends at %v", ends)
	}
}

func TestATokenIsRenewedOnceAcrossReplicas(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	as.asked = make(chan struct{})
	shared := newVault(t)
	url := newDB(t)
	var replicas []*Control
	clock := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	var mu sync.Mutex
	for range 2 {
		c, err := New(t.Context(), url, store.Options{}, Config{Vault: shared, HTTP: &http.Client{}, Clock: func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			clock = clock.Add(time.Microsecond)
			return clock
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		replicas = append(replicas, c)
	}
	w := &world{Control: replicas[0], t: t, ctx: t.Context(), admin: Principal{Kind: api.KeyAPI, KeyID: "apikey_test"}}
	v := w.vault()
	w.oauth(v, as)
	s := w.sessionWith(v)
	mu.Lock()
	clock = clock.Add(11 * time.Minute)
	mu.Unlock()
	var g errgroup.Group
	for _, c := range append(replicas, replicas...) {
		g.Go(func() error {
			got, err := c.CredentialFor(t.Context(), s, "https://h/mcp")
			if err == nil && got != "Bearer a1" {
				err = fmt.Errorf("got %q", got)
			}
			return err
		})
	}
	as.asked <- struct{}{} // one may answer; a second would wait here for ever
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if as.count() != 1 {
		t.Errorf("the token endpoint was asked %d times", as.count())
	}
}

func TestARefusedTokenIsRenewed(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	w := newVaultWorld(t, Config{})
	v := w.vault()
	w.oauth(v, as)
	s := w.sessionWith(v)
	got, err := w.CredentialRefused(w.ctx, s, "https://h/mcp", "Bearer a0")
	if err != nil || got != "Bearer a1" {
		t.Fatalf("after a 401: %q, %v", got, err)
	}
	// A server that refuses what is brand-new wants something else.
	got, err = w.CredentialRefused(w.ctx, s, "https://h/mcp", "Bearer a1")
	if err != nil || got != "" || as.count() != 1 {
		t.Errorf("after another: %q, %v, asked %d times", got, err, as.count())
	}
}

func TestARefusalToRenewIsBelieved(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	as.current = "another"
	log, records := auditLog(t)
	w := newVaultWorld(t, Config{Audit: log})
	v := w.vault()
	cred := w.oauth(v, as)
	s := w.sessionWith(v)
	w.pass(11 * time.Minute)
	for range 3 {
		_, err := w.CredentialFor(w.ctx, s, "https://h/mcp")
		wantErr(t, err, 401, "invalid_grant")
		if e := api.AsError(err); e.Details["error_code"] != CodeCredentialRefused || e.Retry == nil || *e.Retry {
			t.Errorf("details %v, retry %v", e.Details, e.Retry)
		}
		if strings.Contains(err.Error(), "r0") {
			t.Errorf("the error has the refresh token: %v", err)
		}
	}
	if as.count() != 1 {
		t.Errorf("asked %d times", as.count())
	}
	// Somebody authorizes again.
	as.mu.Lock()
	as.current = "fresh"
	as.mu.Unlock()
	must1[*api.Credential](t)(w.update(v, cred.ID, `{"auth":{"type":"mcp_oauth","refresh":{"refresh_token":"fresh"}}}`))
	if got, err := w.CredentialFor(w.ctx, s, "https://h/mcp"); err != nil || got != "Bearer a1" {
		t.Errorf("after that: %q, %v", got, err)
	}
	var outcomes []string
	for _, r := range records() {
		if r.Action == audit.CredentialRefresh {
			outcomes = append(outcomes, r.Outcome)
		}
	}
	if want := []string{"asked", "refused", "asked", "renewed"}; !slices.Equal(outcomes, want) {
		t.Errorf("on record: %q, want %q", outcomes, want)
	}
}

func TestAnAuthorizationServerThatIsAwayIsLeftAloneForAWhile(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	down := true
	as.answer = func(w http.ResponseWriter) bool {
		if down {
			w.WriteHeader(503)
			_, _ = io.WriteString(w, "<html>later, refresh_token=r0</html>")
		}
		return down
	}
	w := newVaultWorld(t, Config{})
	v := w.vault()
	w.oauth(v, as)
	s := w.sessionWith(v)

	// A token that is still good for a little is used meanwhile.
	w.pass(9*time.Minute + 30*time.Second)
	if got, err := w.CredentialFor(w.ctx, s, "https://h/mcp"); err != nil || got != "Bearer a0" {
		t.Errorf("shortly before its end: %q, %v", got, err)
	}
	if _, err := w.CredentialFor(w.ctx, s, "https://h/mcp"); err != nil || as.count() != 1 {
		t.Errorf("right after: %v, asked %d times", err, as.count())
	}
	w.pass(time.Minute)
	_, err := w.CredentialFor(w.ctx, s, "https://h/mcp")
	wantErr(t, err, 503, "503")
	if e := api.AsError(err); e.Details["error_code"] != CodeCredentialUnavailable || strings.Contains(e.Message, "r0") {
		t.Errorf("error %+v", e)
	}
	as.mu.Lock()
	down = false
	as.mu.Unlock()
	w.pass(renewPause)
	if got, err := w.CredentialFor(w.ctx, s, "https://h/mcp"); err != nil || got != "Bearer a1" {
		t.Errorf("when it is back: %q, %v", got, err)
	}
}

func TestWhatIsPutThereByHandIsNotOverwrittenByARenewal(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	as.asked = make(chan struct{})
	w := newVaultWorld(t, Config{})
	v := w.vault()
	cred := w.oauth(v, as)
	s := w.sessionWith(v)
	w.pass(11 * time.Minute)
	type answer struct {
		header string
		err    error
	}
	got := make(chan answer, 1)
	go func() {
		h, err := w.CredentialFor(w.ctx, s, "https://h/mcp")
		got <- answer{h, err}
	}()
	w.claimed(v, cred.ID)
	must1[*api.Credential](t)(w.update(v, cred.ID, `{"auth":{"type":"mcp_oauth","access_token":"by-hand","expires_at":"2027-01-01T00:00:00Z"}}`))
	as.asked <- struct{}{}
	if a := <-got; a.err != nil || a.header != "Bearer by-hand" {
		t.Errorf("got %+v", a)
	}
}

// claimed waits until somebody renews a credential.
func (w *world) claimed(v api.VaultID, id api.CredentialID) {
	w.t.Helper()
	for range 1000 {
		var cred *store.Credential
		err := w.db.Read(w.ctx, func(tx *store.Tx) (err error) {
			cred, err = tx.Credential(v, id)
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
		if cred.RefreshOwner != "" {
			return
		}
		time.Sleep(time.Millisecond)
	}
	w.t.Fatal("nobody renews it")
}

func TestACallerThatLeavesDoesNotEndARenewal(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	as.asked = make(chan struct{})
	w := newVaultWorld(t, Config{})
	v := w.vault()
	cred := w.oauth(v, as)
	s := w.sessionWith(v)
	w.pass(11 * time.Minute)
	ctx, cancel := context.WithCancel(w.ctx)
	left := make(chan error, 1)
	go func() {
		_, err := w.CredentialFor(ctx, s, "https://h/mcp")
		left <- err
	}()
	w.claimed(v, cred.ID)
	cancel()
	if err := <-left; err == nil {
		t.Error("a caller that left got an answer")
	}
	as.asked <- struct{}{}
	if got, err := w.CredentialFor(w.ctx, s, "https://h/mcp"); err != nil || got != "Bearer a1" {
		t.Errorf("the next one: %q, %v", got, err)
	}
	if as.count() != 1 {
		t.Errorf("asked %d times", as.count())
	}
}

func TestWithoutARecordNoCredentialIsUsed(t *testing.T) {
	t.Parallel()
	log, _ := auditLog(t)
	w := newVaultWorld(t, Config{Audit: log})
	v := w.vault()
	must1[*api.Credential](t)(w.put(v, static("https://h", "t")))
	s := w.sessionWith(v)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := w.CredentialFor(w.ctx, s, "https://h"); err == nil || got != "" {
		t.Errorf("got %q, %v", got, err)
	}
}

// -- keys ----------------------------------------------------------------------------

func TestRotatingTheKeyOfSecrets(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{Sole: true})
	v := w.vault()
	for i := range 5 {
		must1[*api.Credential](t)(w.put(v, static(fmt.Sprintf("https://h/%d", i), fmt.Sprintf("token-%d", i))))
	}
	s := w.sessionWith(v)
	before := must1[*api.VaultKeys](t)(w.VaultKeys(w.ctx, w.admin))
	if len(before.Data) != 1 || before.Data[0].Secrets != 6 { // and the server's own
		t.Fatalf("keys %+v", before.Data)
	}
	done := must1[*api.VaultKeyRotation](t)(w.RotateVaultKey(w.ctx, w.admin, api.VaultKeyRotate{}))
	if done.Rewrapped != 6 || done.Failed != 0 || done.KeyID == before.Data[0].ID {
		t.Errorf("rotated: %+v", done)
	}
	again := must1[*api.VaultKeyRotation](t)(w.RotateVaultKey(w.ctx, w.admin, api.VaultKeyRotate{RewrapOnly: true}))
	if again.Rewrapped != 0 || again.KeyID != done.KeyID {
		t.Errorf("again: %+v", again)
	}
	for i := range 5 {
		if got, err := w.CredentialFor(w.ctx, s, fmt.Sprintf("https://h/%d", i)); err != nil || got != fmt.Sprintf("Bearer token-%d", i) {
			t.Errorf("%d: %q, %v", i, got, err)
		}
	}
	_, err := w.RotateVaultKey(w.ctx, Principal{Kind: api.KeyEnvironment}, api.VaultKeyRotate{})
	wantErr(t, err, 403, "API key")
}

func TestSecretsAreUsableWhileTheirKeyIsRotated(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{Sole: true})
	v := w.vault()
	cred := must1[*api.Credential](t)(w.put(v, static("https://h", "token-0")))
	s := w.sessionWith(v)
	stop := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		for {
			select {
			case <-stop:
				return nil
			default:
			}
			if got, err := w.CredentialFor(w.ctx, s, "https://h"); err != nil || !strings.HasPrefix(got, "Bearer token-") {
				return fmt.Errorf("%q, %w", got, err)
			}
		}
	})
	last := ""
	for i := range 10 {
		must1[*api.VaultKeyRotation](t)(w.RotateVaultKey(w.ctx, w.admin, api.VaultKeyRotate{}))
		last = fmt.Sprintf("token-%d", i)
		must1[*api.Credential](t)(w.update(v, cred.ID, fmt.Sprintf(`{"auth":{"type":"static_bearer","token":%q}}`, last)))
	}
	close(stop)
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if got, err := w.CredentialFor(w.ctx, s, "https://h"); err != nil || got != "Bearer "+last {
		t.Errorf("at the end: %q, %v", got, err)
	}
}

func TestAServerWithoutItsKeyUsesNoSecretAndMakesNoOtherKey(t *testing.T) {
	t.Parallel()
	url := newDB(t)
	start := func(v *vault.Vault) *world {
		c, err := New(t.Context(), url, store.Options{}, Config{Vault: v})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return &world{Control: c, t: t, ctx: t.Context(), admin: Principal{Kind: api.KeyAPI, KeyID: "apikey_test"}}
	}
	first := start(newVault(t))
	v := first.vault()
	must1[*api.Credential](t)(first.put(v, static("https://h", "t")))
	s := first.sessionWith(v)

	other := start(newVault(t))
	_, err := other.CredentialFor(t.Context(), s, "https://h")
	wantErr(t, err, 503, "key")
	_, err = other.put(v, static("https://h/2", "t"))
	wantErr(t, err, 503, "key")
	must1[*api.Vault](t)(other.GetVault(t.Context(), other.admin, v)) // everything else works

	none := start(nil)
	_, err = none.put(v, static("https://h/2", "t"))
	wantErr(t, err, 503, "key")
}

// -- variables -------------------------------------------------------------------------

// working makes a session with vaults whose work item a worker has, and returns whom its
// token belongs to.
func (w *world) working(networking *api.Networking, vaults ...api.VaultID) (api.SessionID, api.EnvironmentID, Principal) {
	w.t.Helper()
	s, _ := w.session()
	config := &api.EnvironmentConfig{Type: api.EnvSelfHosted}
	if networking != nil {
		config = &api.EnvironmentConfig{Type: api.EnvCloud, Networking: networking}
	}
	env := must1[*api.Environment](w.t)(w.CreateEnvironment(w.ctx, w.admin, api.EnvironmentCreate{Name: "e", Config: config}))
	made := must1[*api.Session](w.t)(w.CreateSession(w.ctx, w.admin, api.SessionCreate{
		Agent: api.AgentRef{Type: "agent", ID: s.Agent.ID}, EnvironmentID: env.ID, VaultIDs: vaults,
	}))
	key := Principal{Kind: api.KeyEnvironment, EnvironmentID: env.ID}
	item := must1[*api.Work](w.t)(w.PollWork(w.ctx, key, env.ID, api.PollRequest{WorkerID: "w"}))
	must1[*api.Work](w.t)(w.AckWork(w.ctx, key, env.ID, item.ID))
	return made.ID, env.ID, Principal{Kind: api.KeySession, KeyID: "stok_test", EnvironmentID: env.ID, SessionID: made.ID, WorkID: item.ID}
}

func variable(name, value, networking string) string {
	return fmt.Sprintf(`{"type":"environment_variable","secret_name":%q,"secret_value":%q,"networking":%s,"injection_location":{"header":true}}`, name, value, networking)
}

func TestVariablesOfASession(t *testing.T) {
	t.Parallel()
	log, records := auditLog(t)
	w := newVaultWorld(t, Config{Audit: log})
	a, b := w.vault(), w.vault()
	const anywhere = `{"type":"unrestricted"}`
	inA := must1[*api.Credential](t)(w.put(a, variable("TOKEN", "value of a", anywhere)))
	hidden := must1[*api.Credential](t)(w.put(b, variable("TOKEN", "value of b", anywhere)))
	limited := must1[*api.Credential](t)(w.put(b, variable("OTHER", "other value", `{"type":"limited","allowed_hosts":["api.example.com"]}`)))
	must1[*api.Credential](t)(w.put(b, static("https://h", "t")))
	_, env, token := w.working(nil, a, b)

	got := must1[*api.SessionVariables](t)(w.SessionVariables(w.ctx, token, env, token.WorkID))
	want := []api.SessionVariable{
		{CredentialID: inA.ID, VaultID: a, Name: "TOKEN", Networking: api.CredentialNetworking{Type: "unrestricted"}, InjectionLocation: api.InjectionLocation{Header: true}},
		{CredentialID: limited.ID, VaultID: b, Name: "OTHER", Networking: api.CredentialNetworking{Type: "limited", AllowedHosts: []string{"api.example.com"}}, InjectionLocation: api.InjectionLocation{Header: true}},
	}
	if diff := cmp.Diff(want, got.Data); diff != "" {
		t.Errorf("variables:\n%s", diff)
	}
	value := must1[*api.VariableValue](t)(w.VariableValue(w.ctx, token, env, token.WorkID, inA.ID))
	if value.Value != "value of a" {
		t.Errorf("value %q", string(value.Value))
	}
	_, err := w.VariableValue(w.ctx, token, env, token.WorkID, hidden.ID)
	wantErr(t, err, 404, string(hidden.ID))
	// Another session's token, and one whose item was taken away.
	_, otherEnv, other := w.working(nil)
	_, err = w.VariableValue(w.ctx, other, env, token.WorkID, inA.ID)
	wantErr(t, err, 404, "")
	_, err = w.VariableValue(w.ctx, other, otherEnv, other.WorkID, inA.ID)
	wantErr(t, err, 404, string(inA.ID))
	must1[*api.Work](t)(w.StopWork(w.ctx, token, env, token.WorkID, api.StopRequest{Force: true}))
	_, err = w.VariableValue(w.ctx, token, env, token.WorkID, inA.ID)
	wantErr(t, err, 409, "stopped")

	var handed []string
	for _, r := range records() {
		if r.Action == audit.CredentialHandOut {
			handed = append(handed, r.Session+" "+r.Attrs["credential"])
		}
	}
	if want := []string{string(token.SessionID) + " " + string(inA.ID)}; !slices.Equal(handed, want) {
		t.Errorf("on record: %q, want %q", handed, want)
	}
}

func TestAHostThatTheEnvironmentForbidsIsToldOnce(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{Cloud: func(context.Context) error { return nil }})
	v := w.vault()
	must1[*api.Credential](t)(w.put(v, variable("FINE", "a secret", `{"type":"limited","allowed_hosts":["api.example.com","*.deep.example.org"]}`)))
	bad := must1[*api.Credential](t)(w.put(v, variable("BAD", "b secret", `{"type":"limited","allowed_hosts":["api.example.com","elsewhere.test"]}`)))
	session, env, token := w.working(&api.Networking{Type: api.NetworkLimited, AllowedHosts: []string{"API.example.com", "*.example.org"}}, v)
	for range 2 {
		if got := must1[*api.SessionVariables](t)(w.SessionVariables(w.ctx, token, env, token.WorkID)); len(got.Data) != 2 {
			t.Errorf("variables %+v", got.Data)
		}
	}
	page := must1[api.Page[*api.Event]](t)(w.ListEvents(w.ctx, w.admin, session, "", api.EventFilter{}, api.PageRequest{}))
	var told []api.TurnError
	for _, ev := range page.Data {
		if e, ok := ev.Body.(*api.SessionError); ok {
			told = append(told, e.Error)
		}
	}
	if len(told) != 1 || told[0].Type != api.ErrorCredentialHost || told[0].CredentialID != bad.ID || told[0].VaultID != v ||
		!strings.Contains(told[0].Message, "elsewhere.test") || strings.Contains(told[0].Message, "api.example.com") {
		t.Errorf("the session was told %+v", told)
	}
}

func TestPatternsMeet(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"a.com", "A.com", true}, {"a.com", "b.com", false}, {"x.a.com", "*.a.com", true}, {"a.com", "*.a.com", false},
		{"*.a.com", "*.a.com", true}, {"*.x.a.com", "*.a.com", true}, {"*.a.com", "x.a.com", true}, {"*.a.com", "*.b.com", false},
		{"*.a.com", "*.ba.com", false}, {"xa.com", "*.a.com", false},
	} {
		if got := meet(tt.a, tt.b); got != tt.want || meet(tt.b, tt.a) != got {
			t.Errorf("%s and %s: %v", tt.a, tt.b, got)
		}
	}
}
