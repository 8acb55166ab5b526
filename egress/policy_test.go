package egress

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

func compile(t testing.TB, text string) *Rules {
	t.Helper()
	var p Policy
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&p); err != nil {
		t.Fatal(err)
	}
	r, err := p.Compile()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func host(t testing.TB, s string) Host {
	t.Helper()
	h, err := ParseHost(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

const example = `
mode: limited
presets: [pypi]
rules:
- hosts: [api.example.com, "*.cdn.example.com"]
- name: database
  hosts: [db.example.com]
  ports: [5432, 6000-6010]
- name: any tcp
  hosts: ["**.wide.example"]
  ports: [any]
  protocol: tcp
- name: reads
  hosts: [code.example]
  methods: [GET, HEAD]
  paths: [/repos/**, /user, "/orgs/*/teams"]
- name: intranet
  cidrs: [10.1.0.0/16, "fd12::/32"]
  ports: [443, 22]
- name: one metadata service
  cidrs: [169.254.169.254]
  ports: [80]
- name: everything by address
  cidrs: [0.0.0.0/0]
  ports: [8080]
`

func TestConnect(t *testing.T) {
	t.Parallel()
	r := compile(t, example)
	for _, c := range []struct {
		host string
		port uint16
		want Access
		rule string // "" for refused
	}{
		{"api.example.com", 443, Access{TLS: true}, "api.example.com"},
		{"API.example.com.", 80, Access{HTTP: true}, "api.example.com"},
		{"api.example.com", 8443, Access{}, ""},
		{"api.example.com", 0, Access{}, ""},
		{"x.api.example.com", 443, Access{}, ""},
		{"a.cdn.example.com", 443, Access{TLS: true}, "api.example.com"},
		{"cdn.example.com", 443, Access{}, ""},
		{"a.b.cdn.example.com", 443, Access{}, ""},
		{"db.example.com", 5432, Access{TCP: true}, "database"},
		{"db.example.com", 6010, Access{TCP: true}, "database"},
		{"db.example.com", 6011, Access{}, ""},
		{"db.example.com", 443, Access{}, ""},
		{"a.b.wide.example", 443, Access{TCP: true}, "any tcp"},
		{"wide.example", 443, Access{}, ""},
		{"code.example", 443, Access{HTTPS: true}, "reads"},
		{"code.example", 80, Access{HTTP: true}, "reads"},
		{"pypi.org", 443, Access{TLS: true}, "preset pypi"},
		{"evil.com", 443, Access{}, ""},
		{"localhost", 80, Access{}, ""},
		{"10.1.2.3", 22, Access{TCP: true}, "intranet"},
		{"10.1.2.3", 443, Access{TLS: true}, "intranet"},
		{"::ffff:10.1.2.3", 22, Access{TCP: true}, "intranet"},
		{"10.1.2.3", 80, Access{}, ""},
		{"10.2.2.3", 22, Access{}, ""},
		{"fd12::9", 22, Access{TCP: true}, "intranet"},
		{"fd13::9", 22, Access{}, ""},
		{"169.254.169.254", 80, Access{HTTP: true}, "one metadata service"},
		{"169.254.169.253", 80, Access{}, ""},
		{"9.9.9.9", 8080, Access{TCP: true}, "everything by address"},
		{"9.9.9.9", 443, Access{}, ""},
		// A wide range opens nothing special.
		{"10.2.2.3", 8080, Access{}, ""},
		{"127.0.0.1", 8080, Access{}, ""},
		{"169.254.169.254", 8080, Access{}, ""},
		{"0.0.0.0", 8080, Access{}, ""},
		{"224.0.0.1", 8080, Access{}, ""},
		{"198.18.0.1", 8080, Access{}, ""},
	} {
		access, v := r.Connect(host(t, c.host), c.port)
		if v.Allow != (c.rule != "") || v.Allow && v.Rule != c.rule || v.Allow && access != c.want {
			t.Errorf("Connect(%s, %d) = %+v, %+v; want %+v by %q", c.host, c.port, access, v, c.want, c.rule)
		}
		if !v.Allow && (v.Reason == "" || v.Rule == "") {
			t.Errorf("Connect(%s, %d) is refused without a reason: %+v", c.host, c.port, v)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	r := compile(t, example)
	for name, want := range map[string]bool{
		"api.example.com": true, "db.example.com": true, "a.cdn.example.com": true, "x.y.wide.example": true,
		"example.com": false, "evil.com": false, "localhost": false, "api.example.com.evil.com": false, "10.1.2.3": false,
	} {
		if v := r.Resolve(host(t, name)); v.Allow != want {
			t.Errorf("Resolve(%s) = %+v, want %v", name, v, want)
		}
	}
}

// What a name leads to is judged by itself: DNS rebinding.
func TestDial(t *testing.T) {
	t.Parallel()
	r := compile(t, example)
	for _, c := range []struct {
		host, to string
		want     bool
	}{
		{"api.example.com", "1.1.1.1:443", true},
		{"api.example.com", "[2606:4700::1]:443", true},
		{"api.example.com", "10.1.2.3:443", true}, // the intranet rule names it
		{"api.example.com", "10.1.2.3:80", false}, // but not on this port
		{"api.example.com", "10.2.2.3:443", false},
		{"api.example.com", "127.0.0.1:443", false},
		{"api.example.com", "[::1]:443", false},
		{"api.example.com", "[::ffff:127.0.0.1]:443", false},
		{"api.example.com", "169.254.169.254:443", false},
		{"api.example.com", "[64:ff9b::a9fe:a9fe]:443", false},
		{"api.example.com", "[2002:a9fe:a9fe::1]:443", false},
		{"api.example.com", "198.18.0.7:443", false},
		{"api.example.com", "0.0.0.0:443", false},
		{"10.1.2.3", "10.1.2.3:22", true},
		{"10.1.2.3", "10.1.2.4:22", false},
	} {
		if v := r.Dial(host(t, c.host), netip.MustParseAddrPort(c.to)); v.Allow != c.want {
			t.Errorf("Dial(%s, %s) = %+v, want %v", c.host, c.to, v, c.want)
		} else if !v.Allow && c.host[0] == 'a' && strings.Contains(v.Reason, "10.2.2.3") {
			t.Errorf("the reason tells what a private name leads to: %s", v.Reason)
		}
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	r := compile(t, example)
	for _, c := range []struct {
		method, path string
		want         bool
	}{
		{"GET", "/repos/", true},
		{"GET", "/repos/a/b", true},
		{"HEAD", "/repos/a", true},
		{"POST", "/repos/a", false},
		{"get", "/repos/a", false},
		{"GET", "/repos", false},
		{"GET", "/reposx/a", false},
		{"GET", "/user", true},
		{"GET", "/user/", false},
		{"GET", "/%75ser", true},
		{"GET", "/orgs/x/teams", true},
		{"GET", "/orgs//teams", false},
		{"GET", "/orgs/x/y/teams", false},
		{"GET", "/orgs/x%2fy/teams", false},
		{"GET", "/repos/../admin", false},
		{"GET", "/repos/%2e%2e/admin", false},
		{"GET", "/repos/..;/admin", false},
		{"GET", "/repos/.;a=b/admin", false},
		{"GET", "/repos/./admin", false},
		{"GET", "/repos//admin", false},
		{"GET", "/repos/%2e%2e%2fadmin", false},
		{"GET", "/repos/%252e%252e/admin", false},
		{"GET", `/repos/..\admin`, false},
		{"GET", "/repos/%5cadmin", false},
		{"GET", "/repos/a%00", false},
		{"GET", "/repos/%zz", false},
		{"GET", "/repos/%ff", false},
		{"GET", "repos/a", false},
		{"GET", "", false},
		{"GET", "/repos/" + strings.Repeat("a", 10_000), false},
		{"CONNECT", "/repos/a", false},
		{"G ET", "/repos/a", false},
	} {
		for _, tls := range []bool{true, false} {
			port := uint16(80)
			if tls {
				port = 443
			}
			q := Request{Host: host(t, "code.example"), Port: port, TLS: tls, Method: c.method, Path: c.path}
			if v := r.Request(q); v.Allow != c.want {
				t.Errorf("Request(%s %s) = %+v, want %v", c.method, c.path, v, c.want)
			}
		}
	}
	// In the clear where TLS was meant.
	if v := r.Request(Request{Host: host(t, "code.example"), Port: 443, Method: "GET", Path: "/user"}); v.Allow {
		t.Errorf("a request in the clear is allowed by an https rule: %+v", v)
	}
}

func TestUnrestrictedKeepsToThePublicInternet(t *testing.T) {
	t.Parallel()
	r := compile(t, "mode: unrestricted\nrules:\n- cidrs: [10.1.0.0/16]\n  ports: [5432]\n")
	for _, c := range []struct {
		host string
		port uint16
		want bool
	}{
		{"example.com", 443, true}, {"example.com", 25, true}, {"9.9.9.9", 22, true}, {"2606:4700::1", 1, true},
		{"10.1.2.3", 5432, true}, {"10.1.2.3", 5433, false}, {"10.2.0.1", 5432, false},
		{"localhost", 80, false}, {"a.localhost", 80, false},
		{"127.0.0.1", 80, false}, {"::1", 80, false}, {"169.254.169.254", 80, false}, {"fd00:ec2::254", 80, false},
		{"100.100.100.200", 80, false}, {"168.63.129.16", 80, false}, {"192.168.0.1", 80, false}, {"0.0.0.0", 80, false},
		{"224.0.0.1", 80, false}, {"::ffff:127.0.0.1", 80, false}, {"64:ff9b::7f00:1", 80, false}, {"2002:7f00:1::", 80, false},
		{"198.18.0.9", 80, false},
	} {
		if _, v := r.Connect(host(t, c.host), c.port); v.Allow != c.want {
			t.Errorf("Connect(%s, %d) = %+v, want %v", c.host, c.port, v, c.want)
		}
	}
	if v := r.Resolve(host(t, "localhost")); v.Allow {
		t.Error("localhost is looked up")
	}
	if v := r.Dial(host(t, "example.com"), netip.MustParseAddrPort("127.0.0.1:80")); v.Allow {
		t.Error("a name that leads to the worker itself is dialled")
	}
	if v := r.Request(Request{Host: host(t, "example.com"), Port: 443, TLS: true, Method: "POST", Path: "/x/../y"}); !v.Allow {
		t.Errorf("a request whose path no rule looks at is refused: %+v", v)
	}
}

func TestTheZeroPolicyAllowsNothing(t *testing.T) {
	t.Parallel()
	r, err := Policy{}.Compile()
	if err != nil {
		t.Fatal(err)
	}
	if v := r.Resolve(host(t, "example.com")); v.Allow {
		t.Error("a name")
	}
	if _, v := r.Connect(host(t, "example.com"), 443); v.Allow {
		t.Error("a host")
	}
	if _, v := r.Connect(host(t, "9.9.9.9"), 443); v.Allow {
		t.Error("an address")
	}
}

func TestCompileSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"mode: open":                                     `mode "open": want limited or unrestricted`,
		"presets: [pipy]":                                "there are alpine,",
		"mode: unrestricted\npresets: [pypi]":            "presets: mode unrestricted",
		"mode: unrestricted\nrules: [{hosts: [a.com]}]":  `rule 1 ("a.com"): mode unrestricted`,
		"rules: [{}]":                                    "rule 1: it names no hosts",
		"rules: [{hosts: [a.com], cidrs: [10.0.0.0/8]}]": "make two rules",
		"rules: [{hosts: [a.com]}, {name: x, hosts: [https://b.com]}]":                      `rule 2 ("x"): host pattern`,
		"rules: [{hosts: [a.com]}, {hosts: [a.com]}]":                                       "another rule has this name",
		"rules: [{hosts: [10.0.0.1]}]":                                                      "write cidrs: [10.0.0.1]",
		"rules: [{cidrs: [10.0.0.0/8]}]":                                                    "name its ports",
		"rules: [{cidrs: [10.0.0.5/8], ports: [1]}]":                                        "write 10.0.0.0/8 for the range, or 10.0.0.5",
		"rules: [{cidrs: ['::ffff:10.0.0.0/104'], ports: [1]}]":                             "range of IPv4",
		"rules: [{cidrs: [nonsense], ports: [1]}]":                                          "want an address or a range",
		"rules: [{hosts: [a.com], protocol: tcp}]":                                          "name its ports",
		"rules: [{hosts: [a.com], protocol: udp}]":                                          `protocol "udp": want tcp, tls, http or https`,
		"rules: [{hosts: [a.com], protocol: tls, methods: [GET]}]":                          "not in tls",
		"rules: [{hosts: [a.com], methods: [get]}]":                                         "in capitals",
		"rules: [{hosts: [a.com], methods: [CONNECT]}]":                                     "not CONNECT",
		"rules: [{hosts: [a.com], paths: [a]}]":                                             "begins with /",
		"rules: [{hosts: [a.com], paths: ['/a?b']}]":                                        "without query",
		"rules: [{hosts: [a.com], paths: ['/a/../b']}]":                                     "goes up",
		"rules: [{hosts: [a.com], paths: ['/**/b']}]":                                       "at the end",
		"rules: [{hosts: [a.com], paths: ['/a**']}]":                                        "stands alone",
		"rules: [{hosts: [a.com], protocol: https, allow-ech: true}]":                       "protocol tls",
		"rules: [{hosts: [a.com]}, {name: narrow, hosts: [a.com], methods: [GET]}]":         `rule "narrow" limits requests that rule "a.com" allows`,
		"rules: [{hosts: ['**.a.com']}, {name: narrow, hosts: ['*.b.a.com'], paths: [/x]}]": `rule "narrow" limits`,
	} {
		var p Policy
		err := yaml.Unmarshal([]byte(text), &p)
		if err == nil {
			err = p.Validate()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant an error with %q", text, err, want)
		}
	}
	many := Policy{Rules: make([]Rule, RulesMax+1)}
	if err := many.Validate(); err == nil || !strings.Contains(err.Error(), "1000 are the most") {
		t.Errorf("too many rules: %v", err)
	}
}

func TestANarrowRuleBesideAWiderPortIsFine(t *testing.T) {
	t.Parallel()
	compile(t, "rules: [{name: ssh, hosts: [a.com], ports: [22]}, {name: api, hosts: [a.com], methods: [GET]}]")
	compile(t, "rules: [{name: all, hosts: [api.a.com]}, {name: reads, hosts: ['*.a.com'], methods: [GET]}]")
}

func TestPorts(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Ports{`443`: {443, 443}, `"443"`: {443, 443}, `"8000-8100"`: {8000, 8100}, `"any"`: {1, 65535}} {
		for name, unmarshal := range map[string]func([]byte, any) error{"JSON": json.Unmarshal, "YAML": yaml.Unmarshal} {
			var got Ports
			if err := unmarshal([]byte(text), &got); err != nil || got != want {
				t.Errorf("%s %s = %v, %v; want %v", name, text, got, err, want)
			}
		}
		b, err := json.Marshal(want)
		var again Ports
		if err := json.Unmarshal(b, &again); err != nil || again != want {
			t.Errorf("%s read again is %v, %v", b, again, err)
		}
		if err != nil {
			t.Error(err)
		}
	}
	for _, text := range []string{`0`, `65536`, `-1`, `"a"`, `""`, `"5-4"`, `"1-2-3"`, `1.5`, `"0-5"`, `true`, `{}`} {
		var got Ports
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s = %v, want an error", text, got)
		}
	}
}

func TestHashIsOfTheMeaning(t *testing.T) {
	t.Parallel()
	one := compile(t, "rules: [{name: a, hosts: [b.com, A.com.], ports: [443, 80]}, {name: b, cidrs: [10.0.0.1], ports: [1]}]")
	two := compile(t, "mode: limited\nrules: [{name: b, cidrs: [10.0.0.1/32], ports: ['1-1']}, {name: a, hosts: [a.com, b.com]}]")
	if one.Hash() != two.Hash() {
		t.Error("policies that mean the same have different hashes")
	}
	seen := map[string]string{}
	for _, text := range []string{
		"{}", "mode: unrestricted", "rules: [{hosts: [a.com]}]", "rules: [{hosts: ['*.a.com']}]", "rules: [{hosts: ['**.a.com']}]",
		"rules: [{hosts: [a.com], ports: [443]}]", "rules: [{hosts: [a.com], protocol: https}]", "rules: [{hosts: [a.com], methods: [GET]}]",
		"rules: [{hosts: [a.com], paths: [/a]}]", "rules: [{hosts: [a.com], allow-ech: true}]", "rules: [{hosts: [a.com], allow-no-sni: true}]", "presets: [npm]",
	} {
		hash := compile(t, text).Hash()
		if seen[hash] != "" || len(hash) != 64 {
			t.Errorf("%q has the hash of %q: %s", text, seen[hash], hash)
		}
		seen[hash] = text
	}
}

func TestPresetsCompile(t *testing.T) {
	t.Parallel()
	for _, name := range Presets() {
		if err := (Policy{Presets: []string{name, name}}).Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Policy{Presets: Presets()}).Validate(); err != nil {
		t.Errorf("all of them: %v", err)
	}
	r := compile(t, "presets: [package-managers]")
	for _, name := range []string{"pypi.org", "registry.npmjs.org", "index.crates.io", "proxy.golang.org", "rubygems.org", "deb.debian.org", "de.archive.ubuntu.com", "dl-cdn.alpinelinux.org"} {
		if v := r.Resolve(host(t, name)); !v.Allow {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// The public API's "*." means names at any depth.
func TestNetworking(t *testing.T) {
	t.Parallel()
	r, err := Networking([]string{"api.example.com", "*.example.org", "192.0.2.7", "api.example.com"}, true).Compile()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"api.example.com": true, "a.b.example.org": true, "example.org": false, "192.0.2.7": true, "192.0.2.8": false, "pypi.org": true, "evil.com": false} {
		if _, v := r.Connect(host(t, name), 443); v.Allow != want {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if diff := cmp.Diff("**.example.com", AllowedHost("*.example.com")); diff != "" {
		t.Error(diff)
	}
}

// A policy is what it is however its rules are ordered, and a rule more allows no less.
func TestRulesOnlyAllow(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	hosts := []string{"a.com", "b.a.com", "c.b.a.com", "x.org", "10.0.0.1", "10.9.0.1", "127.0.0.1", "9.9.9.9", "169.254.169.254"}
	for range 300 {
		var p Policy
		for i := range 1 + random.IntN(6) {
			rule := Rule{Name: fmt.Sprint(i), Ports: []Ports{{uint16(1 + random.IntN(400)), uint16(401 + random.IntN(200))}}}
			if random.IntN(3) == 0 {
				rule.CIDRs = []string{pick("10.0.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "127.0.0.1", "169.254.0.0/16")}
			} else {
				rule.Hosts = []string{pick("a.com", "*.a.com", "**.a.com", "x.org", "*.b.a.com")}
				rule.Protocol = Protocol(pick("", "tcp", "tls", "http", "https"))
			}
			p.Rules = append(p.Rules, rule)
		}
		all, err := p.Compile()
		if err != nil {
			t.Fatal(err)
		}
		fewer, err := Policy{Rules: p.Rules[1:]}.Compile()
		if err != nil {
			t.Fatal(err)
		}
		turned := Policy{Rules: append([]Rule{}, p.Rules...)}
		random.Shuffle(len(turned.Rules), func(i, j int) { turned.Rules[i], turned.Rules[j] = turned.Rules[j], turned.Rules[i] })
		shuffled, err := turned.Compile()
		if err != nil {
			t.Fatal(err)
		}
		if shuffled.Hash() != all.Hash() {
			t.Fatalf("the order of the rules is in the hash: %+v", p)
		}
		for _, name := range hosts {
			h := host(t, name)
			port := uint16(1 + random.IntN(700))
			access, v := all.Connect(h, port)
			access2, v2 := shuffled.Connect(h, port)
			access3, v3 := fewer.Connect(h, port)
			if v.Allow != v2.Allow || access != access2 {
				t.Fatalf("%s:%d depends on the order of %+v", h, port, p.Rules)
			}
			if v3.Allow && !v.Allow || access3.TCP && !access.TCP || access3.TLS && !access.TLS || access3.HTTP && !access.HTTP || access3.HTTPS && !access.HTTPS {
				t.Fatalf("%s:%d is allowed by fewer rules than %+v", h, port, p.Rules)
			}
			if _, isAddr := h.Addr(); !isAddr && v.Allow && !all.Resolve(h).Allow {
				t.Fatalf("%s:%d may be connected to and not looked up", h, port)
			}
		}
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"rules":[{"hosts":["a.com"],"ports":[443,"1-2"],"methods":["GET"],"paths":["/a/**"]}]}`), "a.com", "/a/b")
	f.Add([]byte(`{"mode":"unrestricted","rules":[{"cidrs":["10.0.0.0/8"],"ports":["any"]}]}`), "10.0.0.1", "/")
	f.Fuzz(func(t *testing.T, data []byte, name, path string) {
		var p Policy
		if json.Unmarshal(data, &p) != nil {
			return
		}
		r, err := p.Compile()
		if err != nil {
			return
		}
		h, err := ParseHost(name)
		if err != nil {
			return
		}
		for _, port := range []uint16{1, 80, 443} {
			access, v := r.Connect(h, port)
			if v.Allow == (access == Access{}) {
				t.Fatalf("Connect(%s, %d) = %+v, %+v", h, port, access, v)
			}
			r.Request(Request{Host: h, Port: port, TLS: port == 443, Method: "GET", Path: path})
			if addr, ok := h.Addr(); ok && v.Allow {
				switch ClassOf(addr) {
				case Unspecified, Multicast, Translated:
					t.Fatalf("Connect(%s, %d) is allowed: it is %s", h, port, ClassOf(addr))
				}
			}
		}
	})
}

func FuzzPathSegments(f *testing.F) {
	for _, seed := range []string{"/a/b", "/a/%2e%2e/b", "/..;/x", "/a//b", "/%00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		segments, err := pathSegments(path)
		if err != nil {
			return
		}
		for i, s := range segments {
			if s == "." || s == ".." || strings.ContainsAny(s, "/\\\x00") || s == "" && i != len(segments)-1 {
				t.Fatalf("pathSegments(%q) = %q", path, segments)
			}
		}
	})
}

func BenchmarkConnect(b *testing.B) {
	var p Policy
	for i := range 900 {
		p.Rules = append(p.Rules, Rule{Hosts: []string{fmt.Sprintf("host%d.example.com", i)}})
	}
	r, err := p.Compile()
	if err != nil {
		b.Fatal(err)
	}
	h := host(b, "host450.example.com")
	for b.Loop() {
		r.Connect(h, 443)
	}
}

func TestMatchPath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern    string
		match, not string
	}{
		{"/", "/", "/a //"},
		{"/a", "/a /%61", "/ /a/ /ab /b /a/b"},
		{"/a/", "/a/", "/a /a/b"},
		{"/a/*/c", "/a/b/c /a/%20/c", "/a/b /a /a/c /a/b/c/d /a/b/d"},
		{"/**", "/ /a /a/b/", "a"},
		{"/a/**", "/a/ /a/b /a/b/c", "/a /b/a/ /ab/"},
		{"/v*", "/v /v1 /v12", "/ /x /v/1 /xv"},
		{"/*.json", "/.json /a.json", "/a.jso /a.json/b /json /a.jsonx"},
		{"/a*b*c", "/abc /a1b2c /aabbcc /abcbc", "/ac /axc /ab /acb /abcd /xabc"},
		{"/a*a", "/aa /aba", "/a /ab"},
	} {
		pattern, err := parsePathPattern(c.pattern)
		if err != nil || pattern.String() != c.pattern {
			t.Errorf("%s: %s, %v", c.pattern, pattern, err)
			continue
		}
		for want, paths := range map[bool]string{true: c.match, false: c.not} {
			for _, path := range strings.Fields(paths) {
				segments, err := pathSegments(path)
				if got := err == nil && pattern.match(segments); got != want {
					t.Errorf("%s matches %s: %v (%v)", c.pattern, path, got, err)
				}
			}
		}
	}
}

func TestRulesAddUp(t *testing.T) {
	t.Parallel()
	r := compile(t, `
rules:
- {name: ech, hosts: [a.example], allow-ech: true}
- {name: sni, hosts: [a.example], allow-no-sni: true}
- {name: wild, hosts: ["*.example", "*.a.example"], ports: [8443], methods: [GET], paths: [/a]}
- {name: wild post, hosts: ["*.example"], ports: [8443, 8444], methods: [POST], paths: [/b]}
- {name: clear, hosts: [b.example], ports: [8443], protocol: http, methods: [PUT]}
`)
	if access, _ := r.Connect(host(t, "a.example"), 443); access != (Access{TLS: true, ECH: true, NoSNI: true}) {
		t.Errorf("access %+v", access)
	}
	if access, v := r.Connect(host(t, "b.example"), 8443); access != (Access{HTTPS: true, HTTP: true}) || !v.Allow {
		t.Errorf("access %+v, %+v", access, v)
	}
	for _, c := range []struct {
		port         uint16
		tls          bool
		method, path string
		rule         string
	}{
		{8443, true, "GET", "/a", "wild"}, {8443, true, "POST", "/b", "wild post"}, {8443, true, "POST", "/a", ""}, {8443, true, "GET", "/b", ""},
		{8443, false, "PUT", "/x", "clear"}, {8443, true, "PUT", "/x", ""}, {8443, false, "GET", "/a", ""}, {8444, true, "POST", "/b", "wild post"}, {8444, true, "GET", "/a", ""},
	} {
		v := r.Request(Request{Host: host(t, "b.example"), Port: c.port, TLS: c.tls, Method: c.method, Path: c.path})
		if v.Allow != (c.rule != "") || v.Allow && v.Rule != c.rule {
			t.Errorf("%+v: %+v", c, v)
		}
	}
}

func TestOpensTLS(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"{}": false, "mode: unrestricted": false,
		"rules: [{hosts: [a.com]}]":                                         false,
		"rules: [{hosts: [a.com], methods: [GET]}]":                         true,
		"rules: [{hosts: [a.com], ports: [80], methods: [GET]}]":            false,
		"rules: [{hosts: [a.com], ports: ['80-90'], methods: [GET]}]":       true,
		"rules: [{hosts: [a.com], ports: ['70-80'], methods: [GET]}]":       true,
		"rules: [{hosts: [a.com], protocol: https}]":                        true,
		"rules: [{hosts: [a.com], protocol: http, ports: [any]}]":           false,
		"rules: [{hosts: [a.com]}, {hosts: [b.com], protocol: https}]":      true,
		"rules: [{cidrs: [10.0.0.0/8], ports: [443], protocol: https}]":     true,
		"rules: [{hosts: [a.com], ports: [any], protocol: tls}]":            false,
		"rules: [{hosts: [a.com], ports: [22, 443, 5432], protocol: tcp}]":  false,
		"rules: [{hosts: [a.com], ports: [22, 443], paths: [/a], name: x}]": true,
	} {
		if got := compile(t, text).OpensTLS(); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestReasonsSayWhy(t *testing.T) {
	t.Parallel()
	r := compile(t, example)
	for _, c := range []struct {
		host string
		port uint16
		want string
	}{
		{"evil.com", 443, "evil.com:443 is blocked by the network policy: no rule allows it"},
		{"api.example.com", 22, "api.example.com:22 is blocked by the network policy: api.example.com is allowed, but not on port 22"},
		{"api.example.com", 0, "api.example.com:0 is no destination"},
		{"fd13::1", 22, "[fd13::1]:22 is blocked by the network policy: it is a private address, and no rule names it"},
		{"9.9.9.10", 443, "9.9.9.10:443 is blocked by the network policy: 9.9.9.10 is allowed, but not on port 443"},
		{"2606:4700::1", 443, "[2606:4700::1]:443 is blocked by the network policy: no rule allows this address; connect by name to what is allowed by name"},
	} {
		if _, v := r.Connect(host(t, c.host), c.port); v.Reason != c.want {
			t.Errorf("got  %s\nwant %s", v.Reason, c.want)
		}
	}
	if _, v := r.Connect(Host{}, 443); v.Allow || v.Reason == "" {
		t.Errorf("no host: %+v", v)
	}
	u := compile(t, "mode: unrestricted\nrules: [{cidrs: [10.0.0.1], ports: [80], methods: [GET]}]")
	for _, method := range []string{"CONNECT", "", "G ET", "GET\r\n"} {
		if v := u.Request(Request{Host: host(t, "a.example"), Port: 80, Method: method, Path: "/"}); v.Allow {
			t.Errorf("method %q is allowed", method)
		}
	}
	for _, c := range []struct {
		host string
		want bool
	}{{"a.example", true}, {"localhost", false}, {"9.9.9.9", true}, {"10.0.0.2", false}, {"127.0.0.1", false}, {"10.0.0.1", false}} {
		if v := u.Request(Request{Host: host(t, c.host), Port: 80, Method: "POST", Path: "/"}); v.Allow != c.want {
			t.Errorf("%s: %+v", c.host, v)
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		wide, narrow string
		want         bool
	}{
		{"a.com", "a.com", true}, {"a.com", "b.com", false}, {"*.a.com", "b.a.com", true}, {"*.a.com", "*.a.com", true}, {"*.a.com", "**.a.com", false},
		{"*.a.com", "a.com", false}, {"*.a.com", "*.b.a.com", false}, {"**.a.com", "*.a.com", true}, {"**.a.com", "*.b.a.com", true}, {"**.a.com", "**.c.b.a.com", true},
		{"**.b.a.com", "**.a.com", false}, {"**.a.com", "*.b.com", false}, {"a.com", "*.a.com", false}, {"**.a.com", "a.com", false},
	} {
		wide, err1 := ParsePattern(c.wide)
		narrow, err2 := ParsePattern(c.narrow)
		if err1 != nil || err2 != nil || wide.covers(narrow) != c.want {
			t.Errorf("%s covers %s: %v", c.wide, c.narrow, !c.want)
		}
	}
}
