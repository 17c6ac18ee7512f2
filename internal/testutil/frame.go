package testutil

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Frame describes an Ethernet frame with IPv4 or IPv6 inside: Dst tells the family.
// Lengths and checksums are computed by Bytes; the zero value of a field means what its
// comment says.
type Frame struct {
	SrcMAC, DstMAC net.HardwareAddr
	// VLAN tags, outermost first. With more than one, the outer ones are 802.1ad.
	VLAN []uint16

	Src, Dst netip.Addr
	TTL      uint8 // or hop limit. 0: as the kernel sends it, so 64; with Msg 255 or 1
	TOS      uint8 // or traffic class
	ID       uint32
	DF, MF   bool   // IPv6 has no DF
	FragOff  uint16 // in units of 8 bytes
	// Options of the IPv4 header, a multiple of 4 bytes; at most 40.
	Options []byte
	Label   uint32 // IPv6: the flow label
	// Ext are IPv6 extension headers, in this order. With MF or FragOff a fragment header
	// follows them.
	Ext []Ext

	// Exactly one of these, or none: then Proto and Payload only.
	TCP  *TCP
	UDP  *UDP
	Echo *Echo
	ICMP *ICMPError
	Msg  *ICMP6
	// Proto is used if none of the above is set; 0: 253 (experimental).
	Proto uint8

	Payload []byte
	// UncheckedUDP sends a UDP checksum of 0 (none).
	UncheckedUDP bool
}

// TCP is a TCP header.
type TCP struct {
	SrcPort, DstPort                  uint16
	Seq, Ack                          uint32
	SYN, ACK, FIN, RST, PSH, URG, ECE bool
	Window                            uint16 // 0: 65535
	// Options, a multiple of 4 bytes.
	Options []byte
}

// UDP is a UDP header.
type UDP struct{ SrcPort, DstPort uint16 }

// Echo is an ICMP echo request or reply.
type Echo struct {
	Reply   bool
	ID, Seq uint16
}

// ICMPError is an ICMP or ICMPv6 error about the packet Inner, which starts with its IP
// header. Type and code are those of the frame's family.
type ICMPError struct {
	Type, Code uint8
	MTU        uint32 // of fragmentation needed and of packet too big
	Inner      []byte
}

// With returns a copy of f with the given changes. It is for "the valid frame, but …".
// Headers are copied, slices are shared.
func (f Frame) With(change ...func(*Frame)) Frame {
	if f.TCP != nil {
		c := *f.TCP
		f.TCP = &c
	}
	if f.UDP != nil {
		c := *f.UDP
		f.UDP = &c
	}
	if f.Echo != nil {
		c := *f.Echo
		f.Echo = &c
	}
	if f.ICMP != nil {
		c := *f.ICMP
		f.ICMP = &c
	}
	if f.Msg != nil {
		c := *f.Msg
		f.Msg = &c
	}
	for _, c := range change {
		c(&f)
	}
	return f
}

// Bytes builds the frame. It fails the test if the frame cannot be built.
func (f Frame) Bytes(t testing.TB) []byte {
	t.Helper()
	inner := layers.EthernetTypeIPv4
	if f.six() {
		inner = layers.EthernetTypeIPv6
	}
	return f.link(t, inner, f.IP(t))
}

func (f Frame) six() bool { return f.Dst.Is6() }

// IP builds the packet without the link layer header.
func (f Frame) IP(t testing.TB) []byte {
	t.Helper()
	b := serialize(t, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, f.ipLayers())
	if f.six() && len(f.Ext) > 0 && f.Ext[0].jumbo() {
		binary.BigEndian.PutUint16(b[4:], 0)
		binary.BigEndian.PutUint32(b[ip6Hdr+4:], uint32(len(b)-ip6Hdr))
	}
	return b
}

// link puts the Ethernet header and the tags in front. gopacket pads short frames to 60
// bytes. The padding is cut off again, since a veth does not pad.
func (f Frame) link(t testing.TB, inner layers.EthernetType, payload []byte) []byte {
	t.Helper()
	const etherHdr, tag = 14, 4
	b := serialize(t, gopacket.SerializeOptions{}, append(f.linkLayers(inner), gopacket.Payload(payload)))
	return b[:etherHdr+tag*len(f.VLAN)+len(payload)]
}

