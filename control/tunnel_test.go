package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/vault"
)

// newTestVault makes a vault with a key file of its own.
func newTestVault(t testing.TB) *vault.Vault {
	t.Helper()
	v, err := vault.New(vault.Options{Key: "file:" + filepath.Join(t.TempDir(), "vault.key")})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// tunnelWorld is a world whose admin may manage tunnels and which can keep secrets.
func tunnelWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	cfg.Vault = newTestVault(t)
	w := newWorld(t, cfg)
	w.admin.Tunnels = true
	return w
}

func (w *world) tunnel() *api.Tunnel {
	w.t.Helper()
	return must1[*api.Tunnel](w.t)(w.CreateTunnel(w.ctx, w.admin, api.TunnelCreate{}))
}

// caPEM makes a CA certificate that can be registered at w's time.
func (w *world) caPEM() string {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "office CA"}, NotBefore: w.now.Add(-time.Hour), NotAfter: w.now.AddDate(5, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func (w *world) certificate(id api.TunnelID) *api.TunnelCertificate {
	w.t.Helper()
	return must1[*api.TunnelCertificate](w.t)(w.AddCertificate(w.ctx, w.admin, id, api.CertificateCreate{CACertificatePEM: w.caPEM()}))
}

// attachable reports whether a connector may attach with a token.
func (w *world) attachable(text string) bool {
	w.t.Helper()
	ok := false
	err := w.db.Write(w.ctx, func(tx *store.Tx) error {
		_, _, err := goodToken(tx, text)
		ok = err == nil
		if api.AsError(err) != nil {
			return nil
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return ok
}

// wantConflict wants a 409 that tells clients not to try again.
func wantConflict(t *testing.T, err error, text string) {
	t.Helper()
	e := api.AsError(err)
	if e == nil || e.Status != 409 || e.Retry == nil || *e.Retry || !strings.Contains(e.Message, text) {
		t.Errorf("error %v, want a conflict that is not to be tried again, with %q", err, text)
	}
}

func TestTunnelsHaveDomainsOfTheirOwn(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{TunnelDomain: "t.example", TunnelsMax: 3})
	seen := map[string]bool{}
	for range 3 {
		tn := w.tunnel()
		if !regexp.MustCompile(`^[a-z0-9]{8}\.t\.example$`).MatchString(tn.Domain) || seen[tn.Domain] || !strings.HasPrefix(string(tn.ID), "tnl_") {
			t.Errorf("tunnel %+v", tn)
		}
		seen[tn.Domain] = true
	}
	_, err := w.CreateTunnel(w.ctx, w.admin, api.TunnelCreate{})
	wantConflict(t, err, "Organization already has the maximum of 3 non-archived Tunnels")

	// An archived one makes room.
	page, err := w.ListTunnels(w.ctx, w.admin, false, api.PageRequest{Limit: 1})
	if err != nil || len(page.Data) != 1 || page.NextPage == nil {
		t.Fatalf("%+v, %v", page, err)
	}
	if _, err := w.ArchiveTunnel(w.ctx, w.admin, page.Data[0].ID); err != nil {
		t.Fatal(err)
	}
	w.tunnel()
}

func TestOnlySomeMayManageTunnels(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tn := w.tunnel()
	for name, tt := range map[string]struct {
		p    Principal
		want string // of the refusal; "" is allowed
	}{
		"a key for tunnels alone":        {Principal{Kind: api.KeyTunnels, Tunnels: true}, ""},
		"an API key that may":            {Principal{Kind: api.KeyAPI, Tunnels: true}, ""},
		"an ordinary API key":            {Principal{Kind: api.KeyAPI}, "bailey keys create --name NAME --scope tunnels"},
		"an environment key":             {Principal{Kind: api.KeyEnvironment}, "an environment key is not enough"},
		"a session token":                {Principal{Kind: api.KeySession}, "a session token is not enough"},
		"a connector's token, by itself": {Principal{Kind: api.KeyTunnelToken, TunnelID: tn.ID}, "is not enough"},
	} {
		for op, call := range map[string]func() error{
			"create":       func() error { _, err := w.CreateTunnel(w.ctx, tt.p, api.TunnelCreate{}); return err },
			"get":          func() error { _, err := w.GetTunnel(w.ctx, tt.p, tn.ID); return err },
			"list":         func() error { _, err := w.ListTunnels(w.ctx, tt.p, false, api.PageRequest{}); return err },
			"reveal":       func() error { _, err := w.RevealToken(w.ctx, tt.p, tn.ID); return err },
			"rotate":       func() error { _, err := w.RotateToken(w.ctx, tt.p, tn.ID, api.TokenRotate{}); return err },
			"tokens":       func() error { _, err := w.ListTokens(w.ctx, tt.p, tn.ID); return err },
			"certificates": func() error { _, err := w.ListCertificates(w.ctx, tt.p, tn.ID, false, api.PageRequest{}); return err },
		} {
			err := call()
			if e := api.AsError(err); tt.want == "" && err != nil || tt.want != "" && (e == nil || e.Status != 403 || !strings.Contains(e.Message, tt.want)) {
				t.Errorf("%s, %s: %v", name, op, err)
			}
		}
	}
}

func TestKeysGiveOnOnlyWhatTheyMay(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	ordinary := Principal{Kind: api.KeyAPI, KeyID: "apikey_o"}
	scopes := func(s ...api.KeyScope) api.KeyCreate { return api.KeyCreate{Name: "k", Scopes: s} }
	for name, tt := range map[string]struct {
		p    Principal
		in   api.KeyCreate
		want string
	}{
		"tunnels by one that may not": {ordinary, scopes(api.ScopeTunnels), "can only be made with one that may"},
		"by an access token":          {Principal{Kind: api.KeyAPI, AccountID: "svac_1"}, scopes(), "which it would outlive"},
		"by a key for tunnels":        {Principal{Kind: api.KeyTunnels, Tunnels: true}, scopes(api.ScopeTunnels), "needs an API key"},
		"an unknown scope":            {w.admin, scopes("everything"), "scopes: must be workspace or tunnels"},
		"a scope twice":               {w.admin, scopes(api.ScopeTunnels, api.ScopeTunnels), "twice"},
		"a shell without sessions":    {Principal{Kind: api.KeyAPI, Tunnels: true, Shell: true}, api.KeyCreate{Name: "k", Shell: true, Scopes: []api.KeyScope{api.ScopeTunnels}}, "no sessions to open shells of"},
	} {
		if _, err := w.CreateKey(w.ctx, tt.p, "", tt.in); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, tt := range []struct {
		in      api.KeyCreate
		kind    api.KeyKind
		tunnels bool
	}{
		{scopes(), api.KeyAPI, false},
		{scopes(api.ScopeWorkspace), api.KeyAPI, false},
		{scopes(api.ScopeTunnels), api.KeyTunnels, true},
		{scopes(api.ScopeTunnels, api.ScopeWorkspace), api.KeyAPI, true},
	} {
		k := must1[*api.Key](t)(w.CreateKey(w.ctx, w.admin, "", tt.in))
		p, err := w.Authenticate(w.ctx, k.Secret)
		if err != nil || p.Kind != tt.kind || p.Tunnels != tt.tunnels || k.Type != api.KeyAPI || len(k.Scopes) == 0 {
			t.Errorf("%v: %+v as %+v, %v", tt.in.Scopes, k, p, err)
		}
		if p.Kind == api.KeyTunnels && p.admin() == nil {
			t.Error("a key for tunnels is an API key")
		}
	}
}

// A key for tunnels alone is not one that people can get in with.
func TestTheLastKeyOfTheWorkspaceCannotBeRevoked(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	first, _, err := w.Bootstrap(w.ctx, func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]api.KeyScope{api.ScopeWorkspace, api.ScopeTunnels}, first.Scopes); diff != "" {
		t.Errorf("the first key's scopes: %s", diff)
	}
	must1[*api.Key](t)(w.CreateKey(w.ctx, w.admin, "", api.KeyCreate{Name: "t", Scopes: []api.KeyScope{api.ScopeTunnels}}))
	if _, err := w.RevokeKey(w.ctx, w.admin, "", first.ID); err == nil || !strings.Contains(err.Error(), "is the last API key") {
		t.Errorf("revoked: %v", err)
	}
}

func TestTokensRotate(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tn := w.tunnel()
	one := must1[*api.TunnelToken](t)(w.RevealToken(w.ctx, w.admin, tn.ID))
	if again := must1[*api.TunnelToken](t)(w.RevealToken(w.ctx, w.admin, tn.ID)); *again != *one {
		t.Errorf("revealed %+v, then %+v", one, again)
	}
	parsed, err := tunnel.ParseToken(one.Token)
	if err != nil || !parsed.IsFor(tn.ID) || parsed.ID() != one.ID || !w.attachable(one.Token) {
		t.Errorf("token %v, %v", parsed, err)
	}

	// At once, as the public API does.
	two := must1[*api.TunnelToken](t)(w.RotateToken(w.ctx, w.admin, tn.ID, api.TokenRotate{}))
	if two.ID == one.ID || two.Overlap != nil || w.attachable(one.Token) || !w.attachable(two.Token) {
		t.Errorf("after a rotation: %+v", two)
	}
	// With an overlap: both, for an hour.
	three := must1[*api.TunnelToken](t)(w.RotateToken(w.ctx, w.admin, tn.ID, api.TokenRotate{OverlapSeconds: 3600}))
	if three.Overlap == nil || three.Overlap.ID != two.ID || !w.attachable(two.Token) || !w.attachable(three.Token) {
		t.Errorf("during the overlap: %+v", three)
	}
	w.pass(59 * time.Minute)
	if got := must1[*api.TunnelToken](t)(w.RevealToken(w.ctx, w.admin, tn.ID)); got.Token != three.Token || got.Overlap == nil || !got.Overlap.Until.Equal(three.Overlap.Until) {
		t.Errorf("revealed %+v", got)
	}
	w.pass(2 * time.Minute)
	if w.attachable(two.Token) || !w.attachable(three.Token) {
		t.Error("after the overlap")
	}
	// A rotation within an overlap ends the older one, so there are never three.
	four := must1[*api.TunnelToken](t)(w.RotateToken(w.ctx, w.admin, tn.ID, api.TokenRotate{OverlapSeconds: 3600}))
	five := must1[*api.TunnelToken](t)(w.RotateToken(w.ctx, w.admin, tn.ID, api.TokenRotate{OverlapSeconds: 3600}))
	if w.attachable(three.Token) || !w.attachable(four.Token) || !w.attachable(five.Token) {
		t.Error("after two rotations")
	}
	// The overlap can be ended early, the tunnel's own token not.
	if _, err := w.RevokeToken(w.ctx, w.admin, tn.ID, four.ID); err != nil || w.attachable(four.Token) {
		t.Errorf("revoked: %v", err)
	}
	_, err = w.RevokeToken(w.ctx, w.admin, tn.ID, five.ID)
	wantConflict(t, err, "rotate it")
	if _, err := w.RotateToken(w.ctx, w.admin, tn.ID, api.TokenRotate{OverlapSeconds: 8 * 24 * 3600}); err == nil {
		t.Error("an overlap of eight days")
	}
}

func TestASecondTokenComesAndGoesByItself(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tn, other := w.tunnel(), w.tunnel()
	one := must1[*api.TunnelToken](t)(w.RevealToken(w.ctx, w.admin, tn.ID))
	second := must1[*api.TunnelToken](t)(w.CreateSecondToken(w.ctx, w.admin, tn.ID, api.TokenCreate{}))
	_, err := w.CreateSecondToken(w.ctx, w.admin, tn.ID, api.TokenCreate{})
	wantConflict(t, err, "revoke it first")
	rotated := must1[*api.TunnelToken](t)(w.RotateToken(w.ctx, w.admin, tn.ID, api.TokenRotate{OverlapSeconds: 60}))
	page, err := w.ListTokens(w.ctx, w.admin, tn.ID)
	if err != nil || len(page.Data) != 3 {
		t.Fatalf("%d tokens, %v", len(page.Data), err)
	}
	for i, want := range []struct {
		id   api.TokenID
		slot api.TokenSlot
		ends bool
	}{{one.ID, api.TokenPrimary, true}, {second.ID, api.TokenSecond, false}, {rotated.ID, api.TokenPrimary, false}} {
		if got := page.Data[i]; got.ID != want.id || got.Slot != want.slot || (got.EndsAt != nil) != want.ends {
			t.Errorf("token %d is %+v", i, got)
		}
	}
	if _, err := w.RevokeToken(w.ctx, w.admin, other.ID, second.ID); api.AsError(err) == nil || api.AsError(err).Status != 404 {
		t.Errorf("revoked by way of another tunnel: %v", err)
	}
	for range 2 { // twice changes nothing
		if _, err := w.RevokeToken(w.ctx, w.admin, tn.ID, second.ID); err != nil {
			t.Fatal(err)
		}
	}
	if w.attachable(second.Token) || !w.attachable(rotated.Token) {
		t.Error("after revoking the second one")
	}
	must1[*api.TunnelToken](t)(w.CreateSecondToken(w.ctx, w.admin, tn.ID, api.TokenCreate{}))
}

func TestCertificatesOfATunnel(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tn := w.tunnel()
	text := w.caPEM()
	add := func(text string) (*api.TunnelCertificate, error) {
		return w.AddCertificate(w.ctx, w.admin, tn.ID, api.CertificateCreate{CACertificatePEM: text})
	}
	first := must1[*api.TunnelCertificate](t)(add(text))
	if first.TunnelID != tn.ID || len(first.Fingerprint) != 64 || first.ExpiresAt == nil || !strings.HasPrefix(string(first.ID), "tcrt_") {
		t.Errorf("certificate %+v", first)
	}
	_, err := add(text)
	wantConflict(t, err, "registered on the tunnel already, as "+string(first.ID))
	second := w.certificate(tn.ID)
	_, err = add(w.caPEM())
	wantConflict(t, err, "maximum of 2 non-archived certificates")
	if _, err := add("nonsense"); api.AsError(err) == nil || !strings.HasPrefix(err.Error(), "ca_certificate_pem: is not a certificate in PEM") {
		t.Errorf("nonsense: %v", err)
	}

	for range 2 { // twice changes nothing
		if got, err := w.ArchiveCertificate(w.ctx, w.admin, tn.ID, first.ID); err != nil || got.ArchivedAt == nil {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	third := must1[*api.TunnelCertificate](t)(add(text)) // the first again
	if third.ID == first.ID {
		t.Error("an archived certificate came back to life")
	}
	if again, err := w.Distrusted(w.ctx, tn.CreatedAt); err != nil || len(again) != 0 {
		t.Errorf("%d distrusted, one of which is registered again; %v", len(again), err)
	}
	// The last can go, too.
	for _, id := range []api.CertificateID{second.ID, third.ID} {
		if _, err := w.ArchiveCertificate(w.ctx, w.admin, tn.ID, id); err != nil {
			t.Fatal(err)
		}
	}
	page, err := w.ListCertificates(w.ctx, w.admin, tn.ID, false, api.PageRequest{})
	all, err2 := w.ListCertificates(w.ctx, w.admin, tn.ID, true, api.PageRequest{})
	if err != nil || err2 != nil || len(page.Data) != 0 || len(all.Data) != 3 || all.Data[0].ID != third.ID {
		t.Errorf("%d live, %d in all; %v, %v", len(page.Data), len(all.Data), err, err2)
	}
	other := w.tunnel()
	if _, err := w.GetCertificate(w.ctx, w.admin, other.ID, first.ID); api.AsError(err) == nil || api.AsError(err).Status != 404 {
		t.Errorf("got by way of another tunnel: %v", err)
	}
	gone, err := w.Distrusted(w.ctx, tn.CreatedAt)
	if err != nil || len(gone) != 3 {
		t.Errorf("%d distrusted, %v", len(gone), err)
	}
	if gone, err := w.Distrusted(w.ctx, *gone[2].ArchivedAt); err != nil || len(gone) != 1 {
		t.Errorf("%d distrusted since the last, %v", len(gone), err)
	}
}

func TestArchivingATunnelEndsEverythingOfIt(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tn := w.tunnel()
	cert := w.certificate(tn.ID)
	token := must1[*api.TunnelToken](t)(w.RevealToken(w.ctx, w.admin, tn.ID))
	second := must1[*api.TunnelToken](t)(w.CreateSecondToken(w.ctx, w.admin, tn.ID, api.TokenCreate{}))
	for len(w.TrustChanged()) > 0 {
		<-w.TrustChanged()
	}
	archived := must1[*api.Tunnel](t)(w.ArchiveTunnel(w.ctx, w.admin, tn.ID))
	if archived.ArchivedAt == nil || archived.Domain != tn.Domain {
		t.Errorf("archived %+v", archived)
	}
	if w.attachable(token.Token) || w.attachable(second.Token) {
		t.Error("connectors can attach")
	}
	if got := must1[*api.TunnelCertificate](t)(w.GetCertificate(w.ctx, w.admin, tn.ID, cert.ID)); got.ArchivedAt == nil || !got.ArchivedAt.Equal(*archived.ArchivedAt) {
		t.Errorf("certificate %+v", got)
	}
	<-w.TrustChanged()
	again := must1[*api.Tunnel](t)(w.ArchiveTunnel(w.ctx, w.admin, tn.ID))
	if diff := cmp.Diff(archived, again); diff != "" {
		t.Errorf("archived again: %s", diff)
	}
	for name, call := range map[string]func() error{
		"reveal":      func() error { _, err := w.RevealToken(w.ctx, w.admin, tn.ID); return err },
		"rotate":      func() error { _, err := w.RotateToken(w.ctx, w.admin, tn.ID, api.TokenRotate{}); return err },
		"second":      func() error { _, err := w.CreateSecondToken(w.ctx, w.admin, tn.ID, api.TokenCreate{}); return err },
		"certificate": func() error { _, err := w.AddCertificate(w.ctx, w.admin, tn.ID, api.CertificateCreate{}); return err },
	} {
		t.Run(name, func(t *testing.T) { wantConflict(t, call(), "is archived") })
	}
}

func TestTunnelByHost(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	ready, bare, gone := w.tunnel(), w.tunnel(), w.tunnel()
	cert := w.certificate(ready.ID)
	w.certificate(gone.ID)
	must1[*api.Tunnel](t)(w.ArchiveTunnel(w.ctx, w.admin, gone.ID))

	got, cas, err := w.TunnelByHost(w.ctx, api.WorkspaceDefault, "DOCS."+ready.Domain)
	if err != nil || got.ID != ready.ID || len(cas) != 1 || tunnel.Fingerprint(cas[0]) != cert.Fingerprint {
		t.Errorf("%+v with %d CAs, %v", got, len(cas), err)
	}
	for name, tt := range map[string]struct {
		ws         api.WorkspaceID
		host, want string
	}{
		"not below the suffix": {api.WorkspaceDefault, "docs.example.com", "whose domains end in tunnel.bailey.internal"},
		"nobody's":             {api.WorkspaceDefault, "docs.00000000.tunnel.bailey.internal", "no tunnel has the domain"},
		"another workspace's":  {"wrkspc_other", "docs." + ready.Domain, "no tunnel has the domain"},
		"archived":             {api.WorkspaceDefault, "docs." + gone.Domain, "was archived at"},
		"without a CA":         {api.WorkspaceDefault, "docs." + bare.Domain, "has no CA certificate"},
	} {
		_, _, err := w.TunnelByHost(w.ctx, tt.ws, tt.host)
		if e := tunnel.AsError(err); e == nil || e.Stage != tunnel.StageNotActive || e.Host != tt.host || !strings.Contains(e.Detail, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whoever sees a token or changes whom a tunnel trusts is on record first, or it does
// not happen.
func TestTunnelsAreOnRecord(t *testing.T) {
	t.Parallel()
	d := new(deaf)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	log, err := audit.Open(path, audit.Options{Sinks: []audit.SinkOptions{{Sink: d, Required: true}}})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	w := tunnelWorld(t, Config{Audit: log})
	tn := w.tunnel()
	cert := w.certificate(tn.ID)
	reason := "a laptop was stolen"
	calls := []struct {
		action string
		call   func() error
		attrs  map[string]string
	}{
		{audit.TunnelTokenReveal, func() error { _, err := w.RevealToken(w.ctx, w.admin, tn.ID); return err }, nil},
		{audit.TunnelTokenRotate, func() error {
			_, err := w.RotateToken(w.ctx, w.admin, tn.ID, api.TokenRotate{Reason: &reason})
			return err
		}, map[string]string{"reason": reason}},
		{audit.TunnelTokenCreate, func() error { _, err := w.CreateSecondToken(w.ctx, w.admin, tn.ID, api.TokenCreate{}); return err }, nil},
		{audit.TunnelCertificateAdd, func() error {
			_, err := w.AddCertificate(w.ctx, w.admin, tn.ID, api.CertificateCreate{CACertificatePEM: w.caPEM()})
			return err
		}, nil},
		{audit.TunnelCertificateArchive, func() error { _, err := w.ArchiveCertificate(w.ctx, w.admin, tn.ID, cert.ID); return err },
			map[string]string{"fingerprint": cert.Fingerprint}},
		{audit.TunnelArchive, func() error { _, err := w.ArchiveTunnel(w.ctx, w.admin, tn.ID); return err }, nil},
	}
	for _, c := range calls {
		d.on.Store(true)
		if err := c.call(); err == nil || !strings.Contains(err.Error(), "takes nothing") {
			t.Errorf("%s without a record: %v", c.action, err)
		}
		d.on.Store(false)
		if err := c.call(); err != nil {
			t.Errorf("%s: %v", c.action, err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := audit.OpenSegments(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	seen := map[string]map[string]string{} // attributes by action
	for e, err := range audit.Entries(r, audit.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		seen[e.Action] = e.Attrs
		if e.Actor != "" && e.Actor != "apikey_test" || strings.Contains(string(e.Raw), "eyJ") {
			t.Errorf("record %s", e.Raw)
		}
	}
	for _, c := range calls {
		if seen[c.action]["tunnel_id"] != string(tn.ID) {
			t.Errorf("%s is on record as %v", c.action, seen[c.action])
		}
		for name, want := range c.attrs {
			if seen[c.action][name] != want {
				t.Errorf("%s: %s is %q", c.action, name, seen[c.action][name])
			}
		}
	}
}
