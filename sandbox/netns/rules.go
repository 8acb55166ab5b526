package netns

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A hook is where in a namespace the box's packets are seen first.
type hook int

const (
	hookOutput     hook = iota // they are made there
	hookPrerouting             // they come in by a cable
)

// redirect has what passes the hook sent to the exits of the calling thread's network
// namespace, and what may go nowhere refused. In the words of nft(8), for the output
// hook:
//
//	table inet bailey {
//	  chain to_exits {
//	    type nat hook output priority dstnat;
//	    udp dport 53 redirect to :dnsPort
//	    ip daddr & 255.0.0.0 != 127.0.0.0 meta l4proto tcp redirect to :tcpPort
//	    ip6 daddr != ::1 meta l4proto tcp redirect to :tcpPort
//	  }
//	  chain nothing_else {
//	    type filter hook output priority filter;
//	    ct state established,related accept
//	    ct status dnat accept
//	    tcp dport tcpPort reject with tcp reset
//	    ip daddr & 255.0.0.0 == 127.0.0.0 accept
//	    ip6 daddr == ::1 accept
//	    reject
//	  }
//	}
//
// Of what comes in by a cable nothing is for the loopback, so the conditions on that
// go, and neighbours must be found:
//
//	icmpv6 type nd-router-solicit..nd-redirect accept
func redirect(at hook) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "bailey"})
	toExits := &nftables.Chain{Name: "to_exits", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest}
	nothingElse := &nftables.Chain{Name: "nothing_else", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter}
	if at == hookPrerouting {
		toExits.Hooknum, nothingElse.Hooknum = nftables.ChainHookPrerouting, nftables.ChainHookInput
	}
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, part := range parts {
			all = append(all, part...)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: all})
	}

	c.AddChain(toExits)
	rule(toExits, proto(unix.IPPROTO_UDP), port(53), to(dnsPort))
	if at == hookOutput {
		rule(toExits, proto(unix.IPPROTO_TCP), loopback4(expr.CmpOpNeq), to(tcpPort))
		rule(toExits, proto(unix.IPPROTO_TCP), loopback6(expr.CmpOpNeq), to(tcpPort))
	} else {
		rule(toExits, proto(unix.IPPROTO_TCP), to(tcpPort))
	}

	c.AddChain(nothingElse)
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	rule(nothingElse, bits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	rule(nothingElse, bits(expr.CtKeySTATUS, ctStatusDNAT), accept)
	if at == hookOutput {
		// What arrives at an exit has been redirected, so that where it was meant to go
		// is known.
		rule(nothingElse, proto(unix.IPPROTO_TCP), port(tcpPort), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
		rule(nothingElse, loopback4(expr.CmpOpEq), accept)
		rule(nothingElse, loopback6(expr.CmpOpEq), accept)
	} else {
		rule(nothingElse, proto(unix.IPPROTO_ICMPV6), neighbours(), accept)
	}
	rule(nothingElse, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}})
	return c.Flush()
}

// ctStatusDNAT is IPS_DST_NAT of the kernel's nf_conntrack_common.h.
const ctStatusDNAT = 1 << 5

func proto(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

// port matches the destination.
func port(number uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(number)},
	}
}

// loopback4 matches IPv4 with a destination in 127.0.0.0/8, or not in it.
func loopback4(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{127}},
	}
}

// loopback6 matches IPv6 with the destination ::1, or another.
func loopback6(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV6}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{15: 1}},
	}
}

// neighbours matches the types of ICMPv6 messages that find the other end of a cable.
func neighbours() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{133}, ToData: []byte{137}},
	}
}

// bits matches connections of which one of the bits is set.
func bits(key expr.CtKey, mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func to(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}
