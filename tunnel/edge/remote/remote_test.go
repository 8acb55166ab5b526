package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/tunnel"
	"github.com/bailey-platform/bailey/tunnel/edge"
)

// A fakePlane is a server that knows edges, as far as they can tell.
type fakePlane struct {
	t *testing.T

	mu        sync.Mutex
	authority *tunnel.Authority
	edges     int        // registered so far
	id        api.EdgeID // of the one that it knows
	sequence  int64
	bytes     int64
	signed    int
	left      bool
	refuse    int // status of everything; 0 is none
	lose      int // answers
	asked     []api.EdgeAttach
	changes   chan api.EdgeChanges
}

func newFakePlane(t *testing.T) (*fakePlane, *client.Client) {
	t.Helper()
	f := &fakePlane{t: t, changes: make(chan api.EdgeChanges, 4)}
	f.rotate()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	cl, err := client.New(client.Config{BaseURL: s.URL, Key: "sk-ant-edge01-x", HTTPClient: &http.Client{Transport: lossy{f}}})
	if err != nil {
		t.Fatal(err)
	}
	return f, cl
}

func (f *fakePlane) rotate() {
	ca, err := tunnel.NewAuthority("fake", time.Now(), time.Hour)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.authority = ca
}

func (f *fakePlane) revision() string { return tunnel.Fingerprint(f.authority.Certificate) }

// lossy loses answers to what was done.
type lossy struct{ f *fakePlane }

func (l lossy) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(r)
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if err == nil && l.f.lose > 0 && strings.HasSuffix(r.URL.Path, "/reports") {
		l.f.lose--
		res.Body.Close()
		return nil, errors.New("the answer was lost")
	}
	return res, err
}

func (f *fakePlane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	if f.refuse != 0 {
		f.answerError(w, f.refuse)
		f.mu.Unlock()
		return
	}
	id, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/edges/"), "/")
	if r.URL.Path != "/v1/edges" && api.EdgeID(id) != f.id {
		f.answerError(w, http.StatusNotFound)
		f.mu.Unlock()
		return
	}
	if rest == "changes" {
		f.mu.Unlock()
		select {
		case c := <-f.changes:
			json.NewEncoder(w).Encode(c)
		case <-r.Context().Done():
		}
		return
	}
	defer f.mu.Unlock()
	var out any = struct{}{}
	switch {
	case r.URL.Path == "/v1/edges":
		in := decode[api.EdgeRegister](f, r)
		f.edges++
		f.id, f.sequence = api.EdgeID(fmt.Sprint("edge_", f.edges)), 0
		out = api.EdgeRegistration{Edge: api.Edge{ID: f.id, Name: in.Name}, EdgeCertificate: f.certify(in.CSR)}
	case rest == "certificate":
		out = f.certify(decode[api.EdgeCertificateRequest](f, r).CSR)
	case rest == "attachments":
		f.asked = append(f.asked, decode[api.EdgeAttach](f, r))
		out = api.EdgeGrant{ID: api.AttachmentID(fmt.Sprint("tatt_", len(f.asked))), TunnelID: "tnl_1", Domain: "d"}
	case rest == "reports":
		in := decode[api.EdgeReport](f, r)
		switch in.Sequence {
		case f.sequence:
		case f.sequence + 1:
			f.sequence++
			for _, t := range in.Traffic {
				f.bytes += t.ToGateway
			}
		default:
			f.answerError(w, http.StatusConflict)
			return
		}
		out = api.EdgeReportAnswer{Sequence: f.sequence, Revision: f.revision()}
	case rest == "leave":
		f.left = true
	}
	json.NewEncoder(w).Encode(out)
}

func decode[T any](f *fakePlane, r *http.Request) (v T) {
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		f.t.Errorf("%s: %v", r.URL.Path, err)
	}
	return v
}

