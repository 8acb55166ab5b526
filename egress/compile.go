package egress

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// A rule is a Rule that was checked, with everything spelt out.
type rule struct {
	name     string
	hosts    []Pattern
	cidrs    []netip.Prefix
	ports    []Ports
	protocol Protocol // "" for what goes by the port
	methods  []string
	paths    []pathPattern
	ech      bool
	noSNI    bool
}

// Validate reports everything that is wrong with p, naming the rules.
func (p Policy) Validate() error {
	_, err := p.Compile()
	return err
}

// Compile checks p and makes what decides by it. The error names every rule that is
// wrong, and what to write instead.
func (p Policy) Compile() (*Rules, error) {
	var errs []error
	r := &Rules{unrestricted: p.Mode == Unrestricted}
	switch p.Mode {
	case Limited, Unrestricted, "":
	default:
		errs = append(errs, fmt.Errorf("mode %q: want %s or %s", p.Mode, Limited, Unrestricted))
	}
	all, err := p.expand()
	errs = append(errs, err)
	if len(all) > RulesMax {
		return nil, fmt.Errorf("network policy: %d rules, and %d are the most", len(all), RulesMax)
	}
	names := make(map[string]bool)
	for i, written := range all {
		compiled, err := written.compile()
		if err == nil && r.unrestricted && len(compiled.cidrs) == 0 {
			err = errors.New("mode unrestricted allows every public host already: drop the rule, or write mode: limited")
		}
		if err == nil && names[compiled.name] {
			err = errors.New("another rule has this name: give one of them a name of its own")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("rule %s: %w", written.label(i), err))
			continue
		}
		names[compiled.name] = true
		r.add(compiled)
	}
	errs = append(errs, r.checkLimits())
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("network policy: %w", err)
	}
	r.hash, err = p.hash(r)
	return r, err
}

// expand is the policy's rules and those of its presets.
func (p Policy) expand() ([]Rule, error) {
	rules := slices.Clone(p.Rules)
	var errs []error
	if p.Mode == Unrestricted && len(p.Presets) > 0 {
		return rules, errors.New("presets: mode unrestricted allows them already: drop them, or write mode: limited")
	}
	seen := make(map[string]bool) // sets share members
	for _, name := range p.Presets {
		of, ok := preset(name)
		if !ok {
			errs = append(errs, fmt.Errorf("preset %q: there is none of this name; there are %s", name, strings.Join(Presets(), ", ")))
		}
		for _, rule := range of {
			if !seen[rule.Name] {
				seen[rule.Name] = true
				rules = append(rules, rule)
			}
		}
	}
	return rules, errors.Join(errs...)
}

// label names a rule in an error.
func (r Rule) label(i int) string {
	if name := r.name(); name != "" {
		return fmt.Sprintf("%d (%.80q)", i+1, name)
	}
	return fmt.Sprint(i + 1)
}

func (r Rule) name() string {
	for _, names := range [][]string{{r.Name}, r.Hosts, r.CIDRs} {
		if len(names) > 0 && names[0] != "" {
			return names[0]
		}
	}
	return ""
}

func (r Rule) compile() (rule, error) {
	c := rule{name: r.name(), protocol: r.Protocol, ech: r.AllowECH, noSNI: r.AllowNoSNI}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	switch {
	case len(r.Hosts) == 0 && len(r.CIDRs) == 0:
		fail("it names no hosts and no cidrs")
	case len(r.Hosts) > 0 && len(r.CIDRs) > 0:
		fail("it names hosts and cidrs: make two rules of it")
	case len(r.Hosts) > PatternsMax || len(r.CIDRs) > PatternsMax:
		fail("it names more than %d hosts or cidrs", PatternsMax)
	}
	for _, host := range r.Hosts {
		pattern, err := ParsePattern(host)
		if addr, ok := pattern.Addr(); err == nil && ok {
			err = fmt.Errorf("host %q is an address: write cidrs: [%s] and its ports", host, addr)
		}
		errs = append(errs, err)
		c.hosts = append(c.hosts, pattern)
	}
	for _, cidr := range r.CIDRs {
		prefix, err := parseCIDR(cidr)
		errs = append(errs, err)
		c.cidrs = append(c.cidrs, prefix)
	}

	limited := len(r.Methods) > 0 || len(r.Paths) > 0
	switch r.Protocol {
	case "", HTTP, HTTPS:
	case TCP, TLS:
		if limited {
			fail("methods and paths are seen in protocol http and https only, not in %s", r.Protocol)
		}
	default:
		fail("protocol %q: want %s, %s, %s or %s", r.Protocol, TCP, TLS, HTTP, HTTPS)
	}
	if (r.AllowECH || r.AllowNoSNI) && (limited || r.Protocol != "" && r.Protocol != TLS) {
		fail("allow-ech and allow-no-sni are for rules with protocol tls, or none and no methods or paths")
	}
	c.ports = slices.Clone(r.Ports)
	if len(c.ports) == 0 {
		switch {
		case len(r.CIDRs) > 0 || r.Protocol == TCP:
			fail("it has to name its ports, as in ports: [5432], or ports: [any]")
		case r.Protocol == HTTP:
			c.ports = []Ports{Port(80)}
		case r.Protocol == TLS || r.Protocol == HTTPS:
			c.ports = []Ports{Port(443)}
		default:
			c.ports = []Ports{Port(80), Port(443)}
		}
	}
	for _, ports := range c.ports {
		if ports.First == 0 || ports.First > ports.Last {
			fail("ports %d-%d: want numbers from 1 to 65535, in order", ports.First, ports.Last)
		}
	}
	for _, method := range r.Methods {
		if !httpguts.ValidHeaderFieldName(method) || strings.ToUpper(method) != method || method == "CONNECT" {
			fail("method %.40q: want a method in capitals, like GET, and not CONNECT", method)
		}
		c.methods = append(c.methods, method)
	}
	for _, path := range r.Paths {
		pattern, err := parsePathPattern(path)
		if err != nil {
			fail("path %.80q: %w", path, err)
		}
		c.paths = append(c.paths, pattern)
	}
	return c, errors.Join(errs...)
}

