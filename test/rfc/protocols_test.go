package rfc

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// Checks of protocols that the kernel translates beside fastbr, by its own masquerade.

const (
	protoIGMP    = 2
	protoDCCP    = 33
	proto6in4    = 41
	protoGRE     = 47
	protoESP     = 50
	protoSCTP    = 132
	protoUDPLite = 136
)

// sctp is an SCTP packet with one chunk: INIT (1) or INIT ACK (2).
func sctp(source, dest uint16, tag uint32, chunk byte) []byte {
	p := make([]byte, 32)
	binary.BigEndian.PutUint16(p, source)
	binary.BigEndian.PutUint16(p[2:], dest)
	binary.BigEndian.PutUint32(p[4:], tag)
	p[12], p[15], p[19], p[22], p[25], p[27] = chunk, 20, 9, 0x10, 1, 1 // length, own tag, window, streams
	binary.LittleEndian.PutUint32(p[8:], sctpSum(p))
	return p
}

// sctpSum is the CRC32c of RFC 9260 appendix A.
func sctpSum(p []byte) uint32 {
	clear := append([]byte(nil), p...)
	binary.BigEndian.PutUint32(clear[8:], 0)
	return crc32.Checksum(clear, crc32.MakeTable(crc32.Castagnoli))
}

// sendsOther sends a packet of a protocol from one namespace to another, and returns it as
// it arrives.
func sendsOther(b *bed, from *lab.Namespace, to *lab.Namespace, proto byte, f testutil.Frame) (packet, error) {
	f.Proto = proto
	size := len(f.Payload)
	p, err := b.cross(from, b.frame(from, f), to, func(p packet) bool { return p.proto == proto && len(p.l4) == size })
	if err == nil && proto == protoSCTP && sctpSum(p.l4) != binary.LittleEndian.Uint32(p.l4[8:]) {
		err = fmt.Errorf("the checksum is wrong at %s", role(b, to))
	}
	return p, err
}

// checkOther asks and answers by a protocol without ports of the NAT range.
func checkOther(proto byte, ask, answer []byte) func(*bed) error {
	return func(b *bed) error {
		p, err := sendsOther(b, b.c1, b.sv, proto, testutil.Frame{Dst: b.a, Payload: ask})
		if err != nil {
			return err
		}
		if p.src != b.HostAddr(0) {
			return fmt.Errorf("it leaves with the address %v", p.src)
		}
		if p, err = sendsOther(b, b.sv, b.c1, proto, testutil.Frame{Src: b.a, Dst: p.src, Payload: answer}); err != nil {
			return err
		}
		if p.src != b.a || p.dst != b.c1.Addr {
			return fmt.Errorf("the answer arrives from %v to %v", p.src, p.dst)
		}
		return nil
	}
}

// summed is a packet of UDP-Lite, or a request or response of DCCP, whose checksum covers the
// header and the addresses only: both have it at the same place.
func summed(proto byte, src, dst netip.AddrPort, answer bool) []byte {
	header := []byte{5: 8, 7: 0} // UDP-Lite, with its coverage
	if proto == protoDCCP {
		header = make([]byte, 20)
		header[4], header[5], header[15] = 5, 1, 1 // in words; coverage; sequence number
		header[8] = 1                              // request, extended sequence numbers
		if answer {
			header = append(header, 0, 0, 0, 0, 0, 0, 0, 1)
			header[4], header[8] = 7, 1<<1|1
		}
	}
	binary.BigEndian.PutUint16(header, src.Port())
	binary.BigEndian.PutUint16(header[2:], dst.Port())
	packet := append(header, "text"...)
	binary.BigEndian.PutUint16(packet[6:], ^headerSum(proto, src.Addr(), dst.Addr(), packet, len(header)))
	return packet
}

// headerSum is the one's complement sum of the first bytes of a packet and its pseudo header
// (RFC 3828 section 3.1, RFC 4340 section 9.1).
func headerSum(proto byte, src, dst netip.Addr, packet []byte, covered int) uint16 {
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, proto, 0, byte(len(packet))}, packet[:covered])
	sum := uint32(0)
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// checkSummed asks and answers by UDP-Lite or DCCP.
func checkSummed(proto byte) func(*bed) error {
	return func(b *bed) error {
		source, server := b.rawPort(), on(b.a, 80)
		ask := summed(proto, on(b.c1.Addr, source), server, false)
		p, err := sendsOther(b, b.c1, b.sv, proto, testutil.Frame{Dst: b.a, Payload: ask})
		if err != nil {
			return err
		}
		if p.src != b.HostAddr(0) || p.dport() != 80 {
			return fmt.Errorf("it leaves as %v", p)
		}
		if headerSum(proto, p.src, p.dst, p.l4, len(ask)-len("text")) != 0xffff {
			return fmt.Errorf("its checksum is wrong outside: only the address is translated")
		}
		answer := summed(proto, server, p.from(), true)
		p, err = sendsOther(b, b.sv, b.c1, proto, testutil.Frame{Src: b.a, Dst: p.src, Payload: answer})
		if err == nil && (p.from() != server || p.dst != b.c1.Addr || p.dport() != source) {
			err = fmt.Errorf("the answer arrives as %v", p)
		}
		return err
	}
}

// checkSCTPOut begins an association from inside.
func checkSCTPOut(b *bed) error {
	source := b.rawPort()
	p, err := sendsOther(b, b.c1, b.sv, protoSCTP, testutil.Frame{Dst: b.a, Payload: sctp(source, 80, 0, 1)})
	if err != nil {
		return err
	}
	if p.src != b.HostAddr(0) || p.dport() != 80 {
		return fmt.Errorf("it leaves as %v", p)
	}
	p, err = sendsOther(b, b.sv, b.c1, protoSCTP, testutil.Frame{Src: b.a, Dst: p.src, Payload: sctp(80, p.sport(), 9, 2)})
	if err == nil && (p.from() != on(b.a, 80) || p.dst != b.c1.Addr || p.dport() != source) {
		err = fmt.Errorf("the answer arrives as %v", p)
	}
	return err
}

// checkSCTPPublished begins one from outside, by a port of the host. The kernel's bridge
// has a DNAT rule, as docker's -p makes it.
func checkSCTPPublished(b *bed) error {
	const public, inside = 9009, 2905
	if b.plain() {
		b.ok(b.Host.NFT(b.Ctx, fmt.Sprintf("table ip published {\nchain in {\ntype nat hook prerouting priority dstnat;\nfib daddr type local sctp dport %d dnat to %v:%d\n}\n}\n", public, b.c1.Addr, inside)))
	} else {
		b.Must(b.t, "publish", "add", fmt.Sprintf("%d:%d/sctp", public, inside), "c1")
		defer b.Must(b.t, "publish", "rm", fmt.Sprintf("%d/sctp", public))
	}
	source, host := b.rawPort(), on(b.HostAddr(0), public)
	p, err := sendsOther(b, b.sv, b.c1, protoSCTP, testutil.Frame{Src: b.a, Dst: host.Addr(), Payload: sctp(source, public, 0, 1)})
	if err != nil {
		return err
	}
	if p.from() != on(b.a, source) || p.dst != b.c1.Addr || p.dport() != inside {
		return fmt.Errorf("it arrives as %v", p)
	}
	p, err = sendsOther(b, b.c1, b.sv, protoSCTP, testutil.Frame{Dst: b.a, Payload: sctp(inside, source, 9, 2)})
	if err == nil && (p.from() != host || p.dport() != source) {
		err = fmt.Errorf("the answer leaves as %v", p)
	}
	return err
}
