package cli

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/tunnel/gateway"
)

// A gateway that is started again after the plane's CA was rotated trusts the next one,
// of which an edge has told it, besides that of its settings.
func TestAGatewayKeepsTheEdgesThatItHasLearnedOf(t *testing.T) {
	t.Parallel()
	c := &gateway.Config{Data: t.TempDir() + "/data", Tunnel: gateway.Tunnel{Domain: "a.tunnel.test"}}
	keep := keepLearned(c, slog.New(slog.DiscardHandler))
	if got, err := readLearned(c); got != nil || err != nil {
		t.Fatalf("before anything: %v, %v", got, err)
	}
	edges := []api.EdgeAddress{
		{EdgeID: "edge_1", Addresses: []string{"one:8443", "10.0.0.1:8443"}, ServerName: "new.name", CAs: "NEXT"},
		{EdgeID: "edge_2", Addresses: []string{"two:8443"}, ServerName: "two.name", CAs: "NEXT"},
	}
	keep(edges[:1])
	keep(edges)
	keep(edges)
	learned, err := readLearned(c)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(edges, learned); diff != "" {
		t.Errorf("learned (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(learnedFile(c)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}

	got := withLearned([]api.EdgeAddress{
		{EdgeID: "edge_1", Addresses: []string{"one:8443"}, ServerName: "old.name", CAs: "OLD"},
		{Addresses: []string{"three:8443"}, CAs: "OLD"},
	}, learned)
	want := []api.EdgeAddress{
		{EdgeID: "edge_1", Addresses: []string{"one:8443", "10.0.0.1:8443"}, ServerName: "new.name", CAs: "NEXT\nOLD"},
		edges[1],
		{Addresses: []string{"three:8443"}, CAs: "OLD"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("joined (-want +got):\n%s", diff)
	}

	// What another tunnel's edges were is no business of this one.
	other := *c
	other.Tunnel.Domain = "b.tunnel.test"
	if got, err := readLearned(&other); got != nil || err != nil {
		t.Errorf("of another tunnel: %v, %v", got, err)
	}
	if err := os.WriteFile(learnedFile(c), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readLearned(c); err == nil {
		t.Error("half a file is taken for one")
	}
}

// An edge's address without a port has that of what it listens on.
func TestAnEdgesAddressIsAHostAlone(t *testing.T) {
	t.Parallel()
	p := &Program{Env: func(string) (string, bool) { return "key", true }}
	s, err := p.loadEdge("", edgeSettings{Server: "https://x", Listen: "0.0.0.0:9443", Addresses: []string{"edge.example.org", "192.0.2.1:1"}})
	if err != nil || s.Addresses[0] != "edge.example.org:9443" || s.Addresses[1] != "192.0.2.1:1" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := p.loadEdge("", edgeSettings{Server: "https://x", Addresses: []string{"https://edge.example.org"}}); err == nil || !strings.Contains(err.Error(), "is not host:port") {
		t.Errorf("%v", err)
	}
}