func parseCIDR(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("cidr %.80q: want an address or a range like 10.1.0.0/16", s)
	case prefix.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("cidr %q: write it as a range of IPv4", s)
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("cidr %q: it has bits beyond its length: write %s for the range, or %s for the address", s, prefix.Masked(), prefix.Addr())
	}
	return prefix, nil
}

// on is the protocol that the rule allows on a port.
func (r *rule) on(port uint16) Protocol {
	limited := len(r.methods) > 0 || len(r.paths) > 0
	switch {
	case r.protocol != "":
		return r.protocol
	case port == 80:
		return HTTP
	case limited:
		return HTTPS
	case port == 443:
		return TLS
	}
	return TCP
}

func (r *rule) hasPort(port uint16) bool {
	return slices.ContainsFunc(r.ports, func(p Ports) bool { return p.Contains(port) })
}

// checkLimits finds limits on requests that mean nothing, as a wider rule lets the same
// hosts through without any. As rules only ever allow, whoever wrote them is mistaken
// about what they do.
func (r *Rules) checkLimits() error {
	var errs []error
	for _, narrow := range r.all {
		if len(narrow.methods) == 0 && len(narrow.paths) == 0 {
			continue
		}
		for _, wide := range r.all {
			if wide == narrow || len(wide.methods) > 0 || len(wide.paths) > 0 || !wide.covers(narrow) {
				continue
			}
			errs = append(errs, fmt.Errorf("rule %.80q limits requests that rule %.80q allows without limit: drop one of them", narrow.name, wide.name))
			break
		}
	}
	return errors.Join(errs...)
}

// covers reports whether r allows, for some host and port of q, whatever is asked.
func (r *rule) covers(q *rule) bool {
	samePort := slices.ContainsFunc(q.ports, func(p Ports) bool {
		return slices.ContainsFunc(r.ports, func(o Ports) bool { return p.First <= o.Last && o.First <= p.Last })
	})
	if !samePort {
		return false
	}
	for _, narrow := range q.hosts {
		if slices.ContainsFunc(r.hosts, func(p Pattern) bool { return p.covers(narrow) }) {
			return true
		}
	}
	for _, narrow := range q.cidrs {
		if slices.ContainsFunc(r.cidrs, func(p netip.Prefix) bool { return p.Bits() <= narrow.Bits() && p.Contains(narrow.Addr()) }) {
			return true
		}
	}
	return false
}

// hash is that of everything the policy allows, presets spelt out, so that policies
// which are written differently and mean the same have the same.
func (p Policy) hash(r *Rules) (string, error) {
	type plain struct {
		Name, Protocol                      string
		Hosts, CIDRs, Ports, Methods, Paths []string
		ECH, NoSNI                          bool
	}
	canonical := struct {
		Format       int
		Unrestricted bool
		Rules        []plain
	}{Format: 1, Unrestricted: r.unrestricted}
	for _, rule := range r.all {
		canonical.Rules = append(canonical.Rules, plain{
			Name: rule.name, Protocol: string(rule.protocol), ECH: rule.ech, NoSNI: rule.noSNI,
			Hosts: sorted(rule.hosts), CIDRs: sorted(rule.cidrs), Ports: sorted(rule.ports), Paths: sorted(rule.paths),
			Methods: slices.Sorted(slices.Values(rule.methods)),
		})
	}
	slices.SortFunc(canonical.Rules, func(a, b plain) int { return strings.Compare(a.Name, b.Name) })
	text, err := json.Marshal(canonical)
	if err != nil {
		return "", fmt.Errorf("network policy: %w", err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

func sorted[T fmt.Stringer](items []T) []string {
	var texts []string
	for _, item := range items {
		texts = append(texts, item.String())
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}
