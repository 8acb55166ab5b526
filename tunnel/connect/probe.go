package connect

import (
	"context"
	"crypto/tls"
	"net/url"

	"golang.org/x/net/http/httpproxy"

	"github.com/bailey-platform/bailey/tunnel"
)

// Probe connects to an edge by TCP as a connector does, through the HTTP proxy that the
// environment names if it names one, sees to it that an edge answers with a certificate
// that proves it, and closes the connection. It shows no token, so that nothing is
// attached. via is the host:port of the proxy, or "".
func Probe(ctx context.Context, to tunnel.EdgeAddr) (via string, err error) {
	environment := httpproxy.FromEnvironment().ProxyFunc()
	c := &Connector{
		cfg:      Config{Proxy: func(u *url.URL) (*url.URL, error) { return environment(u) }},
		sessions: tls.NewLRUClientSessionCache(1),
	}
	proxy, err := c.proxyFor(to.Addr)
	if err != nil {
		return "", err
	}
	if proxy != nil {
		via = proxy.Host
	}
	conn, err := c.dialTLS(ctx, to, c.tlsConfig(to), to.Addr, proxy)
	if err != nil {
		return via, err
	}
	return via, conn.Close()
}
