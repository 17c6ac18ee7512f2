package datapath

import (
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/fastbr/fastbr/internal/testutil"
)

// newXDPHarness is a harness with XDP on the uplink and on c1.
func newXDPHarness(t *testing.T) *harness {
	t.Helper()
	return newHarness(t, usual, nil).withXDP(t)
}

func (h *harness) withXDP(t *testing.T) *harness {
	t.Helper()
	check(t, h.AttachXDP(h.uplink.Ifindex))
	h.c1.XDP = true
	check(t, h.AttachPort(h.c1))
	return h
}

// difference is the difference of two readings of a device's counters, without drops.
func difference(after, before Counters) (rx, tx PathCounters) {
	sub := func(a, b PathCounters) PathCounters {
		return PathCounters{a.FastPackets - b.FastPackets, a.FastBytes - b.FastBytes, a.SlowPackets - b.SlowPackets, a.SlowBytes - b.SlowBytes}
	}
	return sub(after.RX, before.RX), sub(after.TX, before.TX)
}

// XDP forwards a packet as tc would, byte for byte, and counts it the same.
func TestXDPForwardsAsTCDoes(t *testing.T) {
	h := newXDPHarness(t)
	samples := h.samples()
	delete(samples, "tcp")
	for size := range 9 { // every length of a tail, and the padding of short frames
		f := samples["udp"].With(func(f *testutil.Frame) { f.UDP.SrcPort = uint16(41000 + size) })
		f.Payload = f.Payload[:size]
		samples[string(rune('0'+size))+" bytes"] = f
	}
	big := samples["udp"].With(func(f *testutil.Frame) { f.UDP.SrcPort = 41100 })
	big.Payload = make([]byte, 504)
	samples["the largest summed"] = big
	huge := samples["udp0"].With(func(f *testutil.Frame) { f.UDP.SrcPort = 41101 })
	huge.Payload = make([]byte, 1472)
	samples["without a sum, as large as the MTU"] = huge
	for name, f := range samples {
		t.Run(name, func(t *testing.T) {
			frame := h.reply(f, h.open(t, f)).Bytes(t)
			if len(frame) < 60 {
				frame = append(frame, make([]byte, 60-len(frame))...)
			}
			tc := h.uplinkIn(t, frame)
			u, c1 := h.of(t, h.uplink.Ifindex), h.of(t, h.c1.Ifindex)
			got := h.xdpIn(t, frame)
			if tc.verdict != redirect || got.verdict != xdpRedirect || string(got.frame) != string(tc.frame) {
				t.Errorf("verdicts %d, %d\nXDP %x\n tc %x", tc.verdict, got.verdict, got.frame, tc.frame)
			}
			one := PathCounters{FastPackets: 1, FastBytes: uint64(len(frame))}
			if rx, tx := difference(h.of(t, h.uplink.Ifindex), u); rx != one || tx != (PathCounters{}) {
				t.Errorf("uplink counted %+v, %+v", rx, tx)
			}
			if rx, tx := difference(h.of(t, h.c1.Ifindex), c1); tx != one || rx != (PathCounters{}) {
				t.Errorf("port counted %+v, %+v", rx, tx)
			}
		})
	}
}

// partial leaves the checksum pending, as the kernel does for a device that completes
// it: the field holds the sum over the pseudo header.
func partial(b []byte) []byte {
	binary.BigEndian.PutUint16(b[40:], testutil.Sum(uint32(b[23])+uint32(binary.BigEndian.Uint16(b[38:])), b[26:34]))
	return b
}

func flipped(off int) func([]byte) []byte {
	return func(b []byte) []byte { b[off] ^= 1; return b }
}

