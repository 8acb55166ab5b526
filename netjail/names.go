package netjail

import (
	"encoding/binary"
	"net/netip"
	"sync"

	"github.com/bailey-platform/bailey/egress"
)

// FakeRange is the range of addresses that stand for names within a box: that for
// benchmarks of networks (RFC 2544), which nobody routes. [Resolver] is its name server.
var (
	FakeRange = netip.MustParsePrefix("198.18.0.0/15")
	Resolver  = netip.MustParseAddr("198.18.0.1")
)

// The first address that stands for a name, and how many there are.
var fakeFirst = binary.BigEndian.Uint32([]byte{198, 18, 0, 2})

const fakeMax = 1<<17 - 3

// names are the names that a box has asked for, and their addresses. An address stands
// for the same name as long as the box lives, as programs keep what they were told.
type names struct {
	most int

	mu    sync.Mutex
	all   []egress.Host // in the order of their addresses
	index map[egress.Host]int
}

func newNames(most int, was []string) (*names, error) {
	n := &names{most: most, index: make(map[egress.Host]int)}
	for _, name := range was {
		h, err := egress.ParseHost(name)
		if err != nil {
			return nil, err
		}
		n.index[h] = len(n.all)
		n.all = append(n.all, h)
	}
	return n, nil
}

// address is the address that stands for a name. It fails when there are too many names.
func (n *names) address(h egress.Host) (netip.Addr, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, ok := n.index[h]
	if !ok {
		if len(n.all) >= n.most {
			return netip.Addr{}, false
		}
		i = len(n.all)
		n.index[h] = i
		n.all = append(n.all, h)
	}
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, fakeFirst+uint32(i)))), true
}

// host is the host that the box means by an address: the name it stands for, or the
// address itself. It fails for one of the range that stands for nothing.
func (n *names) host(addr netip.Addr) (egress.Host, bool) {
	addr = addr.Unmap()
	if !FakeRange.Contains(addr) {
		return egress.AddrHost(addr), true
	}
	quad := addr.As4()
	i := int64(binary.BigEndian.Uint32(quad[:])) - int64(fakeFirst)
	n.mu.Lock()
	defer n.mu.Unlock()
	if i < 0 || i >= int64(len(n.all)) {
		return egress.Host{}, false
	}
	return n.all[i], true
}

func (n *names) list() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []string
	for _, h := range n.all {
		list = append(list, h.Name())
	}
	return list
}
