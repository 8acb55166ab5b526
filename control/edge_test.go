package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/tunnel"
)

var edgeKey = Principal{Kind: api.KeyEdge, KeyID: "edgekey_1"}

func csr(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"bank.example.org"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func (w *world) edge(name string) *api.EdgeRegistration {
	w.t.Helper()
	return must1[*api.EdgeRegistration](w.t)(w.RegisterEdge(w.ctx, edgeKey, api.EdgeRegister{
		Name: name, Version: "v1", ConnectorAddresses: []string{name + ".example.org:443"}, DialAddresses: []string{"10.0.0.1:443"}, CSR: csr(w.t),
	}))
}

func (w *world) attach(e *api.EdgeRegistration, token string) *api.EdgeGrant {
	w.t.Helper()
	return must1[*api.EdgeGrant](w.t)(w.AttachTunnel(w.ctx, edgeKey, e.ID, api.EdgeAttach{Token: token, ConnectorID: "c1", Protocol: api.ProtocolQUIC, RemoteAddress: "192.0.2.1:1"}))
}

func (w *world) token(id api.TunnelID) string {
	w.t.Helper()
	return must1[*api.TunnelToken](w.t)(w.RevealToken(w.ctx, w.admin, id)).Token
}

func (w *world) report(e *api.EdgeRegistration, sequence int64, traffic ...api.EdgeTraffic) *api.EdgeReportAnswer {
	w.t.Helper()
	return must1[*api.EdgeReportAnswer](w.t)(w.ReportEdge(w.ctx, edgeKey, e.ID, api.EdgeReport{Sequence: sequence, Traffic: traffic}))
}

func (w *world) cuts(e *api.EdgeRegistration) []api.EdgeCut {
	w.t.Helper()
	return w.changes(e, "").Cuts
}

func (w *world) changes(e *api.EdgeRegistration, revision string) *api.EdgeChanges {
	w.t.Helper()
	return must1[*api.EdgeChanges](w.t)(w.EdgeChanges(w.ctx, edgeKey, e.ID, revision, time.Nanosecond))
}

func (w *world) status(id api.TunnelID) *api.TunnelStatus {
	w.t.Helper()
	return must1[*api.TunnelStatus](w.t)(w.TunnelStatus(w.ctx, w.admin, id))
}

func wantStatus(t *testing.T, what string, err error, status int) {
	t.Helper()
	if e := api.AsError(err); e == nil || e.Status != status {
		t.Errorf("%s: %v, want HTTP %d", what, err, status)
	}
}

func TestAnEdgeGetsACertificateForTheNameThatThePlaneGivesIt(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	e := w.edge("a")
	cert, err := tunnel.ParseCertificate([]byte(e.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{e.ServerName}, cert.DNSNames); diff != "" {
		t.Errorf("names: %s", diff)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(e.DialerCAs))
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: e.ServerName, CurrentTime: w.now}); err != nil {
		t.Error(err)
	}
	if again := w.edge("a"); again.ServerName != e.ServerName || again.ID == e.ID {
		t.Errorf("after a restart: %s as %s, was %s as %s", again.ID, again.ServerName, e.ID, e.ServerName)
	}
	if other := w.edge("b"); other.ServerName == e.ServerName {
		t.Error("two edges have one name")
	}
	dialer := must1[*tls.Certificate](t)(w.DialerCertificate(w.ctx))
	if _, err := dialer.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: w.now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("the dialer's: %v", err)
	}
}

