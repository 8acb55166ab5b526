package netns

import (
	"encoding/binary"
	"net"
	"slices"

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
	c, err := openNetlink(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer c.close()
	seen, arrives := uint32(unix.NF_INET_LOCAL_OUT), uint32(unix.NF_INET_LOCAL_OUT)
	if at == hookPrerouting {
		seen, arrives = unix.NF_INET_PRE_ROUTING, unix.NF_INET_LOCAL_IN
	}
	all := [][]byte{
		batch(unix.NFNL_MSG_BATCH_BEGIN),
		nft(unix.NFT_MSG_NEWTABLE, text(unix.NFTA_TABLE_NAME, table)),
		chain(toExits, "nat", seen, priorityDNAT),
	}
	rule := func(chain string, expressions ...[]byte) {
		all = append(all, nft(unix.NFT_MSG_NEWRULE, text(unix.NFTA_RULE_TABLE, table), text(unix.NFTA_RULE_CHAIN, chain),
			nested(unix.NFTA_RULE_EXPRESSIONS, expressions...)))
	}
	rule(toExits, proto(unix.IPPROTO_UDP), port(53), to(dnsPort))
	if at == hookOutput {
		rule(toExits, proto(unix.IPPROTO_TCP), loopback4(unix.NFT_CMP_NEQ), to(tcpPort))
		rule(toExits, proto(unix.IPPROTO_TCP), loopback6(unix.NFT_CMP_NEQ), to(tcpPort))
	} else {
		rule(toExits, proto(unix.IPPROTO_TCP), to(tcpPort))
	}

	all = append(all, chain(nothingElse, "filter", arrives, priorityFilter))
	rule(nothingElse, bits(unix.NFT_CT_STATE, ctEstablished|ctRelated), accept())
	rule(nothingElse, bits(unix.NFT_CT_STATUS, ctStatusDNAT), accept())
	if at == hookOutput {
		// What arrives at an exit has been redirected, so that where it was meant to go
		// is known.
		rule(nothingElse, proto(unix.IPPROTO_TCP), port(tcpPort), reject(unix.NFT_REJECT_TCP_RST, 0))
		rule(nothingElse, loopback4(unix.NFT_CMP_EQ), accept())
		rule(nothingElse, loopback6(unix.NFT_CMP_EQ), accept())
	} else {
		rule(nothingElse, proto(unix.IPPROTO_ICMPV6), neighbours(), accept())
	}
	rule(nothingElse, reject(unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_PORT_UNREACH))

	// All of it or nothing. The last one's answer comes after any failure of another.
	last := all[len(all)-1]
	last[nlFlags] |= unix.NLM_F_ACK
	all = append(all, batch(unix.NFNL_MSG_BATCH_END))
	if err := c.send(all...); err != nil {
		return err
	}
	for {
		number, err := c.answer()
		if err != nil || number == c.sent-1 {
			return err
		}
	}
}

// What the table and its chains are called.
const (
	table       = "bailey"
	toExits     = "to_exits"
	nothingElse = "nothing_else"
)

// Of the kernel's linux/netfilter_ipv4.h, nf_conntrack_common.h and nf_tables.h.
const (
	priorityDNAT   = -100
	priorityFilter = 0

	ctEstablished = 1 << 1 // NF_CT_STATE_BIT(IP_CT_ESTABLISHED)
	ctRelated     = 1 << 2
	ctStatusDNAT  = 1 << 5 // IPS_DST_NAT

	verdictAccept = 1 // NF_ACCEPT
)

// nlFlags is where in a message the flags begin.
const nlFlags = 6

// netfilterHead begins what is said to a part of netfilter.
func netfilterHead(family byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

// batch begins or ends messages that are done all or none.
func batch(kind uint16) []byte {
	return message(kind, 0, netfilterHead(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
}

// nft asks for something new, after what there is of the kind.
func nft(kind uint16, attributes ...[]byte) []byte {
	return message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_CREATE|unix.NLM_F_APPEND,
		append([][]byte{netfilterHead(unix.NFPROTO_INET, 0)}, attributes...)...)
}

func chain(name, kind string, hook uint32, priority int32) []byte {
	return nft(unix.NFT_MSG_NEWCHAIN, text(unix.NFTA_CHAIN_TABLE, table), text(unix.NFTA_CHAIN_NAME, name),
		nested(unix.NFTA_CHAIN_HOOK, big(unix.NFTA_HOOK_HOOKNUM, hook), big(unix.NFTA_HOOK_PRIORITY, uint32(priority))),
		text(unix.NFTA_CHAIN_TYPE, kind))
}

// expression is a part of a rule.
func expression(name string, attributes ...[]byte) []byte {
	return nested(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, name), nested(unix.NFTA_EXPR_DATA, attributes...))
}

// value is what a register is compared with or combined with.
func value(kind uint16, data []byte) []byte {
	return nested(kind, attribute(unix.NFTA_DATA_VALUE, data))
}

// load has the first register hold a part of a packet.
func load(base, offset, size uint32) []byte {
	return expression("payload", big(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1), big(unix.NFTA_PAYLOAD_BASE, base),
		big(unix.NFTA_PAYLOAD_OFFSET, offset), big(unix.NFTA_PAYLOAD_LEN, size))
}

// meta has it hold what else is known of a packet.
func meta(key uint32) []byte {
	return expression("meta", big(unix.NFTA_META_DREG, unix.NFT_REG_1), big(unix.NFTA_META_KEY, key))
}

// is compares it.
func is(op uint32, data ...byte) []byte {
	return expression("cmp", big(unix.NFTA_CMP_SREG, unix.NFT_REG_1), big(unix.NFTA_CMP_OP, op), value(unix.NFTA_CMP_DATA, data))
}

func join(expressions ...[]byte) []byte { return slices.Concat(expressions...) }

func proto(number byte) []byte { return join(meta(unix.NFT_META_L4PROTO), is(unix.NFT_CMP_EQ, number)) }

// port matches the destination.
func port(number uint16) []byte {
	return join(load(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2), is(unix.NFT_CMP_EQ, byte(number>>8), byte(number)))
}

// loopback4 matches IPv4 with a destination in 127.0.0.0/8, or not in it.
func loopback4(op uint32) []byte {
	return join(meta(unix.NFT_META_NFPROTO), is(unix.NFT_CMP_EQ, unix.NFPROTO_IPV4),
		load(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 1), is(op, 127))
}

// loopback6 matches IPv6 with the destination ::1, or another.
func loopback6(op uint32) []byte {
	return join(meta(unix.NFT_META_NFPROTO), is(unix.NFT_CMP_EQ, unix.NFPROTO_IPV6),
		load(unix.NFT_PAYLOAD_NETWORK_HEADER, 24, 16), is(op, net.IPv6loopback...))
}

// neighbours matches the types of ICMPv6 messages that find the other end of a cable.
func neighbours() []byte {
	return join(load(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1), expression("range", big(unix.NFTA_RANGE_SREG, unix.NFT_REG_1),
		big(unix.NFTA_RANGE_OP, unix.NFT_RANGE_EQ), value(unix.NFTA_RANGE_FROM_DATA, []byte{133}), value(unix.NFTA_RANGE_TO_DATA, []byte{137})))
}

// bits matches connections of which one of the bits is set.
func bits(key, mask uint32) []byte {
	return join(expression("ct", big(unix.NFTA_CT_DREG, unix.NFT_REG_1), big(unix.NFTA_CT_KEY, key)),
		expression("bitwise", big(unix.NFTA_BITWISE_SREG, unix.NFT_REG_1), big(unix.NFTA_BITWISE_DREG, unix.NFT_REG_1),
			big(unix.NFTA_BITWISE_LEN, 4), value(unix.NFTA_BITWISE_MASK, binary.NativeEndian.AppendUint32(nil, mask)),
			value(unix.NFTA_BITWISE_XOR, make([]byte, 4))),
		is(unix.NFT_CMP_NEQ, 0, 0, 0, 0))
}

// to sends a connection to a port of the namespace's own.
func to(port uint16) []byte {
	return join(expression("immediate", big(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_1),
		value(unix.NFTA_IMMEDIATE_DATA, binary.BigEndian.AppendUint16(nil, port))),
		expression("redir", big(unix.NFTA_REDIR_REG_PROTO_MIN, unix.NFT_REG_1)))
}

func accept() []byte {
	return expression("immediate", big(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
		nested(unix.NFTA_IMMEDIATE_DATA, nested(unix.NFTA_DATA_VERDICT, big(unix.NFTA_VERDICT_CODE, verdictAccept))))
}

func reject(kind uint32, code byte) []byte {
	return expression("reject", big(unix.NFTA_REJECT_TYPE, kind), attribute(unix.NFTA_REJECT_ICMP_CODE, []byte{code}))
}
