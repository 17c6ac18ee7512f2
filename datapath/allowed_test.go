package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fastbr/fastbr/internal/testutil"
)

var (
	vip     = mustAddr("172.30.0.100") // in the subnet
	behind  = mustAddr("10.8.0.5")     // behind a router container
	virtual = mustMAC("00:00:5e:00:01:33")
)

// mayUse gives a port allowed addresses, and the network what of them is outside its subnet.
func (h *harness) mayUse(t *testing.T, p Port, addrs string, macs ...net.HardwareAddr) Port {
	t.Helper()
	p.AllowedMACs = macs
	if addrs != "" {
		p.AllowedAddrs = []netip.Prefix{netip.MustParsePrefix(addrs)}
	}
	if addrs == "10.8.0.0/24" {
		check(t, h.SetNetwork(Network{Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: gateway1, Bridge: h.bridge,
			Masquerade: true, Allowed: p.AllowedAddrs}))
		h.gatewayUp(t, h.bridge, gateway1.String()+"/16")
		h.ns.Do(t, func() {
			check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: h.bridge, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: behind.AsSlice()[:], Mask: net.CIDRMask(32, 32)}}))
		})
	}
	check(t, h.AttachPort(p))
	h.age(t, 0)
	return p
}

// sentAs is f with another source.
func sentAs(f testutil.Frame, addr netip.Addr) testutil.Frame {
	return f.With(func(f *testutil.Frame) { f.Src = addr })
}

func announcement(mac, sender net.HardwareAddr, addr netip.Addr) testutil.ARP {
	return testutil.ARP{SrcMAC: mac, DstMAC: mustMAC("ff:ff:ff:ff:ff:ff"), SenderMAC: sender, SenderIP: addr, TargetIP: addr}
}

// A port may send with what it is allowed, and with nothing beside it. Its neighbour may not.
func TestAllowedAddressesAreExact(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.c1 = h.mayUse(t, h.c1, "172.30.0.96/29", virtual)
	valid, near := h.fromC1(), mustMAC("00:00:5e:00:01:34")
	frame := func(change func(*testutil.Frame)) []byte { return valid.With(change).Bytes(t) }
	for name, tc := range map[string]struct {
		frame  []byte
		reason Reason // "": passes
	}{
		"own":                  {frame: valid.Bytes(t)},
		"first":                {frame: sentAs(valid, mustAddr("172.30.0.96")).Bytes(t)},
		"last":                 {frame: sentAs(valid, mustAddr("172.30.0.103")).Bytes(t)},
		"before":               {sentAs(valid, mustAddr("172.30.0.95")).Bytes(t), "spoof_ip"},
		"behind":               {sentAs(valid, mustAddr("172.30.0.104")).Bytes(t), "spoof_ip"},
		"gateway":              {sentAs(valid, gateway1).Bytes(t), "spoof_ip"},
		"neighbour":            {sentAs(valid, c2Addr).Bytes(t), "spoof_ip"},
		"zero":                 {sentAs(valid, netip.IPv4Unspecified()).Bytes(t), "spoof_ip"},
		"virtual MAC":          {frame: frame(func(f *testutil.Frame) { f.SrcMAC = virtual })},
		"virtual MAC, address": {frame: frame(func(f *testutil.Frame) { f.SrcMAC, f.Src = virtual, vip })},
		"virtual MAC, foreign": {frame(func(f *testutil.Frame) { f.SrcMAC, f.Src = virtual, c2Addr }), "spoof_ip"},
		"next MAC":             {frame(func(f *testutil.Frame) { f.SrcMAC = near }), "spoof_mac"},
		"neighbour's MAC":      {frame(func(f *testutil.Frame) { f.SrcMAC = h.c2.MAC }), "spoof_mac"},
		"announced":            {frame: announcement(h.c1.MAC, h.c1.MAC, vip).Bytes(t)},
		"announced, virtual":   {frame: announcement(virtual, virtual, vip).Bytes(t)},
		"announced, both":      {frame: announcement(h.c1.MAC, virtual, vip).Bytes(t)},
		"announced, next MAC":  {announcement(h.c1.MAC, near, vip).Bytes(t), "spoof_arp"},
		"announced, gateway":   {announcement(virtual, virtual, gateway1).Bytes(t), "spoof_arp"},
		"announced, neighbour": {announcement(h.c1.MAC, h.c1.MAC, c2Addr).Bytes(t), "spoof_arp"},
		"announced, outside":   {announcement(h.c1.MAC, h.c1.MAC, behind).Bytes(t), "spoof_arp"},
		"tagged":               {frame(func(f *testutil.Frame) { f.VLAN, f.Src = []uint16{5}, vip }), "l2_proto"},
		"to another network":   {frame(func(f *testutil.Frame) { f.Src, f.Dst = vip, other }), "isolated"},
		"IPv6, virtual MAC":    {func() []byte { f := ip6(h, 58, []byte{135, 0}); copy(f[6:], virtual); return f }(), "l2_proto"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.reason != "" {
				h.wantDrop(t, h.c1.Ifindex, tc.reason, func() result { return h.portIn(t, tc.frame) })
			} else if got := h.portIn(t, tc.frame); got.verdict != next || string(got.frame) != string(tc.frame) {
				t.Errorf("verdict %d, frame changed: %v", got.verdict, string(got.frame) != string(tc.frame))
			}
		})
	}
	stolen := between(h.c2, h.c1).With(func(f *testutil.Frame) { f.Src = vip })
	h.wantDrop(t, h.c2.Ifindex, "spoof_ip", func() result { return h.portInOf(t, h.c2, stolen) })
	stolen.Src, stolen.SrcMAC = c2Addr, virtual
	h.wantDrop(t, h.c2.Ifindex, "spoof_mac", func() result { return h.portInOf(t, h.c2, stolen) })
	check(t, h.VerifyPort(h.c1))

	bare, fewer := h.c1, h.c1
	bare.AllowedAddrs, bare.AllowedMACs = nil, nil
	fewer.AllowedMACs = nil
	for _, p := range []Port{bare, fewer} {
		if err := h.VerifyPort(p); err == nil {
			t.Errorf("the maps allow more than %v, %v", p.AllowedAddrs, p.AllowedMACs)
		}
	}
	check(t, h.AttachPort(bare))
	h.wantDrop(t, h.c1.Ifindex, "spoof_ip", func() result { return h.portIn(t, sentAs(valid, vip).Bytes(t)) })
	h.wantDrop(t, h.c1.Ifindex, "spoof_mac", func() result { return h.portIn(t, frame(func(f *testutil.Frame) { f.SrcMAC = virtual })) })
	if err := h.VerifyPort(h.c1); err == nil {
		t.Error("nothing is missing")
	}
}