func serialize(t testing.TB, opts gopacket.SerializeOptions, ls []gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, opts, ls...); err != nil {
		t.Fatalf("building a frame: %v", err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

func (f Frame) linkLayers(inner layers.EthernetType) []gopacket.SerializableLayer {
	eth := &layers.Ethernet{SrcMAC: f.SrcMAC, DstMAC: f.DstMAC, EthernetType: inner}
	ls := []gopacket.SerializableLayer{eth}
	next := &eth.EthernetType
	for i, id := range f.VLAN {
		*next = layers.EthernetTypeDot1Q
		if i < len(f.VLAN)-1 {
			*next = layers.EthernetTypeQinQ
		}
		tag := &layers.Dot1Q{VLANIdentifier: id, Type: inner}
		ls = append(ls, tag)
		next = &tag.Type
	}
	return ls
}

func (f Frame) ipLayers() []gopacket.SerializableLayer {
	var ls []gopacket.SerializableLayer
	if f.six() {
		ls = f.ipv6()
	} else {
		ls = f.ipv4()
	}
	if f.ICMP != nil {
		return append(ls, gopacket.Payload(f.ICMP.Inner))
	}
	return append(ls, gopacket.Payload(f.Payload))
}

func (f Frame) ipv4() []gopacket.SerializableLayer {
	ip := &layers.IPv4{
		Version: 4, TTL: f.hops(), TOS: f.TOS, Id: uint16(f.ID), FragOffset: f.FragOff,
		SrcIP: f.Src.AsSlice(), DstIP: f.Dst.AsSlice(), Protocol: f.proto(),
	}
	if f.DF {
		ip.Flags |= layers.IPv4DontFragment
	}
	if f.MF {
		ip.Flags |= layers.IPv4MoreFragments
	}
	for _, o := range f.Options {
		ip.Options = append(ip.Options, layers.IPv4Option{OptionType: o, OptionLength: 1})
	}
	return append([]gopacket.SerializableLayer{ip}, f.l4Layers(ip)...)
}

// proto is the protocol of what follows the IP header and its extensions.
func (f Frame) proto() layers.IPProtocol {
	icmp := layers.IPProtocolICMPv4
	if f.six() {
		icmp = layers.IPProtocolICMPv6
	}
	switch {
	case f.TCP != nil:
		return layers.IPProtocolTCP
	case f.UDP != nil:
		return layers.IPProtocolUDP
	case f.Echo != nil, f.ICMP != nil, f.Msg != nil:
		return icmp
	case f.Proto != 0:
		return layers.IPProtocol(f.Proto)
	}
	return 253
}

func (f Frame) hops() uint8 {
	switch {
	case f.TTL != 0:
		return f.TTL
	case f.Msg != nil:
		return f.Msg.hops()
	}
	return 64
}

// l4Layers are the layers above IP.
func (f Frame) l4Layers(ip gopacket.NetworkLayer) []gopacket.SerializableLayer {
	switch {
	case f.TCP != nil:
		return []gopacket.SerializableLayer{f.TCP.layer(ip)}
	case f.UDP != nil && f.UncheckedUDP:
		h := binary.BigEndian.AppendUint16(nil, f.UDP.SrcPort)
		h = binary.BigEndian.AppendUint16(h, f.UDP.DstPort)
		h = binary.BigEndian.AppendUint16(h, uint16(8+len(f.Payload)))
		return []gopacket.SerializableLayer{gopacket.Payload(append(h, 0, 0))}
	case f.UDP != nil:
		u := &layers.UDP{SrcPort: layers.UDPPort(f.UDP.SrcPort), DstPort: layers.UDPPort(f.UDP.DstPort)}
		_ = u.SetNetworkLayerForChecksum(ip) // fails for unknown layers only
		return []gopacket.SerializableLayer{u}
	case f.six():
		return f.icmp6Layers(ip)
	case f.Echo != nil:
		typ := uint8(layers.ICMPv4TypeEchoRequest)
		if f.Echo.Reply {
			typ = layers.ICMPv4TypeEchoReply
		}
		return []gopacket.SerializableLayer{&layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: f.Echo.ID, Seq: f.Echo.Seq,
		}}
	case f.ICMP != nil:
		return []gopacket.SerializableLayer{&layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(f.ICMP.Type, f.ICMP.Code), Seq: uint16(f.ICMP.MTU),
		}}
	}
	return nil
}