// XDP leaves everything that it does not forward to tc, untouched and uncounted.
func TestXDPLeavesTheRestToTC(t *testing.T) {
	h := newXDPHarness(t)
	samples := h.samples()
	port := samples["udp"].UDP.SrcPort
	for name, tc := range map[string]struct {
		sample  string
		reply   func(*testutil.Frame)
		change  func([]byte) []byte
		prepare func()
		mend    func()
	}{
		"TCP":                         {sample: "tcp"},
		"options":                     {sample: "udp", reply: func(f *testutil.Frame) { f.Options = []byte{1, 1, 1, 0} }},
		"a fragment":                  {sample: "udp", reply: func(f *testutil.Frame) { f.MF = true }},
		"a later fragment":            {sample: "udp", reply: func(f *testutil.Frame) { f.FragOff = 10 }},
		"TTL 1":                       {sample: "udp", reply: func(f *testutil.Frame) { f.TTL = 1 }},
		"tagged":                      {sample: "udp", reply: func(f *testutil.Frame) { f.VLAN = []uint16{7} }},
		"double-tagged":               {sample: "udp", reply: func(f *testutil.Frame) { f.VLAN = []uint16{7, 8} }},
		"another remote port":         {sample: "udp", reply: func(f *testutil.Frame) { f.UDP.SrcPort++ }},
		"another remote":              {sample: "udp", reply: func(f *testutil.Frame) { f.Src = mustAddr("192.0.2.12") }},
		"longer than the MTU":         {sample: "udp0", reply: func(f *testutil.Frame) { f.Payload = make([]byte, 1473) }},
		"cut short":                   {sample: "udp", change: putLen(offTotLen, 1)},
		"more than padding":           {sample: "udp", change: padded(40)},
		"UDP too long":                {sample: "udp", change: putLen(offUDPLen, 1)},
		"UDP too short":               {sample: "udp", change: putLen(offUDPLen, -1)},
		"half a checksum":             {sample: "udp", change: partial},
		"a wrong checksum":            {sample: "udp", change: flipped(45)},
		"too large to be summed":      {sample: "udp", reply: func(f *testutil.Frame) { f.Payload = make([]byte, 505) }},
		"an echo request":             {sample: "echo", reply: func(f *testutil.Frame) { f.Echo.Reply = false }},
		"no IPv4":                     {sample: "udp", change: func(b []byte) []byte { b[12], b[13] = 0x86, 0xdd; return b }},
		"version 5":                   {sample: "udp", change: func(b []byte) []byte { b[14] = 0x55; return b }},
		"half an IPv4 header":         {sample: "udp", change: func(b []byte) []byte { return b[:33] }},
		"no lease":                    {sample: "udp", prepare: func() { check(t, h.Revoke()) }},
		"leases switched off":         {sample: "udp", prepare: func() { check(t, h.SetLease(0)) }, mend: func() { check(t, h.SetLease(DefaultLease)) }},
		"a slow port":                 {sample: "udp", prepare: func() { h.changePort(t, func(p *Port) { p.Slow = true }) }, mend: func() { check(t, h.AttachPort(h.c1)) }},
		"a port that XDP cannot send": {sample: "udp", prepare: func() { h.changePort(t, func(p *Port) { p.XDP = false }) }, mend: func() { check(t, h.AttachPort(h.c1)) }},
		"no uplink any more":          {sample: "udp", prepare: func() { check(t, h.Datapath.devs.clearDevice(h.uplink.Ifindex)) }, mend: func() { check(t, h.AttachUplink(h.uplink)) }},
	} {
		t.Run(name, func(t *testing.T) {
			h.ns.Enter(t)
			f := samples[tc.sample].With()
			if port++; f.UDP != nil {
				f.UDP.SrcPort = port
			}
			r := h.reply(f, h.open(t, f))
			h.age(t, 0) // the lease is older than a revocation
			if tc.reply != nil {
				tc.reply(&r)
			}
			frame := r.Bytes(t)
			if tc.change != nil {
				frame = tc.change(frame)
			}
			if tc.prepare != nil {
				tc.prepare()
			}
			before, err := h.Stats()
			check(t, err)
			got := h.xdpIn(t, slices.Clone(frame))
			if got.verdict != xdpPass || string(got.frame) != string(frame) {
				t.Errorf("verdict %d, want %d\n got %x\nwant %x", got.verdict, xdpPass, got.frame, frame)
			}
			after, err := h.Stats()
			check(t, err)
			for i := range after {
				rx, tx := difference(after[i], before[i])
				if rx != (PathCounters{}) || tx != (PathCounters{}) || !maps.Equal(after[i].Drops, before[i].Drops) {
					t.Errorf("device %d counted %+v, %+v, %v", i, rx, tx, after[i].Drops)
				}
			}
			if tc.mend != nil {
				tc.mend()
			}
		})
	}
}

