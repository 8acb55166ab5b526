package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

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
type routes struct{ *netlink }

func openRoutes() (*routes, error) {
	link, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &routes{link}, nil
}

// creation is asked for of something that is not there yet.
const creation = unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_ACK

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
	// In the main table, so that what is on a cable comes first. The source is named
	// so that a socket which is bound to no address answers from the one it was
	// asked at.
	toHere := unix.RtMsg{Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT, Type: unix.RTN_LOCAL}
	four, six := toHere, toHere
	four.Family, four.Scope = unix.AF_INET, unix.RT_SCOPE_HOST
	six.Family = unix.AF_INET6
	source := attribute(unix.RTA_PREFSRC, []byte{127, 0, 0, 1})
	err = r.send(up(loopback), route(four, native(unix.RTA_OIF, loopback), source), route(six, native(unix.RTA_OIF, loopback)))
	if err != nil {
		return false, err
	}
	for range 2 {
		if _, err := r.answer(); err != nil {
			return false, err
		}
	}
	_, err = r.answer()
	if noIPv6(err) {
		return false, nil
	}
	return err == nil, err
}

// route asks for a route.
func route(r unix.RtMsg, attributes ...[]byte) []byte {
	head := []byte{r.Family, r.Dst_len, r.Src_len, r.Tos, r.Table, r.Protocol, r.Scope, r.Type, 0, 0, 0, 0}
	return message(unix.RTM_NEWROUTE, creation, append([][]byte{head}, attributes...)...)
}

// up asks for an interface to be brought up.
func up(index uint32) []byte {
	return message(unix.RTM_NEWLINK, unix.NLM_F_ACK, interfaceHead(index, unix.IFF_UP, unix.IFF_UP))
}

// interfaceHead begins a message about an interface, of which some flags change.
func interfaceHead(index, flags, change uint32) []byte {
	head := make([]byte, 4, unix.SizeofIfInfomsg)
	for _, word := range []uint32{index, flags, change} {
		head = binary.NativeEndian.AppendUint32(head, word)
	}
	return head
}

// noIPv6 reports whether the error means that the kernel was built or told to do
// without IPv6, and so that nothing can leave by it.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// loopbackUp brings the loopback interface up.
func (r *routes) loopbackUp() error { return r.do(up(loopback)) }

// vethPeer is VETH_INFO_PEER of the kernel's linux/veth.h.
const vethPeer = 1

// cable connects this namespace and another by two interfaces.
func (r *routes) cable(to *os.File) error {
	peer := nested(vethPeer, interfaceHead(0, 0, 0), text(unix.IFLA_IFNAME, boxName), native(unix.IFLA_NET_NS_FD, uint32(to.Fd())))
	return r.do(message(unix.RTM_NEWLINK, creation, interfaceHead(0, 0, 0), text(unix.IFLA_IFNAME, farName),
		nested(unix.IFLA_LINKINFO, text(unix.IFLA_INFO_KIND, "veth"), nested(unix.IFLA_INFO_DATA, peer))))
}

// plugIn gives an interface its addresses and brings it up.
func (r *routes) plugIn(name string, v4, v6 netip.Prefix) error {
	index, err := indexOf(name)
	if err != nil {
		return err
	}
	if err := r.do(address(index, unix.AF_INET, 0, v4)); err != nil {
		return err
	}
	// No search for others with the same address: there are none, and it takes a second.
	if err := r.do(address(index, unix.AF_INET6, unix.IFA_F_NODAD, v6)); err != nil && !noIPv6(err) {
		return err
	}
	return r.do(up(index))
}

// address asks for an address of an interface.
func address(index uint32, family, flags byte, p netip.Prefix) []byte {
	head := binary.NativeEndian.AppendUint32([]byte{family, byte(p.Bits()), flags, unix.RT_SCOPE_UNIVERSE}, index)
	return message(unix.RTM_NEWADDR, creation, head, attribute(unix.IFA_LOCAL, p.Addr().AsSlice()), attribute(unix.IFA_ADDRESS, p.Addr().AsSlice()))
}

// indexOf is the number of an interface, which must be one of the calling thread's
// network namespace.
func indexOf(name string) (uint32, error) {
	found, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("find the interface %s: %w", name, err)
	}
	return uint32(found.Index), nil
}

// defaultRoutes sends what leaves the box to the other end of its cable.
func (r *routes) defaultRoutes() error {
	index, err := indexOf(boxName)
	if err != nil {
		return err
	}
	for family, to := range map[byte]netip.Prefix{unix.AF_INET: farIPv4, unix.AF_INET6: farIPv6} {
		head := unix.RtMsg{Family: family, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT, Type: unix.RTN_UNICAST}
		err := r.do(route(head, native(unix.RTA_OIF, index), attribute(unix.RTA_GATEWAY, to.Addr().AsSlice())))
		if err != nil && !(to.Addr().Is6() && noIPv6(err)) {
			return err
		}
	}
	return nil
}
