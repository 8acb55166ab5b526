package gateway

import (
	"errors"
	"strings"
)

// Bounds of DNS on names (RFC 1035 §2.3.4).
const (
	hostMax  = 253
	labelMax = 63
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

// isHost reports whether s is a name of LDH labels (RFC 5890 §2.3.1) in either case.
func isHost(s string) bool {
	if s == "" || len(s) > hostMax {
		return false
	}
	label := 0 // bytes of the label so far
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '.':
			if label == 0 || s[i-1] == '-' {
				return false
			}
			label = 0
			continue
		case c == '-':
			if label == 0 {
				return false
			}
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		default:
			return false
		}
		if label++; label > labelMax {
			return false
		}
	}
	if label == 0 || s[len(s)-1] == '-' {
		return false
	}
	// A last label of digits is how an address begins to look like a name.
	last := s[strings.LastIndexByte(s, '.')+1:]
	return strings.Trim(last, "0123456789") != ""
}