// A device behind a port asks with its own MAC address, and is answered there.
func TestAnswerToAnAllowedMAC(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.c1 = h.mayUse(t, h.c1, "172.30.0.96/29", virtual)
	ask := testutil.ARP{SrcMAC: virtual, DstMAC: mustMAC("ff:ff:ff:ff:ff:ff"), SenderMAC: virtual, SenderIP: vip, TargetIP: gateway1}
	got := h.portIn(t, ask.Bytes(t))
	want := testutil.ARP{SrcMAC: h.gateway, DstMAC: virtual, Reply: true, SenderMAC: h.gateway, SenderIP: gateway1,
		TargetMAC: virtual, TargetIP: vip}.Bytes(t)
	if got.verdict != redirect || string(got.frame) != string(want) {
		t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, want)
	}
}

// What comes from an allowed address is translated as the port's own, both ways, and counts
// as the port's. When the address is not allowed any more, its sessions end, and no others.
func TestAllowedAddressIsTranslated(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.c1 = h.mayUse(t, h.c1, "10.8.0.0/24")
	own := h.fromC1()
	h.open(t, own)
	f := sentAs(own, behind).With(func(f *testutil.Frame) { f.TCP.SrcPort = 41000 })
	// Nobody has sent with it yet.
	if got := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge); got.verdict != shot {
		t.Errorf("of nobody: verdict %d", got.verdict)
	}
	if got := h.portIn(t, f.Bytes(t)); got.verdict != next {
		t.Fatalf("first: verdict %d", got.verdict)
	}
	eport := h.open(t, f)
	if got := h.portIn(t, f.Bytes(t)); got.verdict != redirect {
		t.Errorf("with a lease: verdict %d", got.verdict)
	}
	in := h.uplinkIn(t, h.reply(f, eport).Bytes(t))
	if dst, _ := netip.AddrFromSlice(in.frame[30:34]); in.verdict != redirect || dst != behind {
		t.Errorf("reply: verdict %d, to %s", in.verdict, dst)
	}
	for reason, frame := range map[Reason]testutil.Frame{
		"direct":  h.reply(f, 7).With(func(f *testutil.Frame) { f.Dst = behind }),
		"martian": h.reply(f, 7).With(func(f *testutil.Frame) { f.Src = behind }),
	} {
		h.wantDrop(t, h.uplink.Ifindex, reason, func() result { return h.uplinkIn(t, frame.Bytes(t)) })
	}
	var q tcFbrQuota
	dev, _, err := h.devs.device(h.c1.Ifindex)
	check(t, err)
	check(t, h.maps.FbrQuota.Lookup(uint32(dev.Stats), &q))
	if q.Sessions != 2 || q.Ports != 2 {
		t.Errorf("c1 holds %+v", q)
	}
	// A network's other port must not use it, and what another network sends is not it.
	h.wantDrop(t, h.c2.Ifindex, "spoof_ip", func() result { return h.portInOf(t, h.c2, sentAs(h.udpOf(h.c2, "192.0.2.11", 7), behind)) })
	if got := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge2); got.verdict != shot {
		t.Errorf("from another network: verdict %d", got.verdict)
	}

	bare := h.c1
	bare.AllowedAddrs = nil
	check(t, h.AttachPort(bare))
	h.wantDrop(t, h.c1.Ifindex, "spoof_ip", func() result { return h.portIn(t, f.Bytes(t)) })
	if left := h.flow(t); left.Src.Addr() != c1Addr {
		t.Errorf("left is %+v", left)
	}
	h.age(t, 0) // leases have ended
	if got := h.uplinkOut(t, h.routed(own).Bytes(t), h.bridge); got.verdict != next {
		t.Errorf("its own flow, by the kernel: verdict %d", got.verdict)
	}
	if got := h.portIn(t, own.Bytes(t)); got.verdict != redirect {
		t.Errorf("its own flow: verdict %d", got.verdict)
	}
	check(t, h.DetachPort(h.c1.Ifindex))
	for what, m := range map[string]interface {
		Lookup(any, any) error
	}{"holder": h.maps.FbrHolder} {
		var port uint32
		if m.Lookup(be32(behind), &port) == nil {
			t.Errorf("%s: %d is left", what, port)
		}
	}
}

