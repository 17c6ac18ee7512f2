package testutil

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Next header numbers of IPv6's extension headers (IANA, Assigned Internet Protocol
// Numbers).
const (
	HopByHop     = 0
	Routing      = 43
	FragmentHdr  = 44
	AuthHeader   = 51
	NoNextHeader = 59
	DestOptions  = 60
	Mobility     = 135
)

const (
	ip6Hdr   = 40
	optPadN  = 1
	optAlert = 5    // RFC 2711
	optJumbo = 0xc2 // RFC 2675
)

// Ext is an extension header of IPv6 (RFC 8200 section 4). Data is what follows next
// header and length.
type Ext struct {
	Kind uint8
	Data []byte
}

// Options is a header of options, HopByHop or DestOptions, padded to a multiple of 8
// bytes. An option is type, length and data.
func Options(kind uint8, opts ...byte) Ext {
	for pad := (8 - (2+len(opts))%8) % 8; pad > 0; pad = 0 {
		if pad == 1 {
			opts = append(opts[:len(opts):len(opts)], 0) // Pad1
			break
		}
		opts = append(append(opts[:len(opts):len(opts)], optPadN, byte(pad-2)), make([]byte, pad-2)...)
	}
	return Ext{kind, opts}
}

// RouterAlert is the hop-by-hop header of MLD.
func RouterAlert() Ext { return Options(HopByHop, optAlert, 2, 0, 0) }

// Jumbo is the hop-by-hop header of a packet above 64 KiB: its IPv6 header tells a
// length of 0. Bytes fills in the length.
func Jumbo() Ext { return Ext{HopByHop, []byte{optJumbo, 4, 0, 0, 0, 0}} }

func (e Ext) jumbo() bool { return e.Kind == HopByHop && len(e.Data) == 6 && e.Data[0] == optJumbo }

// RoutingHeader leads to addresses, of which left are still to be visited.
func RoutingHeader(kind, left uint8, addrs ...netip.Addr) Ext {
	b := []byte{kind, left, 0, 0, 0, 0}
	for _, a := range addrs {
		b = append(b, a.AsSlice()...)
	}
	return Ext{Routing, b}
}

// FragmentHeader is for an atomic fragment (neither offset nor more), and for a fragment
// header in an unusual place. off is in units of 8 bytes.
func FragmentHeader(off uint16, more bool, id uint32) Ext {
	word := off << 3
	if more {
		word |= 1
	}
	return Ext{FragmentHdr, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, word), id)}
}

// header is the header in front of one with the number next.
func (e Ext) header(next uint8) []byte {
	n := (2 + len(e.Data)) / 8
	switch e.Kind {
	case AuthHeader:
		n = (2+len(e.Data))/4 - 2
	case FragmentHdr: // reserved in place of the length
		n = 0
	default:
		n--
	}
	return append([]byte{next, byte(n)}, e.Data...)
}

func (f Frame) ipv6() []gopacket.SerializableLayer {
	ip := &layers.IPv6{
		Version: 6, HopLimit: f.hops(), TrafficClass: f.TOS, FlowLabel: f.Label,
		SrcIP: f.Src.AsSlice(), DstIP: f.Dst.AsSlice(),
	}
	exts := f.Ext
	if f.MF || f.FragOff != 0 {
		exts = append(exts[:len(exts):len(exts)], FragmentHeader(f.FragOff, f.MF, f.ID))
	}
	next := f.proto()
	var chain []byte
	for i := len(exts) - 1; i >= 0; i-- {
		chain = append(exts[i].header(uint8(next)), chain...)
		next = layers.IPProtocol(exts[i].Kind)
	}
	ip.NextHeader = next
	return append([]gopacket.SerializableLayer{ip, gopacket.Payload(chain)}, f.l4Layers(ip)...)
}

