package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	protoICMP   = 1
	protoICMPv6 = 58
	ipHdrLen    = 20
	ip6HdrLen   = 40
	icmpHdrLen  = 8
	arpSenderIP = etherHdrLen + 14
)

// attachFilter makes the kernel drop what leakReason would ignore, so that the
// capture keeps up with bulk traffic. It passes only frames that the device
// received: control frames, tagged frames, ARP, packets from a private prefix, and
// those that are neither TCP nor UDP. It passes no packet to an address in excepted.
func attachFilter(fd int, private, excepted []netip.Prefix) error {
	raw, err := bpf.Assemble(captureFilter(private, excepted))
	if err != nil {
		return fmt.Errorf("assembling the capture filter: %w", err)
	}
	f := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		f[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("attaching the capture filter: %w", err)
	}
	return nil
}

func captureFilter(private, excepted []netip.Prefix) []bpf.Instruction {
	prog := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadAbsolute{Off: 12, Size: 2},
	}
	for _, t := range []uint32{controlType, unix.ETH_P_8021Q, unix.ETH_P_8021AD, unix.ETH_P_ARP} {
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: t, SkipTrue: 1}, bpf.RetConstant{Val: snapLen})
	}
	for _, f := range []struct {
		etype, proto, src, dst uint32 // ethertype; offsets of the protocol or next header, and of the addresses
		is                     func(netip.Addr) bool
	}{
		{unix.ETH_P_IP, 9, 12, 16, netip.Addr.Is4},
		{unix.ETH_P_IPV6, 6, 8, 24, netip.Addr.Is6},
	} {
		of := addressFilter(f.dst, excepted, f.is, 0)
		of = append(of, bpf.LoadAbsolute{Off: etherHdrLen + f.proto, Size: 1})
		of = append(of,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipTrue: 1},
			bpf.RetConstant{Val: snapLen})
		of = append(of, addressFilter(f.src, private, f.is, snapLen)...)
		of = append(of, bpf.RetConstant{Val: 0})
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: f.etype, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(of))})
		prog = append(prog, of...)
	}
	return append(prog, bpf.RetConstant{Val: 0})
}

// addressFilter returns verdict for a packet whose address at an offset of its header
// is in one of the prefixes of a family.
func addressFilter(at uint32, prefixes []netip.Prefix, is func(netip.Addr) bool, verdict uint32) (prog []bpf.Instruction) {
	for _, p := range prefixes {
		if !is(p.Addr()) {
			continue
		}
		addr := p.Masked().Addr().AsSlice()
		words := (p.Bits() + 31) / 32
		for i := range words {
			prog = append(prog,
				bpf.LoadAbsolute{Off: etherHdrLen + at + uint32(4*i), Size: 4},
				bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: ^uint32(0) << max(0, 32*(i+1)-p.Bits())},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(addr[4*i:]), SkipTrue: uint8(3*(words-i-1) + 1)},
			)
		}
		prog = append(prog, bpf.RetConstant{Val: verdict})
	}
	return prog
}

// leakReason returns why a frame is a leak, or "". It looks behind VLAN tags: a
// tagged private packet is a leak as well.
func leakReason(f []byte, private []netip.Prefix) string {
	if len(f) < etherHdrLen {
		return ""
	}
	etype, l3 := binary.BigEndian.Uint16(f[12:]), f[etherHdrLen:]
	for (etype == unix.ETH_P_8021Q || etype == unix.ETH_P_8021AD) && len(l3) >= 4 {
		etype, l3 = binary.BigEndian.Uint16(l3[2:]), l3[4:]
	}
	switch etype {
	case unix.ETH_P_ARP:
		if a, ok := addrIn(l3, arpSenderIP-etherHdrLen, 4, private); ok {
			return fmt.Sprintf("ARP sender %v", a)
		}
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
		return packetLeakReason(l3, private)
	}
	return ""
}

// header is where a packet's parts are.
type header struct {
	name     string
	addrLen  int // bytes
	src, dst int // offsets
	icmp     int // offset of the ICMP message; 0: the packet is none, or a later fragment
}