func TestOnlyAnEdgeSpeaksForItself(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	e := w.edge("a")
	register := api.EdgeRegister{Name: "a", ConnectorAddresses: []string{"a:1"}, DialAddresses: []string{"a:1"}, ServerName: "x"}
	other := Principal{Kind: api.KeyEdge, KeyID: "edgekey_2"}
	_, err := w.RegisterEdge(w.ctx, other, register)
	wantStatus(t, "another's name", err, http.StatusConflict)
	_, err = w.RegisterEdge(w.ctx, w.admin, register)
	wantStatus(t, "an API key", err, http.StatusForbidden)
	_, err = w.ReportEdge(w.ctx, other, e.ID, api.EdgeReport{Sequence: 1})
	wantStatus(t, "another's report", err, http.StatusNotFound)
	_, err = w.ReportEdge(w.ctx, w.admin, e.ID, api.EdgeReport{Sequence: 1})
	wantStatus(t, "an admin's report", err, http.StatusNotFound)
	_, err = w.EdgeChanges(w.ctx, other, e.ID, "", time.Second)
	wantStatus(t, "another's cuts", err, http.StatusNotFound)
	_, err = w.CertifyEdge(w.ctx, other, e.ID, api.EdgeCertificateRequest{CSR: csr(t)})
	wantStatus(t, "another's certificate", err, http.StatusNotFound)
	_, err = w.AttachTunnel(w.ctx, other, e.ID, api.EdgeAttach{Token: w.token(w.tunnel().ID), Protocol: api.ProtocolTCP})
	wantStatus(t, "another's connector", err, http.StatusNotFound)
	wantStatus(t, "another's end", w.DetachTunnel(w.ctx, other, e.ID, "tatt_1", api.EdgeDetach{}), http.StatusNotFound)

	// Once it does not report any more its name is free.
	w.pass(time.Minute)
	if err := w.Sweep(w.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.RegisterEdge(w.ctx, other, register); err != nil {
		t.Errorf("the name of one that is silent: %v", err)
	}
}

func TestAReportIsCountedOnce(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tun := w.tunnel()
	e := w.edge("a")
	a := w.attach(e, w.token(tun.ID))
	traffic := api.EdgeTraffic{AttachmentID: a.ID, ToGateway: 10, FromGateway: 20, Opened: 1, Open: 1}
	for range 3 {
		w.report(e, 1, traffic)
	}
	w.report(e, 2, traffic)
	_, err := w.ReportEdge(w.ctx, edgeKey, e.ID, api.EdgeReport{Sequence: 4})
	wantStatus(t, "one is missing", err, http.StatusConflict)
	_, err = w.ReportEdge(w.ctx, edgeKey, e.ID, api.EdgeReport{Sequence: 1, Traffic: []api.EdgeTraffic{traffic}})
	wantStatus(t, "an old one", err, http.StatusConflict)
	usage := must1[*api.TunnelUsages](t)(w.TunnelUsage(w.ctx, w.admin, tun.ID, time.Time{}, time.Time{})).Data
	if len(usage) != 1 || usage[0].ToGateway != 20 || usage[0].FromGateway != 40 || usage[0].Opened != 2 {
		t.Errorf("usage: %+v", usage)
	}
	s := w.status(tun.ID).Data
	if len(s) != 1 || s[0].ToGateway != 20 || s[0].Streams != 1 || s[0].Edge != "a" {
		t.Errorf("status: %+v", s)
	}

	// What an edge still tells after another has its name is counted.
	w.edge("a")
	if out := w.report(e, 3, traffic); !out.Gone {
		t.Errorf("answer: %+v", out)
	}
	usage = must1[*api.TunnelUsages](t)(w.TunnelUsage(w.ctx, w.admin, tun.ID, time.Time{}, time.Time{})).Data
	if usage[0].ToGateway != 30 {
		t.Errorf("after the last words: %+v", usage)
	}
	_, err = w.EdgeChanges(w.ctx, edgeKey, e.ID, "", time.Second)
	wantStatus(t, "cuts of one that is gone", err, http.StatusGone)
}

func TestAnEdgeThatFallsSilentLosesItsConnectorsUntilItIsBack(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tun := w.tunnel()
	w.certificate(tun.ID)
	host := "docs." + tun.Domain
	e := w.edge("a")
	w.attach(e, w.token(tun.ID))
	if r, err := w.TunnelRoute(w.ctx, api.WorkspaceDefault, host); err != nil || len(r.Edges) != 1 || r.Edges[0].ServerName != e.ServerName || len(r.CAs) != 1 {
		t.Fatalf("route: %+v, %v", r, err)
	}
	w.pass(14 * time.Second)
	w.report(e, 1)
	w.pass(14 * time.Second)
	if err := w.Sweep(w.ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(w.status(tun.ID).Data); n != 1 {
		t.Fatalf("%d attached while the edge reports", n)
	}
	w.pass(2 * time.Second)
	_, err := w.TunnelRoute(w.ctx, api.WorkspaceDefault, host)
	if e := tunnel.AsError(err); e == nil || e.Stage != tunnel.StageNoConnector || e.Host != host {
		t.Errorf("route to one that is overdue: %v", err)
	}
	if err := w.Sweep(w.ctx); err != nil {
		t.Fatal(err)
	}
	s := w.status(tun.ID)
	if len(s.Data) != 0 || len(s.Former) != 1 || s.Former[0].DetachReason != reasonSilent || s.State != api.TunnelDisconnected {
		t.Errorf("silent: %+v", s)
	}
	_, err = w.TunnelRoute(w.ctx, api.WorkspaceDefault, host)
	if e := tunnel.AsError(err); e == nil || e.RetryAfter == 0 {
		t.Errorf("a connector is expected back: %v", err)
	}
	w.report(e, 2)
	if s := w.status(tun.ID); len(s.Data) != 1 || len(s.Former) != 0 || s.State != api.TunnelReady {
		t.Errorf("back: %+v", s)
	}

	// What was archived meanwhile is cut once it is back.
	w.pass(time.Minute)
	if err := w.Sweep(w.ctx); err != nil {
		t.Fatal(err)
	}
	must1[*api.Tunnel](t)(w.ArchiveTunnel(w.ctx, w.admin, tun.ID))
	w.report(e, 3)
	if cuts := w.cuts(e); len(cuts) != 1 || cuts[0].TunnelID != tun.ID || cuts[0].Reason != reasonArchived {
		t.Errorf("cuts: %+v", cuts)
	}
}

func TestWhatIsArchivedIsCut(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tun, other := w.tunnel(), w.tunnel()
	e, e2 := w.edge("a"), w.edge("b")
	a1, a2 := w.attach(e, w.token(tun.ID)), w.attach(e2, w.token(tun.ID))
	w.attach(e, w.token(other.ID))
	revision := w.changes(e, "").EdgesRevision
	waiting := make(chan []api.EdgeCut)
	go func() {
		changes, err := w.EdgeChanges(w.ctx, edgeKey, e.ID, revision, time.Minute)
		if err != nil {
			changes = &api.EdgeChanges{}
		}
		waiting <- changes.Cuts
	}()
	must1[*api.TunnelToken](t)(w.RotateToken(w.ctx, w.admin, tun.ID, api.TokenRotate{}))
	if cuts := w.cuts(e2); len(cuts) != 0 {
		t.Errorf("a rotation cuts: %+v", cuts)
	}
	must1[*api.Tunnel](t)(w.ArchiveTunnel(w.ctx, w.admin, tun.ID))
	want := []api.EdgeCut{{AttachmentID: a1.ID, TunnelID: tun.ID, Reason: reasonArchived}}
	if diff := cmp.Diff(want, <-waiting); diff != "" {
		t.Errorf("the one who waited (-want +got):\n%s", diff)
	}
	want[0].AttachmentID = a2.ID
	for range 2 { // until it is done
		if diff := cmp.Diff(want, w.cuts(e2)); diff != "" {
			t.Errorf("the other (-want +got):\n%s", diff)
		}
	}
	if err := w.DetachTunnel(w.ctx, edgeKey, e2.ID, a2.ID, api.EdgeDetach{Reason: reasonArchived}); err != nil {
		t.Fatal(err)
	}
	if err := w.DetachTunnel(w.ctx, edgeKey, e2.ID, a2.ID, api.EdgeDetach{Reason: reasonArchived}); err != nil {
		t.Errorf("detaching twice: %v", err)
	}
	if cuts := w.cuts(e2); len(cuts) != 0 {
		t.Errorf("what is done: %+v", cuts)
	}
}

func TestATokenThatIsNotGoodIsRefusedAndNoted(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tun := w.tunnel()
	old := w.token(tun.ID)
	must1[*api.TunnelToken](t)(w.RotateToken(w.ctx, w.admin, tun.ID, api.TokenRotate{}))
	e := w.edge("a")
	for name, token := range map[string]string{"rotated": old, "another's": tunnel.NewToken("x", "tnl_x").Text(), "text": "eyJh"} {
		_, err := w.AttachTunnel(w.ctx, edgeKey, e.ID, api.EdgeAttach{Token: token, ConnectorID: "c1", Protocol: api.ProtocolTCP, RemoteAddress: "192.0.2.7:4711"})
		wantStatus(t, name, err, http.StatusForbidden)
	}
	s := w.status(tun.ID)
	if len(s.Data) != 0 || len(s.Faults) != 1 || s.Faults[0].Stage != string(tunnel.StageTokenRefused) || s.Faults[0].Count != 1 || s.Faults[0].Remedy == "" ||
		!strings.HasSuffix(s.Faults[0].Detail, "(it came from 192.0.2.7)") {
		t.Errorf("status: %+v", s)
	}
}

func TestConnectorsLearnWhereTheEdgesAre(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tun, other := w.tunnel(), w.tunnel()
	a, b := w.edge("a"), w.edge("b")
	must1[*api.EdgeRegistration](t)(w.RegisterEdge(w.ctx, edgeKey, api.EdgeRegister{
		Name: "c", ConnectorAddresses: []string{"c:1"}, DialAddresses: []string{"c:2"}, ServerName: "c.example.org", CAs: "PEM",
	}))
	must1[*api.EdgeReportAnswer](t)(w.ReportEdge(w.ctx, edgeKey, b.ID, api.EdgeReport{Sequence: 1, Draining: true}))
	connector := must1[Principal](t)(w.Authenticate(w.ctx, w.token(tun.ID)))
	if none := must1[*api.TunnelEdges](t)(w.TunnelEdges(w.ctx, connector, tun.ID)); none.CAs != "" {
		t.Errorf("without a CA: %s", none.CAs)
	}
	w.certificate(tun.ID)
	found := must1[*api.TunnelEdges](t)(w.TunnelEdges(w.ctx, connector, tun.ID))
	if n := strings.Count(found.CAs, "-----BEGIN CERTIFICATE-----"); n != 1 {
		t.Errorf("%d CAs: %s", n, found.CAs)
	}
	edges := found.Data
	want := map[string]api.EdgeAddress{
		"a.example.org:443": {EdgeID: a.ID, Addresses: []string{"a.example.org:443"}, ServerName: a.ServerName, CAs: a.DialerCAs},
		"c:1":               {Addresses: []string{"c:1"}, ServerName: "c.example.org", CAs: "PEM"},
	}
	if len(edges) != len(want) {
		t.Errorf("edges: %+v", edges)
	}
	for _, e := range edges {
		exp := want[e.Addresses[0]]
		if exp.EdgeID == "" {
			exp.EdgeID = e.EdgeID
		}
		if diff := cmp.Diff(exp, e); diff != "" {
			t.Errorf("%s (-want +got):\n%s", e.Addresses[0], diff)
		}
	}
	if grant := w.attach(a, w.token(tun.ID)); len(grant.Edges) != 2 || grant.Domain != tun.Domain {
		t.Errorf("grant: %+v", grant)
	}
	_, err := w.TunnelEdges(w.ctx, connector, other.ID)
	wantStatus(t, "another tunnel's", err, http.StatusForbidden)
	_, err = w.TunnelStatus(w.ctx, connector, tun.ID)
	wantStatus(t, "the status with a token", err, http.StatusForbidden)
	_, err = w.RevealToken(w.ctx, connector, tun.ID)
	wantStatus(t, "managing with a token", err, http.StatusForbidden)
}

func TestEdgesHearOfEachOther(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	a := w.edge("a")
	now := w.changes(a, "")
	if len(now.Edges) != 1 || now.EdgesRevision == "" {
		t.Fatalf("changes: %+v", now)
	}
	if same := w.changes(a, now.EdgesRevision); len(same.Edges) != 0 || same.EdgesRevision != now.EdgesRevision {
		t.Errorf("when nothing has changed: %+v", same)
	}
	heard := make(chan *api.EdgeChanges)
	wait := func(revision string) {
		go func() {
			out, err := w.EdgeChanges(w.ctx, edgeKey, a.ID, revision, time.Minute)
			if err != nil {
				out = &api.EdgeChanges{}
			}
			heard <- out
		}()
	}
	wait(now.EdgesRevision)
	b := w.edge("b")
	two := <-heard
	if len(two.Edges) != 2 {
		t.Errorf("another has come: %+v", two)
	}
	wait(two.EdgesRevision)
	must1[*api.EdgeReportAnswer](t)(w.ReportEdge(w.ctx, edgeKey, b.ID, api.EdgeReport{Sequence: 1, Draining: true}))
	if one := <-heard; len(one.Edges) != 1 || one.EdgesRevision != now.EdgesRevision {
		t.Errorf("it drains: %+v", one)
	}
}

func TestARevokedEdgeKeyEndsItsEdges(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	key := must1[*api.Key](t)(w.CreateKey(w.ctx, w.admin, "", api.KeyCreate{Name: "edge", Type: api.KeyEdge}))
	p := must1[Principal](t)(w.Authenticate(w.ctx, key.Secret))
	if p.Kind != api.KeyEdge || p.admin() == nil || p.manages() == nil {
		t.Errorf("principal: %+v", p)
	}
	e := must1[*api.EdgeRegistration](t)(w.RegisterEdge(w.ctx, p, api.EdgeRegister{Name: "a", ConnectorAddresses: []string{"a:1"}, DialAddresses: []string{"a:1"}, CSR: csr(t)}))
	tun := w.tunnel()
	must1[*api.EdgeGrant](t)(w.AttachTunnel(w.ctx, p, e.ID, api.EdgeAttach{Token: w.token(tun.ID), Protocol: api.ProtocolTCP}))
	must1[*api.Key](t)(w.RevokeKey(w.ctx, w.admin, "", key.ID))
	if s := w.status(tun.ID); len(s.Data) != 0 || len(s.Former) != 1 || s.Former[0].DetachReason != reasonKey {
		t.Errorf("status: %+v", s)
	}
	if list := must1[api.Page[*api.Edge]](t)(w.ListEdges(w.ctx, w.admin, true, api.PageRequest{})); len(list.Data) != 1 || list.Data[0].State != api.EdgeGone {
		t.Errorf("edges: %+v", list.Data)
	}
	w.admin.Tunnels = false
	_, err := w.CreateKey(w.ctx, w.admin, "", api.KeyCreate{Name: "edge", Type: api.KeyEdge})
	wantStatus(t, "made by one who may not manage tunnels", err, http.StatusForbidden)
}

func TestTheAuthorityIsReplacedWithoutAGap(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	before := w.edge("a")
	first := must1[[]*api.Authority](t)(w.ListAuthorities(w.ctx, w.admin))
	if len(first) != 1 {
		t.Fatalf("authorities: %+v", first)
	}
	_, err := w.ArchiveAuthority(w.ctx, w.admin, first[0].ID)
	wantStatus(t, "archiving the only one", err, http.StatusConflict)
	next := must1[*api.Authority](t)(w.RotateAuthority(w.ctx, w.admin))
	if again, err := w.RotateAuthority(w.ctx, w.admin); err != nil || again.ID != next.ID {
		t.Errorf("rotating again before the next one signs: %+v, %v", again, err)
	}

	// It is trusted at once, and the one before it signs.
	signedBy := func(text string) string {
		cert, err := tunnel.ParseCertificate([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return cert.Issuer.CommonName
	}
	old := signedBy(before.Certificate)
	soon := w.edge("b")
	if soon.Revision == before.Revision || soon.DialerCAs == before.DialerCAs || signedBy(soon.Certificate) != old {
		t.Error("the next authority is not trusted at once, or signs at once")
	}
	if out := w.report(before, 1); out.Revision != soon.Revision {
		t.Error("an edge that reports does not learn of it")
	}
	_, err = w.ArchiveAuthority(w.ctx, w.admin, first[0].ID)
	wantStatus(t, "archiving the one that signs", err, http.StatusConflict)

	w.pass(AuthorityHoldOff + time.Minute)
	after := w.edge("c")
	if signedBy(after.Certificate) == old {
		t.Error("the next authority does not sign when its time has come")
	}
	must1[*api.Authority](t)(w.ArchiveAuthority(w.ctx, w.admin, first[0].ID))
	if last := w.edge("d"); last.DialerCAs == after.DialerCAs {
		t.Error("the archived authority is trusted still")
	}
	err = w.db.Read(w.ctx, func(tx *store.Tx) error {
		_, err := tx.Secret(string(first[0].ID), authorityField)
		return err
	})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the archived authority's key is kept: %v", err)
	}

	// By itself, in time.
	w.pass(authorityLife - authorityRenew)
	if err := w.Sweep(w.ctx); err != nil {
		t.Fatal(err)
	}
	if all := must1[[]*api.Authority](t)(w.ListAuthorities(w.ctx, w.admin)); len(all) != 2 {
		t.Errorf("authorities: %+v", all)
	}
}

func TestFaultsThatComeOftenAreAddedUp(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tun := w.tunnel()
	e := &tunnel.Error{Stage: tunnel.StageInnerTLS, Tunnel: string(tun.ID), Host: "h", Detail: "no", Err: errors.New("because")}
	for range 100 {
		w.NoteTunnelFault(w.ctx, tun.ID, e)
	}
	w.pass(time.Minute)
	w.NoteTunnelFault(w.ctx, tun.ID, e)
	f := w.status(tun.ID).Faults
	if len(f) != 1 || f[0].Count != 101 || f[0].Detail != "no: because" || f[0].Host != "h" || !f[0].LastAt.After(f[0].FirstAt) {
		t.Errorf("faults: %+v", f)
	}
}

// What is kept of faults does not grow with the stages that a gateway makes up, nor do they
// hide the others.
func TestFaultsOfStagesThatNobodyKnows(t *testing.T) {
	t.Parallel()
	w := tunnelWorld(t, Config{})
	tun := w.tunnel()
	w.NoteTunnelFault(w.ctx, tun.ID, &tunnel.Error{Stage: tunnel.StageInnerTLS, Detail: "no"})
	for i := range 100 {
		w.pass(time.Minute)
		w.NoteTunnelFault(w.ctx, tun.ID, &tunnel.Error{Stage: tunnel.Stage("made_up_" + strings.Repeat("x", i%30)), Detail: "so there"})
	}
	f := w.status(tun.ID).Faults
	if len(f) != 2 || f[1].Stage != string(tunnel.StageInnerTLS) {
		t.Fatalf("faults: %+v", f)
	}
	if f[0].Stage != string(tunnel.StageProtocol) || f[0].Count != 100 || !strings.HasPrefix(f[0].Detail, "made_up_") || !strings.HasSuffix(f[0].Detail, ": so there") || f[0].Remedy == "" {
		t.Errorf("%+v", f[0])
	}
}
