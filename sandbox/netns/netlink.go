package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// What is asked of the kernel here is little and never changes, and every box waits until
// it is done, in a process that has just begun: so it is said in the kernel's own words,
// see netlink(7), rtnetlink(7) and linux/netfilter/nf_tables.h.

// A netlink is a socket to one part of the kernel, about the network namespace that the
// thread which opened it was in.
type netlink struct {
	fd   int
	sent uint32 // the number of the last message
}

// answerMax bounds an answer in bytes. It begins with all that is of interest.
const answerMax = 4 << 10

func openNetlink(part int) (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, part)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &netlink{fd: fd}, nil
}

func (n *netlink) close() { unix.Close(n.fd) }

// send sends messages at once, for the kernel to do one after the other. They are numbered
// in that order.
func (n *netlink) send(messages ...[]byte) error {
	for _, m := range messages {
		n.sent++
		binary.NativeEndian.PutUint32(m[8:], n.sent)
	}
	return unix.Sendto(n.fd, slices.Concat(messages...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// answer returns what came of the next message that asks for it, or has failed, and the
// number of that.
func (n *netlink) answer() (number uint32, err error) {
	data := make([]byte, answerMax)
	for {
		size, _, err := unix.Recvfrom(n.fd, data, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if size < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(data[4:]) != unix.NLMSG_ERROR {
			return 0, errors.New("an answer of the kernel's that is none")
		}
		number = binary.NativeEndian.Uint32(data[8:])
		if code := -int32(binary.NativeEndian.Uint32(data[unix.SizeofNlMsghdr:])); code != 0 {
			return number, syscall.Errno(code)
		}
		return number, nil
	}
}

// do sends a message and returns what came of it.
func (n *netlink) do(message []byte) error {
	if err := n.send(message); err != nil {
		return err
	}
	_, err := n.answer()
	return err
}

// message is a request with a header of its kind and what follows it.
func message(kind, flags uint16, parts ...[]byte) []byte {
	body := slices.Concat(parts...)
	m := make([]byte, 0, unix.SizeofNlMsghdr+len(body))
	m = binary.NativeEndian.AppendUint32(m, uint32(cap(m)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|flags)
	return append(append(m, make([]byte, 8)...), body...) // its number, and of the kernel's
}

// attribute is one of a message, or of another attribute.
func attribute(kind uint16, value ...[]byte) []byte {
	body := slices.Concat(value...)
	a := binary.NativeEndian.AppendUint16(make([]byte, 0, 4+len(body)+3), uint16(4+len(body)))
	a = append(binary.NativeEndian.AppendUint16(a, kind), body...)
	return append(a, make([]byte, -len(a)&3)...)
}

// nested is an attribute of attributes.
func nested(kind uint16, attributes ...[]byte) []byte {
	return attribute(kind|unix.NLA_F_NESTED, attributes...)
}

// text is an attribute that is a name.
func text(kind uint16, value string) []byte { return attribute(kind, append([]byte(value), 0)) }

// native is an attribute that is a number, as the processor has it.
func native(kind uint16, value uint32) []byte {
	return attribute(kind, binary.NativeEndian.AppendUint32(nil, value))
}

// big is one as the network has it.
func big(kind uint16, value uint32) []byte {
	return attribute(kind, binary.BigEndian.AppendUint32(nil, value))
}
