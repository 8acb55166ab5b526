package tunnel

import (
	"strings"
	"testing"
)

const suffix = "tunnel.bailey.internal"

func TestSplitHost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		host, route, domain string
	}{
		{"docs.a1b2c3d4.tunnel.bailey.internal", "docs", "a1b2c3d4.tunnel.bailey.internal"},
		{"DOCS.A1B2C3D4.Tunnel.Bailey.Internal.", "docs", "a1b2c3d4.tunnel.bailey.internal"},
		{"a.b.a1b2c3d4.tunnel.bailey.internal", "a.b", "a1b2c3d4.tunnel.bailey.internal"},
		{"a1b2c3d4.tunnel.bailey.internal", "", "a1b2c3d4.tunnel.bailey.internal"},
	} {
		route, domain, ok := SplitHost(tt.host, suffix)
		if !ok || route != tt.route || domain != tt.domain {
			t.Errorf("%s: %q of %q, %v", tt.host, route, domain, ok)
		}
	}
	for _, host := range []string{
		"", ".", suffix, "." + suffix, "..tunnel.bailey.internal", "xtunnel.bailey.internal", "example.com",
		"docs.a1b2c3d4.tunnel.bailey.internal.example.com", "docs..a1b2c3d4.tunnel.bailey.internal", "docs.a1b2c3d4.tunnel.bailey.internal..",
		"docs.a1b2c3d4.tunnel.bailey.internal:443", "-.a1b2c3d4.tunnel.bailey.internal", "do_cs.a1b2c3d4.tunnel.bailey.internal",
		"*.a1b2c3d4.tunnel.bailey.internal", "docs\x00.a1b2c3d4.tunnel.bailey.internal", "\u212a.a1b2c3d4.tunnel.bailey.internal",
		strings.Repeat("a", 64) + ".tunnel.bailey.internal", strings.Repeat("a.", 120) + "tunnel.bailey.internal",
	} {
		if route, domain, ok := SplitHost(host, suffix); ok || route != "" || domain != "" {
			t.Errorf("%q: %q of %q", host, route, domain)
		}
	}
}

func FuzzSplitHost(f *testing.F) {
	f.Add("docs.a1b2c3d4.tunnel.bailey.internal")
	f.Add("..")
	f.Fuzz(func(t *testing.T, host string) {
		route, domain, ok := SplitHost(host, suffix)
		if !ok {
			return
		}
		whole := domain
		if route != "" {
			whole = route + "." + domain
		}
		if whole != strings.ToLower(strings.TrimSuffix(host, ".")) || strings.Count(domain, ".") != strings.Count(suffix, ".")+1 {
			t.Fatalf("%q became %q of %q", host, route, domain)
		}
	})
}

func TestWithPort(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"edge.example.org":       "edge.example.org:8443",
		"edge.example.org:1":     "edge.example.org:1",
		"192.0.2.1":              "192.0.2.1:8443",
		"2001:db8::1":            "[2001:db8::1]:8443",
		"[2001:db8::1]":          "[2001:db8::1]:8443",
		"[2001:db8::1]:1":        "[2001:db8::1]:1",
		"https://edge.test":      "https://edge.test",
		"":                       "",
		"edge.example.org:8443x": "edge.example.org:8443x",
	} {
		if got := WithPort(address, "8443"); got != want {
			t.Errorf("%q: %q, want %q", address, got, want)
		}
	}
}
