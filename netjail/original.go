package netjail

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// originalDestination asks the kernel where a connection that was redirected to us was
// meant to go (SO_ORIGINAL_DST; IP6T_SO_ORIGINAL_DST has the same number).
func originalDestination(conn *net.TCPConn) (netip.AddrPort, error) {
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, errors.New("no address of our own")
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
