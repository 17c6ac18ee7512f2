package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
	"github.com/fastbr/fastbr/internal/testutil"
)

// Programs run on any bytes, those of IPv6 behind those of IPv4, as on a device. Whatever goes
// on never carries a container's address outside, leaves by a port of the range, and keeps
// right checksums right. The seeds run with every test; `make fuzz` looks for more.

// fuzzer runs programs for fuzz targets, whose goroutines are not in the namespace.
type fuzzer struct {
	*injected
	jobs chan func()
}

func newFuzzer(f *testing.F) *fuzzer {
	f.Helper()
	z := &fuzzer{injected: newInjected(f, Config{FlowsMax: 256, NATFirst: 10000, NATLast: 10127}, nil), jobs: make(chan func())}
	withIP6(f, z.harness)
	z.set(f, startOfTime, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		z.ns.Do(f, func() {
			for job := range z.jobs {
				job()
			}
		})
	}()
	z.jobs <- func() {} // inside now: nothing may use f once the targets run
	f.Cleanup(func() { close(z.jobs); <-ended })
	return z
}

// inside runs f in the namespace.
func (z *fuzzer) inside(f func() error) (err error) {
	done := make(chan struct{})
	z.jobs <- func() { defer close(done); err = f() }
	<-done
	return err
}

// outbound are packets of c1 as they reach the uplink.
func (z *fuzzer) outbound(of addresses) (out []nm.Packet) {
	p := nm.Packet{Kind: nm.Ports, Src: of.c1, Dst: of.server, SPort: 40000, DPort: 80, TTL: 63, Body: nm.Body{Payload: 9}}
	copy(p.MACs[:], z.routed(z.fromC1()).DstMAC)
	copy(p.MACs[6:], z.routed(z.fromC1()).SrcMAC)
	for _, proto := range []nm.Proto{nm.TCP, nm.UDP, nm.ICMP} {
		p.Proto, p.Flags = proto, nm.ACK
		if proto == nm.ICMP {
			p.Kind, p.DPort = nm.EchoRequest, 0
		}
		out = append(out, p)
	}
	return out
}

// converse makes p's flow, with a lease in both directions.
func (z *fuzzer) converse(f *testing.F, of addresses, p nm.Packet) (in nm.Packet) {
	f.Helper()
	h := z.speaking(of)
	run := func(prog string, frame []byte, ifindex, iif int) []byte {
		got, err := z.exec(h.prog(prog), frame, ifindex, iif, 0)
		check(f, err)
		return got.frame
	}
	left := parsePacket(run(tcProgFbrUplinkOut, render(nil, &p), z.uplink.Ifindex, z.bridge))
	in = nm.Packet{Kind: p.Kind, Proto: p.Proto, Src: p.Dst, Dst: of.ext, SPort: p.DPort, DPort: left.port(), Flags: p.Flags, TTL: 64, MACs: reversed(p.MACs), Body: p.Body}
	if p.Kind == nm.EchoRequest {
		in.Kind = nm.EchoReply
	}
	came := run(tcProgFbrUplinkIn, render(nil, &in), z.uplink.Ifindex, z.uplink.Ifindex)
	run(tcProgFbrPortOut, append(append(append([]byte(nil), z.c1.MAC...), z.gateway...), came[12:]...), z.c1.Ifindex, z.uplink.Ifindex)
	return in
}

// seeds are packets of every kind, and errors about them, from inside and from outside.
func (z *fuzzer) seeds(f *testing.F) (inside, outside [][]byte) {
	f.Helper()
	for _, of := range []addresses{of4, of6} {
		in, out := z.seedsOf(f, of)
		inside, outside = append(inside, in...), append(outside, out...)
	}
	return inside, outside
}

