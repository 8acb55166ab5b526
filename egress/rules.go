package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Rules decide by a policy. They are immutable and safe for concurrent use.
type Rules struct {
	unrestricted bool
	all          []*rule

	// Where to look for a name's rules, so that a long list costs no more than a short
	// one: by the whole name, and by what stands behind a wildcard.
	exact map[string][]*rule
	wild  map[string][]*rule

	ranges []*rule // those with cidrs

	hash string
}

// A Verdict is what Rules decided.
type Verdict struct {
	Allow bool

	// Rule names the rule that allows. Of what no rule allows it says what refuses:
	// "default", or the [Class] of an address.
	Rule string

	// Reason says in a sentence, for the model and its operator, why it is refused.
	Reason string
}

// Rules of verdicts that are no rule of the policy.
const (
	DefaultRule      = "default"      // nothing is allowed unless a rule allows it
	UnrestrictedRule = "unrestricted" // mode unrestricted
)

// An Access is what may be spoken to a destination.
type Access struct {
	TCP, TLS, HTTP, HTTPS bool // the protocols that one rule or another allows
	ECH, NoSNI            bool // TLS may come with an encrypted greeting, or without a name
}

func (a *Access) add(r *rule, port uint16) {
	switch r.on(port) {
	case TCP:
		a.TCP = true
	case TLS:
		a.TLS = true
		a.ECH, a.NoSNI = a.ECH || r.ech, a.NoSNI || r.noSNI
	case HTTP:
		a.HTTP = true
	case HTTPS:
		a.HTTPS = true
	}
}

func (r *Rules) add(c rule) {
	if r.exact == nil {
		r.exact, r.wild = make(map[string][]*rule), make(map[string][]*rule)
	}
	r.all = append(r.all, &c)
	for _, p := range c.hosts {
		index := r.wild
		if p.depth == exactly {
			index = r.exact
		}
		index[p.host.name] = append(index[p.host.name], &c)
	}
	if len(c.cidrs) > 0 {
		r.ranges = append(r.ranges, &c)
	}
}

// named are the rules whose hosts h is one of.
func (r *Rules) named(h Host) []*rule {
	found := slices.Clone(r.exact[h.name])
	for rest := h.name; ; {
		_, after, ok := strings.Cut(rest, ".")
		if !ok {
			return found
		}
		rest = after
		for _, rule := range r.wild[rest] {
			if slices.ContainsFunc(rule.hosts, func(p Pattern) bool { return p.Match(h) }) && !slices.Contains(found, rule) {
				found = append(found, rule)
			}
		}
	}
}

// opening are the rules whose ranges open addr.
func (r *Rules) opening(addr netip.Addr) []*rule {
	var found []*rule
	for _, rule := range r.ranges {
		if slices.ContainsFunc(rule.cidrs, func(p netip.Prefix) bool { return opens(p, addr) }) {
			found = append(found, rule)
		}
	}
	return found
}

// of are the rules for a host, whatever the port.
func (r *Rules) of(h Host) []*rule {
	if addr, ok := h.Addr(); ok {
		return r.opening(addr)
	}
	return r.named(h)
}

// Hash identifies what is allowed, for an audit: the SHA-256 of the policy in a
// canonical form, in hexadecimal.
func (r *Rules) Hash() string { return r.hash }

// OpensTLS reports whether a rule has TLS opened, so that a box needs the authority for
// it.
func (r *Rules) OpensTLS() bool {
	return slices.ContainsFunc(r.all, func(c *rule) bool {
		return slices.ContainsFunc(c.ports, func(p Ports) bool { return c.on(p.First) == HTTPS || c.on(p.Last) == HTTPS })
	})
}