func (h *TCP) layer(ip gopacket.NetworkLayer) *layers.TCP {
	l := &layers.TCP{
		SrcPort: layers.TCPPort(h.SrcPort), DstPort: layers.TCPPort(h.DstPort), Seq: h.Seq, Ack: h.Ack,
		SYN: h.SYN, ACK: h.ACK, FIN: h.FIN, RST: h.RST, PSH: h.PSH, URG: h.URG, ECE: h.ECE, Window: h.Window,
	}
	if h.Window == 0 {
		l.Window = 65535
	}
	for range h.Options {
		l.Options = append(l.Options, layers.TCPOption{OptionType: layers.TCPOptionKindNop})
	}
	_ = l.SetNetworkLayerForChecksum(ip) // fails for unknown layers only
	return l
}

// ARP describes an ARP packet.
type ARP struct {
	SrcMAC, DstMAC       net.HardwareAddr // of the frame
	Reply                bool
	SenderMAC, TargetMAC net.HardwareAddr // nil: zeros
	SenderIP, TargetIP   netip.Addr
}

// Bytes builds the frame.
func (a ARP) Bytes(t testing.TB) []byte {
	t.Helper()
	op := uint16(layers.ARPRequest)
	if a.Reply {
		op = layers.ARPReply
	}
	mac := func(m net.HardwareAddr) []byte {
		if m == nil {
			return make([]byte, 6)
		}
		return m
	}
	arp := serialize(t, gopacket.SerializeOptions{}, []gopacket.SerializableLayer{&layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: op, SourceHwAddress: mac(a.SenderMAC), SourceProtAddress: a.SenderIP.AsSlice(),
		DstHwAddress: mac(a.TargetMAC), DstProtAddress: a.TargetIP.AsSlice(),
	}})
	return Frame{SrcMAC: a.SrcMAC, DstMAC: a.DstMAC}.link(t, layers.EthernetTypeARP, arp)
}

// CheckSums verifies the IPv4 header checksum and the TCP, UDP, ICMP or ICMPv6 checksum
// of an untagged frame. A UDP checksum of 0 is valid for IPv4. Fragments have no L4
// checksum.
func CheckSums(frame []byte) error {
	switch {
	case len(frame) >= 34 && frame[12] == 8 && frame[13] == 0:
		return checkSums4(frame[14:])
	case len(frame) >= 54 && frame[12] == 0x86 && frame[13] == 0xdd:
		return checkSums6(frame[14:])
	}
	return fmt.Errorf("not an untagged IPv4 or IPv6 frame")
}

func checkSums4(ip []byte) error {
	hlen, total := int(ip[0]&0xf)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if hlen < 20 || total < hlen || len(ip) < total {
		return fmt.Errorf("IPv4 header %d, total %d, have %d bytes", hlen, total, len(ip))
	}
	if Sum(0, ip[:hlen]) != 0xffff {
		return fmt.Errorf("the IPv4 header checksum is wrong")
	}
	if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return nil
	}
	l4 := ip[hlen:total]
	if p := layers.IPProtocol(ip[9]); p == layers.IPProtocolUDP && binary.BigEndian.Uint16(l4[6:]) == 0 {
		return nil
	}
	return checkL4Sum(layers.IPProtocol(ip[9]), ip[12:20], l4)
}

// checkL4Sum verifies the checksum of a whole packet. addrs are its addresses.
func checkL4Sum(proto layers.IPProtocol, addrs, l4 []byte) error {
	pseudo := Sum(uint32(proto)+uint32(len(l4)), addrs)
	switch proto {
	case layers.IPProtocolICMPv4:
		pseudo = 0
	case layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolICMPv6:
	default:
		return nil
	}
	if Sum(uint32(pseudo), l4) != 0xffff {
		return fmt.Errorf("the %s checksum is wrong", proto)
	}
	return nil
}

// Sum adds the 16-bit words of b to s in one's complement arithmetic (RFC 1071). The
// result is not yet inverted.
func Sum(s uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
