package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

func TestPortInDropsWhatIsNotThePorts(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	valid := h.fromC1()
	arp := func(change ...func(*testutil.ARP)) []byte {
		a := testutil.ARP{SrcMAC: h.c1.MAC, DstMAC: mustMAC("ff:ff:ff:ff:ff:ff"), SenderMAC: h.c1.MAC, SenderIP: c1Addr, TargetIP: c2Addr}
		for _, c := range change {
			c(&a)
		}
		return a.Bytes(t)
	}
	frame := func(change func(*testutil.Frame)) []byte { return valid.With(change).Bytes(t) }
	for name, tc := range map[string]struct {
		frame  []byte
		reason Reason // "": passes to the kernel
	}{
		"valid":               {frame: valid.Bytes(t)},
		"foreign MAC":         {frame(func(f *testutil.Frame) { f.SrcMAC = h.c2.MAC }), "spoof_mac"},
		"foreign address":     {frame(func(f *testutil.Frame) { f.Src = c2Addr }), "spoof_ip"},
		"external address":    {frame(func(f *testutil.Frame) { f.Src = extAddr }), "spoof_ip"},
		"zero address":        {frame(func(f *testutil.Frame) { f.Src = netip.IPv4Unspecified() }), "spoof_ip"},
		"other network":       {frame(func(f *testutil.Frame) { f.Dst = other }), "isolated"},
		"other gateway":       {frame(func(f *testutil.Frame) { f.Dst = netip.MustParseAddr("172.31.0.1") }), "isolated"},
		"own gateway":         {frame: frame(func(f *testutil.Frame) { f.Dst = netip.MustParseAddr("172.30.0.1") })},
		"options":             {frame: frame(func(f *testutil.Frame) { f.Options = []byte{1, 1, 1, 0} })},
		"fragment":            {frame: frame(func(f *testutil.Frame) { f.MF = true })},
		"last hop":            {frame: frame(func(f *testutil.Frame) { f.TTL = 1 })},
		"tagged":              {frame(func(f *testutil.Frame) { f.VLAN = []uint16{5} }), "l2_proto"},
		"double-tagged":       {frame(func(f *testutil.Frame) { f.VLAN = []uint16{5, 6} }), "l2_proto"},
		"tagged, foreign MAC": {frame(func(f *testutil.Frame) { f.VLAN = []uint16{5}; f.SrcMAC = h.c2.MAC }), "spoof_mac"},
		"LLDP":                {ether(h, 0x88cc), "l2_proto"},
		"RARP":                {ether(h, 0x8035), "l2_proto"},
		"ARP":                 {frame: arp(func(a *testutil.ARP) { a.TargetIP = mustAddr("172.30.0.99") })},
		"ARP probe":           {frame: arp(func(a *testutil.ARP) { a.SenderIP = netip.IPv4Unspecified() })},
		"ARP for the gateway": {arp(func(a *testutil.ARP) { a.SenderIP = netip.MustParseAddr("172.30.0.1"); a.Reply = true }), "spoof_arp"},
		"ARP for c2":          {arp(func(a *testutil.ARP) { a.SenderIP = c2Addr }), "spoof_arp"},
		"ARP with other MAC":  {arp(func(a *testutil.ARP) { a.SenderMAC = h.c2.MAC }), "spoof_arp"},
		"ARP reply from zero": {arp(func(a *testutil.ARP) { a.SenderIP = netip.IPv4Unspecified(); a.Reply = true }), "spoof_arp"},
		"IPv6":                {ip6(h, 17, make([]byte, 8)), "l2_proto"}, // this network has none
		"IPv6 neighbour":      {ip6(h, 58, []byte{135, 0}), "l2_proto"},
		"IPv6, foreign MAC":   {func() []byte { f := ip6(h, 58, []byte{135, 0}); copy(f[6:], h.c2.MAC); return f }(), "spoof_mac"},
	} {
		t.Run(name, func(t *testing.T) {
			before := h.of(t, h.c1.Ifindex)
			if tc.reason != "" {
				h.wantDrop(t, h.c1.Ifindex, tc.reason, func() result { return h.portIn(t, tc.frame) })
			} else if got := h.portIn(t, tc.frame); got.verdict != next || string(got.frame) != string(tc.frame) {
				t.Errorf("verdict %d, frame changed: %v", got.verdict, string(got.frame) != string(tc.frame))
			}
			after := h.of(t, h.c1.Ifindex)
			if n := after.RX.SlowPackets - before.RX.SlowPackets; n != 1 {
				t.Errorf("%d packets counted as received, want 1", n)
			}
			if n := after.RX.SlowBytes - before.RX.SlowBytes; n != uint64(len(tc.frame)) {
				t.Errorf("%d bytes counted, want %d", n, len(tc.frame))
			}
		})
	}
}

