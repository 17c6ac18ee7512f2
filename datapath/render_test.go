package datapath

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
	"github.com/fastbr/fastbr/internal/testutil"
)

// Frames of the model's packets. Only here is every checksum computed from the whole
// packet: the programs update theirs.

var be = binary.BigEndian

// render appends the frame of p to b.
func render(b []byte, p *nm.Packet) []byte {
	b = append(b, p.MACs[:]...)
	if p.Src.Is6() {
		return renderIP(append(b, 0x86, 0xdd), p)
	}
	return renderIP(append(b, 8, 0), p)
}

// renderHeader appends the IP header of p, without its length and checksum. An IPv6 header has
// the id as its flow label.
func renderHeader(b []byte, p *nm.Packet) []byte {
	if p.Src.Is6() {
		proto := byte(p.Proto)
		if p.Proto == nm.ICMP {
			proto = unix.IPPROTO_ICMPV6
		}
		b = be.AppendUint32(b, 6<<28|uint32(p.Body.TOS)<<20|uint32(p.Body.ID))
		b = append(b, 0, 0, proto, p.TTL)
	} else {
		b = append(b, 0x45, p.Body.TOS, 0, 0)
		b = be.AppendUint16(b, p.Body.ID)
		b = append(b, 0, 0, p.TTL, byte(p.Proto), 0, 0)
	}
	return append(append(b, p.Src.AsSlice()...), p.Dst.AsSlice()...)
}

func renderIP(b []byte, p *nm.Packet) []byte {
	start := len(b)
	b = renderHeader(b, p)
	l4 := len(b)
	request, reply := byte(8), byte(0)
	if p.Src.Is6() {
		request, reply = 128, 129
	}
	sumAt := 0
	switch {
	case p.Kind == nm.Error:
		b = append(b, p.Type, p.Code, 0, 0, 0, 0, 0, 0)
		quote := len(b)
		b = renderIP(b, p.Quote)
		b = b[:min(len(b), quote+l4-start+max(8, p.Body.Cut))]
		sumAt = 2
	case p.Kind == nm.EchoRequest:
		b = be.AppendUint16(append(b, request, 0, 0, 0), p.SPort)
		b = be.AppendUint16(b, p.Body.ID)
		sumAt = 2
	case p.Kind == nm.EchoReply:
		b = be.AppendUint16(append(b, reply, 0, 0, 0), p.DPort)
		b = be.AppendUint16(b, p.Body.ID)
		sumAt = 2
	case p.Kind == nm.Ports && p.Proto == nm.TCP:
		b = be.AppendUint16(be.AppendUint16(b, p.SPort), p.DPort)
		b = be.AppendUint32(be.AppendUint32(b, p.Body.Seq()), p.Body.Ack)
		b = append(b, 5<<4, byte(p.Flags), 1, 2, 0, 0, 0, 0)
		sumAt = 16
	case p.Kind == nm.Ports:
		b = be.AppendUint16(be.AppendUint16(b, p.SPort), p.DPort)
		b = be.AppendUint16(b, uint16(8+p.Body.Payload))
		b = append(b, 0, 0)
		sumAt = 6
	}
	if p.Kind != nm.Error {
		// The first two bytes are the id, so a sweep over the ids covers every
		// checksum.
		id := [2]byte{byte(p.Body.ID >> 8), byte(p.Body.ID)}
		for i := range p.Body.Payload {
			b = append(b, id[i%2]^byte(i/2))
		}
	}
	if p.Src.Is6() {
		be.PutUint16(b[start+4:], uint16(len(b)-l4))
	} else {
		be.PutUint16(b[start+2:], uint16(len(b)-start))
		be.PutUint16(b[start+10:], ^testutil.Sum(0, b[start:l4]))
	}
	if sumAt != 0 && !(p.Proto == nm.UDP && p.Body.NoSum) {
		be.PutUint16(b[l4+sumAt:], l4Sum(b[start:l4], b[l4:]))
	}
	return b
}

// l4Sum is the checksum of an L4 packet whose own checksum field is zero. ip is its header.
func l4Sum(ip, l4 []byte) uint16 {
	proto, addrs := ip[9], ip[12:20]
	if ip[0]>>4 == 6 {
		proto, addrs = ip[6], ip[8:40]
	}
	var pseudo uint32
	if proto != byte(nm.ICMP) {
		pseudo = uint32(testutil.Sum(uint32(proto)+uint32(len(l4)), addrs))
	}
	sum := ^testutil.Sum(pseudo, l4)
	if sum == 0 && proto == byte(nm.UDP) {
		return 0xffff
	}
	return sum
}
