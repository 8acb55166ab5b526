package egress

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// names is a resolver of a few names.
type names map[string]string

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr(n[strings.TrimSuffix(host, ".")])}, nil
}

func TestOutboundJudgesTheAddress(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	defer srv.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "http://"), ":")
	resolver := names{"inside.example": "127.0.0.1", "metadata.example": "169.254.169.254", "mapped.example": "::ffff:127.0.0.1"}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	for _, test := range []struct {
		host string
		open []netip.Prefix
		says string // "" is that it works
	}{
		{"127.0.0.1", nil, "127.0.0.1 is an address that is not of the public internet (loopback)"},
		{"inside.example", nil, "inside.example leads to an address"},
		{"mapped.example", nil, "mapped.example leads to an address"},
		{"[::ffff:127.0.0.1]", nil, "loopback"},
		{"2130706433", nil, "unusual notation"},
		{"metadata.example", []netip.Prefix{loopback, netip.MustParsePrefix("0.0.0.0/0")}, "metadata"},
		{"127.0.0.1", []netip.Prefix{loopback}, ""},
		{"inside.example", []netip.Prefix{loopback}, ""},
		{"127.0.0.1", []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, "loopback"},
	} {
		o := NewOutbound(Outbound{Open: test.open, Dialer: &Dialer{Resolver: resolver}})
		res, err := o.Client().Get("http://" + test.host + ":" + port)
		switch {
		case err == nil && test.says != "":
			t.Errorf("%s was reached with %v open", test.host, test.open)
		case err != nil && (test.says == "" || !strings.Contains(err.Error(), test.says)):
			t.Errorf("%s with %v open: %v", test.host, test.open, err)
		}
		if err == nil {
			res.Body.Close()
		}
		o.CloseIdleConnections()
	}
}

func TestOutboundRedirects(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect to another origin was followed") }))
	defer other.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/within":
			http.Redirect(w, r, "/end", http.StatusPermanentRedirect)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusTemporaryRedirect)
		case "/across":
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		case "/see":
			http.Redirect(w, r, "/end", http.StatusSeeOther)
		default:
			body, _ := io.ReadAll(r.Body)
			io.WriteString(w, r.Method+" "+string(body)+" "+r.Header.Get("Authorization"))
		}
	}))
	defer srv.Close()
	client := NewOutbound(Outbound{Open: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}).Client()
	for path, want := range map[string]string{"/within": "POST body Bearer x", "/loop": "", "/across": "", "/see": ""} {
		r, _ := http.NewRequest(http.MethodPost, srv.URL+path, strings.NewReader("body"))
		r.Header.Set("Authorization", "Bearer x")
		res, err := client.Do(r)
		if err != nil {
			if want != "" {
				t.Errorf("%s: %v", path, err)
			}
			continue
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(body) != want {
			t.Errorf("%s: %q", path, body)
		}
	}
}

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestOutboundTunnels(t *testing.T) {
	t.Parallel()
	o := NewOutbound(Outbound{
		Tunnelled: func(host string) bool { return strings.HasSuffix(host, ".tunnel.test") },
		Tunnel: tripper(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 299, Body: http.NoBody, Request: r}, nil
		}),
	})
	res, err := o.Client().Get("https://docs.abc.tunnel.test:443/mcp")
	if err != nil || res.StatusCode != 299 {
		t.Errorf("a tunnel's host: %v, %v", res, err)
	}
}

func TestParseOpen(t *testing.T) {
	t.Parallel()
	for list, works := range map[string]bool{
		"": true, "10.1.0.0/16": true, " 127.0.0.1 , 192.168.0.0/24,::1,fd00::/8": true, "169.254.169.254": true,
		"0.0.0.0/0": false, "10.0.0.1/16": false, "example.com": false, "8.8.8.8": false, "224.0.0.0/4": false, "10.0.0.0/7": false,
	} {
		if _, err := ParseOpen(list); (err == nil) != works {
			t.Errorf("%q: %v", list, err)
		}
	}
	o := NewOutbound(Outbound{Open: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	for host, want := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false, "8.8.8.8": false, "localhost": false} {
		if o.Opened(host) != want {
			t.Errorf("%s is opened: %t", host, !want)
		}
	}
}
