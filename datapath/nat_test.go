package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

// samples are a packet of each kind that is translated.
func (h *harness) samples() map[string]testutil.Frame {
	f := h.fromC1()
	udp := f.With(func(f *testutil.Frame) { f.TCP, f.UDP = nil, &testutil.UDP{SrcPort: 40001, DstPort: 9999} })
	all := map[string]testutil.Frame{
		"tcp":  f,
		"udp":  udp,
		"udp0": udp.With(func(f *testutil.Frame) { f.UDP.SrcPort = 40002; f.UncheckedUDP = true }),
		"echo": f.With(func(f *testutil.Frame) { f.TCP, f.Echo = nil, &testutil.Echo{ID: 40003, Seq: 7} }),
		"kept": udp.With(func(f *testutil.Frame) { f.UDP.SrcPort = 12345 }),
	}
	if h.addr.server.Is6() { // never fast: TestUncheckedUDPByIPv6
		delete(all, "udp0")
	}
	return all
}

// translated is f as it must look outside.
func translated(f testutil.Frame, eport uint16) testutil.Frame {
	out := f.With()
	out.Src = extAddr
	if f.Dst.Is6() {
		out.Src = extAddr6
	}
	switch {
	case out.TCP != nil:
		out.TCP.SrcPort = eport
	case out.UDP != nil:
		out.UDP.SrcPort = eport
	case out.Echo != nil:
		out.Echo.ID = eport
	}
	return out
}

// The central promise: a packet leaves the fast path byte for byte as it leaves the
// kernel's path.
func TestFastPathEqualsKernelPath(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
		for name, f := range h.samples() {
			t.Run(name, func(t *testing.T) {
				eport := h.open(t, f)
				want := translated(h.routed(f), eport).Bytes(t)

				slow := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge)
				if slow.verdict != next || string(slow.frame) != string(want) {
					t.Errorf("kernel path out: verdict %d\n got %x\nwant %x", slow.verdict, slow.frame, want)
				}
				fast := h.portIn(t, f.Bytes(t))
				if fast.verdict != redirect || string(fast.frame) != string(want) {
					t.Errorf("fast path out: verdict %d\n got %x\nwant %x", fast.verdict, fast.frame, want)
				}
				if fast.mark != h.meta.Mark {
					t.Errorf("mark %x, want %x", fast.mark, h.meta.Mark)
				}
				last := h.uplinkOut(t, fast.frame, h.c1.Ifindex, func(s *skb) { s.Mark = h.meta.Mark })
				if last.verdict != next || string(last.frame) != string(want) || last.mark != 0 {
					t.Errorf("at the uplink: verdict %d, mark %x, frame changed %v", last.verdict, last.mark, string(last.frame) != string(want))
				}

				back := h.reply(f, eport)
				in := h.asSeenByC1(f, eport)
				// On the kernel path MACs and TTL are the kernel's business.
				check(t, h.Revoke())
				if got := h.uplinkIn(t, back.Bytes(t)); got.verdict != next || string(got.frame) != string(in.Bytes(t)) {
					t.Errorf("kernel path in: verdict %d\n got %x\nwant %x", got.verdict, got.frame, in.Bytes(t))
				}
				h.open(t, f)
				in.SrcMAC, in.DstMAC, in.TTL = h.gateway, h.c1.MAC, 63
				if got := h.uplinkIn(t, back.Bytes(t)); got.verdict != redirect || string(got.frame) != string(in.Bytes(t)) {
					t.Errorf("fast path in: verdict %d\n got %x\nwant %x", got.verdict, got.frame, in.Bytes(t))
				}
			})
		}
	})
}

func TestFastPathKeepsChecksumsRight(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
		rnd := testutil.Rand(t)
		for name, f := range h.samples() {
			h.open(t, f)
			for i := range 2000 {
				g := f.With(func(f *testutil.Frame) {
					f.ID = rnd.Uint32() & 0xffff
					f.TOS = uint8(rnd.Uint32())
					f.TTL = uint8(2 + rnd.IntN(254))
					f.Payload = make([]byte, rnd.IntN(64))
					for j := range f.Payload {
						f.Payload[j] = byte(rnd.Uint32())
					}
				})
				got := h.portIn(t, g.Bytes(t))
				if got.verdict != redirect {
					t.Fatalf("%s: verdict %d", name, got.verdict)
				}
				if err := testutil.CheckSums(got.frame); err != nil {
					t.Fatalf("%s, packet %d: %v\n%x", name, i, err, got.frame)
				}
			}
		}
	})
}