// icmp6Layers are the layers of an ICMPv6 message up to the payload.
func (f Frame) icmp6Layers(ip gopacket.NetworkLayer) []gopacket.SerializableLayer {
	var m ICMP6
	switch {
	case f.Echo != nil:
		m.Type = layers.ICMPv6TypeEchoRequest
		if f.Echo.Reply {
			m.Type = layers.ICMPv6TypeEchoReply
		}
		m.Body = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, f.Echo.ID), f.Echo.Seq)
	case f.ICMP != nil:
		m = ICMP6{f.ICMP.Type, f.ICMP.Code, binary.BigEndian.AppendUint32(nil, f.ICMP.MTU)}
	case f.Msg != nil:
		m = *f.Msg
	default:
		return nil
	}
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(m.Type, m.Code)}
	_ = l.SetNetworkLayerForChecksum(ip) // fails for unknown layers only
	return []gopacket.SerializableLayer{l, gopacket.Payload(m.Body)}
}

// ICMP6 is any ICMPv6 message. Body is what follows the checksum.
type ICMP6 struct {
	Type, Code uint8
	Body       []byte
}

// hops is the hop limit that receivers want.
func (m *ICMP6) hops() uint8 {
	switch m.Type {
	case layers.ICMPv6TypeRouterSolicitation, layers.ICMPv6TypeRouterAdvertisement, layers.ICMPv6TypeNeighborSolicitation,
		layers.ICMPv6TypeNeighborAdvertisement, layers.ICMPv6TypeRedirect:
		return 255 // RFC 4861
	case layers.ICMPv6TypeMLDv1MulticastListenerQueryMessage, layers.ICMPv6TypeMLDv1MulticastListenerReportMessage,
		layers.ICMPv6TypeMLDv1MulticastListenerDoneMessage, layers.ICMPv6TypeMLDv2MulticastListenerReportMessageV2:
		return 1 // RFC 3810
	}
	return 64
}

// The flags of a neighbour advertisement (RFC 4861 section 4.4).
const (
	NARouter    = 0x80
	NASolicited = 0x40
	NAOverride  = 0x20
)

// NeighborSolicitation asks for the link layer address of target.
func NeighborSolicitation(target netip.Addr, opts ...[]byte) *ICMP6 {
	return message(layers.ICMPv6TypeNeighborSolicitation, make([]byte, 4), target.AsSlice(), opts)
}

// NeighborAdvertisement tells the link layer address of target.
func NeighborAdvertisement(target netip.Addr, flags uint8, opts ...[]byte) *ICMP6 {
	return message(layers.ICMPv6TypeNeighborAdvertisement, []byte{flags, 0, 0, 0}, target.AsSlice(), opts)
}

// RouterSolicitation asks for routers.
func RouterSolicitation(opts ...[]byte) *ICMP6 {
	return message(layers.ICMPv6TypeRouterSolicitation, make([]byte, 4), nil, opts)
}

// RouterAdvertisement is of a router for lifetime seconds.
func RouterAdvertisement(lifetime uint16, opts ...[]byte) *ICMP6 {
	head := binary.BigEndian.AppendUint16([]byte{64, 0}, lifetime)
	return message(layers.ICMPv6TypeRouterAdvertisement, append(head, make([]byte, 8)...), nil, opts)
}

// Redirect says that target is the better next hop to dst.
func Redirect(target, dst netip.Addr, opts ...[]byte) *ICMP6 {
	return message(layers.ICMPv6TypeRedirect, append(make([]byte, 4), target.AsSlice()...), dst.AsSlice(), opts)
}

// MLDQuery asks who listens to group (::, anybody). RFC 2710.
func MLDQuery(group netip.Addr) *ICMP6 {
	return message(layers.ICMPv6TypeMLDv1MulticastListenerQueryMessage, []byte{0x27, 0x10, 0, 0}, group.AsSlice(), nil)
}

// MLDReport says that the sender listens to group. RFC 3810 section 5.2.
func MLDReport(group netip.Addr) *ICMP6 {
	return message(layers.ICMPv6TypeMLDv2MulticastListenerReportMessageV2, []byte{0, 0, 0, 1, 4, 0, 0, 0}, group.AsSlice(), nil)
}

func message(kind uint8, head, target []byte, opts [][]byte) *ICMP6 {
	b := append(head, target...)
	for _, o := range opts {
		b = append(b, o...)
	}
	return &ICMP6{Type: kind, Body: b}
}

