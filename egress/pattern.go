package egress

import (
	"fmt"
	"net/netip"
	"strings"
)

// A Pattern stands for one host or for the names below one. See the package comment for
// how it is written.
type Pattern struct {
	host  Host // the host itself, or the name that the others are below
	depth depth
}

// A depth says how many labels a name has more than its pattern's.
type depth int

const (
	exactly depth = iota // none: the host itself
	below                // one
	beneath              // one or more
)

var prefixes = map[depth]string{exactly: "", below: "*.", beneath: "**."}

// ParsePattern reads a pattern: a host (see [ParseHost]), or a name after "*." or "**.".
func ParsePattern(s string) (Pattern, error) {
	p, rest := Pattern{}, s
	for _, d := range []depth{beneath, below} {
		if after, ok := strings.CutPrefix(s, prefixes[d]); ok {
			p.depth, rest = d, after
			break
		}
	}
	switch {
	case strings.Contains(s, "://") || strings.ContainsAny(s, "/"):
		return Pattern{}, fmt.Errorf("host pattern %.80q: write the host alone, without scheme or path", s)
	case strings.Trim(rest, "*.") == "":
		return Pattern{}, fmt.Errorf("host pattern %.80q: a wildcard stands before a name, as in *.example.com; for everything, write mode: unrestricted", s)
	case strings.Contains(rest, "*"):
		return Pattern{}, fmt.Errorf("host pattern %.80q: a wildcard stands for whole labels at the beginning only, as in *.example.com or **.example.com", s)
	}
	host, err := ParseHost(rest)
	if err != nil {
		if before, port, ok := strings.Cut(rest, ":"); ok && !strings.Contains(port, ":") {
			return Pattern{}, fmt.Errorf("host pattern %.80q: write the host %q here and the port under ports", s, before)
		}
		return Pattern{}, err
	}
	if _, isAddr := host.Addr(); isAddr && p.depth != exactly {
		return Pattern{}, fmt.Errorf("host pattern %.80q: an address has no names below it", s)
	}
	p.host = host
	return p, nil
}

func (p Pattern) String() string { return prefixes[p.depth] + p.host.String() }

// Addr is the address that p is, if it is one.
func (p Pattern) Addr() (netip.Addr, bool) { return p.host.Addr() }

// Match reports whether h is one of the hosts that p stands for.
func (p Pattern) Match(h Host) bool {
	if p.depth == exactly {
		return !h.IsZero() && h == p.host
	}
	more, ok := strings.CutSuffix(h.name, "."+p.host.name)
	return ok && more != "" && (p.depth == beneath || !strings.Contains(more, "."))
}

// covers reports whether p stands for every host that q stands for.
func (p Pattern) covers(q Pattern) bool {
	if p == q {
		return true
	}
	switch {
	case q.depth == exactly:
		return p.Match(q.host)
	case p.depth == beneath:
		// What is below q's name is beneath p's, if q's name is p's or beneath it.
		return p.host == q.host || p.Match(q.host)
	default:
		return false
	}
}