func TestOnlyPlainSegmentsOfLeasedFlowsAreFast(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f := h.fromC1()
	if got := h.portIn(t, f.Bytes(t)); got.verdict != next {
		t.Fatalf("unknown flow: verdict %d", got.verdict)
	}
	big, port := make([]byte, 1600), f.TCP.SrcPort
	gso := func(size uint32) func(*skb) { return func(s *skb) { s.GSOSize, s.GSOSegs = size, 2 } }
	for name, tc := range map[string]struct {
		change  func(*testutil.Frame)
		ctx     func(*skb)
		verdict int32
	}{
		"data":        {func(*testutil.Frame) {}, nil, redirect},
		"syn":         {func(f *testutil.Frame) { f.TCP.SYN = true }, nil, next},
		"fin":         {func(f *testutil.Frame) { f.TCP.FIN = true }, nil, next},
		"rst":         {func(f *testutil.Frame) { f.TCP.RST = true }, nil, next},
		"options":     {func(f *testutil.Frame) { f.Options = []byte{1, 1, 1, 0} }, nil, next},
		"fragment":    {func(f *testutil.Frame) { f.MF = true }, nil, next},
		"ttl 1":       {func(f *testutil.Frame) { f.TTL = 1 }, nil, next},
		"too big":     {func(f *testutil.Frame) { f.Payload = big }, nil, next},
		"gso fits":    {func(f *testutil.Frame) { f.Payload = big }, gso(1460), redirect},
		"gso too big": {func(f *testutil.Frame) { f.Payload = big }, gso(1461), next},
	} {
		t.Run(name, func(t *testing.T) {
			port++
			f := f.With(func(f *testutil.Frame) { f.TCP.SrcPort = port }) // a RST ends its flow's leases
			eport := h.open(t, f)
			var ctx []func(*skb)
			if tc.ctx != nil {
				ctx = append(ctx, tc.ctx)
			}
			if got := h.portIn(t, f.With(tc.change).Bytes(t), ctx...); got.verdict != tc.verdict {
				t.Errorf("out: verdict %d, want %d", got.verdict, tc.verdict)
			}
			if got := h.uplinkIn(t, h.reply(f.With(tc.change), eport).With(func(f *testutil.Frame) {
				if name == "ttl 1" {
					f.TTL = 1
				}
			}).Bytes(t), ctx...); got.verdict != tc.verdict {
				t.Errorf("in: verdict %d, want %d", got.verdict, tc.verdict)
			}
		})
	}
}

func TestLeaseEnds(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
		f := h.fromC1()
		verdict := func() int32 { return h.portIn(t, f.Bytes(t)).verdict }
		for name, end := range map[string]func(){
			"revoked":   func() { check(t, h.Revoke()) },
			"lease 0":   func() { check(t, h.SetLease(0)) },
			"slow port": func() { p := h.c1; p.Slow = true; check(t, h.AttachPort(p)) },
			"flushed": func() {
				if n, err := h.FlushFlows(); n != 1 || err != nil {
					t.Errorf("FlushFlows = %d, %v", n, err)
				}
			},
		} {
			check(t, h.SetLease(DefaultLease))
			check(t, h.AttachPort(h.c1))
			h.open(t, f)
			if got := verdict(); got != redirect {
				t.Fatalf("before %s: verdict %d", name, got)
			}
			end()
			if got := verdict(); got != next {
				t.Errorf("%s: verdict %d, want the kernel's path", name, got)
			}
		}
		check(t, h.SetLease(0))
		check(t, h.AttachPort(h.c1))
		h.open(t, f)
		if got := verdict(); got != next {
			t.Errorf("opened with lease 0: verdict %d", got)
		}
		if err := h.SetLease(16 * time.Second); err == nil {
			t.Error("a lease of 16 s was accepted")
		}
	})
}