// SourceLink is the option with the sender's link layer address (RFC 4861 section 4.6.1).
func SourceLink(mac net.HardwareAddr) []byte { return append([]byte{1, 1}, mac...) }

// TargetLink is the option with the target's link layer address.
func TargetLink(mac net.HardwareAddr) []byte { return append([]byte{2, 1}, mac...) }

// PrefixOption announces an on-link prefix for addresses of the receiver's own choice
// (RFC 4861 section 4.6.2), for an hour.
func PrefixOption(p netip.Prefix) []byte {
	b := []byte{3, 4, byte(p.Bits()), 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0}
	return append(b, p.Masked().Addr().AsSlice()...)
}

// SolicitedNode is the group of a neighbour solicitation for a (RFC 4291 section 2.7.1).
func SolicitedNode(a netip.Addr) netip.Addr {
	g := netip.MustParseAddr("ff02::1:ff00:0").As16()
	b := a.As16()
	copy(g[13:], b[13:])
	return netip.AddrFrom16(g)
}

// GroupMAC is the MAC address of a multicast group of either family (RFC 1112, RFC 2464).
func GroupMAC(g netip.Addr) net.HardwareAddr {
	b := g.AsSlice()
	if g.Is4() {
		return net.HardwareAddr{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	return append(net.HardwareAddr{0x33, 0x33}, b[12:]...)
}

// LinkLocal is the link-local address of a MAC address by EUI-64 (RFC 4291 appendix A).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	a := netip.MustParseAddr("fe80::ff:fe00:0").As16()
	copy(a[8:11], mac[:3])
	copy(a[13:], mac[3:])
	a[8] ^= 2
	return netip.AddrFrom16(a)
}

func checkSums6(ip []byte) error {
	p, err := upper6(ip)
	if err != nil || p.fragment {
		return err
	}
	if p.proto == layers.IPProtocolUDP && len(p.l4) >= 8 && binary.BigEndian.Uint16(p.l4[6:]) == 0 {
		return fmt.Errorf("UDP over IPv6 without a checksum")
	}
	return checkL4Sum(p.proto, ip[8:ip6Hdr], p.l4)
}

// upper is what follows the extension headers of an IPv6 packet.
type upper struct {
	proto    layers.IPProtocol
	l4       []byte
	fragment bool // not a whole datagram
	header   int  // offset of the fragment header, 0: none
	next     int  // offset of the number of the header that the fragment header follows
}

// upper6 follows the chain of extension headers, and verifies the packet's lengths.
func upper6(ip []byte) (u upper, err error) {
	total := ip6Hdr + int(binary.BigEndian.Uint16(ip[4:]))
	u.proto = layers.IPProtocol(ip[6])
	at, number := ip6Hdr, 6
	for {
		var n int
		switch u.proto {
		case HopByHop, Routing, DestOptions, Mobility:
			n = 8
		case AuthHeader:
			n = 4
		case FragmentHdr:
		default:
			if total == ip6Hdr {
				return u, fmt.Errorf("an IPv6 packet of no length without a jumbo option")
			}
			if total < at || len(ip) < total {
				return u, fmt.Errorf("IPv6 headers %d, total %d, have %d bytes", at, total, len(ip))
			}
			u.l4 = ip[at:total]
			return u, nil
		}
		if len(ip) < at+8 {
			return u, fmt.Errorf("IPv6: header %d at %d is cut off at %d", u.proto, at, len(ip))
		}
		size := 8 + n*int(ip[at+1])
		switch {
		case u.proto == FragmentHdr:
			size = 8
			u.header, u.next = at, number
			u.fragment = binary.BigEndian.Uint16(ip[at+2:])&^6 != 0
		case u.proto == HopByHop && total == ip6Hdr && ip[at+2] == optJumbo:
			total += int(binary.BigEndian.Uint32(ip[at+4:]))
		}
		u.proto, number = layers.IPProtocol(ip[at]), at
		at += size
		if u.fragment {
			u.l4 = ip[at:min(total, len(ip))]
			return u, nil
		}
	}
}