func (z *fuzzer) seedsOf(f *testing.F, of addresses) (inside, outside [][]byte) {
	f.Helper()
	errors := map[bool][]uint8{false: walk4.errors, true: walk6.errors}[of.c1.Is6()]
	for _, p := range z.outbound(of) {
		in := z.converse(f, of, p)
		left := in
		left.Src, left.Dst, left.SPort, left.DPort = in.Dst, in.Src, in.DPort, in.SPort
		if in.Kind == nm.EchoReply {
			left.Kind = nm.EchoRequest
		}
		came := in
		came.Dst, came.DPort = p.Src, p.SPort
		about := func(q nm.Packet, src, dst nm.Addr) nm.Packet {
			return nm.Packet{Kind: nm.Error, Proto: nm.ICMP, Type: errors[0], Code: 3, TTL: 64, Src: src, Dst: dst, MACs: p.MACs, Quote: &q, Body: nm.Body{Cut: 20}}
		}
		for _, q := range []nm.Packet{p, about(came, p.Src, came.Src)} {
			inside = append(inside, render(nil, &q))
		}
		for _, q := range []nm.Packet{in, about(left, in.Src, left.Src)} {
			outside = append(outside, render(nil, &q))
		}
	}
	return inside, outside
}

// run runs the programs of this name inside the namespace: IPv4's, and if it lets the frame
// go on, IPv6's. It is false if the kernel does not accept the frame, or if it was dropped.
func (z *fuzzer) run(t *testing.T, name string, frame []byte, ifindex, iif int) (got result, on bool) {
	t.Helper()
	if len(frame) < 14 || len(frame) > 1514 { // no frame
		return result{}, false
	}
	for _, o := range z.families.loaded() {
		p := o.progs[name]
		if p == nil {
			continue
		}
		err := z.inside(func() (err error) {
			if p.Type() == ebpf.XDP {
				got, err = z.execXDP(p, frame, ifindex)
			} else {
				got, err = z.exec(p, bytes.Clone(frame), ifindex, iif, 0)
			}
			return err
		})
		if err == unix.EINVAL {
			return got, false
		}
		if err != nil {
			t.Fatal(err)
		}
		if p.Type() == ebpf.XDP {
			return got, true
		}
		if got.verdict != next && got.verdict != shot && got.verdict != redirect {
			t.Fatalf("verdict %d", got.verdict)
		}
		if got.verdict != next {
			break
		}
		frame = bytes.Clone(got.frame)
	}
	return got, got.verdict != shot
}

// parsed is an IP packet of either family.
type parsed struct {
	ip       []byte // with its header; nil: none
	src, dst netip.Addr
	proto    uint8 // of what stands at l4
	l4       int
	end      int  // of the packet, by its length
	later    bool // a fragment without an L4 header
}

// parsePacket is the packet in an untagged frame.
func parsePacket(frame []byte) parsed {
	if len(frame) < 14 {
		return parsed{}
	}
	switch be.Uint16(frame[12:]) {
	case 0x0800:
		return parseIP(frame[14:], 4)
	case 0x86dd:
		return parseIP(frame[14:], 6)
	}
	return parsed{}
}

func parseIP(ip []byte, version byte) (p parsed) {
	switch {
	case len(ip) < 20 || ip[0]>>4 != version:
		return parsed{}
	case version == 4 && ip[0]&0xf >= 5:
		p = parsed{ip: ip, src: netip.AddrFrom4([4]byte(ip[12:16])), dst: netip.AddrFrom4([4]byte(ip[16:20])),
			proto: ip[9], l4: int(ip[0]&0xf) * 4, end: int(be.Uint16(ip[2:])), later: be.Uint16(ip[6:])&0x1fff != 0}
	case version == 6 && len(ip) >= 40:
		p = parsed{ip: ip, src: netip.AddrFrom16([16]byte(ip[8:24])), dst: netip.AddrFrom16([16]byte(ip[24:40])),
			proto: ip[6], l4: 40, end: 40 + int(be.Uint16(ip[4:]))}
		for !p.later && len(ip) >= p.l4+8 && slices.Contains([]uint8{0, 43, 44, 60}, p.proto) {
			kind, ext := p.proto, ip[p.l4:]
			p.proto, p.l4 = ext[0], p.l4+8
			if kind == 44 {
				p.later = be.Uint16(ext[2:])&0xfff8 != 0
			} else {
				p.l4 += int(ext[1]) * 8
			}
		}
	}
	return p
}

// icmp reports whether the packet is of its family's ICMP.
func (p parsed) icmp() bool {
	return p.proto == map[bool]uint8{false: 1, true: unix.IPPROTO_ICMPV6}[p.src.Is6()]
}

// port is the source port, or the id of an echo.
func (p parsed) port() uint16 {
	at := p.l4
	if p.icmp() {
		at += 4
	}
	if len(p.ip) < at+2 {
		return 0
	}
	return be.Uint16(p.ip[at:])
}

