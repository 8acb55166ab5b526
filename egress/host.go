package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// A Host is the name or the address of a destination in its one canonical form, so that
// two Hosts are the same destination if they are ==. The zero Host is none.
type Host struct {
	name string // lower case, A-labels, no trailing dot; "" for an address
	addr netip.Addr
}

// Limits of DNS on a name as it is written, without the trailing dot (RFC 1035 §2.3.4).
const (
	nameMax  = 253
	labelMax = 63
)

// lookup turns what a person may write into what DNS is asked: case folded, width and
// compatibility variants mapped, other scripts as A-labels.
var lookup = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.Transitional(false),
	idna.StrictDomainName(true),
	idna.VerifyDNSLength(true),
)

// ParseHost is the one reader of host names. It takes a name, or an address in its usual
// notation (IPv6 with brackets or without), and nothing else: no port, no zone, no
// spaces, and none of the other ways to write an IPv4 address ("0x7f.1", "2130706433",
// "0177.0.0.1"), which programs read differently. One trailing dot is dropped. Names
// have letters, digits and hyphens only.
func ParseHost(s string) (Host, error) {
	if len(s) > 4*nameMax {
		return Host{}, errors.New("host name is too long")
	}
	if addr, ok := literal(s); ok {
		return AddrHost(addr), nil
	}
	name, err := canonical(s)
	if err != nil {
		return Host{}, fmt.Errorf("host name %.80q: %w", s, err)
	}
	// Mapping can have made an address of what did not look like one: full-width digits.
	if addr, ok := literal(name); ok {
		return AddrHost(addr), nil
	}
	if numeric(name[strings.LastIndexByte(name, '.')+1:]) {
		return Host{}, fmt.Errorf("host name %.80q: it ends in a number, so it is an address in an unusual notation: write it as four decimal numbers", s)
	}
	return Host{name: name}, nil
}

// AddrHost is the Host of an address. IPv4 addresses in IPv6 clothes are what they are,
// and a zone is dropped.
func AddrHost(addr netip.Addr) Host {
	return Host{addr: addr.Unmap().WithZone("")}
}

// Name is the name, or "" for an address.
func (h Host) Name() string { return h.name }

// Addr is the address, if h is one.
func (h Host) Addr() (netip.Addr, bool) { return h.addr, h.addr.IsValid() }

// IsZero reports whether h is no host at all.
func (h Host) IsZero() bool { return h == Host{} }

func (h Host) String() string {
	if h.addr.IsValid() {
		return h.addr.String()
	}
	return h.name
}

// JoinPort is the host and a port as they are written together.
func (h Host) JoinPort(port uint16) string {
	return net.JoinHostPort(h.String(), strconv.Itoa(int(port)))
}

// literal reads an address in its usual notation.
func literal(s string) (netip.Addr, bool) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); !ok || !strings.Contains(inner, ":") {
			return netip.Addr{}, false
		}
		s = inner
	}
	addr, err := netip.ParseAddr(s)
	return addr, err == nil && addr.Zone() == ""
}

func canonical(s string) (string, error) {
	name := strings.TrimSuffix(s, ".")
	if name == "" {
		return "", errors.New("it is empty")
	}
	if !utf8.ValidString(name) {
		return "", errors.New("it is not in UTF-8")
	}
	// IDNA maps several characters away or to dots. What is not plainly a name is not
	// given to it.
	for _, c := range name {
		if c <= ' ' || c == 0x7f || strings.ContainsRune(`%@/\:[]?#*_`, c) {
			return "", fmt.Errorf("%q is not allowed in it: names have letters, digits, hyphens and dots", c)
		}
	}
	if isASCII(name) {
		// Spares IDNA what cannot be a name: it takes its time over long ones.
		if err := checkLabels(strings.ToLower(name)); err != nil {
			return "", err
		}
	}
	ascii, err := lookup.ToASCII(name)
	if err != nil {
		return "", fmt.Errorf("it is no valid name: %w", err)
	}
	return ascii, checkLabels(ascii)
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c >= utf8.RuneSelf })
}

// checkLabels holds what the rest of this package relies on, whatever IDNA let through.
func checkLabels(name string) error {
	if len(name) > nameMax {
		return fmt.Errorf("it is longer than %d characters", nameMax)
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return errors.New("two dots stand together, or one at an end")
		case len(label) > labelMax:
			return fmt.Errorf("a label is longer than %d characters", labelMax)
		case label[0] == '-' || label[len(label)-1] == '-':
			return errors.New("a label begins or ends with a hyphen")
		case strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
			return errors.New("names have letters, digits, hyphens and dots")
		}
	}
	return nil
}

// numeric reports whether a name that ends in this label is read as an IPv4 address by
// some programs.
func numeric(label string) bool {
	if strings.Trim(label, "0123456789") == "" {
		return true
	}
	hex, ok := strings.CutPrefix(label, "0x")
	return ok && strings.Trim(hex, "0123456789abcdef") == ""
}