func TestUplinkOutNeverLeaks(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f := h.routed(h.fromC1())
	inner := testutil.Frame{Src: server, Dst: c1Addr, UDP: &testutil.UDP{SrcPort: 5, DstPort: 6}}.IP(t)
	for name, tc := range map[string]struct {
		frame  testutil.Frame
		iif    int
		device int
		reason Reason
	}{
		"from another bridge":    {f, h.bridge2, h.uplink.Ifindex, "spoof_ip"},
		"from another device":    {f, h.foreign, h.uplink.Ifindex, "spoof_ip"},
		"nobody's address":       {f.With(func(f *testutil.Frame) { f.Src = f.Src.Next().Next() }), h.bridge, h.uplink.Ifindex, "spoof_ip"},
		"host's own, no flow":    {f, 0, h.c1.Ifindex, "unsupported"},
		"fragment":               {f.With(func(f *testutil.Frame) { f.FragOff = 185 }), h.bridge, h.c1.Ifindex, "fragment"},
		"other protocol":         {f.With(func(f *testutil.Frame) { f.TCP = nil }), h.bridge, h.c1.Ifindex, "unsupported"},
		"RST without flow":       {f.With(func(f *testutil.Frame) { f.TCP.RST = true }), h.bridge, h.c1.Ifindex, "unsupported"},
		"echo reply":             {f.With(func(f *testutil.Frame) { f.TCP, f.Echo = nil, &testutil.Echo{Reply: true} }), h.bridge, h.c1.Ifindex, "unsupported"},
		"host's error about c1":  {testutil.Frame{Src: extAddr, Dst: server, ICMP: &testutil.ICMPError{Type: 3, Code: 3, Inner: inner}}, 0, h.uplink.Ifindex, "unsupported"},
		"c1's error":             {f.With(func(f *testutil.Frame) { f.TCP, f.ICMP = nil, &testutil.ICMPError{Type: 3, Code: 3, Inner: inner} }), h.bridge, h.c1.Ifindex, "unsupported"},
		"the mark does not help": {f, h.bridge2, h.uplink.Ifindex, "spoof_ip"},
	} {
		t.Run(name, func(t *testing.T) {
			frame := h.routed(tc.frame).Bytes(t)
			h.wantDrop(t, tc.device, tc.reason, func() result {
				return h.uplinkOut(t, frame, tc.iif, func(s *skb) {
					if name == "the mark does not help" {
						s.Mark = h.meta.Mark
					}
				})
			})
		})
	}
	if st, err := h.NATStats(); err != nil || st.Flows != 0 {
		t.Errorf("%d flows, %v; want none", st.Flows, err)
	}
}

func TestUplinkOutLeavesTheHostAlone(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	host := testutil.Frame{Src: extAddr, Dst: server, TCP: &testutil.TCP{SrcPort: 50000, DstPort: 80, ACK: true}}
	for name, f := range map[string]testutil.Frame{
		"ephemeral port": host,
		"range port":     host.With(func(f *testutil.Frame) { f.TCP.SrcPort = 20000 }),
		"RST":            host.With(func(f *testutil.Frame) { f.TCP.RST = true }),
		"fragment":       host.With(func(f *testutil.Frame) { f.MF = true }),
		"other protocol": host.With(func(f *testutil.Frame) { f.TCP = nil }),
		"3/3 of its own": host.With(func(f *testutil.Frame) {
			f.TCP, f.ICMP = nil, &testutil.ICMPError{Type: 3, Code: 3, Inner: testutil.Frame{Src: server, Dst: extAddr, UDP: &testutil.UDP{SrcPort: 5, DstPort: 53}}.IP(t)}
		}),
		// The port was seen in use, so its RST is a real one.
		"RST of a noted port": host.With(func(f *testutil.Frame) { f.TCP.SrcPort, f.TCP.RST = 20000, true }),
	} {
		if name == "RST of a noted port" {
			h.uplinkOut(t, h.routed(host.With(func(f *testutil.Frame) { f.TCP.SrcPort = 20000 })).Bytes(t), 0)
		}
		frame := h.routed(f).Bytes(t)
		if got := h.uplinkOut(t, frame, 0); got.verdict != next || string(got.frame) != string(frame) {
			t.Errorf("%s: verdict %d, changed %v", name, got.verdict, string(got.frame) != string(frame))
		}
	}
}

func TestUplinkInDropsWhatCannotComeFromOutside(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	in := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: server, Dst: extAddr, UDP: &testutil.UDP{SrcPort: 53, DstPort: 20000}}
	addr := func(src, dst string) testutil.Frame {
		return in.With(func(f *testutil.Frame) {
			if src != "" {
				f.Src = mustAddr(src)
			}
			if dst != "" {
				f.Dst = mustAddr(dst)
			}
		})
	}
	for name, tc := range map[string]struct {
		frame  testutil.Frame
		reason Reason
	}{
		"to a container":      {addr("", "172.30.0.2"), "direct"},
		"to a gateway":        {addr("", "172.30.0.1"), "direct"},
		"from a container":    {addr("172.30.0.2", ""), "martian"},
		"from loopback":       {addr("127.0.0.1", ""), "martian"},
		"to loopback":         {addr("", "127.0.0.1"), "martian"},
		"from multicast":      {addr("224.0.0.5", ""), "martian"},
		"from zero":           {addr("0.0.0.0", ""), "martian"},
		"DHCP":                {addr("0.0.0.0", "255.255.255.255"), ""},
		"IGMP query":          {addr("0.0.0.0", "224.0.0.1"), ""},
		"nobody's port":       {in, ""},
		"forwarded elsewhere": {addr("", "203.0.113.9"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := tc.frame.Bytes(t)
			if tc.reason != "" {
				h.wantDrop(t, h.uplink.Ifindex, tc.reason, func() result { return h.uplinkIn(t, b) })
			} else if got := h.uplinkIn(t, b); got.verdict != next || string(got.frame) != string(b) {
				t.Errorf("verdict %d", got.verdict)
			}
		})
	}
}

