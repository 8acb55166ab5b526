package connect

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// proxyFor is the proxy that leads to an edge, or nil.
func (c *Connector) proxyFor(addr string) (*url.URL, error) {
	proxy, err := c.cfg.Proxy(&url.URL{Scheme: "https", Host: addr})
	if err != nil {
		return nil, fmt.Errorf("proxy of the environment: %w", err)
	}
	if proxy != nil && proxy.Scheme != "http" && proxy.Scheme != "https" {
		return nil, fmt.Errorf("proxy of the environment: scheme %.20q: want http or https", proxy.Scheme)
	}
	return proxy, nil
}

// dialTLS makes a connection to an edge at target, with a control connection's or a data
// connection's TLS.
func (c *Connector) dialTLS(ctx context.Context, to tunnel.EdgeAddr, cfg *tls.Config, target string, proxy *url.URL) (*tls.Conn, error) {
	raw, err := dialRaw(ctx, target, proxy)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(tunnel.NewSocket(raw), cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("edge %s: TLS: %w", to.Addr, err)
	}
	if conn.ConnectionState().NegotiatedProtocol != tunnel.ALPNConnector {
		raw.Close()
		return nil, fmt.Errorf("edge %s: what answers there is no edge", to.Addr)
	}
	return conn, nil
}

func dialRaw(ctx context.Context, target string, proxy *url.URL) (net.Conn, error) {
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: tunnel.KeepAlive, Interval: tunnel.KeepAlive / 2, Count: 4,
	}}
	if proxy == nil {
		return dialer.DialContext(ctx, "tcp", target)
	}
	host := proxy.Host
	if proxy.Port() == "" {
		host = net.JoinHostPort(proxy.Hostname(), map[string]string{"http": "80", "https": "443"}[proxy.Scheme])
	}
	raw, err := dialer.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	conn := raw
	if proxy.Scheme == "https" {
		conn = tls.Client(raw, &tls.Config{ServerName: proxy.Hostname(), MinVersion: tls.VersionTLS12})
	}
	err = askProxy(conn, target, proxy.User)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	return conn, nil
}

// answerMax bounds a proxy's answer to CONNECT, in bytes.
const answerMax = 16 << 10

// askProxy has a proxy connect to target.
func askProxy(conn net.Conn, target string, user *url.Userinfo) error {
	ask := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{}}
	if user != nil {
		password, _ := user.Password()
		ask.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := ask.Write(conn); err != nil {
		return err
	}
	// Byte by byte, as what follows the answer belongs to the connection.
	head := make([]byte, 0, 512)
	for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, one[0]) {
		if len(head) >= answerMax {
			return errors.New("its answer to CONNECT is too long")
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			return fmt.Errorf("answer to CONNECT: %w", err)
		}
	}
	answer, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), ask)
	if err != nil {
		return fmt.Errorf("answer to CONNECT: %w", err)
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("it refuses to connect to %s: %s", target, answer.Status)
	}
	return nil
}