func (f *fakePlane) answerError(w http.ResponseWriter, status int) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"type":"error","error":{"type":"api_error","message":"as the test wants"}}`)
}

func (f *fakePlane) certify(csr string) api.EdgeCertificate {
	f.signed++
	cert, err := f.authority.ServerCertificate([]byte(csr), "e.edge.test", time.Now(), time.Hour)
	if err != nil {
		f.t.Errorf("request for a certificate: %v", err)
		return api.EdgeCertificate{}
	}
	renew := time.Now().Add(time.Hour)
	return api.EdgeCertificate{
		Certificate: string(tunnel.EncodeCertificate(cert)), RenewAt: &renew,
		DialerCAs: string(tunnel.EncodeCertificate(f.authority.Certificate)), Revision: f.revision(),
	}
}

func joined(t *testing.T) (*fakePlane, *Plane) {
	t.Helper()
	f, cl := newFakePlane(t)
	p := newPlane(Config{Client: cl, Edge: api.EdgeRegister{Name: "a"}})
	if err := p.register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f, p
}

func TestAReportWhoseAnswerIsLostIsCountedOnce(t *testing.T) {
	t.Parallel()
	f, p := joined(t)
	const reports = 20
	for n := range int64(reports) {
		r := api.EdgeReport{Sequence: n + 1, Traffic: []api.EdgeTraffic{{AttachmentID: "tatt_1", ToGateway: 1 << n}}}
		f.mu.Lock()
		f.lose = int(n % 3)
		f.mu.Unlock()
		for tries := 0; p.Report(t.Context(), r) != nil; tries++ {
			if tries > 5 {
				t.Fatal("the report does not get through")
			}
		}
	}
	if f.bytes != 1<<reports-1 {
		t.Errorf("%b bytes were counted", f.bytes)
	}
}

func TestAnEdgeThatThePlaneHasForgottenRegistersAgain(t *testing.T) {
	t.Parallel()
	f, p := joined(t)
	grant, err := p.Attach(t.Context(), api.EdgeAttach{Token: "x"})
	if err != nil {
		t.Fatal(err)
	}
	report := api.EdgeReport{Sequence: 1, Traffic: []api.EdgeTraffic{{AttachmentID: grant.ID, ToGateway: 1}}}
	if err := p.Report(t.Context(), report); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.id = "edge_of_somebody"
	f.mu.Unlock()
	report.Sequence = 2
	if err := p.Report(t.Context(), report); err == nil || api.AsError(err) != nil {
		t.Errorf("%v: an edge takes an *api.Error for the plane's last word", err)
	}
	if err := p.Report(t.Context(), report); err != nil {
		t.Errorf("the same report, to a plane that knows the edge: %v", err)
	}
	if f.edges != 2 || f.sequence != 1 || f.bytes != 2 {
		t.Errorf("%d registrations, sequence %d, %d bytes", f.edges, f.sequence, f.bytes)
	}
	cuts, err := p.Cuts(t.Context())
	if err != nil || len(cuts) != 1 || cuts[0].AttachmentID != grant.ID || cuts[0].TunnelID != "tnl_1" {
		t.Errorf("what was attached has to attach anew: %+v, %v", cuts, err)
	}
}

func TestWhatIsWrongWithTheEdgeIsNoAnswerAboutAConnector(t *testing.T) {
	t.Parallel()
	for status, isAnswer := range map[int]bool{
		http.StatusUnauthorized: false, http.StatusNotFound: false, http.StatusGone: false,
		http.StatusForbidden: true, http.StatusInternalServerError: true,
	} {
		f, p := joined(t)
		f.mu.Lock()
		f.refuse = status
		f.mu.Unlock()
		_, err := p.Attach(t.Context(), api.EdgeAttach{Token: "x"})
		if err == nil || (api.AsError(err) != nil) != isAnswer {
			t.Errorf("HTTP %d: %v", status, err)
		}
	}
}

func TestANewAuthorityBringsANewCertificate(t *testing.T) {
	t.Parallel()
	f, p := joined(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.renew(ctx)
	}()
	first, _ := p.certificate()
	f.rotate()
	if err := p.Report(t.Context(), api.EdgeReport{Sequence: 1}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if cert, _ := p.certificate(); cert != first {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the certificate stays")
		}
	}
	stop()
	<-done
	if f.signed != 2 {
		t.Errorf("%d certificates were signed", f.signed)
	}
}

func mustPool(a *tunnel.Authority) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate)
	return pool
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestRunEndsWithAPlaneThatRefusesTheEdge(t *testing.T) {
	t.Parallel()
	f, cl := newFakePlane(t)
	f.refuse = http.StatusUnauthorized
	l := listener(t)
	err := Run(t.Context(), Config{Client: cl, Edge: api.EdgeRegister{Name: "a"}}, edge.Config{Listener: l})
	if e := api.AsError(err); e == nil || e.Status != http.StatusUnauthorized {
		t.Errorf("%v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
}

func TestRunEndsWhenAnotherProcessHasTheName(t *testing.T) {
	t.Parallel()
	f, cl := newFakePlane(t)
	started := make(chan struct{})
	ran := make(chan error, 1)
	go func() {
		ran <- Run(t.Context(), Config{Client: cl, Edge: api.EdgeRegister{Name: "a"}, Started: func(*edge.Edge) { close(started) }},
			edge.Config{Listener: listener(t), Limits: edge.Limits{Drain: time.Second}})
	}()
	<-started
	f.changes <- api.EdgeChanges{}
	f.mu.Lock()
	f.refuse = http.StatusGone
	f.mu.Unlock()
	if err := <-ran; !errors.Is(err, ErrReplaced) {
		t.Errorf("%v", err)
	}
	if f.left {
		t.Error("it has said that it leaves, which is the other one's to say")
	}
}

func TestRunServesAndLeaves(t *testing.T) {
	t.Parallel()
	f, cl := newFakePlane(t)
	l := listener(t)
	ctx, stop := context.WithCancel(t.Context())
	started := make(chan struct{})
	ran := make(chan error, 1)
	go func() {
		ran <- Run(ctx, Config{Client: cl, Edge: api.EdgeRegister{Name: "a"}, Started: func(*edge.Edge) { close(started) }},
			edge.Config{Listener: l, Limits: edge.Limits{Drain: time.Second}})
	}()
	<-started
	f.mu.Lock()
	roots := mustPool(f.authority)
	f.mu.Unlock()
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "e.edge.test", NextProtos: []string{tunnel.ALPNConnector}})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	stop()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	if !f.left {
		t.Error("the plane was not told")
	}
}

func TestConnectorsAreToldTheNewestList(t *testing.T) {
	t.Parallel()
	_, p := joined(t)
	for _, id := range []api.EdgeID{"edge_1", "edge_2", "edge_3"} {
		p.toTell([]api.EdgeAddress{{EdgeID: id}})
	}
	p.toTell(nil)
	if diff := cmp.Diff([]api.EdgeAddress{{EdgeID: "edge_3"}}, <-p.news); diff != "" {
		t.Error(diff)
	}
}
