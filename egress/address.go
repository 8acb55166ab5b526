package egress

import "net/netip"

// A Class is what kind of address an address is.
type Class string

// The classes. Only Public addresses may be connected to without a rule that names them.
const (
	Public      Class = "public"
	Private     Class = "private"
	Loopback    Class = "loopback"
	LinkLocal   Class = "link-local"
	Metadata    Class = "metadata service" // a cloud's own service for its machines, which hands out credentials
	Reserved    Class = "reserved"         // documentation, benchmarks, protocols' own uses
	Unspecified Class = "unspecified"      // never opened
	Multicast   Class = "multicast"        // never opened
	Translated  Class = "translated"       // IPv4 within IPv6 by way of a relay; never opened
)

// A special is a range of addresses that is not of the public internet.
type special struct {
	prefix netip.Prefix
	class  Class
}

// specials are the special-purpose ranges of IANA's registries for IPv4 and IPv6 and the
// metadata services of the clouds. Where ranges overlap, the narrower one stands first.
var specials = []special{
	{netip.MustParsePrefix("169.254.169.254/32"), Metadata},     // AWS, Azure, Google, Oracle, DigitalOcean, …
	{netip.MustParsePrefix("169.254.170.2/32"), Metadata},       // AWS: task credentials
	{netip.MustParsePrefix("169.254.170.23/32"), Metadata},      // AWS: pod identity
	{netip.MustParsePrefix("169.254.0.23/32"), Metadata},        // Tencent
	{netip.MustParsePrefix("169.254.42.42/32"), Metadata},       // Scaleway
	{netip.MustParsePrefix("100.100.100.200/32"), Metadata},     // Alibaba
	{netip.MustParsePrefix("168.63.129.16/32"), Metadata},       // Azure: the host's agent, at a public address
	{netip.MustParsePrefix("192.0.0.192/32"), Metadata},         // Oracle, older machines
	{netip.MustParsePrefix("fd00:ec2::254/128"), Metadata},      // AWS
	{netip.MustParsePrefix("fd00:ec2::23/128"), Metadata},       // AWS: pod identity
	{netip.MustParsePrefix("fd20:ce::254/128"), Metadata},       // Google
	{netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), Metadata}, // Oracle
	{netip.MustParsePrefix("fd00:42::42/128"), Metadata},        // Scaleway
	{netip.MustParsePrefix("fd00:100::100:200/128"), Metadata},  // Alibaba
	{netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"), Metadata},  // Linode
	{netip.MustParsePrefix("fe80::a9fe:a9fe/128"), Metadata},    // OpenStack, Linode

	{netip.MustParsePrefix("0.0.0.0/8"), Unspecified},
	{netip.MustParsePrefix("10.0.0.0/8"), Private},
	{netip.MustParsePrefix("100.64.0.0/10"), Private}, // carriers' own
	{netip.MustParsePrefix("127.0.0.0/8"), Loopback},
	{netip.MustParsePrefix("169.254.0.0/16"), LinkLocal},
	{netip.MustParsePrefix("172.16.0.0/12"), Private},
	{netip.MustParsePrefix("192.0.0.0/24"), Reserved},
	{netip.MustParsePrefix("192.0.2.0/24"), Reserved},
	{netip.MustParsePrefix("192.88.99.0/24"), Reserved},
	{netip.MustParsePrefix("192.168.0.0/16"), Private},
	{netip.MustParsePrefix("198.18.0.0/15"), Reserved},
	{netip.MustParsePrefix("198.51.100.0/24"), Reserved},
	{netip.MustParsePrefix("203.0.113.0/24"), Reserved},
	{netip.MustParsePrefix("224.0.0.0/4"), Multicast},
	{netip.MustParsePrefix("240.0.0.0/4"), Unspecified},

	{netip.MustParsePrefix("::/128"), Unspecified},
	{netip.MustParsePrefix("::1/128"), Loopback},
	{netip.MustParsePrefix("64:ff9b:1::/48"), Translated},
	{netip.MustParsePrefix("2001:db8::/32"), Reserved},
	{netip.MustParsePrefix("2001::/32"), Translated}, // Teredo
	{netip.MustParsePrefix("2001::/23"), Reserved},
	{netip.MustParsePrefix("2002::/16"), Translated}, // 6to4
	{netip.MustParsePrefix("3fff::/20"), Reserved},
	{netip.MustParsePrefix("fc00::/7"), Private},
	{netip.MustParsePrefix("fe80::/10"), LinkLocal},
	{netip.MustParsePrefix("fec0::/10"), Private},
	{netip.MustParsePrefix("ff00::/8"), Multicast},
}

var (
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	globalUnicast = netip.MustParsePrefix("2000::/3")
)

// ClassOf says what kind of address addr is. An IPv4 address within an IPv6 one is
// judged as the address it is.
func ClassOf(addr netip.Addr) Class {
	class, _ := classify(addr)
	return class
}

// classify also returns the special range, if a rule can open it.
func classify(addr netip.Addr) (Class, netip.Prefix) {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		return Unspecified, netip.Prefix{}
	}
	if inner, ok := embedded(addr); ok {
		if ClassOf(inner) == Public {
			return Public, netip.Prefix{}
		}
		return Translated, netip.Prefix{}
	}
	for _, s := range specials {
		if !s.prefix.Contains(addr) {
			continue
		}
		switch s.class {
		case Unspecified, Multicast, Translated:
			return s.class, netip.Prefix{}
		}
		return s.class, s.prefix
	}
	if addr.Is6() && !globalUnicast.Contains(addr) {
		return Unspecified, netip.Prefix{}
	}
	return Public, netip.Prefix{}
}

// embedded returns the IPv4 address that a translator on the way would send packets for
// addr to (NAT64, RFC 6052; ISATAP, RFC 5214).
func embedded(addr netip.Addr) (netip.Addr, bool) {
	if !addr.Is6() {
		return netip.Addr{}, false
	}
	b := addr.As16()
	isatap := b[8]&^3 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
	if !nat64.Contains(addr) && !isatap {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(b[12:])), true
}

// opens reports whether a rule for this range opens addr: any range that holds a public
// address does, while a special one has to be named by a range within it.
func opens(rule netip.Prefix, addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if !rule.Contains(addr) {
		return false
	}
	class, within := classify(addr)
	return class == Public || within.IsValid() && rule.Bits() >= within.Bits()
}