// localName reports whether a name means the asker's own host to any program (RFC 6761
// §6.3).
func localName(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// Resolve decides whether a name may be asked for: whether there is a port on which it
// may be connected to.
func (r *Rules) Resolve(h Host) Verdict {
	if h.name == "" {
		return deny(DefaultRule, "%s is no name that could be looked up", h)
	}
	if rules := r.named(h); len(rules) > 0 {
		return Verdict{Allow: true, Rule: rules[0].name}
	}
	if r.unrestricted && !localName(h.name) {
		return Verdict{Allow: true, Rule: UnrestrictedRule}
	}
	return deny(DefaultRule, "%s is blocked by the network policy: no rule allows it", h)
}

// Connect decides on a connection to a host's port, and says what may be spoken there.
// For a name the address it leads to is judged by [Rules.Dial].
func (r *Rules) Connect(h Host, port uint16) (Access, Verdict) {
	var access Access
	verdict := Verdict{}
	rules := r.of(h)
	for _, rule := range rules {
		if rule.hasPort(port) {
			access.add(rule, port)
			if !verdict.Allow {
				verdict = Verdict{Allow: true, Rule: rule.name}
			}
		}
	}
	if verdict.Allow {
		return access, verdict
	}
	at := h.JoinPort(port)
	addr, isAddr := h.Addr()
	class := Public
	if isAddr {
		class = ClassOf(addr)
	}
	switch {
	case port == 0 || h.IsZero():
		return access, deny(DefaultRule, "%s is no destination", at)
	case r.unrestricted && class == Public && !localName(h.name):
		return Access{TCP: true}, Verdict{Allow: true, Rule: UnrestrictedRule}
	case len(rules) > 0:
		return access, deny(DefaultRule, "%s is blocked by the network policy: %s is allowed, but not on port %d", at, h, port)
	case class != Public:
		return access, deny(string(class), "%s is blocked by the network policy: it is a %s address, and no rule names it", at, class)
	case isAddr:
		return access, deny(DefaultRule, "%s is blocked by the network policy: no rule allows this address; connect by name to what is allowed by name", at)
	}
	return access, deny(DefaultRule, "%s is blocked by the network policy: no rule allows it", at)
}

// Dial decides on the address that is about to be dialled for a host that [Rules.Connect]
// allows. It is asked about the very address, after it was looked up.
func (r *Rules) Dial(h Host, to netip.AddrPort) Verdict {
	addr := to.Addr().Unmap()
	if own, ok := h.Addr(); ok {
		if own != addr {
			return deny(DefaultRule, "%s is not the address that was allowed", addr)
		}
		_, verdict := r.Connect(h, to.Port())
		return verdict
	}
	class := ClassOf(addr)
	if class == Public {
		return Verdict{Allow: true, Rule: string(Public)}
	}
	for _, rule := range r.opening(addr) {
		// One that looks into what is said there does not vouch for a name that leads
		// there: that was judged by the name's own rule, which may look at nothing.
		if rule.hasPort(to.Port()) && rule.protocol != HTTP && rule.on(to.Port()) != HTTPS && len(rule.methods)+len(rule.paths) == 0 {
			return Verdict{Allow: true, Rule: rule.name}
		}
	}
	// The address itself is not told: what a private name leads to is not the box's
	// business.
	return deny(string(class), "%s is blocked by the network policy: the name leads to a %s address, and no rule names that", h.JoinPort(to.Port()), class)
}

// A Request is an HTTP request, as far as rules look at it.
type Request struct {
	Host   Host
	Port   uint16
	TLS    bool   // it came over TLS that was opened
	Method string // in capitals
	Path   string // as it stands in the request, without query
}

// Request decides on one request on a connection that [Rules.Connect] allows.
func (r *Rules) Request(q Request) Verdict {
	if !httpguts.ValidHeaderFieldName(q.Method) || q.Method == "CONNECT" {
		return deny(DefaultRule, "%.40q requests are not passed on", q.Method)
	}
	var segments []string
	var unclear error // of the path; matters only to rules that look at it
	limits := false
	for _, rule := range r.of(q.Host) {
		if !rule.hasPort(q.Port) {
			continue
		}
		switch protocol := rule.on(q.Port); {
		case protocol == TCP, protocol == TLS && q.TLS:
			// Not looked into by its own rule, so looked into for another reason.
			return Verdict{Allow: true, Rule: rule.name}
		case protocol == HTTP && q.TLS, protocol == HTTPS && !q.TLS, protocol == TLS && !q.TLS:
			continue
		}
		limits = true
		if len(rule.methods) > 0 && !slices.Contains(rule.methods, q.Method) {
			continue
		}
		if len(rule.paths) == 0 {
			return Verdict{Allow: true, Rule: rule.name}
		}
		if segments == nil && unclear == nil {
			segments, unclear = pathSegments(q.Path)
		}
		if unclear == nil && slices.ContainsFunc(rule.paths, func(p pathPattern) bool { return p.match(segments) }) {
			return Verdict{Allow: true, Rule: rule.name}
		}
	}
	scheme := "http"
	if q.TLS {
		scheme = "https"
	}
	what := fmt.Sprintf("%s %s://%s%.200s", q.Method, scheme, q.Host.JoinPort(q.Port), q.Path)
	addr, isAddr := q.Host.Addr()
	switch {
	case unclear != nil:
		return deny(DefaultRule, "%s is blocked by the network policy: %w, so rules for paths cannot judge it", what, unclear)
	case limits:
		return deny(DefaultRule, "%s is blocked by the network policy: the host is allowed, but no rule allows this method and path", what)
	case r.unrestricted && !localName(q.Host.name) && (!isAddr || ClassOf(addr) == Public):
		return Verdict{Allow: true, Rule: UnrestrictedRule}
	}
	return deny(DefaultRule, "%s is blocked by the network policy: no rule allows it", what)
}

func deny(rule, format string, args ...any) Verdict {
	return Verdict{Rule: rule, Reason: fmt.Errorf(format, args...).Error()}
}