// headerOf reads the headers of a packet. It reports false if there is not even the
// fixed one.
func headerOf(ip []byte) (h header, ok bool) {
	switch {
	case len(ip) >= ipHdrLen && ip[0]>>4 == 4:
		h = header{name: "IPv4", addrLen: 4, src: 12, dst: 16}
		if ip[9] == protoICMP && binary.BigEndian.Uint16(ip[6:])&0x1fff == 0 {
			h.icmp = int(ip[0]&0xf) * 4
		}
	case len(ip) >= ip6HdrLen && ip[0]>>4 == 6:
		h = header{name: "IPv6", addrLen: 16, src: 8, dst: 24, icmp: icmp6Offset(ip)}
	default:
		return h, false
	}
	return h, true
}

// icmp6Offset walks the extension headers of an IPv6 packet to its ICMPv6 message. It
// returns 0 if there is none.
func icmp6Offset(ip []byte) int {
	next, at := ip[6], ip6HdrLen
	for next != protoICMPv6 {
		if len(ip) < at+8 {
			return 0
		}
		length := (int(ip[at+1]) + 1) * 8
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
		case unix.IPPROTO_FRAGMENT:
			if length = 8; binary.BigEndian.Uint16(ip[at+2:])>>3 != 0 {
				return 0
			}
		default:
			return 0
		}
		next, at = ip[at], at+length
	}
	return at
}

// packetLeakReason is leakReason for an IP packet.
func packetLeakReason(ip []byte, private []netip.Prefix) string {
	h, ok := headerOf(ip)
	if !ok {
		return ""
	}
	if a, ok := addrIn(ip, h.src, h.addrLen, private); ok {
		return fmt.Sprintf("%s source %v", h.name, a)
	}
	if h.icmp == 0 || len(ip) < h.icmp+icmpHdrLen {
		return ""
	}
	message := ip[h.icmp:]
	switch kind := message[0]; {
	case isError(h, kind):
		return quoteLeakReason(message, private)
	case h.name == "IPv6" && (kind == typeSolicitation || kind == typeAdvertisement):
		if a, ok := addrIn(message, icmpHdrLen, h.addrLen, private); ok {
			return fmt.Sprintf("neighbour discovery about %v", a)
		}
	}
	return ""
}

// Types of neighbour discovery (RFC 4861).
const (
	typeSolicitation  = 135
	typeAdvertisement = 136
)

// isError reports whether an ICMP message of this type quotes a packet.
func isError(h header, kind byte) bool {
	if h.name == "IPv6" {
		return kind >= 1 && kind <= 4 // unreachable, too big, time exceeded, parameter problem
	}
	switch kind {
	case 3, 4, 5, 11, 12: // unreachable, source quench, redirect, time exceeded, parameter problem
		return true
	}
	return false
}

// quoteLeakReason checks the packet that an ICMP error quotes: outside, neither of its
// addresses may be private.
func quoteLeakReason(message []byte, private []netip.Prefix) string {
	inner := message[icmpHdrLen:]
	h, ok := headerOf(inner)
	if !ok {
		return ""
	}
	for _, f := range []struct {
		name string
		off  int
	}{{"source", h.src}, {"destination", h.dst}} {
		if a, ok := addrIn(inner, f.off, h.addrLen, private); ok {
			return fmt.Sprintf("ICMP error type %d with inner %s %v", message[0], f.name, a)
		}
	}
	return ""
}

// addrIn reads the address of n bytes at off, and reports whether it is in one of the
// prefixes.
func addrIn(b []byte, off, n int, private []netip.Prefix) (netip.Addr, bool) {
	if len(b) < off+n {
		return netip.Addr{}, false
	}
	a, _ := netip.AddrFromSlice(b[off : off+n])
	for _, p := range private {
		if p.Contains(a) {
			return a, true
		}
	}
	return a, false
}

var broadcast = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0xfb}