func (h *harness) changePort(t *testing.T, change func(*Port)) {
	t.Helper()
	p := h.c1
	change(&p)
	check(t, h.AttachPort(p))
}

// After a datagram that XDP leaves to tc, the rest of the flow goes by tc as well:
// there is no order between the two. Other flows are not affected.
func TestXDPKeepsTheOrderOfAFlow(t *testing.T) {
	h := newXDPHarness(t)
	f := h.samples()["udp"]
	g := f.With(func(f *testutil.Frame) { f.UDP.SrcPort++ })
	rf, rg := h.reply(f, h.open(t, f)), h.reply(g, h.open(t, g))
	large := rf.With()
	large.Payload = make([]byte, 1000)
	for _, step := range []struct {
		what string
		f    testutil.Frame
		want int32
	}{
		{"small", rf, xdpRedirect}, {"large", large, xdpPass}, {"small after large", rf, xdpPass}, {"another flow", rg, xdpRedirect},
	} {
		if got := h.xdpIn(t, step.f.Bytes(t)); got.verdict != step.want {
			t.Errorf("%s: verdict %d, want %d", step.what, got.verdict, step.want)
		}
	}
	if got := h.uplinkIn(t, rf.Bytes(t)); got.verdict != redirect {
		t.Errorf("tc: verdict %d", got.verdict)
	}
}

// XDP drops what tc would drop for its addresses, with the same reason. Of TCP to the
// host's own address it drops only what opens a connection.
func TestXDPDropsAsTCDoes(t *testing.T) {
	h := newXDPHarness(t)
	l, err := netlink.LinkByIndex(h.uplink.Ifindex)
	check(t, err)
	second, err := netlink.ParseAddr("172.30.9.9/32") // an address of the host in the network
	check(t, err)
	check(t, netlink.AddrAdd(l, second))
	for _, tc := range []struct {
		name     string
		src, dst string
		reason   Reason
	}{
		{"to the host", "192.0.2.11", "198.51.100.1", ""},
		{"through the host", "192.0.2.11", "203.0.113.99", ""},
		{"to a container", "192.0.2.11", "172.30.0.2", "direct"},
		{"to a container of the other network", "192.0.2.11", "172.31.0.2", "direct"},
		{"to a gateway", "192.0.2.11", "172.30.0.1", "direct"},
		{"to an unused address", "192.0.2.11", "172.30.44.55", "direct"},
		{"to the host's address in the network", "192.0.2.11", "172.30.9.9", ""},
		{"from a container", "172.30.0.2", "198.51.100.1", "martian"},
		{"from a container to a container", "172.30.0.2", "172.30.0.3", "martian"},
		{"from its destination", "198.51.100.1", "198.51.100.1", "martian"},
		{"from loopback", "127.0.0.1", "198.51.100.1", "martian"},
		{"to loopback", "192.0.2.11", "127.0.0.1", "martian"},
		{"from multicast", "224.0.0.5", "198.51.100.1", "martian"},
		{"from broadcast", "255.255.255.255", "198.51.100.1", "martian"},
		{"from nowhere", "0.0.0.0", "198.51.100.1", "martian"},
		{"from nowhere to all", "0.0.0.0", "255.255.255.255", ""},
		{"from nowhere to multicast", "0.0.0.0", "224.0.0.1", ""},
		{"to multicast", "192.0.2.11", "224.0.0.1", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.ns.Enter(t)
			base := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: netip.MustParseAddr(tc.src), Dst: netip.MustParseAddr(tc.dst)}
			syn, ack, udp, other, tail := base, base, base, base, base
			syn.TCP, ack.TCP = &testutil.TCP{SrcPort: 9, DstPort: 9, SYN: true}, &testutil.TCP{SrcPort: 9, DstPort: 9, ACK: true}
			udp.UDP, other.Proto = &testutil.UDP{SrcPort: 9, DstPort: 9}, 47
			tail.FragOff = 5
			for _, f := range []testutil.Frame{syn, udp, other, tail, ack} {
				want, reason := int32(xdpPass), tc.reason
				if tc.reason != "" {
					want = xdpDrop
				}
				if f.TCP != nil && f.TCP.ACK && f.Dst == extAddr {
					want, reason = xdpPass, ""
				}
				u := h.of(t, h.uplink.Ifindex)
				frame := f.Bytes(t)
				if got := h.xdpIn(t, slices.Clone(frame)); got.verdict != want || string(got.frame) != string(frame) {
					t.Errorf("%+v: verdict %d, want %d", f, got.verdict, want)
				}
				after := h.of(t, h.uplink.Ifindex)
				dropped := PathCounters{}
				if reason != "" {
					dropped = PathCounters{SlowPackets: 1, SlowBytes: uint64(len(frame))}
				}
				if rx, _ := difference(after, u); rx != dropped || reason != "" && after.Drops[reason] != u.Drops[reason]+1 {
					t.Errorf("%+v: counted %+v, %v, then %v", f, rx, u.Drops, after.Drops)
				}
				if tc.reason != "" {
					h.wantDrop(t, h.uplink.Ifindex, tc.reason, func() result { return h.uplinkIn(t, frame) })
				} else if got := h.uplinkIn(t, frame); got.verdict == shot {
					t.Errorf("%+v: tc drops it", f)
				}
			}
		})
	}
}

