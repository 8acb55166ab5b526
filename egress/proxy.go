package egress

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/proxy"
)

// A Proxy is a proxy of the operator's that connections are made through. It is
// immutable and safe for concurrent use.
type Proxy struct {
	url      *url.URL
	resolves bool
}

// ParseProxy reads a proxy's URL: socks5://host:port or http://host:port (which is asked
// to CONNECT), with user:password@ before the host if it wants them. The proxy is given
// addresses that were looked up and judged here. With socks5h and httph it is given
// names, for hosts that cannot look up public names themselves: what a name leads to is
// then the proxy's to judge, and it has to refuse its own private addresses.
func ParseProxy(s string) (*Proxy, error) {
	// The URL may hold a password: errors do not quote it.
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("proxy: it is no URL; want one like socks5://host:1080 or http://host:3128")
	}
	p := &Proxy{url: u}
	switch u.Scheme {
	case "socks5", "http":
	case "socks5h", "httph":
		p.resolves = true
	default:
		return nil, fmt.Errorf("proxy: scheme %.20q: want socks5, socks5h, http or httph", u.Scheme)
	}
	if u.Hostname() == "" || u.Port() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return nil, errors.New("proxy: want scheme://host:port and nothing after it")
	}
	return p, nil
}

// String is the proxy's URL without its password.
func (p *Proxy) String() string { return p.url.Redacted() }

// Equal reports whether p and q, which may be nil for none, are the same proxy.
func (p *Proxy) Equal(q *Proxy) bool {
	if p == nil || q == nil {
		return p == q
	}
	return p.url.String() == q.url.String()
}

func (p *Proxy) dial(ctx context.Context, target string) (*net.TCPConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.url.Host)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	tcp := conn.(*net.TCPConn)
	stop := context.AfterFunc(ctx, func() { tcp.SetDeadline(time.Unix(1, 0)) })
	if p.url.Scheme == "http" || p.url.Scheme == "httph" {
		err = p.connect(tcp, target)
	} else {
		err = p.socks(ctx, tcp, target)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = tcp.SetDeadline(time.Time{})
	}
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return tcp, nil
}

// already is a dialer whose connection is made. The handshake runs on it and leaves it
// as it is, so that the kernel can splice it later.
type already struct{ conn net.Conn }

func (a already) Dial(string, string) (net.Conn, error) { return a.conn, nil }

func (a already) DialContext(context.Context, string, string) (net.Conn, error) { return a.conn, nil }

func (p *Proxy) socks(ctx context.Context, conn *net.TCPConn, target string) error {
	var auth *proxy.Auth
	if user := p.url.User; user != nil {
		password, _ := user.Password()
		auth = &proxy.Auth{User: user.Username(), Password: password}
	}
	dialer, err := proxy.SOCKS5("tcp", p.url.Host, auth, already{conn})
	if err != nil {
		return err
	}
	_, err = dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", target)
	return err
}

// answerMax bounds a proxy's answer to CONNECT, in bytes.
const answerMax = 16 << 10

func (p *Proxy) connect(conn *net.TCPConn, target string) error {
	request := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n"
	if user := p.url.User; user != nil {
		password, _ := user.Password()
		request += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
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
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fmt.Errorf("answer to CONNECT: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("it refuses to connect: %s", response.Status)
	}
	return nil
}
