package sandbox

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Exits are the only ways out of a box's network.
//
// Whatever the box connects to by TCP, at any address and port but its own loopback,
// arrives at TCP; [Destination] says where it was meant to go. Whatever it sends to UDP
// port 53 of any address but its own loopback arrives at DNS, and answers seem to come
// from there. Nothing else leaves: no other UDP, no ICMP, no raw packets.
type Exits struct {
	TCP *net.TCPListener
	DNS *net.UDPConn
}

// Close closes both.
func (e Exits) Close() error { return errors.Join(e.TCP.Close(), e.DNS.Close()) }

// Destination returns where a connection that was accepted from [Exits].TCP was meant
// to go: its SO_ORIGINAL_DST, or IP6T_SO_ORIGINAL_DST, which has the same number.
func Destination(conn *net.TCPConn) (netip.AddrPort, error) {
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, errors.New("the connection has no address of our own")
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var to netip.AddrPort
	var inner error
	// Not File: that would make the socket block.
	err = raw.Control(func(fd uintptr) {
		if local.AddrPort().Addr().Unmap().Is4() {
			// A sockaddr_in has the size of an ipv6_mreq's address: family, port, address.
			var m *unix.IPv6Mreq
			if m, inner = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST); inner == nil {
				to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Multiaddr[4:8])), binary.BigEndian.Uint16(m.Multiaddr[2:4]))
			}
			return
		}
		// An ip6_mtuinfo begins with a sockaddr_in6.
		var m *unix.IPv6MTUInfo
		if m, inner = unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, unix.SO_ORIGINAL_DST); inner == nil {
			port := binary.NativeEndian.AppendUint16(nil, m.Addr.Port) // the bytes are in network order, whatever ours is
			to = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(port))
		}
	})
	return to, errors.Join(err, inner)
}