// fastbr knows the address that is asked for, so no other port needs to hear the
// question.
func TestPortInAnswersARP(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	ask := func(change func(*testutil.ARP)) []byte {
		a := testutil.ARP{SrcMAC: h.c1.MAC, DstMAC: mustMAC("ff:ff:ff:ff:ff:ff"), SenderMAC: h.c1.MAC, SenderIP: c1Addr, TargetIP: c2Addr}
		change(&a)
		return a.Bytes(t)
	}
	for asked, mac := range map[netip.Addr]net.HardwareAddr{c2Addr: h.c2.MAC, gateway1: h.gateway} {
		got := h.portIn(t, ask(func(a *testutil.ARP) { a.TargetIP = asked }))
		want := testutil.ARP{SrcMAC: mac, DstMAC: h.c1.MAC, Reply: true, SenderMAC: mac, SenderIP: asked,
			TargetMAC: h.c1.MAC, TargetIP: c1Addr}.Bytes(t)
		if got.verdict != redirect || string(got.frame) != string(want) {
			t.Errorf("for %s: verdict %d\n got %x\nwant %x", asked, got.verdict, got.frame, want)
		}
	}
	if c := h.of(t, h.c1.Ifindex); c.RX.FastPackets != 2 || c.TX.FastPackets != 2 || c.TX.FastBytes != c.RX.FastBytes {
		t.Errorf("c1 counts %+v", c)
	}
	untouched := map[string][]byte{
		"another network":    ask(func(a *testutil.ARP) { a.TargetIP = other }),
		"announcement":       ask(func(a *testutil.ARP) { a.TargetIP = c1Addr }),
		"probe":              ask(func(a *testutil.ARP) { a.SenderIP = netip.IPv4Unspecified() }),
		"reachability probe": ask(func(a *testutil.ARP) { a.DstMAC = h.c2.MAC }),
		"answer":             ask(func(a *testutil.ARP) { a.Reply = true }),
	}
	for name, f := range untouched {
		if got := h.portIn(t, f); got.verdict != next || string(got.frame) != string(f) {
			t.Errorf("%s: verdict %d, want it left to the bridge", name, got.verdict)
		}
	}
	slow := h.c2
	slow.Slow = true
	check(t, h.AttachPort(slow))
	if got := h.portIn(t, ask(func(*testutil.ARP) {})); got.verdict != next {
		t.Errorf("for a port on the kernel path: verdict %d", got.verdict)
	}
}

func ether(h *harness, proto uint16) []byte {
	f := append(append([]byte(nil), h.gateway...), h.c1.MAC...)
	return append(append(f, byte(proto>>8), byte(proto)), make([]byte, 46)...)
}

// ip6 is an IPv6 frame of c1 with this next header and payload.
func ip6(h *harness, nextHeader byte, payload []byte) []byte {
	f := append(append([]byte(nil), 0x33, 0x33, 0, 0, 0, 1), h.c1.MAC...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(payload)), nextHeader, 255)
	dst := make([]byte, 32)
	dst[16] = 0xff // a multicast group
	return append(append(f, dst...), payload...)
}

func TestPortOutDeliversOnlyWhatMayCome(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f := testutil.Frame{SrcMAC: h.gateway, DstMAC: h.c1.MAC, Src: server, Dst: c1Addr, UDP: &testutil.UDP{SrcPort: 1, DstPort: 2}}
	group := f.With(func(f *testutil.Frame) { f.Dst = mustAddr("239.1.2.3") })
	outsiders := testutil.Frame{SrcMAC: h.gateway, DstMAC: h.c1.MAC, Src: server, Dst: c1Addr,
		ICMP: &testutil.ICMPError{Type: 5, Inner: h.fromC1().IP(t)}}
	redirectMsg := testutil.Frame{SrcMAC: h.gateway, DstMAC: h.c1.MAC, Src: netip.MustParseAddr("172.30.0.1"), Dst: c1Addr,
		ICMP: &testutil.ICMPError{Type: 5, Inner: h.fromC1().IP(t)}}
	for name, tc := range map[string]struct {
		frame  testutil.Frame
		iif    int
		reason Reason
	}{
		"host":            {f, 0, ""},
		"uplink":          {f, h.uplink.Ifindex, "direct"},
		"to a group":      {group, h.uplink.Ifindex, ""},
		"port":            {f, h.c2.Ifindex, ""},
		"own bridge":      {f, h.bridge, ""},
		"other bridge":    {f, h.bridge2, "isolated"},
		"other port":      {f, h.other.Ifindex, "isolated"},
		"another device":  {f, h.foreign, "direct"},
		"host's redirect": {redirectMsg, 0, "unsupported"},
		"an outsider's":   {outsiders, h.uplink.Ifindex, "unsupported"},
	} {
		t.Run(name, func(t *testing.T) {
			b := tc.frame.Bytes(t)
			if tc.reason != "" {
				h.wantDrop(t, h.c1.Ifindex, tc.reason, func() result { return h.portOut(t, b, tc.iif) })
				return
			}
			before := h.of(t, h.c1.Ifindex)
			if got := h.portOut(t, b, tc.iif); got.verdict != next {
				t.Errorf("verdict %d", got.verdict)
			}
			if after := h.of(t, h.c1.Ifindex); after.TX.SlowPackets != before.TX.SlowPackets+1 {
				t.Error("not counted")
			}
		})
	}
}
