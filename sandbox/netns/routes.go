package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The two ends of a pair. The addresses are of the block that RFC 7335 sets aside for
// the inside of one host, and of the block for local use of RFC 4193. No route leads
// there from anywhere else.
const (
	boxName = "eth0"
	farName = "box0"
)

var (
	boxIPv4 = netip.MustParsePrefix("192.0.0.2/29")
	farIPv4 = netip.MustParsePrefix("192.0.0.1/29")
	boxIPv6 = netip.MustParsePrefix("fdba:11e7::2/64")
	farIPv6 = netip.MustParsePrefix("fdba:11e7::1/64")
)

// routes is a connection to the kernel about the interfaces, addresses and routes of
// the namespace that the thread which opened it was in.
type routes struct{ handle *netlink.Handle }

func openRoutes() (*routes, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &routes{handle}, nil
}

func (r *routes) close() { r.handle.Close() }

// loopback is the index of the loopback interface, in every namespace.
const loopback = 1

// fresh refuses a namespace that is in use: the host's, for one.
func fresh() error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		// Tunnels that the kernel puts into every new namespace are down.
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagLoopback == 0 {
			return fmt.Errorf("this network namespace is in use: %s is up", i.Name)
		}
	}
	return nil
}

// claimEveryAddress makes the namespace the place where every address leads that it
// has no better route for, and reports whether there is IPv6.
func (r *routes) claimEveryAddress() (v6 bool, err error) {
	if err := r.loopbackUp(); err != nil {
		return false, err
	}
	// In the main table, so that what is on a cable comes first. The source is named
	// so that a socket which is bound to no address answers from the one it was
	// asked at.
	err = r.handle.RouteAdd(&netlink.Route{
		LinkIndex: loopback, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_MAIN, Scope: unix.RT_SCOPE_HOST,
		Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Src: net.IPv4(127, 0, 0, 1),
	})
	if err != nil {
		return false, err
	}
	err = r.handle.RouteAdd(&netlink.Route{
		LinkIndex: loopback, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_MAIN,
		Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	})
	if noIPv6(err) {
		return false, nil
	}
	return err == nil, err
}

// noIPv6 reports whether the error means that the kernel was built or told to do
// without IPv6, and so that nothing can leave by it.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// loopbackUp brings the loopback interface up.
func (r *routes) loopbackUp() error {
	return r.handle.LinkSetUp(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: loopback}})
}

// cable connects this namespace and another by two interfaces.
func (r *routes) cable(to *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = farName
	return r.handle.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: boxName, PeerNamespace: netlink.NsFd(to.Fd())})
}

// plugIn gives an interface its addresses and brings it up.
func (r *routes) plugIn(name string, v4, v6 netip.Prefix) error {
	link, err := r.handle.LinkByName(name)
	if err != nil {
		return err
	}
	if err := r.handle.AddrAdd(link, &netlink.Addr{IPNet: ipNet(v4)}); err != nil {
		return err
	}
	// No search for others with the same address: there are none, and it takes a second.
	if err := r.handle.AddrAdd(link, &netlink.Addr{IPNet: ipNet(v6), Flags: unix.IFA_F_NODAD}); err != nil && !noIPv6(err) {
		return err
	}
	return r.handle.LinkSetUp(link)
}

// defaultRoutes sends what leaves the box to the other end of its cable.
func (r *routes) defaultRoutes() error {
	link, err := r.handle.LinkByName(boxName)
	if err != nil {
		return err
	}
	for _, to := range []netip.Prefix{farIPv4, farIPv6} {
		err := r.handle.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: to.Addr().AsSlice()})
		if err != nil && !(to.Addr().Is6() && noIPv6(err)) {
			return err
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