func controlFrame(payload []byte) []byte {
	f := append(broadcast[:12:12], controlType>>8, controlType&0xff)
	return append(f, payload...)
}

func controlPayload(f []byte) ([]byte, bool) {
	if len(f) < etherHdrLen || binary.BigEndian.Uint16(f[12:]) != controlType {
		return nil, false
	}
	return f[etherHdrLen:], true
}

// forgeries returns one frame of each kind that a capture must record. They
// have no checksums: the capture ignores them, and nobody must accept these
// frames.
func forgeries(private netip.Addr) [][]byte {
	if private.Is6() {
		return forgeries6(private)
	}
	a := private.As4()
	packet := func(proto byte, src, dst [4]byte, payload []byte) []byte {
		ip := make([]byte, ipHdrLen, ipHdrLen+len(payload))
		ip[0], ip[8], ip[9] = 0x45, 1, proto
		binary.BigEndian.PutUint16(ip[2:], uint16(ipHdrLen+len(payload)))
		copy(ip[12:], src[:])
		copy(ip[16:], dst[:])
		return append(ip, payload...)
	}
	elsewhere := [4]byte{192, 0, 2, 1}
	arp := []byte{0, 1, 8, 0, 6, 4, 0, 1, 0x02, 0, 0, 0, 0, 0xfb, a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 192, 0, 2, 1}
	unreachable := []byte{3, 1, 0, 0, 0, 0, 0, 0}
	plain := packet(unix.IPPROTO_UDP, a, elsewhere, make([]byte, 8))
	big := bytes.Clone(plain)
	big[2], big[3] = 0, 0 // the length that super-packets beyond 64 KiB have
	return [][]byte{
		broadcastFrame(unix.ETH_P_IP, plain),
		broadcastFrame(unix.ETH_P_IP, big),
		broadcastFrame(unix.ETH_P_ARP, arp),
		broadcastFrame(unix.ETH_P_IP, packet(protoICMP, elsewhere, elsewhere, append(unreachable, packet(unix.IPPROTO_UDP, elsewhere, a, make([]byte, 8))...))),
		broadcastFrame(unix.ETH_P_8021Q, append([]byte{0, 7, 8, 0}, plain...)),
	}
}

// forgeries6 is forgeries for an IPv6 address.
func forgeries6(private netip.Addr) [][]byte {
	packet := func(next byte, src, dst netip.Addr, payload []byte) []byte {
		ip := make([]byte, ip6HdrLen, ip6HdrLen+len(payload))
		ip[0], ip[6], ip[7] = 0x60, next, 1
		binary.BigEndian.PutUint16(ip[4:], uint16(len(payload)))
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], dst.AsSlice())
		return append(ip, payload...)
	}
	elsewhere := plan6.servers[0][0].Addr()
	plain := packet(unix.IPPROTO_UDP, private, elsewhere, make([]byte, 8))
	unreachable := append(make([]byte, icmpHdrLen), packet(unix.IPPROTO_UDP, elsewhere, private, make([]byte, 8))...)
	unreachable[0] = 1
	solicitation := append(make([]byte, icmpHdrLen), private.AsSlice()...)
	solicitation[0] = typeSolicitation
	options := []byte{protoICMPv6, 0, 1, 4, 0, 0, 0, 0} // padding
	return [][]byte{
		broadcastFrame(unix.ETH_P_IPV6, plain),
		broadcastFrame(unix.ETH_P_IPV6, packet(protoICMPv6, elsewhere, elsewhere, unreachable)),
		broadcastFrame(unix.ETH_P_IPV6, packet(unix.IPPROTO_DSTOPTS, elsewhere, elsewhere, append(options, unreachable...))),
		broadcastFrame(unix.ETH_P_IPV6, packet(protoICMPv6, elsewhere, elsewhere, solicitation)),
		broadcastFrame(unix.ETH_P_8021Q, append([]byte{0, 7, 0x86, 0xdd}, plain...)),
	}
}

func broadcastFrame(etype uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16(broadcast[:12:12], etype), payload...)
}
