package netjail

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
)

// recordTypeHandshake is the first byte of a TLS connection (RFC 8446 §5.1).
const recordTypeHandshake = 22

// extensionECH is the number of the encrypted greeting (RFC 9849).
const extensionECH = 0xfe0d

// helloMax bounds a greeting, in bytes with its records' headers.
const helloMax = 80 << 10

// A hello is what a TLS greeting says to everybody.
type hello struct {
	serverName string
	ech        bool
}

var (
	errHelloRead    = errors.New("the greeting was read")
	errHelloTooLong = errors.New("it is too long")
)

// readHello reads a greeting, and returns its bytes too, whether or not it is one. It
// uses the standard library's parser and stops it at the point where it knows: so what is
// ambiguous is refused there, and nothing is sent.
func readHello(conn net.Conn) (hello, []byte, error) {
	r := &eavesdropper{Conn: conn}
	var h hello
	read := false
	err := tls.Server(r, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			h = hello{info.ServerName, slices.Contains(info.Extensions, extensionECH)}
			read = true
			return nil, errHelloRead
		},
	}).Handshake()
	if !read {
		return hello{}, r.heard, err
	}
	return h, r.heard, nil
}

// An eavesdropper keeps what is read and sends nothing.
type eavesdropper struct {
	net.Conn
	heard []byte
}

func (e *eavesdropper) Read(p []byte) (int, error) {
	if len(e.heard) >= helloMax {
		return 0, errHelloTooLong
	}
	n, err := e.Conn.Read(p)
	e.heard = append(e.heard, p[:n]...)
	return n, err
}

func (e *eavesdropper) Write(p []byte) (int, error) { return len(p), nil }