// A container in a network that is not translated may be reached from outside.
func TestXDPLetsInToRoutedNetworks(t *testing.T) {
	h := newXDPHarness(t)
	n := Network{Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: gateway1, Bridge: h.bridge}
	direct := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: server, Dst: c1Addr, UDP: &testutil.UDP{SrcPort: 9, DstPort: 9}}.Bytes(t)
	for _, c := range []struct {
		masquerade, internal bool
		want                 int32
	}{{true, false, xdpDrop}, {false, false, xdpPass}, {false, true, xdpDrop}} {
		n.Masquerade, n.Internal = c.masquerade, c.internal
		check(t, errors.Join(h.SetNetwork(n), h.AttachPort(h.c1)))
		if got := h.xdpIn(t, slices.Clone(direct)); got.verdict != c.want {
			t.Errorf("masquerade %v, internal %v: verdict %d, want %d", c.masquerade, c.internal, got.verdict, c.want)
		}
	}
}

// programOn is the id of the XDP program on a device, or 0.
func programOn(t *testing.T, ifindex int) uint32 {
	t.Helper()
	l, err := netlink.LinkByIndex(ifindex)
	check(t, err)
	if x := l.Attrs().Xdp; x != nil && x.Attached {
		return x.ProgId
	}
	return 0
}

func idOf(t *testing.T, p *ebpf.Program) uint32 {
	t.Helper()
	info, err := p.Info()
	check(t, err)
	id, _ := info.ID()
	return uint32(id)
}