func TestMappingIsEndpointIndependent(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
		f := h.samples()["udp"]
		first := h.sentFrom(t, f)
		for _, dst := range []netip.Addr{h.addr.server.Next(), h.addr.server.Next().Next(), h.addr.router} {
			if got := h.sentFrom(t, f.With(func(f *testutil.Frame) { f.Dst = dst })); got != first {
				t.Errorf("to %s from port %d, want %d", dst, got, first)
			}
		}
		c2 := f.With(func(f *testutil.Frame) { f.Src = h.addr.c2 })
		if got := h.sentFrom(t, c2); got == first {
			t.Errorf("two containers share port %d", got)
		}
	})
}

// sentFrom sends f out by the kernel's path and returns its external source port.
func (h *harness) sentFrom(t *testing.T, f testutil.Frame) uint16 {
	t.Helper()
	got := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge)
	if got.verdict != next {
		t.Fatalf("verdict %d", got.verdict)
	}
	if err := testutil.CheckSums(got.frame); err != nil {
		t.Fatal(err)
	}
	return eportOf(got.frame)
}

// own is a sample from c1 whose source port, or id, is in the NAT range.
func (h *harness) own(proto string) testutil.Frame {
	return h.samples()[proto].With(func(f *testutil.Frame) {
		switch {
		case f.TCP != nil:
			f.TCP.SrcPort = 12345
		case f.UDP != nil:
			f.UDP.SrcPort = 12345
		default:
			f.Echo.ID = 12345
		}
	})
}

// theirs is f as the host, or a neighbour's masquerade, sends it.
func (h *harness) theirs(t *testing.T, f testutil.Frame) []byte {
	t.Helper()
	return h.routed(f.With(func(f *testutil.Frame) { f.Src = h.addr.ext })).Bytes(t)
}

// eportOf is the external port, or id, of a frame that has left.
func eportOf(frame []byte) uint16 {
	if frame[12] == 0x86 {
		if frame[20] == unix.IPPROTO_ICMPV6 {
			return binary.BigEndian.Uint16(frame[58:])
		}
		return binary.BigEndian.Uint16(frame[54:])
	}
	if frame[23] == unix.IPPROTO_ICMP {
		return binary.BigEndian.Uint16(frame[38:])
	}
	return binary.BigEndian.Uint16(frame[34:])
}

// goesTo is the destination of a frame, with its port.
func goesTo(frame []byte) netip.AddrPort {
	if frame[12] == 0x86 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(frame[38:54])), binary.BigEndian.Uint16(frame[56:]))
	}
	return netip.AddrPortFrom(mustAddr4(frame[30:34]), binary.BigEndian.Uint16(frame[36:]))
}

func (h *harness) remaps(t *testing.T) uint64 {
	t.Helper()
	st, err := h.NATStats()
	check(t, err)
	return st.PortRemaps
}

// A flow that can go on from another port gives way to the host and to neighbours.
func TestNeighbourTakesTheTuple(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
		for i, proto := range []string{"udp", "tcp", "echo"} {
			f := h.own(proto)
			send := func() uint16 { return eportOf(h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge).frame) }
			if p := send(); p != 12345 {
				t.Fatalf("%s: external port %d, want the container's own", proto, p)
			}
			frame := h.theirs(t, f)
			for range 2 {
				if got := h.uplinkOut(t, frame, 0); got.verdict != next || string(got.frame) != string(frame) {
					t.Errorf("%s: the neighbour's packet: verdict %d, changed: %v", proto, got.verdict, string(got.frame) != string(frame))
				}
			}
			if n := h.remaps(t); n != uint64(i+1) {
				t.Errorf("%s: %d remaps, want %d", proto, n, i+1)
			}
			moved := h.eport(t, f)
			if p := send(); p == 12345 || p != moved {
				t.Errorf("%s: leaves from port %d, and its flow is at %d", proto, p, moved)
			}
			in := h.uplinkIn(t, h.reply(f, moved).Bytes(t))
			if got := goesTo(in.frame).Addr(); in.verdict != next || got != h.addr.c1 {
				t.Errorf("%s: the reply goes to %s", proto, got)
			}
			theirs := h.reply(f, 12345).Bytes(t)
			if got := h.uplinkIn(t, theirs); got.verdict != next || string(got.frame) != string(theirs) {
				t.Errorf("%s: the neighbour's reply is changed", proto)
			}
			_, err := h.FlushFlows()
			check(t, err)
		}
	})
}

