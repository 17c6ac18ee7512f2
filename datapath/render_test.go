package datapath

import (
	"encoding/binary"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
	"github.com/fastbr/fastbr/internal/testutil"
)

// Frames of the model's packets. Only here is every checksum computed from the whole
// packet: the programs update theirs.

var be = binary.BigEndian

// render appends the frame of p to b.
func render(b []byte, p *nm.Packet) []byte {
	b = append(b, p.MACs[:]...)
	return renderIP(append(b, 8, 0), p)
}

func renderIP(b []byte, p *nm.Packet) []byte {
	start := len(b)
	b = append(b, 0x45, p.Body.TOS, 0, 0)
	b = be.AppendUint16(b, p.Body.ID)
	b = append(b, 0, 0, p.TTL, byte(p.Proto), 0, 0)
	b = append(append(b, p.Src.AsSlice()...), p.Dst.AsSlice()...)
	l4 := len(b)
	sumAt := 0
	switch {
	case p.Kind == nm.Error:
		b = append(b, p.Type, p.Code, 0, 0, 0, 0, 0, 0)
		quote := len(b)
		b = renderIP(b, p.Quote)
		b = b[:min(len(b), quote+max(28, p.Body.Cut))]
		sumAt = 2
	case p.Kind == nm.EchoRequest:
		b = be.AppendUint16(append(b, 8, 0, 0, 0), p.SPort)
		b = be.AppendUint16(b, p.Body.ID)
		sumAt = 2
	case p.Kind == nm.EchoReply:
		b = be.AppendUint16(append(b, 0, 0, 0, 0), p.DPort)
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
	be.PutUint16(b[start+2:], uint16(len(b)-start))
	be.PutUint16(b[start+10:], ^testutil.Sum(0, b[start:l4]))
	if sumAt != 0 && !(p.Proto == nm.UDP && p.Body.NoSum) {
		be.PutUint16(b[l4+sumAt:], l4Sum(b[start:l4], b[l4:]))
	}
	return b
}

// l4Sum is the checksum of an L4 packet whose own checksum field is zero.
func l4Sum(ip, l4 []byte) uint16 {
	var pseudo uint32
	if ip[9] != byte(nm.ICMP) {
		pseudo = uint32(testutil.Sum(uint32(ip[9])+uint32(len(l4)), ip[12:20]))
	}
	sum := ^testutil.Sum(pseudo, l4)
	if sum == 0 && ip[9] == byte(nm.UDP) {
		return 0xffff
	}
	return sum
}
