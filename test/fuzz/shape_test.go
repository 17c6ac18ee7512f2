package fuzz

import (
	"encoding/binary"
	"net/netip"
)

// The shapes of packets. mend corrects checksums and lengths afterwards.

// shape returns an ethertype and the payload that follows it.
type shape func(m *maker) (uint16, []byte)

// icmpErrorShape is the index of icmpError.
const icmpErrorShape = 13

var shapes = []shape{
	udp,
	tcp(0x02),        // SYN
	tcp(0x18),        // data
	tcp(0x11),        // FIN
	tcp(0x04),        // RST
	tcp(0x12),        // SYN-ACK
	tcp(0x00),        // nothing
	tcp(0x3f),        // everything
	echo(8), echo(0), // request, reply
	echo(13), echo(9), echo(17), // timestamp, router advertisement, address mask
	icmpError,
	fragment(0x2000), fragment(0x2001), fragment(1), fragment(3), fragment(0x1fff), fragment(0x4000),
	options(1, 1, 1, 0),
	options(131, 7, 4, 172, 30, 0, 3, 0),          // a loose source route
	options(137, 7, 4, 172, 28, 0, 3, 0),          // a strict one
	options(148, 4, 0, 0),                         // router alert
	options(68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0), // timestamps with addresses
	options(7, 7, 4, 0, 0, 0, 0, 0),               // record route
	options(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0),
	arp(1), arp(2), arp(3), // request, reply, something else
	udp6, solicitation6, fragment6, advertisement6,
	inIP(4), inIP(47), inIP(50), inIP(51), inIP(132), inIP(253), inIP(2), inIP(0), inIP(33), inIP(136),
	vxlan, dhcp,
	other(0x88b5), other(0x88cc), other(38), other(0x8847), other(0x8864), other(0x88e5),
}

// ipv4 puts a header in front of an IP payload.
func (m *maker) ipv4(proto byte, opts []byte, payload []byte) []byte {
	ip := make([]byte, 20, 20+len(opts)+len(payload))
	ip[0], ip[9] = 0x45+byte(len(opts)/4), proto
	binary.BigEndian.PutUint16(ip[4:], 0x7777)
	copy(ip[12:], m.src.AsSlice())
	copy(ip[16:], m.dst.AsSlice())
	return append(append(ip, opts...), payload...)
}

func (m *maker) datagram() []byte {
	b := binary.BigEndian.AppendUint16(nil, m.sport)
	b = binary.BigEndian.AppendUint16(b, m.dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(m.payload)))
	return append(append(b, 0, 0), m.payload...)
}

func (m *maker) segment(flags byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, m.sport)
	b = binary.BigEndian.AppendUint16(b, m.dport)
	b = binary.BigEndian.AppendUint32(b, 1000)
	b = binary.BigEndian.AppendUint32(b, 2000)
	return append(append(b, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0), m.payload...)
}

func (m *maker) echo(kind byte) []byte {
	id := m.sport
	if kind == 0 {
		id = m.dport
	}
	b := binary.BigEndian.AppendUint16([]byte{kind, 0, 0, 0}, id)
	return append(append(b, 0, 1), m.payload...)
}

func udp(m *maker) (uint16, []byte) { return etherIPv4, m.ipv4(protoUDP, nil, m.datagram()) }

func tcp(flags byte) shape {
	return func(m *maker) (uint16, []byte) { return etherIPv4, m.ipv4(protoTCP, nil, m.segment(flags)) }
}

func echo(kind byte) shape {
	return func(m *maker) (uint16, []byte) { return etherIPv4, m.ipv4(protoICMP, nil, m.echo(kind)) }
}

func options(o ...byte) shape {
	return func(m *maker) (uint16, []byte) { return etherIPv4, m.ipv4(protoUDP, o, m.datagram()) }
}

func fragment(word uint16) shape {
	return func(m *maker) (uint16, []byte) {
		ip := m.ipv4(protoUDP, nil, m.datagram())
		if word&0x1fff != 0 {
			ip = m.ipv4(protoUDP, nil, append(m.payload, "...."...)[:24])
		}
		binary.BigEndian.PutUint16(ip[6:], word)
		return etherIPv4, ip
	}
}

