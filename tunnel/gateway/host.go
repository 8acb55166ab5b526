package gateway

import (
	"errors"
	"strings"

	"github.com/bailey-platform/bailey/tunnel"
)

var errName = errors.New("it is no host name of letters, digits and hyphens")

// canonicalHost is the one form of a host as a Host field or a server name has it: lower
// case, without a port and without the dot at the end. It takes names of DNS and
// nothing else: no address, no other script, no underscore.
func canonicalHost(s string) (string, error) {
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		port := s[i+1:]
		if len(port) > 5 || strings.Trim(port, "0123456789") != "" {
			return "", errName
		}
		s = s[:i]
	}
	s = strings.TrimSuffix(s, ".")
	if !isHost(s) {
		return "", errName
	}
	return strings.ToLower(s), nil
}

// isHost reports whether s is a name of labels of DNS, in either case.
func isHost(s string) bool {
	if len(s) > tunnel.HostMax {
		return false
	}
	var label string
	for label = range strings.SplitSeq(s, ".") {
		if !tunnel.IsLabel(label) {
			return false
		}
	}
	// A last label of digits is how an address begins to look like a name.
	return strings.Trim(label, "0123456789") != ""
}
