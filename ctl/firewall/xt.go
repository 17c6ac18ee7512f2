package firewall

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// matches tells whether one of iptables' own matches is true of the packet. The result
// of a match that it does not know is may.
func (p packet) matches(m *expr.Match) tri {
	switch i := m.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Tcp:
		is := min(p.proto.is([]byte{unix.IPPROTO_TCP}), ports(p.sport, i.SrcPorts, i.InvFlags&xt.TcpInvSrcPorts != 0),
			ports(p.dport, i.DstPorts, i.InvFlags&xt.TcpInvDestPorts != 0))
		if i.Option != 0 || i.FlagsMask != 0 {
			is = min(is, may)
		}
		return is
	case *xt.Udp:
		return min(p.proto.is([]byte{unix.IPPROTO_UDP}), ports(p.sport, i.SrcPorts, i.InvFlags&xt.UdpInvSrcPorts != 0),
			ports(p.dport, i.DstPorts, i.InvFlags&xt.UdpInvDestPorts != 0))
	case *xt.AddrTypeV1:
		// A bit for each type of route (include/uapi/linux/netfilter/xt_addrtype.h).
		if i.Source == 0 && i.Dest == 1<<unix.RTN_LOCAL && i.Flags == 0 {
			return p.dstType.is(native(unix.RTN_LOCAL).val)
		}
	case *xt.ConntrackMtinfo3:
		return p.conntrack(i)
	case *xt.Unknown:
		if m.Name == "multiport" && m.Rev == 1 && len(*i) >= multiportSize {
			return p.multiport(*i)
		}
	}
	return may
}

func ports(b bits, between [2]uint16, inverted bool) tri {
	is := b.within(big16(between[0]), big16(between[1]))
	if inverted {
		return is.not()
	}
	return is
}

func big16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// Bits of xt_conntrack's state mask that stand for conntrack's status, and its bit for
// "untracked" (include/uapi/linux/netfilter/xt_conntrack.h).
const (
	xtStateSNAT      = 1 << 6
	xtStateDNAT      = 1 << 7
	xtStateUntracked = 1 << 8
)

// conntrack is the kernel's conntrack_mt (net/netfilter/xt_conntrack.c) for the
// original direction.
func (p packet) conntrack(i *xt.ConntrackMtinfo3) tri {
	is := yes
	test := func(flag xt.ConntrackFlags, t func() tri) {
		if i.MatchFlags&uint16(flag) == 0 {
			return
		}
		x := t()
		if i.InvertFlags&uint16(flag) != 0 {
			x = x.not()
		}
		is = min(is, x)
	}
	addr := func(b bits, a, mask []byte) func() tri {
		return func() tri { return b.and(mask, make([]byte, len(mask))).is(a) }
	}
	between := func(b bits, lo, hi uint16) func() tri {
		return func() tri { return b.within(big16(lo), big16(max(lo, hi))) }
	}
	unclear := func() tri { return may }
	test(xt.ConntrackState, func() tri { return p.xtState(i.StateMask) })
	test(xt.ConntrackProto, func() tri { return p.proto.is([]byte{byte(i.L4Proto)}) })
	test(xt.ConntrackOrigSrc, addr(p.origSrc, i.OrigSrcAddr, i.OrigSrcMask))
	test(xt.ConntrackOrigDst, addr(p.origDst, i.OrigDstAddr, i.OrigDstMask))
	test(xt.ConntrackOrigSrcPort, between(p.origSrcPort, i.OrigSrcPort, i.OrigSrcPortHigh))
	test(xt.ConntrackOrigDstPort, between(p.origDstPort, i.OrigDstPort, i.OrigDstPortHigh))
	test(xt.ConntrackStatus, func() tri { return p.status.any(uint32(i.StatusMask)) })
	for _, flag := range []xt.ConntrackFlags{xt.ConntrackReplSrc, xt.ConntrackReplDst, xt.ConntrackExpires,
		xt.ConntrackReplSrcPort, xt.ConntrackReplDstPrt, xt.ConntrackDirection} {
		test(flag, unclear)
	}
	return is
}

// xtState tells whether the packet has one of the states in the mask.
func (p packet) xtState(mask uint16) tri {
	state := uint32(mask) & (xtStateSNAT - 1)
	if mask&xtStateUntracked != 0 {
		state |= expr.CtStateBitUNTRACKED
	}
	var status uint32
	if mask&xtStateSNAT != 0 {
		status |= statusSNAT
	}
	if mask&xtStateDNAT != 0 {
		status |= statusDNAT
	}
	return max(p.state.any(state), p.status.any(status))
}

// any tells whether one of the bits is set in a number in the host's byte order.
func (b bits) any(want uint32) tri {
	val, mask := binary.NativeEndian.Uint32(b.val), binary.NativeEndian.Uint32(b.mask)
	switch {
	case val&want != 0:
		return yes
	case want&^mask != 0:
		return may
	}
	return no
}

// multiportSize is the size in bytes of struct xt_multiport_v1: flags, a count, 15
// ports in the host's byte order, 15 marks that say where a range begins, and a flag
// for inversion (include/uapi/linux/netfilter/xt_multiport.h).
const multiportSize = 2 + 2*15 + 15 + 1

func (p packet) multiport(info []byte) tri {
	const source, destination = 0, 1
	is := no
	one := func(b bits, lo, hi uint16) { is = max(is, b.within(big16(lo), big16(hi))) }
	at := func(i int) uint16 { return binary.NativeEndian.Uint16(info[2+2*i:]) }
	for i := 0; i < min(int(info[1]), 15); i++ {
		lo, hi := at(i), at(i)
		if info[32+i] != 0 && i < 14 {
			i++
			hi = at(i)
		}
		if info[0] != destination {
			one(p.sport, lo, hi)
		}
		if info[0] != source {
			one(p.dport, lo, hi)
		}
	}
	if info[multiportSize-1] != 0 {
		return is.not()
	}
	return is
}