// icmpErrors are types and codes.
var icmpErrors = [][2]byte{{3, 3}, {3, 1}, {3, 0}, {3, 4}, {3, 13}, {3, 2}, {4, 0}, {5, 0}, {5, 1}, {11, 0}, {11, 1}, {12, 0}}

// icmpError is about a packet that came the other way. Four more bytes of input choose
// the error, the protocol of the quoted packet, the error's sender, and how much of the
// packet is quoted.
func icmpError(m *maker) (uint16, []byte) {
	e := icmpErrors[int(m.more.byte())%len(icmpErrors)]
	q := *m
	q.src, q.dst, q.sport, q.dport = m.dst, m.src, m.dport, m.sport
	var about []byte
	var quoted []byte
	switch kind := m.more.byte() % 5; kind {
	case 0:
		about = q.ipv4(protoUDP, nil, q.datagram())
	case 1:
		about = q.ipv4(protoTCP, nil, q.segment(0x18))
	case 2:
		about = q.ipv4(protoICMP, nil, q.echo(8))
	case 3:
		about = q.ipv4(protoICMP, nil, append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, m.ipv4(protoUDP, nil, m.datagram())...))
	case 4:
		about = q.ipv4(132, nil, q.datagram())
	}
	about[8] = 63
	mend(about, 0, false)
	who := m.more.byte()
	pick(&m.src, addresses, who)
	quoted = about
	if n := int(m.more.byte()); n > 0 && n < len(about) {
		quoted = about[:n]
	}
	b := []byte{e[0], e[1], 0, 0, 0, 0, 0x02, 0x40} // an MTU of 576
	if e[0] == 5 {
		copy(b[4:], o1IP.AsSlice())
	}
	return etherIPv4, m.ipv4(protoICMP, nil, append(b, quoted...))
}

func arp(op byte) shape {
	return func(m *maker) (uint16, []byte) {
		b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, m.srcMAC[:]...)
		b = append(append(b, m.src.AsSlice()...), make([]byte, 6)...)
		return etherARP, append(append(b, m.dst.AsSlice()...), make([]byte, 18)...)
	}
}

func inIP(proto byte) shape {
	return func(m *maker) (uint16, []byte) {
		return etherIPv4, m.ipv4(proto, nil, m.ipv4(protoUDP, nil, m.datagram()))
	}
}

func vxlan(m *maker) (uint16, []byte) {
	m.sport, m.dport = 4789, 4789
	inner := *m
	inner.payload = append([]byte(nil), m.payload...)
	m.payload = append(make([]byte, 22), inner.ipv4(protoUDP, nil, inner.datagram())...)
	return udp(m)
}

func dhcp(m *maker) (uint16, []byte) {
	m.sport, m.dport, m.dst = 68, 67, broadcast
	m.src = anyone
	return udp(m)
}

func other(etherType uint16) shape {
	return func(m *maker) (uint16, []byte) { return etherType, m.ipv4(protoUDP, nil, m.datagram()) }
}

// six is the IPv6 link-local address that ends in an IPv4 address.
func six(a netip.Addr) []byte {
	b := append([]byte{0xfe, 0x80}, make([]byte, 10)...)
	return append(b, a.AsSlice()...)
}

func (m *maker) ipv6(next byte, payload []byte) (uint16, []byte) {
	b := append([]byte{0x60, 0, 0, 0}, byte(len(payload)>>8), byte(len(payload)), next, 255)
	return etherIPv6, append(append(append(b, six(m.src)...), six(m.dst)...), payload...)
}

func udp6(m *maker) (uint16, []byte) { return m.ipv6(17, m.datagram()) }

func solicitation6(m *maker) (uint16, []byte) {
	return m.ipv6(58, append(append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, six(m.dst)...), m.payload...))
}

func advertisement6(m *maker) (uint16, []byte) {
	return m.ipv6(58, append([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, m.payload...))
}

func fragment6(m *maker) (uint16, []byte) {
	return m.ipv6(44, append([]byte{58, 0, 0, 1, 0, 0, 0, 9}, m.payload...))
}