func TestXDPIsAttachedOnceAndGoesWithTheUplink(t *testing.T) {
	h := newXDPHarness(t)
	up, ours := h.uplink.Ifindex, idOf(t, h.progs.FbrUplinkXdp)
	check(t, h.AttachXDP(up)) // adopted
	if got := programOn(t, up); got != ours {
		t.Errorf("program %d is attached, want %d", got, ours)
	}
	check(t, h.VerifyXDP(up))
	check(t, h.DetachXDP(up))
	check(t, h.DetachXDP(up))
	if err := h.VerifyXDP(up); !errors.Is(err, ErrDetached) || programOn(t, up) != 0 {
		t.Errorf("after detaching: %v, program %d", err, programOn(t, up))
	}
	check(t, h.AttachXDP(up))

	h.otherBuild(t)
	d := h.upgraded(t).Datapath
	if got, want := programOn(t, up), idOf(t, d.progs.FbrUplinkXdp); got != want || got == ours {
		t.Errorf("after the upgrade program %d is attached, want %d", got, want)
	}
	check(t, d.DetachUplink(up))
	if got := programOn(t, up); got != 0 {
		t.Errorf("program %d is left", got)
	}
	// Somebody has detached the program, and the device is another one.
	check(t, d.AttachUplink(h.uplink))
	check(t, d.AttachXDP(up))
	l, err := link.LoadPinnedLink(linkPath(h.dir, deviceLink(up, xdpHook)), nil)
	check(t, err)
	check(t, errors.Join(l.Detach(), l.Close()))
	check(t, d.AttachXDP(up))
	if programOn(t, up) == 0 {
		t.Error("a defunct link was not replaced")
	}
}

func TestXDPYieldsToAnotherProgram(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}})
	check(t, err)
	defer other.Close()
	up := h.uplink.Ifindex
	for _, mode := range []link.XDPAttachFlags{link.XDPDriverMode, link.XDPGenericMode} {
		l, err := link.AttachXDP(link.XDPOptions{Program: other, Interface: up, Flags: mode})
		check(t, err)
		if err := h.AttachXDP(up); !errors.Is(err, ErrXDPTaken) {
			t.Errorf("AttachXDP = %v, want ErrXDPTaken", err)
		}
		if got := programOn(t, up); got != idOf(t, other) {
			t.Errorf("program %d is attached, want the other's", got)
		}
		check(t, l.Close())
	}
	if err := h.AttachXDP(h.bridge); !errors.Is(err, ErrNotSupported) {
		t.Errorf("AttachXDP to a bridge = %v, want ErrNotSupported", err)
	}
	for _, dev := range []int{up, h.bridge} {
		if _, err := os.Stat(linkPath(h.dir, deviceLink(dev, xdpHook))); !os.IsNotExist(err) {
			t.Errorf("a link is left: %v", err)
		}
	}
}

// An uplink with jumbo frames has XDP, too. Frames in several buffers go on to tc,
// unless XDP drops them for their addresses.
func TestXDPWithJumboFrames(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	for _, name := range []string{"up0", "up0p"} {
		l, err := netlink.LinkByName(name)
		check(t, err)
		check(t, netlink.LinkSetMTU(l, 9000))
	}
	check(t, h.AttachXDP(h.uplink.Ifindex))
	h.c1.XDP, h.c1.MTU = true, 9000
	check(t, h.AttachPort(h.c1))
	f := h.samples()["udp0"]
	reply := h.reply(f, h.open(t, f))
	direct := reply.With()
	direct.Dst = c1Addr
	for _, tc := range []struct {
		f    testutil.Frame
		size int
		want int32
	}{{reply, 2000, xdpRedirect}, {reply, 8000, xdpPass}, {direct, 8000, xdpDrop}} {
		tc.f.Payload = make([]byte, tc.size)
		frame := tc.f.Bytes(t)
		before := h.of(t, h.uplink.Ifindex)
		if got := h.xdpIn(t, slices.Clone(frame)); got.verdict != tc.want || tc.want != xdpRedirect && string(got.frame) != string(frame) {
			t.Errorf("%d bytes: verdict %d, want %d", tc.size, got.verdict, tc.want)
		}
		want := map[int32]PathCounters{
			xdpRedirect: {FastPackets: 1, FastBytes: uint64(len(frame))},
			xdpDrop:     {SlowPackets: 1, SlowBytes: uint64(len(frame))},
		}[tc.want]
		if rx, _ := difference(h.of(t, h.uplink.Ifindex), before); rx != want {
			t.Errorf("%d bytes: counted %+v, want %+v", tc.size, rx, want)
		}
	}
}
