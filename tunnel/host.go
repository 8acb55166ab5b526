package tunnel

import (
	"net"
	"strings"
)

// HostMax bounds a host name, in bytes (RFC 1035 §2.3.4); labelMax, each label of it.
const (
	HostMax  = 253
	labelMax = 63
)

// SplitHost tells the host of a private MCP server apart: the route of the server, and
// the domain of the tunnel that leads to it, which is one label before suffix, such as
// a1b2c3d4.tunnel.bailey.internal. The route is "" where host is the domain itself, and
// may have several labels. ok is false for every host that is not below suffix or is
// none at all.
//
// Host names have one spelling here: lower case, without a dot at the end. A port is no
// part of them.
func SplitHost(host, suffix string) (route, domain string, ok bool) {
	if strings.ContainsFunc(host, func(r rune) bool { return r > 0x7e }) {
		return "", "", false // some letters of other scripts have an ASCII one as their lower case
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	front, ok := strings.CutSuffix(host, "."+strings.ToLower(suffix))
	if !ok || len(host) > HostMax {
		return "", "", false
	}
	for label := range strings.SplitSeq(front, ".") {
		if !IsLabel(label) {
			return "", "", false
		}
	}
	if i := strings.LastIndexByte(front, '.'); i >= 0 {
		route, front = front[:i], front[i+1:]
	}
	return route, front + host[len(host)-len(suffix)-1:], true
}

// IsLabel reports whether s is a label of a host name (RFC 5890 §2.3.1): ASCII letters of
// either case, digits, and hyphens inside.
func IsLabel(s string) bool {
	if s == "" || len(s) > labelMax || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// WithPort is the address host:port of an edge, with this port if the address is a host
// alone. What is neither stays as it is.
func WithPort(address, port string) string {
	host := strings.TrimSuffix(strings.TrimPrefix(address, "["), "]")
	if host == "" || strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return address
	}
	return net.JoinHostPort(host, port)
}