// An address moves: leases that lead to its former port end, what the kernel then delivers
// is let in there, and new flows count as the new port's.
func TestAllowedAddressMoves(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.c1, h.c2 = h.mayUse(t, h.c1, vip.String()+"/32"), h.mayUse(t, h.c2, vip.String()+"/32")
	if got := h.portIn(t, announcement(h.c1.MAC, h.c1.MAC, vip).Bytes(t)); got.verdict != next {
		t.Fatalf("announced: verdict %d", got.verdict)
	}
	f := sentAs(h.fromC1(), vip)
	eport := h.open(t, f)
	in := h.reply(f, eport).Bytes(t)
	if got := h.uplinkIn(t, in); got.verdict != redirect {
		t.Fatalf("before: verdict %d", got.verdict)
	}
	delivered := h.reply(f, eport).With(func(f *testutil.Frame) { f.SrcMAC, f.DstMAC, f.Dst, f.TCP.DstPort = h.gateway, h.c2.MAC, vip, 40000 })
	for range 2 { // the second time, it has moved already
		if got := h.run(t, h.progs.FbrPortIn, announcement(h.c2.MAC, h.c2.MAC, vip).Bytes(t), h.c2.Ifindex, h.c2.Ifindex); got.verdict != next {
			t.Fatalf("announced: verdict %d", got.verdict)
		}
		if got := h.uplinkIn(t, in); got.verdict != next {
			t.Errorf("after: verdict %d, want the kernel's path", got.verdict)
		}
	}
	h.age(t, 0)
	if got := h.run(t, h.progs.FbrPortOut, delivered.Bytes(t), h.c2.Ifindex, h.uplink.Ifindex); got.verdict != next {
		t.Errorf("delivered to the new port: verdict %d", got.verdict)
	}
	if got := h.uplinkIn(t, in); got.verdict != redirect {
		t.Errorf("once delivered: verdict %d", got.verdict)
	}
	taken := h.c2
	taken.AllowedAddrs = nil
	check(t, h.AttachPort(taken))
	if got := h.uplinkIn(t, in); got.verdict != next {
		t.Errorf("taken back: verdict %d, want the kernel's path", got.verdict)
	}
	h.wantDrop(t, h.c2.Ifindex, "direct", func() result {
		return h.run(t, h.progs.FbrPortOut, delivered.Bytes(t), h.c2.Ifindex, h.uplink.Ifindex)
	})
	check(t, h.AttachPort(h.c2))
	if got := h.run(t, h.progs.FbrPortIn, announcement(h.c2.MAC, h.c2.MAC, vip).Bytes(t), h.c2.Ifindex, h.c2.Ifindex); got.verdict != next {
		t.Fatalf("announced: verdict %d", got.verdict)
	}
	later := f.With(func(f *testutil.Frame) { f.SrcMAC, f.TCP.SrcPort = h.c2.MAC, 41000 })
	if got := h.uplinkOut(t, h.routed(later).Bytes(t), h.bridge); got.verdict != next {
		t.Errorf("a new flow: verdict %d", got.verdict)
	}
	check(t, h.DetachPort(h.c2.Ifindex))
	if fs, err := h.Flows(); err != nil || len(fs) != 1 {
		t.Errorf("%+v, %v: want the session of c1", fs, err)
	}
	// Nobody holds it now: not the port that is gone, and c1 not before it sends.
	h.wantDrop(t, h.uplink.Ifindex, "spoof_ip", func() result { return h.uplinkOut(t, h.routed(later).Bytes(t), h.bridge) })
}

