package egress

// A Policy is what an operator writes about what a box may reach. The zero Policy allows
// nothing.
type Policy struct {
	// Mode is limited if it is empty.
	Mode Mode `json:"mode,omitempty" yaml:"mode,omitempty"`

	// Presets are names of sets of rules that come with this package; see [Presets].
	Presets []string `json:"presets,omitempty" yaml:"presets,omitempty"`

	// Rules are at most [RulesMax]. Beside mode unrestricted only rules for addresses
	// have a meaning, and others are refused.
	Rules []Rule `json:"rules,omitempty" yaml:"rules,omitempty"`
}

// A Mode says what holds where no rule does.
type Mode string

// The modes.
const (
	Limited      Mode = "limited"      // nothing is allowed
	Unrestricted Mode = "unrestricted" // everything of the public internet is allowed
)

// Bounds of a policy. A longer one is refused.
const (
	RulesMax    = 1000 // rules of a policy, those of its presets included
	PatternsMax = 1000 // hosts, or cidrs, of one rule
)

// A Rule allows connections. It names hosts or cidrs, never both.
type Rule struct {
	// Name is what verdicts call the rule; without one it is called by its first host
	// or range. Names are unique.
	Name string `json:"name,omitempty" yaml:"name,omitempty"`

	// Hosts are patterns: see the package comment.
	Hosts []string `json:"hosts,omitempty" yaml:"hosts,omitempty"`

	// CIDRs are ranges of addresses ("10.1.0.0/16") or single ones ("10.1.2.3"). Such a
	// rule allows connections to addresses in them that the box makes without a name,
	// and is what lets an allowed name lead to one that is not public.
	CIDRs []string `json:"cidrs,omitempty" yaml:"cidrs,omitempty"`

	// Ports are numbers, ranges ("8000-8100") or "any". Without them the rule is for
	// the usual ports of its protocol: 80 for http, 443 for tls and https, both if the
	// rule has no protocol. Rules for tcp, and for cidrs, have to name their ports.
	Ports []Ports `json:"ports,omitempty" yaml:"ports,omitempty"`

	// Protocol is what may be spoken. Without one it goes by the port: http on 80, tls
	// on 443, and tcp on others.
	Protocol Protocol `json:"protocol,omitempty" yaml:"protocol,omitempty"`

	// Methods and Paths limit the requests of an http or https rule; empty ones do not
	// limit. A rule with either and no protocol is http on port 80 and https on others.
	// In a path, "*" stands for what is in one segment, and "/**" at the end for
	// anything below: "/repos/*/issues", "/v1/**".
	Methods []string `json:"methods,omitempty" yaml:"methods,omitempty"`
	Paths   []string `json:"paths,omitempty" yaml:"paths,omitempty"`

	// AllowECH lets pass TLS connections whose greeting is encrypted, or pretends to be
	// (as that of some browsers does), AllowNoSNI those that name no host. With either,
	// whoever serves one of the hosts may be asked for another that it serves as well.
	// They are for rules whose TLS is not opened.
	AllowECH   bool `json:"allow-ech,omitempty" yaml:"allow-ech,omitempty"`
	AllowNoSNI bool `json:"allow-no-sni,omitempty" yaml:"allow-no-sni,omitempty"`
}

// A Protocol is what may be spoken on a connection, and with that how far it is looked
// into.
type Protocol string

// The protocols.
const (
	TCP   Protocol = "tcp"   // anything; not looked into
	TLS   Protocol = "tls"   // TLS whose greeting names the host; not opened
	HTTP  Protocol = "http"  // HTTP in the clear, every request to the host
	HTTPS Protocol = "https" // HTTP within TLS, which is opened so that every request is seen
)