// quoted is the packet inside an ICMP error.
func (p parsed) quoted() parsed {
	if p.ip == nil || !p.icmp() || p.later || len(p.ip) < p.l4+28 {
		return parsed{}
	}
	kind := p.ip[p.l4]
	if p.src.Is6() {
		if kind >= 128 {
			return parsed{}
		}
		return parseIP(p.ip[p.l4+8:], 6)
	}
	if !slices.Contains([]uint8{3, 4, 5, 11, 12}, kind) {
		return parsed{}
	}
	return parseIP(p.ip[p.l4+8:], 4)
}

var containers = []netip.Prefix{netip.MustParsePrefix("172.30.0.0/15"), net6, netip.MustParsePrefix("fd00:2::/64")}

func ofContainer(a netip.Addr) bool {
	return slices.ContainsFunc(containers, func(p netip.Prefix) bool { return p.Contains(a) })
}

// leaks is an error if a frame that leaves by the uplink has the address of a
// container.
func leaks(frame []byte) error {
	p := parsePacket(frame)
	if ofContainer(p.src) {
		return fmt.Errorf("a container's source leaves: %x", frame)
	}
	if in := p.quoted(); ofContainer(in.src) || ofContainer(in.dst) {
		return fmt.Errorf("a container's address leaves inside of an error: %x", frame)
	}
	return nil
}

// outOfRange reports whether a container's packet left by a port that is not ours.
func outOfRange(sent, got []byte) error {
	a, b := parsePacket(sent), parsePacket(got)
	if b.ip == nil || !ofContainer(a.src) || b.later || a.quoted().ip != nil {
		return nil
	}
	if p := b.port(); p < 10000 || p > 10127 {
		return fmt.Errorf("left by port %d: %x", p, got)
	}
	return nil
}

// wrongSums reports whether a right checksum became a wrong one.
func wrongSums(sent, got []byte) error {
	p := parsePacket(sent)
	if p.ip == nil || len(p.ip) < p.end || p.short() || testutil.CheckSums(sent) != nil {
		return nil
	}
	if err := testutil.CheckSums(got); err != nil {
		return fmt.Errorf("%w\nsent %x\n got %x", err, sent, got)
	}
	return nil
}

// short reports whether the L4 header is not complete, so that there is no checksum.
func (p parsed) short() bool {
	need := map[byte]int{1: 8, 6: 20, 17: 8, unix.IPPROTO_ICMPV6: 8}[p.proto]
	return p.end-p.l4 < need
}

// fixed gives a frame c1's source address and right checksums, so that it gets further.
func (z *fuzzer) fixed(frame []byte, how byte, inside bool) []byte {
	b := bytes.Clone(frame)
	p := parsePacket(b)
	if p.ip == nil || how&1 == 0 {
		return b
	}
	if inside {
		copy(b[6:12], z.c1.MAC)
		copy(b, z.gateway)
		if p.src.Is6() {
			copy(p.ip[8:24], c1Addr6.AsSlice())
		} else {
			copy(p.ip[12:16], c1Addr.AsSlice())
		}
	}
	if how&2 != 0 {
		if p.src.Is6() {
			be.PutUint16(p.ip[4:], uint16(len(p.ip)-40))
		} else {
			be.PutUint16(p.ip[2:], uint16(len(p.ip)))
		}
	}
	if len(p.ip) < p.l4+20 {
		return b
	}
	header := p.ip[:p.l4]
	if p.src.Is4() {
		be.PutUint16(header[10:], 0)
		be.PutUint16(header[10:], ^testutil.Sum(0, header))
	}
	at, ok := map[byte]int{1: 2, 6: 16, 17: 6, unix.IPPROTO_ICMPV6: 2}[p.proto]
	if ok && !(p.src.Is6() && p.l4 != 40) {
		l4 := p.ip[p.l4:]
		if p.proto == 17 && how&2 != 0 {
			be.PutUint16(l4[4:], uint16(len(l4)))
		}
		be.PutUint16(l4[at:], 0)
		be.PutUint16(l4[at:], l4Sum(header, l4))
	}
	return b
}

