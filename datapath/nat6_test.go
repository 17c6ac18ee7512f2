package datapath

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

// translated6 is an IPv6 harness whose networks are translated.
func translated6(t *testing.T) sixth {
	t.Helper()
	return withIP6(t, newHarness(t, Config{FlowsMax: 64}, nil))
}

// A UDP packet without the checksum that IPv6 asks for is translated and never fast. It has
// none afterwards, either.
func TestUncheckedUDPByIPv6(t *testing.T) {
	h := translated6(t)
	f := h.samples()["udp"].With(func(f *testutil.Frame) { f.UncheckedUDP = true })
	eport := h.open(t, f)
	for range 2 {
		got := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge)
		if want := translated(h.routed(f), eport).Bytes(t); got.verdict != next || string(got.frame) != string(want) {
			t.Errorf("out: verdict %d\n got %x\nwant %x", got.verdict, got.frame, want)
		}
		if got := h.portIn(t, f.Bytes(t)); got.verdict != next {
			t.Errorf("from the port: verdict %d", got.verdict)
		}
		if got := h.uplinkIn(t, h.reply(f, eport).Bytes(t)); got.verdict != next || string(got.frame) != string(h.asSeenByC1(f, eport).Bytes(t)) {
			t.Errorf("in: verdict %d\n got %x", got.verdict, got.frame)
		}
	}
}

// A checksum that comes out as 0 is sent as 0xffff, on either path (RFC 8200 section 8.1).
func TestUDPByIPv6HasAChecksum(t *testing.T) {
	h := translated6(t)
	f := h.samples()["udp"].With(func(f *testutil.Frame) { f.Payload = []byte{0, 0} })
	eport := h.open(t, f)
	sum := func(f testutil.Frame) uint16 {
		b := f.Bytes(t)
		return uint16(b[60])<<8 | uint16(b[61])
	}
	// With this payload the translated packet's sum is 0, which is written as 0xffff.
	left := sum(translated(h.routed(f), eport))
	f.Payload = []byte{byte(left >> 8), byte(left)}
	want := translated(h.routed(f), eport)
	if got := sum(want); got != 0xffff {
		t.Fatalf("checksum %04x, want ffff", got)
	}
	slow, fast := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge), h.portIn(t, f.Bytes(t))
	if slow.verdict != next || string(slow.frame) != string(want.Bytes(t)) {
		t.Errorf("kernel path: verdict %d\n got %x\nwant %x", slow.verdict, slow.frame, want.Bytes(t))
	}
	if fast.verdict != redirect || string(fast.frame) != string(want.Bytes(t)) {
		t.Errorf("fast path: verdict %d\n got %x\nwant %x", fast.verdict, fast.frame, want.Bytes(t))
	}
}

// What cannot be translated does not leave; extension headers that the kernel lets pass do not
// hinder translation, which is on the kernel's path.
func TestExtensionHeadersAndTranslation(t *testing.T) {
	h := translated6(t)
	f := h.samples()["udp"]
	eport := h.open(t, f)
	with := func(exts ...testutil.Ext) testutil.Frame { return f.With(func(f *testutil.Frame) { f.Ext = exts }) }
	options := testutil.Options(testutil.DestOptions, 1, 0)
	for name, g := range map[string]testutil.Frame{
		"destination options": with(options), "two": with(options, testutil.RoutingHeader(4, 0)),
	} {
		if got := h.portIn(t, g.Bytes(t)); got.verdict != next {
			t.Errorf("%s: from the port: verdict %d", name, got.verdict)
		}
		want := translated(h.routed(g), eport).Bytes(t)
		if got := h.uplinkOut(t, h.routed(g).Bytes(t), h.bridge); got.verdict != next || string(got.frame) != string(want) {
			t.Errorf("%s: verdict %d\n got %x\nwant %x", name, got.verdict, got.frame, want)
		}
	}
	// Its checksum is over the last address of the routing header.
	h.wantDrop(t, h.c1.Ifindex, "unsupported", func() result {
		return h.uplinkOut(t, h.routed(with(testutil.RoutingHeader(4, 1))).Bytes(t), h.bridge)
	})
	h.wantDrop(t, h.c1.Ifindex, "unsupported", func() result {
		return h.uplinkOut(t, h.routed(f.With(func(f *testutil.Frame) { f.UDP, f.Proto = nil, 50 })).Bytes(t), h.bridge)
	})
}

// setAddrs replaces the global addresses of the uplink.
func (h sixth) setAddrs(t *testing.T, addrs ...netip.Addr) {
	t.Helper()
	h.ns.Do(t, func() {
		l, err := netlink.LinkByIndex(h.uplink.Ifindex)
		check(t, err)
		have, err := netlink.AddrList(l, netlink.FAMILY_V6)
		check(t, err)
		for i := range have {
			if a, _ := netip.AddrFromSlice(have[i].IP); !a.IsLinkLocalUnicast() && !slices.Contains(addrs, a) {
				check(t, netlink.AddrDel(l, &have[i]))
			}
		}
		for _, a := range addrs {
			if !slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IP.Equal(a.AsSlice()) }) {
				addAddress(t, h.uplink.Ifindex, a, 64)
			}
		}
		// The kernel enters an address's route a moment later.
		for _, a := range addrs {
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
				routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
				check(t, err)
				if slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.IP.Equal(a.AsSlice()) }) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("no route for %s", a)
				}
			}
		}
	})
}

