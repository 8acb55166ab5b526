package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Outbound makes the HTTP requests of the server itself to hosts that its users name,
// such as MCP servers. It is an [http.RoundTripper], safe for concurrent use once made;
// what its fields say must not change then.
//
// The address that is dialled is judged, not the one a look-up has found before: only
// public ones are connected to, and those that the operator opens. Requests for hosts of
// tunnels go another way.
type Outbound struct {
	// Open are ranges of addresses that are not of the public internet and may be
	// connected to all the same. As in a policy, a range has to lie within the special
	// range that it opens: 0.0.0.0/0 opens nothing.
	Open []netip.Prefix

	// Dialer connects; nil is the zero one.
	Dialer *Dialer

	// RootCAs are trusted for servers that are connected to; nil: the system's.
	RootCAs *x509.CertPool

	// Tunnelled reports whether a host, as it stands in a URL without its port, is one
	// of a tunnel; Tunnel carries the requests to those. Both nil: there are no tunnels.
	Tunnelled func(host string) bool
	Tunnel    http.RoundTripper

	direct *http.Transport
}

// Bounds of connections to hosts that users name. There is none on how long an answer may
// take: a tool may work for half an hour without a word.
const (
	outboundHeaderMax = 64 << 10
	outboundIdleMax   = 256 // connections kept without a request
	outboundIdleTime  = 90 * time.Second
	outboundPingAfter = 30 * time.Second // of silence on an HTTP/2 connection
)

// NewOutbound returns an Outbound with the fields of o.
func NewOutbound(o Outbound) *Outbound {
	if o.Dialer == nil {
		o.Dialer = new(Dialer)
	}
	out := &o
	out.direct = &http.Transport{
		DialContext:            out.dial,
		TLSClientConfig:        &tls.Config{RootCAs: o.RootCAs},
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    dialTimeout,
		MaxIdleConns:           outboundIdleMax,
		IdleConnTimeout:        outboundIdleTime,
		MaxResponseHeaderBytes: outboundHeaderMax,
		// What is read is bounded where it is read, which a compressed body would defeat.
		DisableCompression: true,
		HTTP2:              &http.HTTP2Config{SendPingTimeout: outboundPingAfter, PingTimeout: dialTimeout},
	}
	return out
}

// Client returns an HTTP client over o. It follows redirects within one origin only, and
// none that would make another request of a POST: so no credential, and nothing of what
// was asked, reaches a host that the user has not named.
func (o *Outbound) Client() *http.Client {
	return &http.Client{Transport: o, CheckRedirect: sameOrigin}
}

const redirectsMax = 5

func sameOrigin(next *http.Request, via []*http.Request) error {
	last := via[len(via)-1]
	switch {
	case next.URL.Scheme != last.URL.Scheme || next.URL.Host != last.URL.Host, next.Method != last.Method:
		return fmt.Errorf("%s redirects to %s, which is not followed: name that address instead", last.URL.Host, next.URL.Redacted())
	case len(via) > redirectsMax:
		return fmt.Errorf("%s redirects more than %d times", last.URL.Host, redirectsMax)
	}
	return nil
}

// RoundTrip makes one request.
func (o *Outbound) RoundTrip(r *http.Request) (*http.Response, error) {
	if o.Tunnelled != nil && o.Tunnelled(r.URL.Hostname()) {
		return o.Tunnel.RoundTrip(r)
	}
	return o.direct.RoundTrip(r)
}

// CloseIdleConnections closes the connections without a request.
func (o *Outbound) CloseIdleConnections() { o.direct.CloseIdleConnections() }

// Opened reports whether host is an address that is not of the public internet and that
// the operator opens.
func (o *Outbound) Opened(host string) bool {
	h, err := ParseHost(host)
	if err != nil {
		return false
	}
	addr, ok := h.Addr()
	return ok && ClassOf(addr) != Public && o.judge(h, addr).Allow
}

func (o *Outbound) dial(ctx context.Context, _, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	h, err := ParseHost(host)
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return nil, fmt.Errorf("port %.10q: want a number from 1 to 65535", port)
	}
	conn, _, err := o.Dialer.Dial(ctx, h, uint16(number), func(to netip.AddrPort) Verdict { return o.judge(h, to.Addr()) })
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// judge decides about one address of a host.
func (o *Outbound) judge(h Host, addr netip.Addr) Verdict {
	class := ClassOf(addr)
	if class == Public {
		return Verdict{Allow: true, Rule: string(Public)}
	}
	for _, p := range o.Open {
		if opens(p, addr) {
			return Verdict{Allow: true, Rule: p.String()}
		}
	}
	// What a name leads to within the operator's network is not the user's business.
	what := "is"
	if h.name != "" {
		what = "leads to"
	}
	return deny(string(class), "%s %s an address that is not of the public internet (%s), and this server's operator has not opened it", h, what, class)
}

// ParseOpen reads a list of addresses and ranges with commas between them, for
// [Outbound.Open]. A range that would open nothing is an error.
func ParseOpen(list string) ([]netip.Prefix, error) {
	var open []netip.Prefix
	var errs []error
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		prefix, err := parseCIDR(part)
		if err == nil && !opens(prefix, prefix.Addr()) {
			err = fmt.Errorf("%s opens nothing: name a range within one of the special ranges, such as 10.1.0.0/16", part)
		}
		if err == nil && ClassOf(prefix.Addr()) == Public {
			err = fmt.Errorf("%s is of the public internet, which is open already", part)
		}
		errs = append(errs, err)
		open = append(open, prefix)
	}
	return open, errors.Join(errs...)
}
