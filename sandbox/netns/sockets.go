package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// The ports of the exits, above those that programs are given when they ask for any.
// Only in the namespace that the exits are in do they mean something.
const (
	tcpPort = 61080
	dnsPort = 61053
)

// backlog is how many connections of a box may wait to be accepted. The kernel takes
// the least of this and net.core.somaxconn.
const backlog = 1024

// listen opens the exits in the network namespace of the calling thread, for both
// versions of IP in one socket each, if there are both.
func listen(v6 bool) (sandbox.Exits, error) {
	tcp, err := open(v6, unix.SOCK_STREAM, tcpPort)
	if err != nil {
		return sandbox.Exits{}, err
	}
	dns, err := open(v6, unix.SOCK_DGRAM, dnsPort)
	if err != nil {
		unix.Close(tcp)
		return sandbox.Exits{}, err
	}
	return exits(tcp, dns)
}

func open(v6 bool, kind int, port int) (int, error) {
	family, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: port})
	if v6 {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: port}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if v6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err == nil {
		err = unix.Bind(fd, addr)
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// exits makes what Go uses of the two sockets, which it takes over.
func exits(tcp, dns int) (sandbox.Exits, error) {
	tcpFile, dnsFile := os.NewFile(uintptr(tcp), "exit for TCP"), os.NewFile(uintptr(dns), "exit for DNS")
	defer tcpFile.Close()
	defer dnsFile.Close()
	listener, err := net.FileListener(tcpFile)
	if err != nil {
		return sandbox.Exits{}, err
	}
	conn, err := net.FilePacketConn(dnsFile)
	if err != nil {
		listener.Close()
		return sandbox.Exits{}, err
	}
	e := sandbox.Exits{}
	var isTCP, isUDP bool
	e.TCP, isTCP = listener.(*net.TCPListener)
	e.DNS, isUDP = conn.(*net.UDPConn)
	if !isTCP || !isUDP {
		listener.Close()
		conn.Close()
		return sandbox.Exits{}, errors.New("sockets of another kind than exits have")
	}
	return e, nil
}

// Socket returns two connected sockets for [Send] and [Receive]: ours obeys deadlines,
// theirs is for a child process. The caller closes both.
func Socket() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(pair[0], true); err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(pair[0]), "exits, ours"), os.NewFile(uintptr(pair[1]), "exits, theirs"), nil
}

// messageMax bounds the words of an error that is sent, in bytes.
const messageMax = 4 << 10

// Send hands the exits to whoever calls [Receive] on the other end. The caller still
// closes its own.
func Send(sock *os.File, e sandbox.Exits) error {
	tcp, err := e.TCP.SyscallConn()
	if err != nil {
		return err
	}
	dns, err := e.DNS.SyscallConn()
	if err != nil {
		return err
	}
	// As File would, but without making them block.
	return control(tcp, func(tcp uintptr) error {
		return control(dns, func(dns uintptr) error {
			return send(sock, []byte{0}, unix.UnixRights(int(tcp), int(dns)))
		})
	})
}

// SendError has [Receive] on the other end return an error with these words, instead
// of exits.
func SendError(sock *os.File, err error) error {
	words := err.Error()
	return send(sock, []byte(words[:min(len(words), messageMax)]), nil)
}

func send(sock *os.File, data, rights []byte) error {
	conn, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	return control(conn, func(fd uintptr) error {
		return unix.Sendmsg(int(fd), data, rights, nil, unix.MSG_NOSIGNAL)
	})
}

func control(conn syscall.RawConn, f func(fd uintptr) error) error {
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = f(fd) }); err != nil {
		return err
	}
	return inner
}

// Receive waits for what the other end sends by [Send] or [SendError]. It fails when
// that is closed, or at the deadline of sock. The caller closes the exits.
func Receive(sock *os.File) (sandbox.Exits, error) {
	conn, err := sock.SyscallConn()
	if err != nil {
		return sandbox.Exits{}, err
	}
	data, rights := make([]byte, messageMax), make([]byte, unix.CmsgSpace(2*4))
	var n, oob int
	var inner error
	err = conn.Read(func(fd uintptr) bool {
		n, oob, _, _, inner = unix.Recvmsg(int(fd), data, rights, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(inner, unix.EAGAIN) && !errors.Is(inner, unix.EINTR)
	})
	if err := errors.Join(err, inner); err != nil {
		return sandbox.Exits{}, fmt.Errorf("receive the exits: %w", err)
	}
	if n == 0 {
		return sandbox.Exits{}, errors.New("receive the exits: whoever was to make them ended without a word")
	}
	fds, err := descriptors(rights[:oob])
	if err != nil {
		return sandbox.Exits{}, err
	}
	if len(fds) == 2 && n == 1 {
		for _, fd := range fds {
			if err := unix.SetNonblock(fd, true); err != nil {
				closeAll(fds)
				return sandbox.Exits{}, err
			}
		}
		return exits(fds[0], fds[1])
	}
	closeAll(fds)
	return sandbox.Exits{}, errors.New(string(data[:n]))
}

func descriptors(rights []byte) ([]int, error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(all)
			return nil, err
		}
		all = append(all, fds...)
	}
	return all, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
