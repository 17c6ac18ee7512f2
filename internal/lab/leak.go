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
	ipHdrLen    = 20
	icmpHdrLen  = 8
	arpSenderIP = etherHdrLen + 14
)

// attachFilter makes the kernel drop what leakReason would ignore, so that the
// capture keeps up with bulk traffic. It passes only frames that the device
// received: control frames, tagged frames, ARP, ICMP, and IPv4 from a private
// prefix. It passes no IPv4 to an address in excepted.
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
	prog = append(prog,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	)
	addrs := func(at uint32, prefixes []netip.Prefix, verdict uint32) {
		for _, p := range prefixes {
			a := p.Masked().Addr().As4()
			prog = append(prog,
				bpf.LoadAbsolute{Off: etherHdrLen + at, Size: 4},
				bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(0xffffffff) << (32 - p.Bits())},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(a[:]), SkipTrue: 1},
				bpf.RetConstant{Val: verdict},
			)
		}
	}
	addrs(16, excepted, 0)
	prog = append(prog,
		bpf.LoadAbsolute{Off: etherHdrLen + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoICMP, SkipTrue: 1},
		bpf.RetConstant{Val: snapLen},
	)
	addrs(12, private, snapLen)
	return append(prog, bpf.RetConstant{Val: 0})
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
		if a, ok := addrIn(l3, arpSenderIP-etherHdrLen, private); ok {
			return fmt.Sprintf("ARP sender %v", a)
		}
	case unix.ETH_P_IP:
		return packetLeakReason(l3, private)
	}
	return ""
}

// packetLeakReason is leakReason for an IPv4 packet.
func packetLeakReason(ip []byte, private []netip.Prefix) string {
	if a, ok := addrIn(ip, 12, private); ok {
		return fmt.Sprintf("IPv4 source %v", a)
	}
	return icmpLeakReason(ip, private)
}

// icmpLeakReason checks the packet that an ICMP error quotes: outside, neither
// of its addresses may be private.
func icmpLeakReason(ip []byte, private []netip.Prefix) string {
	if len(ip) < ipHdrLen || ip[9] != protoICMP || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
		return ""
	}
	hlen := int(ip[0]&0xf) * 4
	if len(ip) < hlen+icmpHdrLen+ipHdrLen {
		return ""
	}
	switch ip[hlen] {
	case 3, 4, 5, 11, 12: // unreachable, source quench, redirect, time exceeded, parameter problem
	default:
		return ""
	}
	inner := ip[hlen+icmpHdrLen:]
	for _, f := range []struct {
		name string
		off  int
	}{{"source", 12}, {"destination", 16}} {
		if a, ok := addrIn(inner, f.off, private); ok {
			return fmt.Sprintf("ICMP error type %d with inner %s %v", ip[hlen], f.name, a)
		}
	}
	return ""
}

func addrIn(b []byte, off int, private []netip.Prefix) (netip.Addr, bool) {
	if len(b) < off+4 {
		return netip.Addr{}, false
	}
	a := netip.AddrFrom4([4]byte(b[off : off+4]))
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
	a := private.As4()
	packet := func(proto byte, src, dst [4]byte, payload []byte) []byte {
		ip := make([]byte, ipHdrLen, ipHdrLen+len(payload))
		ip[0], ip[8], ip[9] = 0x45, 1, proto
		binary.BigEndian.PutUint16(ip[2:], uint16(ipHdrLen+len(payload)))
		copy(ip[12:], src[:])
		copy(ip[16:], dst[:])
		return append(ip, payload...)
	}
	frame := func(etype uint16, payload []byte) []byte {
		return append(binary.BigEndian.AppendUint16(broadcast[:12:12], etype), payload...)
	}
	elsewhere := [4]byte{192, 0, 2, 1}
	const udp = 17
	arp := []byte{0, 1, 8, 0, 6, 4, 0, 1, 0x02, 0, 0, 0, 0, 0xfb, a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 192, 0, 2, 1}
	unreachable := []byte{3, 1, 0, 0, 0, 0, 0, 0}
	plain := packet(udp, a, elsewhere, make([]byte, 8))
	big := bytes.Clone(plain)
	big[2], big[3] = 0, 0 // the length that super-packets beyond 64 KiB have
	return [][]byte{
		frame(unix.ETH_P_IP, plain),
		frame(unix.ETH_P_IP, big),
		frame(unix.ETH_P_ARP, arp),
		frame(unix.ETH_P_IP, packet(protoICMP, elsewhere, elsewhere, append(unreachable, packet(udp, elsewhere, a, make([]byte, 8))...))),
		frame(unix.ETH_P_8021Q, append([]byte{0, 7, 8, 0}, plain...)),
	}
}
