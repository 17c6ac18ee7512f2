package rfc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/fastbr/fastbr/internal/testutil"
)

const etherLen = 14

// packet is an IPv4 packet as it was seen on a link.
type packet struct {
	frame    []byte // Ethernet header first, without padding
	src, dst netip.Addr
	proto    byte
	ttl, tos byte
	frag     uint16 // flags and offset
	ip, l4   []byte // from the IPv4 and from the L4 header on
}

const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
)

func parsePacket(frame []byte) (p packet, ok bool) {
	if len(frame) < etherLen+20 || frame[12] != 8 || frame[13] != 0 {
		return p, false
	}
	ip, ok := parseIP(frame[etherLen:])
	ip.frame = frame[:etherLen+len(ip.ip)]
	return ip, ok
}

// parseIP reads a packet from its IPv4 header on. The packet may be truncated.
func parseIP(b []byte) (p packet, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return p, false
	}
	hlen, total := int(b[0]&0xf)*4, min(int(binary.BigEndian.Uint16(b[2:])), len(b))
	if hlen < 20 || total < hlen {
		return p, false
	}
	return packet{
		src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20])),
		proto: b[9], ttl: b[8], tos: b[1], frag: binary.BigEndian.Uint16(b[6:]),
		ip: b[:total], l4: b[hlen:total],
	}, true
}

func (p packet) word(off int) uint16 {
	if len(p.l4) < off+2 {
		return 0
	}
	return binary.BigEndian.Uint16(p.l4[off:])
}

// sport is the source port, or the id of an echo message.
func (p packet) sport() uint16 {
	if p.proto == protoICMP {
		return p.word(4)
	}
	return p.word(0)
}

// dport is the destination port, or the id of an echo message.
func (p packet) dport() uint16 {
	if p.proto == protoICMP {
		return p.word(4)
	}
	return p.word(2)
}

func (p packet) from() netip.AddrPort { return netip.AddrPortFrom(p.src, p.sport()) }

func (p packet) String() string {
	return fmt.Sprintf("proto %d %v:%d to %v:%d", p.proto, p.src, p.sport(), p.dst, p.dport())
}

// body is the part that no translator may change: the L4 packet without ports, echo id
// and checksum.
func (p packet) body() []byte {
	switch {
	case p.proto == protoTCP && len(p.l4) >= 20:
		return append(bytes.Clone(p.l4[4:16]), p.l4[18:]...)
	case p.proto == protoUDP && len(p.l4) >= 8:
		return p.l4[8:]
	case p.proto == protoICMP && len(p.l4) >= 8:
		return append([]byte{p.l4[0], p.l4[1]}, p.l4[6:]...)
	}
	return p.l4
}

// sameBody recognises a frame whatever its addresses have become. Each frame needs
// something unique in its body, see bed.tag.
func sameBody(frame []byte) func(packet) bool {
	want, ok := parsePacket(frame)
	return func(p packet) bool {
		return ok && p.proto == want.proto && bytes.Equal(p.body(), want.body())
	}
}

// icmpError recognises an ICMP error and returns what it quotes.
func icmpError(p packet) (typ, code byte, inner packet, ok bool) {
	if p.proto != protoICMP || len(p.l4) < 8+20 {
		return 0, 0, inner, false
	}
	switch p.l4[0] {
	case 3, 4, 5, 11, 12:
	default:
		return 0, 0, inner, false
	}
	inner, ok = parseIP(p.l4[8:])
	return p.l4[0], p.l4[1], inner, ok
}

// quoteSound says what is wrong with the checksums of a quoted packet. It checks only
// those that the quote holds completely.
func quoteSound(q packet) error {
	if testutil.Sum(0, q.ip[:len(q.ip)-len(q.l4)]) != 0xffff {
		return fmt.Errorf("the quoted IPv4 header's checksum is wrong")
	}
	if len(q.ip) < int(binary.BigEndian.Uint16(q.ip[2:])) {
		return nil // cut short
	}
	frame := append(make([]byte, 12, etherLen+len(q.ip)), 8, 0)
	if err := testutil.CheckSums(append(frame, q.ip...)); err != nil {
		return fmt.Errorf("quoted: %w", err)
	}
	return nil
}

// fixIPSum recomputes the checksum of the frame's IPv4 header.
func fixIPSum(frame []byte) {
	ip := frame[etherLen:]
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^testutil.Sum(0, ip[:int(ip[0]&0xf)*4]))
}

// fixICMPSum recomputes the checksum of the frame's ICMP message, whose length is even.
func fixICMPSum(frame []byte) {
	ip := frame[etherLen:]
	l4 := ip[int(ip[0]&0xf)*4 : binary.BigEndian.Uint16(ip[2:])]
	l4[2], l4[3] = 0, 0
	binary.BigEndian.PutUint16(l4[2:], ^testutil.Sum(0, l4))
}