// Frames to a virtual MAC address are fast, and follow it at once.
func TestAllowedMACMoves(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.c2 = h.mayUse(t, h.c2, vip.String()+"/32", virtual)
	c3 := Port{Ifindex: addVeth(t, "p4"), Bridge: h.bridge, BridgeMAC: h.gateway, MAC: mustMAC("02:42:ac:1e:00:04"), IP: mustAddr("172.30.0.4"), MTU: 1500}
	c3 = h.mayUse(t, c3, vip.String()+"/32", virtual)
	f := between(h.c1, h.c2).With(func(f *testutil.Frame) { f.DstMAC, f.Dst = virtual, vip })
	is := func(when string, verdict int32) {
		t.Helper()
		if got := h.portIn(t, f.Bytes(t)); got.verdict != verdict || string(got.frame) != string(f.Bytes(t)) {
			t.Errorf("%s: verdict %d, want %d and the frame unchanged", when, got.verdict, verdict)
		}
	}
	is("before anybody has it", next)
	for _, p := range []Port{h.c2, c3, h.c2} {
		if got := h.run(t, h.progs.FbrPortIn, announcement(virtual, virtual, vip).Bytes(t), p.Ifindex, p.Ifindex); got.verdict != next {
			t.Fatalf("announced: verdict %d", got.verdict)
		}
		h.age(t, 0)
		is("announced", next)
		h.carry(t, f, h.c1, p)
		is("carried", redirect)
	}
	h.carry(t, between(h.c1, h.c2), h.c1, h.c2)
	if got := h.portIn(t, between(h.c1, h.c2).Bytes(t)); got.verdict != redirect {
		t.Errorf("to its own MAC address: verdict %d", got.verdict)
	}
	bare := h.c2
	bare.AllowedMACs = nil
	check(t, h.AttachPort(bare))
	is("not allowed any more", next)
}

// Where nothing is translated, allowed addresses have ways as the port's own have.
func TestWaysOfAllowedAddresses(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.toRouted(t)
	h.c1 = h.mayUse(t, h.c1, vip.String()+"/32")
	f := sentAs(h.fromC1(), vip)
	back := h.reply(f, 40000).With(func(f *testutil.Frame) { f.Dst = vip })
	if got := h.portIn(t, f.Bytes(t)); got.verdict != next {
		t.Fatalf("first: verdict %d", got.verdict)
	}
	if got := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge); got.verdict != next {
		t.Fatalf("out: verdict %d", got.verdict)
	}
	got := h.portIn(t, f.Bytes(t))
	if got.verdict != redirect {
		t.Fatalf("with a lease: verdict %d", got.verdict)
	}
	if out := h.uplinkOut(t, got.frame, h.c1.Ifindex, func(s *skb) { s.Mark = got.mark }); out.verdict != next || out.mark != 0 {
		t.Errorf("sent: verdict %d, mark %x", out.verdict, out.mark)
	}
	delivered := back.With(func(f *testutil.Frame) { f.SrcMAC, f.DstMAC = h.gateway, h.c1.MAC })
	if got := h.portOut(t, delivered.Bytes(t), h.uplink.Ifindex); got.verdict != next {
		t.Errorf("delivered: verdict %d", got.verdict)
	}
	if got := h.uplinkIn(t, back.Bytes(t)); got.verdict != redirect {
		t.Errorf("in: verdict %d", got.verdict)
	}
}