func FuzzPortIn(f *testing.F) {
	z := newFuzzer(f)
	seeds, _ := z.seeds(f)
	for _, s := range seeds {
		f.Add(s, byte(1))
		f.Add(s, byte(0))
	}
	f.Fuzz(func(t *testing.T, frame []byte, how byte) {
		sent := z.fixed(frame, how, true)
		got, on := z.run(t, tcProgFbrPortIn, sent, z.c1.Ifindex, z.c1.Ifindex)
		if !on {
			return
		}
		if !bytes.Equal(sent[6:12], z.c1.MAC) {
			t.Fatalf("a foreign MAC got in: %x", sent)
		}
		p, q := parsePacket(sent), parsePacket(got.frame)
		if p.ip != nil && !mayBeC1(p) {
			t.Fatalf("a foreign address got in: %x", sent)
		}
		answered := got.verdict == redirect && p.icmp() && p.src.Is6() && !bytes.Equal(sent, got.frame) && q.dst == p.src // a neighbour's question
		if got.verdict == redirect && q.ip != nil && !answered && !bytes.Equal(sent, got.frame) {
			for _, err := range []error{leaks(got.frame), outOfRange(sent, got.frame), wrongSums(sent, got.frame)} {
				if err != nil {
					t.Fatal(err)
				}
			}
		} else if err := wrongSums(sent, got.frame); err != nil {
			t.Fatal(err)
		}
	})
}

// mayBeC1 reports whether c1 may send from a packet's source address. Nobody else has claimed a
// link-local address.
func mayBeC1(p parsed) bool {
	return p.src == c1Addr || p.src == c1Addr6 || p.src.Is6() && p.src.IsLinkLocalUnicast() || p.src == noAddr6 && p.dst.IsMulticast()
}

func FuzzUplinkOut(f *testing.F) {
	z := newFuzzer(f)
	inside, outside := z.seeds(f)
	for i, s := range append(inside, outside...) {
		f.Add(s, byte(i), byte(1))
		f.Add(s, byte(0), byte(0))
	}
	f.Fuzz(func(t *testing.T, frame []byte, from, how byte) {
		iif := []int{z.bridge, 0, z.foreign, z.bridge2}[from%4]
		sent := z.fixed(frame, how, from%4 == 0)
		got, on := z.run(t, tcProgFbrUplinkOut, sent, z.uplink.Ifindex, iif)
		if !on || got.verdict == redirect { // back to the container: the flow was refused
			return
		}
		for _, err := range []error{leaks(got.frame), outOfRange(sent, got.frame), wrongSums(sent, got.frame)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzUplinkIn(f *testing.F) {
	z := newFuzzer(f)
	check(f, z.inside(func() error {
		z.c1.XDP = true
		return errors.Join(z.AttachXDP(z.uplink.Ifindex), z.AttachPort(z.c1))
	}))
	inside, outside := z.seeds(f)
	for _, s := range append(outside, inside...) {
		f.Add(s, byte(1))
		f.Add(s, byte(0))
	}
	f.Fuzz(func(t *testing.T, frame []byte, how byte) {
		sent := z.fixed(frame, how, false)
		early, _ := z.run(t, tcProgFbrUplinkXdp, sent, z.uplink.Ifindex, 0)
		early.frame = bytes.Clone(early.frame)
		got, on := z.run(t, tcProgFbrUplinkIn, sent, z.uplink.Ifindex, z.uplink.Ifindex)
		switch early.verdict {
		case xdpRedirect:
			if got.verdict != redirect || !bytes.Equal(early.frame, got.frame) {
				t.Fatalf("XDP and tc (verdict %d) differ:\nsent %x\n XDP %x\n  tc %x", got.verdict, sent, early.frame, got.frame)
			}
		case xdpDrop:
			if got.verdict != shot {
				t.Fatalf("XDP drops what tc does not: %x", sent)
			}
		default:
			if len(early.frame) > 0 && !bytes.Equal(early.frame, sent) {
				t.Fatalf("XDP changed what it left to tc: %x, %x", sent, early.frame)
			}
		}
		if !on {
			return
		}
		if ofContainer(parsePacket(sent).dst) {
			t.Fatalf("let in directly: %x", sent)
		}
		if err := wrongSums(sent, got.frame); err != nil {
			t.Fatal(err)
		}
	})
}
