package gateway

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/egress"
)

// An addressRule says which addresses a route may connect to. It is asked about the very
// address that the kernel is about to be given, so that no name can lead elsewhere
// between a check and a connection.
type addressRule struct {
	allowed []netip.Prefix
	off     bool          // anything goes
	named   netip.Addr    // that the upstream is, if it is one and no name
	own     *ownAddresses // of this host
}

// The classes of addresses that are known here, besides those of package egress.
const (
	ownAddress egress.Class = "own"     // of an interface of this host
	ownUnknown egress.Class = "unknown" // the host's own cannot be told
)

// defaultAllowed is what upstreams may have as an address if nothing is said: private
// networks. mcp-proxy has the first three.
var defaultAllowed = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}

// parseAllowed reads a list of addresses and ranges.
func parseAllowed(list []string) (addressRule, error) {
	var rule addressRule
	for _, s := range list {
		if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
			addr = addr.Unmap()
			rule.allowed = append(rule.allowed, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		prefix, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return rule, fmt.Errorf("%.80q is no address and no range such as 10.1.0.0/16", s)
		case prefix.Addr().Is4In6():
			return rule, fmt.Errorf("%q: write it as a range of IPv4", s)
		case prefix != prefix.Masked():
			return rule, fmt.Errorf("%q has bits beyond its length: write %s for the range, or %s for the address", s, prefix.Masked(), prefix.Addr())
		}
		rule.allowed = append(rule.allowed, prefix)
	}
	return rule, nil
}

// judge decides on an address that is about to be dialled.
func (r *addressRule) judge(to netip.AddrPort) egress.Verdict {
	addr := to.Addr().Unmap().WithZone("")
	if r.off {
		return egress.Verdict{Allow: true}
	}
	class := egress.ClassOf(addr)
	within := false // a range, that is, which does not name it
	for _, p := range r.allowed {
		if !p.Contains(addr) || !opens(p, class) {
			continue
		}
		if p.IsSingleIP() || class == egress.Loopback || addr == r.named {
			return egress.Verdict{Allow: true}
		}
		within = true
	}
	if within {
		// A name must not lead to what this host serves to its own network either, unless
		// that is meant.
		switch own, err := r.own.have(addr); {
		case err != nil:
			return egress.Verdict{Rule: string(ownUnknown), Reason: fmt.Sprintf("IP validation failed: whether %s is an address of this host cannot be told: %v", addr, err)}
		case own:
			return egress.Verdict{Rule: string(ownAddress), Reason: fmt.Sprintf("IP validation failed: %s is an address of this host itself, which no entry of allowed_ips names", addr)}
		}
		return egress.Verdict{Allow: true}
	}
	if class == egress.Public || class == egress.Private || class == egress.Reserved {
		return egress.Verdict{Rule: string(class), Reason: fmt.Sprintf("IP validation failed: %s is not a private address that allowed_ips has", addr)}
	}
	return egress.Verdict{Rule: string(class), Reason: fmt.Sprintf("IP validation failed: %s is not a private address: it is a %s address", addr, class)}
}

// opens reports whether a range that holds an address of a class may open it. What is
// this host's own, or hands out a cloud's credentials, is opened only by a range that
// names it and not by one so wide that it happens to lie within, such as 0.0.0.0/0.
func opens(p netip.Prefix, class egress.Class) bool {
	switch class {
	case egress.Public, egress.Private, egress.Reserved:
		return true
	case egress.Loopback:
		return p.Addr().Is4() && p.Bits() >= 8 || p.Bits() == 128
	case egress.LinkLocal:
		return p.Addr().Is4() && p.Bits() >= 16 || p.Addr().Is6() && p.Bits() >= 10
	case egress.Metadata:
		return p.IsSingleIP()
	}
	return false // unspecified, multicast, translated
}

// ownAddresses are the addresses of this host's interfaces. It is safe for concurrent use.
type ownAddresses struct {
	list func() ([]net.Addr, error) // net.InterfaceAddrs, but in tests

	mu  sync.Mutex
	at  time.Time
	all map[netip.Addr]struct{}
}

// ownFor is how long what was listed is believed: addresses change with leases and networks.
const ownFor = 2 * time.Second

// have reports whether an address is one of them.
func (o *ownAddresses) have(addr netip.Addr) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil || time.Since(o.at) > ownFor {
		list, err := o.list()
		if err != nil {
			return false, err
		}
		o.at, o.all = time.Now(), make(map[netip.Addr]struct{}, len(list))
		for _, a := range list {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				o.all[p.Addr().Unmap().WithZone("")] = struct{}{}
			}
		}
	}
	_, own := o.all[addr]
	return own, nil
}

// hostResolver looks names up as the host does. The dialer asks for absolute names, for
// boxes, whose names must mean the same everywhere; an operator's short name of a server
// may need the host's search domains, as in Kubernetes.
type hostResolver struct{ net.Resolver }

func (r *hostResolver) LookupNetIP(ctx context.Context, network, name string) ([]netip.Addr, error) {
	return r.Resolver.LookupNetIP(ctx, network, strings.TrimSuffix(name, "."))
}