// An established connection cannot move: the neighbour's gets another port.
func TestEstablishedConnectionKeepsItsTuple(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
		f := h.own("tcp")
		h.open(t, f)
		syn := f.With(func(f *testutil.Frame) { f.TCP.SYN, f.TCP.ACK = true, false })
		got := h.uplinkOut(t, h.theirs(t, syn), 0)
		port := eportOf(got.frame)
		if got.verdict != next || port == 12345 {
			t.Fatalf("verdict %d, the neighbour's packet leaves from port %d", got.verdict, port)
		}
		if n := h.remaps(t); n != 1 {
			t.Errorf("%d remaps, want 1", n)
		}
		for want, eport := range map[netip.Addr]uint16{h.addr.c1: 12345, h.addr.ext: port} {
			in := h.uplinkIn(t, h.reply(f, eport).Bytes(t))
			if got := goesTo(in.frame); got != netip.AddrPortFrom(want, 12345) {
				t.Errorf("reply to %d goes to %s, want %s:12345", eport, got, want)
			}
		}
	})
}

func TestClosedConnectionGivesWay(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
		f := h.own("tcp")
		h.open(t, f)
		fin := f.With(func(f *testutil.Frame) { f.TCP.FIN = true })
		h.uplinkOut(t, h.routed(fin).Bytes(t), h.bridge)
		h.uplinkIn(t, h.reply(fin, 12345).Bytes(t))
		frame := h.theirs(t, f)
		if got := h.uplinkOut(t, frame, 0); got.verdict != next || string(got.frame) != string(frame) {
			t.Errorf("verdict %d, changed: %v", got.verdict, string(got.frame) != string(frame))
		}
		if n := h.live(t); n != 0 || h.remaps(t) != 0 {
			t.Errorf("%d sessions, %d remaps; want none", n, h.remaps(t))
		}
	})
}

// A FIN makes a connection's timeout shorter than a lease that was granted before it may be.
func TestFINEndsLeases(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, func(t *testing.T, h *harness) {
		f := h.own("tcp")
		eport := h.open(t, f)
		in := h.reply(f, eport).Bytes(t)
		if got := h.uplinkIn(t, in); got.verdict != redirect {
			t.Fatalf("before the FIN: verdict %d, want %d", got.verdict, redirect)
		}
		h.uplinkIn(t, h.reply(f.With(func(f *testutil.Frame) { f.TCP.FIN = true }), eport).Bytes(t))
		if got := h.uplinkIn(t, in); got.verdict != next {
			t.Errorf("after it: verdict %d, want %d", got.verdict, next)
		}
		if got := h.portIn(t, f.Bytes(t)); got.verdict != next {
			t.Errorf("after it, the h.addr.other way: verdict %d, want %d", got.verdict, next)
		}
	})
}

// A NIC may hand over packets with the sum of all their bytes (CHECKSUM_COMPLETE),
// which must follow every change; the kernel itself compares it after the run.
func TestFastPathKeepsCompleteChecksums(t *testing.T) {
	const testSkbChecksumComplete = 1 << 2 // BPF_F_TEST_SKB_CHECKSUM_COMPLETE
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	for name, f := range h.samples() {
		eport := h.open(t, f)
		frame := h.reply(f, eport).Bytes(t)
		opts := ebpf.RunOptions{
			Data: frame, DataOut: make([]byte, len(frame)+256), Flags: testSkbChecksumComplete,
			Context: skb{Ifindex: uint32(h.uplink.Ifindex), IngressIfindex: uint32(h.uplink.Ifindex)},
		}
		ret, err := h.progs.FbrUplinkIn.Run(&opts)
		testutil.SkipUnsupported(t, err, unix.EINVAL, "6.11")
		if err != nil || ret != redirect {
			t.Errorf("%s: verdict %d, %v", name, ret, err)
			continue
		}
		if err := testutil.CheckSums(opts.DataOut); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