// A flow and a mapping keep their external address while it is the host's, though the kernel
// would choose another one for a new flow.
func TestExternalIPv6AddressStays(t *testing.T) {
	h := translated6(t)
	f := h.samples()["udp"]
	source := func(f testutil.Frame) netip.Addr {
		t.Helper()
		got := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge)
		if got.verdict != next {
			t.Fatalf("verdict %d", got.verdict)
		}
		return netip.AddrFrom16([16]byte(got.frame[22:38]))
	}
	h.setAddrs(t, extAddr6)
	h.open(t, f)
	later := mustAddr("2001:db8:1::77")
	if got := source(f); got != extAddr6 {
		t.Fatalf("leaves from %s, want %s", got, extAddr6)
	}
	// The newer address has a longer common prefix with this destination (RFC 6724 rule 8).
	near := f.With(func(f *testutil.Frame) { f.Dst = mustAddr("2001:db8:1:8000::1") })
	h.setAddrs(t, extAddr6, later)
	other := f.With(func(f *testutil.Frame) { f.UDP.SrcPort++ })
	for name, g := range map[string]testutil.Frame{"the flow": f, "another of its mapping": near} {
		if got := source(g); got != extAddr6 {
			t.Errorf("%s leaves from %s, want %s", name, got, extAddr6)
		}
	}
	h.setAddrs(t, later)
	for name, g := range map[string]testutil.Frame{"the flow": f, "another of its mapping": near, "a new one": other} {
		if got := source(g); got != later {
			t.Errorf("without its address, %s leaves from %s, want %s", name, got, later)
		}
	}
	// What is left is the bridge's own.
	h.ns.Do(t, func() {
		check(t, os.WriteFile("/proc/sys/net/ipv6/conf/br1/disable_ipv6", []byte("0"), 0))
		addAddress(t, h.bridge, gateway6, 64)
	})
	h.setAddrs(t)
	up := h.uplink
	up.Addr6 = netip.Addr{}
	check(t, h.AttachUplink(up))
	h.wantDrop(t, h.c1.Ifindex, "no_uplink", func() result { return h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge) })
}

// What the host says on its links is neither translated nor judged, whatever its port is.
func TestLinkAffairsAreTheHosts(t *testing.T) {
	h := translated6(t)
	ll := testutil.LinkLocal(h.gateway)
	say := func(m *testutil.ICMP6, src, dst netip.Addr) testutil.Frame {
		return testutil.Frame{SrcMAC: h.gateway, DstMAC: h.outsideHW, Src: src, Dst: dst, Msg: m}
	}
	for name, f := range map[string]testutil.Frame{
		"solicitation": say(testutil.NeighborSolicitation(router6), ll, testutil.SolicitedNode(router6)),
		"router":       say(testutil.RouterSolicitation(), ll, mustAddr("ff02::2")),
		"of its own":   say(testutil.NeighborSolicitation(router6), extAddr6, testutil.SolicitedNode(router6)),
		"DHCPv6":       {SrcMAC: h.gateway, DstMAC: h.outsideHW, Src: ll, Dst: mustAddr("ff02::1:2"), UDP: &testutil.UDP{SrcPort: 546, DstPort: 547}},
		"from a port of the range": {SrcMAC: h.gateway, DstMAC: h.outsideHW, Src: ll, Dst: testutil.LinkLocal(h.outsideHW),
			UDP: &testutil.UDP{SrcPort: 12345, DstPort: 5353}},
	} {
		b := f.Bytes(t)
		if got := h.uplinkOut(t, b, 0); got.verdict != next || string(got.frame) != string(b) {
			t.Errorf("%s: out: verdict %d", name, got.verdict)
		}
	}
	if n := h.live(t); n != 0 {
		t.Errorf("%d sessions, want none", n)
	}
	// Nobody on the link gets a session: no answer could be routed there.
	f := h.own("udp")
	eport := h.open(t, f)
	near := h.reply(f, eport).With(func(f *testutil.Frame) { f.Src = testutil.LinkLocal(h.outsideHW) }).Bytes(t)
	if got := h.uplinkIn(t, near); got.verdict != next || string(got.frame) != string(near) {
		t.Errorf("from a link-local address: verdict %d", got.verdict)
	}
}

// The smaller of the route's MTU and the device's decides what is fast.
func TestMTUOfTheIPv6Way(t *testing.T) {
	h := translated6(t)
	h.ns.Do(t, func() {
		_, dst, err := net.ParseCIDR("2001:db8:f::/64")
		check(t, err)
		check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: h.uplink.Ifindex, MTU: 1300, MTULock: true, Dst: dst, Gw: router6.AsSlice()}))
	})
	f := h.samples()["udp"]
	h.open(t, f)
	for size, verdict := range map[int]int32{1300: redirect, 1301: next} {
		g := f.With(func(f *testutil.Frame) { f.Payload = make([]byte, size-48) })
		if got := h.portIn(t, g.Bytes(t)); got.verdict != verdict {
			t.Errorf("%d bytes: verdict %d, want %d", size, got.verdict, verdict)
		}
	}
}

// The uplink has an answer though the kernel's own setting says that it does not forward.
func TestUplinkThatDoesNotForward(t *testing.T) {
	h := translated6(t)
	h.ns.Do(t, func() {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/up0/forwarding")
		check(t, err)
		if string(b) != "0\n" {
			t.Fatalf("forwarding of the uplink is %s", b)
		}
	})
	if got := h.uplinkOut(t, h.routed(h.fromC1()).Bytes(t), h.bridge); got.verdict != next || netip.AddrFrom16([16]byte(got.frame[22:38])) != extAddr6 {
		t.Errorf("verdict %d\n%x", got.verdict, got.frame)
	}
}
