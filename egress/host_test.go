package egress

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"example.com":           "example.com",
		"EXAMPLE.Com":           "example.com",
		"example.com.":          "example.com",
		"bücher.example":        "xn--bcher-kva.example",
		"BÜCHER.example":        "xn--bcher-kva.example",
		"xn--bcher-kva.example": "xn--bcher-kva.example",
		"ｅｘａｍｐｌｅ.com":           "example.com",
		"example。com":           "example.com",
		"db":                    "db",
		"a-b.c1":                "a-b.c1",
		"10.0.0.1":              "10.0.0.1",
		"127.0.0.1":             "127.0.0.1",
		"１２７.０.０.１":             "127.0.0.1",
		"127.0.0.1.":            "127.0.0.1",
		"::1":                   "::1",
		"[::1]":                 "::1",
		"::ffff:10.0.0.1":       "10.0.0.1",
		"[::ffff:7f00:1]":       "127.0.0.1",
		"2001:DB8:0::1":         "2001:db8::1",
	} {
		h, err := ParseHost(in)
		if err != nil || h.String() != want {
			t.Errorf("ParseHost(%q) = %q, %v; want %q", in, h, err, want)
		}
	}
}

// The names by which allow-lists of others were got round.
func TestParseHostRefuses(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"nothing":                 "",
		"a dot":                   ".",
		"two trailing dots":       "example.com..",
		"a leading dot":           ".example.com",
		"two dots":                "example..com",
		"NUL before the suffix":   "evil.com\x00.example.com",
		"NUL after it":            "example.com\x00",
		"a newline":               "example.com\n",
		"a tab":                   "exa\tmple.com",
		"a space":                 "example .com",
		"a percent sign":          "example%2ecom",
		"an at sign":              "example.com@evil.com",
		"a slash":                 "example.com/evil.com",
		"a backslash":             `example.com\evil.com`,
		"a fragment":              "example.com#evil.com",
		"a question mark":         "example.com?evil.com",
		"a port":                  "example.com:443",
		"an underscore":           "_dmarc.example.com",
		"a wildcard":              "*.example.com",
		"a label that is long":    strings.Repeat("a", 64) + ".com",
		"a name that is long":     strings.Repeat("a.", 127) + "com",
		"a very long name":        strings.Repeat("a.", 100_000),
		"a hyphen at an end":      "-a.example.com",
		"a hyphen at the other":   "a-.example.com",
		"a soft hyphen alone":     "\u00ad",
		"a zero width joiner":     "exam\u200dple.com",
		"a right-to-left mark":    "exam\u200fple.com",
		"mixed directions":        "a\u05d0.com",
		"invalid UTF-8":           "ex\xffample.com",
		"a bad A-label":           "xn--a.example",
		"an octal address":        "0177.0.0.1",
		"a hexadecimal address":   "0x7f.0.0.1",
		"a decimal address":       "2130706433",
		"a hexadecimal number":    "0x7f000001",
		"a short address":         "127.1",
		"five numbers":            "1.2.3.4.5",
		"a name ending in number": "example.123",
		"a name ending in hex":    "example.0x1f",
		"a name ending in 0x":     "example.0x",
		"an address with a zone":  "fe80::1%eth0",
		"brackets around IPv4":    "[127.0.0.1]",
		"half a bracket":          "[::1",
		"circled digits":          "①②⑦.0.0.1.5",
	} {
		if h, err := ParseHost(in); err == nil {
			t.Errorf("%s: ParseHost(%q) = %q, want an error", name, in, h)
		} else if len(err.Error()) > 500 {
			t.Errorf("%s: the error is %d bytes long", name, len(err.Error()))
		}
	}
}

func FuzzParseHost(f *testing.F) {
	for _, seed := range []string{"example.com", "bücher.example.", "127.0.0.1", "[::1]", "0x7f.1", "a\x00b", "ß.de", "xn--zca", "１.１.１.１", "a.\u3002b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHost(s)
		if err != nil {
			return
		}
		if h.IsZero() {
			t.Fatalf("ParseHost(%q) is no host", s)
		}
		again, err := ParseHost(h.String())
		if err != nil || again != h {
			t.Fatalf("ParseHost(%q) = %q, and that read again is %q, %v", s, h, again, err)
		}
		if addr, ok := h.Addr(); ok {
			if addr.Is4In6() || addr.Zone() != "" {
				t.Fatalf("ParseHost(%q) = %v", s, addr)
			}
			return
		}
		if strings.Trim(h.Name(), "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || len(h.Name()) > nameMax ||
			strings.Contains("."+h.Name()+".", "..") {
			t.Fatalf("ParseHost(%q) = %q", s, h)
		}
		if _, err := netip.ParseAddr(h.Name()); err == nil {
			t.Fatalf("ParseHost(%q) = name %q, which is an address", s, h)
		}
	})
}

func TestPatternMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern string
		match   string
		not     string
	}{
		{"example.com", "example.com EXAMPLE.com. Example.COM", "a.example.com xexample.com com example.com.evil.com"},
		{"*.example.com", "a.example.com A.example.com.", "example.com a.b.example.com xexample.com a.xexample.com a.example.com.evil.com"},
		{"**.example.com", "a.example.com a.b.example.com a.b.c.example.com", "example.com xexample.com a.xexample.com example.com.evil.com"},
		{"*.bücher.example", "a.xn--bcher-kva.example a.BÜCHER.example", "xn--bcher-kva.example"},
		{"10.0.0.1", "10.0.0.1 ::ffff:10.0.0.1", "10.0.0.2"},
	} {
		p, err := ParsePattern(c.pattern)
		if err != nil {
			t.Errorf("ParsePattern(%q): %v", c.pattern, err)
			continue
		}
		for want, hosts := range map[bool]string{true: c.match, false: c.not} {
			for _, host := range strings.Fields(hosts) {
				h, err := ParseHost(host)
				if err != nil {
					t.Fatal(err)
				}
				if got := p.Match(h); got != want {
					t.Errorf("%q matches %q: %v, want %v", c.pattern, host, got, want)
				}
			}
		}
		if p.Match(Host{}) {
			t.Errorf("%q matches no host", c.pattern)
		}
	}
}

func TestParsePatternSaysWhatToWrite(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"https://example.com": "without scheme",
		"example.com/path":    "without scheme or path",
		"example.com:8443":    "under ports",
		"*":                   "mode: unrestricted",
		"**":                  "mode: unrestricted",
		"*.":                  "mode: unrestricted",
		"*.*.example.com":     "**.example.com",
		"***.example.com":     "**.example.com",
		"a*.example.com":      "whole labels",
		"a.*.com":             "whole labels",
		"*.10.0.0.1":          "no names below",
		"*.-.com":             "hyphen",
		"":                    "mode: unrestricted",
	} {
		if p, err := ParsePattern(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePattern(%q) = %v, %v; want an error with %q", in, p, err, want)
		}
	}
}

func TestClassOf(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]Class{
		"1.1.1.1":                  Public,
		"8.8.8.8":                  Public,
		"172.15.255.255":           Public,
		"172.32.0.0":               Public,
		"2606:4700::1111":          Public,
		"64:ff9b::101:101":         Public, // NAT64 of 1.1.1.1
		"10.1.2.3":                 Private,
		"172.16.0.1":               Private,
		"192.168.1.1":              Private,
		"100.64.0.1":               Private,
		"fc00::1":                  Private,
		"fd12::1":                  Private,
		"fec0::1":                  Private,
		"127.0.0.1":                Loopback,
		"127.255.255.254":          Loopback,
		"::1":                      Loopback,
		"169.254.1.1":              LinkLocal,
		"fe80::1":                  LinkLocal,
		"169.254.169.254":          Metadata,
		"169.254.170.2":            Metadata,
		"169.254.170.23":           Metadata,
		"100.100.100.200":          Metadata,
		"168.63.129.16":            Metadata,
		"192.0.0.192":              Metadata,
		"fd00:ec2::254":            Metadata,
		"fd20:ce::254":             Metadata,
		"fd00:c1::a9fe:a9fe":       Metadata,
		"fd00:42::42":              Metadata,
		"fd00:100::100:200":        Metadata,
		"fd00:a9fe:a9fe::1":        Metadata,
		"fe80::a9fe:a9fe%eth0":     Metadata,
		"169.254.42.42":            Metadata,
		"0.0.0.0":                  Unspecified,
		"0.1.2.3":                  Unspecified,
		"255.255.255.255":          Unspecified,
		"240.0.0.1":                Unspecified,
		"::":                       Unspecified,
		"::7f00:1":                 Unspecified, // the old IPv4-compatible form
		"4000::1":                  Unspecified,
		"224.0.0.1":                Multicast,
		"ff02::1":                  Multicast,
		"192.0.2.1":                Reserved,
		"198.18.0.1":               Reserved,
		"203.0.113.9":              Reserved,
		"2001:db8::1":              Reserved,
		"::ffff:127.0.0.1":         Loopback,
		"::ffff:169.254.169.254":   Metadata,
		"::ffff:8.8.8.8":           Public,
		"64:ff9b::7f00:1":          Translated,
		"64:ff9b::a9fe:a9fe":       Translated,
		"64:ff9b:1::1":             Translated,
		"2002:7f00:1::1":           Translated,
		"2002:808:808::1":          Translated,
		"2001::1":                  Translated,
		"2001:470::5efe:7f00:1":    Translated, // ISATAP of 127.0.0.1
		"2001:470::200:5efe:a00:1": Translated,
	} {
		if got := ClassOf(netip.MustParseAddr(addr)); got != want {
			t.Errorf("ClassOf(%s) = %s, want %s", addr, got, want)
		}
	}
	if got := ClassOf(netip.Addr{}); got != Unspecified {
		t.Errorf("ClassOf(no address) = %s", got)
	}
}
