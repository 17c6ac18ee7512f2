package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
	"github.com/fastbr/fastbr/internal/testutil"
)

// Programs run on any bytes. Whatever goes on never carries a container's address
// outside, leaves by a port of the range, and keeps right checksums right. The seeds
// run with every test; `make fuzz` looks for more.

// fuzzer runs programs for fuzz targets, whose goroutines are not in the namespace.
type fuzzer struct {
	*injected
	jobs chan func()
}

func newFuzzer(f *testing.F) *fuzzer {
	f.Helper()
	z := &fuzzer{injected: newInjected(f, Config{FlowsMax: 256, NATFirst: 10000, NATLast: 10127}, nil), jobs: make(chan func())}
	z.set(f, startOfTime, 1)
	for _, p := range z.outbound() {
		z.converse(f, p)
	}
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
func (z *fuzzer) outbound() (out []nm.Packet) {
	p := nm.Packet{Kind: nm.Ports, Src: c1Addr, Dst: server, SPort: 40000, DPort: 80, TTL: 63, Body: nm.Body{Payload: 9}}
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
func (z *fuzzer) converse(f *testing.F, p nm.Packet) (in nm.Packet) {
	f.Helper()
	got, err := z.exec(z.progs.FbrUplinkOut, render(nil, &p), z.uplink.Ifindex, z.bridge, 0)
	check(f, err)
	in = nm.Packet{Kind: p.Kind, Proto: p.Proto, Src: p.Dst, Dst: extAddr, SPort: p.DPort, DPort: be.Uint16(got.frame[34:]), Flags: p.Flags, TTL: 64, MACs: p.MACs, Body: p.Body}
	if p.Kind == nm.EchoRequest {
		in.Kind, in.DPort = nm.EchoReply, be.Uint16(got.frame[38:])
	}
	got, err = z.exec(z.progs.FbrUplinkIn, render(nil, &in), z.uplink.Ifindex, z.uplink.Ifindex, 0)
	check(f, err)
	frame := append(append(append([]byte(nil), z.c1.MAC...), z.gateway...), got.frame[12:]...)
	_, err = z.exec(z.progs.FbrPortOut, frame, z.c1.Ifindex, z.uplink.Ifindex, 0)
	check(f, err)
	return in
}

// seeds are packets of every kind, and errors about them, from inside and from outside.
func (z *fuzzer) seeds(f *testing.F) (inside, outside [][]byte) {
	f.Helper()
	for _, p := range z.outbound() {
		in := z.converse(f, p)
		left := in
		left.Src, left.Dst, left.SPort, left.DPort = in.Dst, in.Src, in.DPort, in.SPort
		if in.Kind == nm.EchoReply {
			left.Kind = nm.EchoRequest
		}
		came := in
		came.Dst, came.DPort = p.Src, p.SPort
		about := func(q nm.Packet, src, dst nm.Addr) nm.Packet {
			return nm.Packet{Kind: nm.Error, Proto: nm.ICMP, Type: 3, Code: 3, TTL: 64, Src: src, Dst: dst, MACs: p.MACs, Quote: &q, Body: nm.Body{Cut: 40}}
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

// run runs a program inside the namespace. It is false if the kernel does not accept
// the frame.
func (z *fuzzer) run(t *testing.T, p *ebpf.Program, frame []byte, ifindex, iif int) (result, bool) {
	t.Helper()
	if len(frame) < 14 || len(frame) > 1514 { // no frame
		return result{}, false
	}
	var got result
	err := z.inside(func() (err error) {
		if p.Type() == ebpf.XDP {
			got, err = z.execXDP(p, frame, ifindex)
		} else {
			got, err = z.exec(p, frame, ifindex, iif, 0)
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
	return got, got.verdict != shot
}

// packet is the IPv4 packet in an untagged frame, or nil.
func packet(frame []byte) []byte {
	if len(frame) < 34 || be.Uint16(frame[12:]) != 0x0800 || frame[14]>>4 != 4 || frame[14]&0xf < 5 {
		return nil
	}
	return frame[14:]
}

func ofContainer(a []byte) bool {
	ip := netip.AddrFrom4([4]byte(a))
	return netip.MustParsePrefix("172.30.0.0/15").Contains(ip)
}

// quoted is the packet inside an ICMP error, or nil.
func quoted(ip []byte) []byte {
	l4 := int(ip[0]&0xf) * 4
	if ip[9] != 1 || be.Uint16(ip[6:])&0x1fff != 0 || len(ip) < l4+28 {
		return nil
	}
	switch ip[l4] {
	case 3, 4, 5, 11, 12:
	default:
		return nil
	}
	if in := ip[l4+8:]; in[0]>>4 == 4 && in[0]&0xf >= 5 {
		return in
	}
	return nil
}

// leaks is an error if a frame that leaves by the uplink has the address of a
// container.
func leaks(frame []byte) error {
	ip := packet(frame)
	if ip == nil {
		return nil
	}
	if ofContainer(ip[12:16]) {
		return fmt.Errorf("a container's source leaves: %x", frame)
	}
	if in := quoted(ip); in != nil && (ofContainer(in[12:16]) || ofContainer(in[16:20])) {
		return fmt.Errorf("a container's address leaves inside of an error: %x", frame)
	}
	return nil
}

// outOfRange reports whether a container's packet left by a port that is not ours.
func outOfRange(sent, got []byte) error {
	a, b := packet(sent), packet(got)
	if a == nil || b == nil || !ofContainer(a[12:16]) || be.Uint16(b[6:])&0x1fff != 0 || quoted(a) != nil {
		return nil
	}
	l4 := int(b[0]&0xf) * 4
	off := l4
	if b[9] == 1 {
		off += 4
	}
	if len(b) < off+2 {
		return fmt.Errorf("translated, but has no port: %x", got)
	}
	if p := be.Uint16(b[off:]); p < 10000 || p > 10127 {
		return fmt.Errorf("left by port %d: %x", p, got)
	}
	return nil
}

// wrongSums reports whether a right checksum became a wrong one.
func wrongSums(sent, got []byte) error {
	ip := packet(sent)
	if ip == nil || len(ip) < int(be.Uint16(ip[2:])) || shortL4(ip) || testutil.CheckSums(sent) != nil {
		return nil
	}
	if err := testutil.CheckSums(got); err != nil {
		return fmt.Errorf("%w\nsent %x\n got %x", err, sent, got)
	}
	return nil
}

// shortL4 reports whether the L4 header is not complete, so that there is no checksum.
func shortL4(ip []byte) bool {
	need := map[byte]int{1: 8, 6: 20, 17: 8}[ip[9]]
	return int(be.Uint16(ip[2:]))-int(ip[0]&0xf)*4 < need
}

// fixed gives a frame c1's source address and right checksums, so that it gets further.
func (z *fuzzer) fixed(frame []byte, how byte, inside bool) []byte {
	b := bytes.Clone(frame)
	ip := packet(b)
	if ip == nil || how&1 == 0 {
		return b
	}
	if inside {
		copy(b[6:12], z.c1.MAC)
		copy(b, z.gateway)
		copy(ip[12:16], c1Addr.AsSlice())
	}
	if how&2 != 0 {
		be.PutUint16(ip[2:], uint16(len(ip)))
	}
	hlen := int(ip[0]&0xf) * 4
	if len(ip) < hlen+20 {
		return b
	}
	be.PutUint16(ip[10:], 0)
	be.PutUint16(ip[10:], ^testutil.Sum(0, ip[:hlen]))
	if at, ok := map[byte]int{1: 2, 6: 16, 17: 6}[ip[9]]; ok {
		l4 := ip[hlen:]
		if ip[9] == 17 && how&2 != 0 {
			be.PutUint16(l4[4:], uint16(len(l4)))
		}
		binary.BigEndian.PutUint16(l4[at:], 0)
		be.PutUint16(l4[at:], l4Sum(ip[:hlen], l4))
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
		got, on := z.run(t, z.progs.FbrPortIn, sent, z.c1.Ifindex, z.c1.Ifindex)
		if !on {
			return
		}
		if !bytes.Equal(sent[6:12], z.c1.MAC) {
			t.Fatalf("a foreign MAC got in: %x", sent)
		}
		if ip := packet(sent); ip != nil && !bytes.Equal(ip[12:16], c1Addr.AsSlice()) {
			t.Fatalf("a foreign address got in: %x", sent)
		}
		if got.verdict == redirect && packet(got.frame) != nil && !bytes.Equal(sent, got.frame) {
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
		got, on := z.run(t, z.progs.FbrUplinkOut, sent, z.uplink.Ifindex, iif)
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
		early, _ := z.run(t, z.progs.FbrUplinkXdp, sent, z.uplink.Ifindex, 0)
		early.frame = bytes.Clone(early.frame)
		got, on := z.run(t, z.progs.FbrUplinkIn, sent, z.uplink.Ifindex, z.uplink.Ifindex)
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
		if ip := packet(sent); ip != nil && ofContainer(ip[16:20]) {
			t.Fatalf("let in directly: %x", sent)
		}
		if err := wrongSums(sent, got.frame); err != nil {
			t.Fatal(err)
		}
	})
}
