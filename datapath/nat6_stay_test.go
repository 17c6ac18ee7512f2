package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

var (
	later6  = mustAddr("2001:db8:1::77")     // another address of the uplink
	near6   = mustAddr("2001:db8:1:8000::1") // the kernel would reach it from later6 (RFC 6724 rule 8)
	local6  = mustAddr("fd00:9::1")          // a unique local one
	inside6 = mustAddr("fd00:9:0:1::53")     // which is reached from local6
)

// toward is f with another destination.
func toward(f testutil.Frame, dst netip.Addr) testutil.Frame {
	return f.With(func(f *testutil.Frame) { f.Dst = dst })
}

// leaves sends f out by a device and returns the source that it gets.
func (h sixth) leaves(t *testing.T, f testutil.Frame, by int) netip.AddrPort {
	t.Helper()
	got := h.run(t, h.prog(tcProgFbrUplinkOut), h.routed(f).Bytes(t), by, h.bridge)
	if got.verdict != next {
		t.Fatalf("%s to %s: verdict %d", f.Src, f.Dst, got.verdict)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(got.frame[22:38])), binary.BigEndian.Uint16(got.frame[54:]))
}

func (h sixth) wantSource(t *testing.T, what string, f testutil.Frame, want netip.Addr) {
	t.Helper()
	if got := h.leaves(t, f, h.uplink.Ifindex).Addr(); got != want {
		t.Errorf("%s: leaves from %s, want %s", what, got, want)
	}
}

// setNetwork changes c1's network.
func (h sixth) setNetwork(t *testing.T, change func(*Network)) {
	t.Helper()
	one, _ := h.networks6()
	change(&one)
	check(t, h.SetNetwork(one))
	check(t, h.AttachPort(h.c1))
	check(t, h.Revoke())
}

// An uplink with a unique local and a global address: a mapping's address is for destinations
// of its kind. Others get the one that the kernel chooses, from the same port.
func TestExternalIPv6AddressSuitsItsDestination(t *testing.T) {
	h := translated6(t)
	global, local := h.samples()["udp"], toward(h.samples()["udp"], inside6)
	h.setAddrs(t, local6)
	h.wantSource(t, "with no other address", global, local6)
	h.setAddrs(t, local6, extAddr6)
	// Its flow could not have had an answer.
	h.wantSource(t, "with a global address", global, extAddr6)

	for name, order := range map[string][]testutil.Frame{"local first": {local, global}, "global first": {global, local}} {
		_, err := h.FlushFlows()
		check(t, err)
		ports := map[uint16]bool{}
		for range 2 {
			for _, f := range order {
				want := map[netip.Addr]netip.Addr{outside6: extAddr6, inside6: local6}[f.Dst]
				got := h.leaves(t, f, h.uplink.Ifindex)
				ports[got.Port()] = true
				if got.Addr() != want {
					t.Errorf("%s: to %s from %s, want %s", name, f.Dst, got, want)
				}
			}
		}
		if len(ports) != 1 {
			t.Errorf("%s: ports %v, want one", name, ports)
		}
	}
}

// An address that is gone is not the host's, though no route leads to it either.
func TestLostIPv6AddressIsNotUsed(t *testing.T) {
	h := translated6(t)
	f := h.samples()["udp"]
	route := func(dst netip.Prefix) {
		t.Helper()
		h.ns.Do(t, func() {
			to := &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), 128)}
			check(t, netlink.RouteReplace(&netlink.Route{LinkIndex: h.uplink.Ifindex, Dst: to}))
		})
	}
	h.setAddrs(t, extAddr6)
	route(netip.PrefixFrom(outside6, 64).Masked())
	route(netip.PrefixFrom(near6, 64).Masked())
	h.wantSource(t, "at first", f, extAddr6)
	moved := mustAddr("2001:db8:7::7")
	h.setAddrs(t, moved)
	h.ns.Do(t, func() {
		check(t, netlink.RouteDel(&netlink.Route{LinkIndex: h.uplink.Ifindex, Gw: router6.AsSlice()}))
	})
	h.wantSource(t, "the flow", f, moved)
	h.wantSource(t, "another of its mapping", toward(f, near6), moved)
	// Nothing leads outside, and the address that the maps know is gone.
	h.ns.Do(t, func() {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{LinkIndex: h.uplink.Ifindex}, netlink.RT_FILTER_OIF)
		check(t, err)
		for _, r := range routes {
			if r.Dst != nil && r.Dst.Contains(outside6.AsSlice()) {
				check(t, netlink.RouteDel(&r))
			}
		}
	})
	up := h.uplink
	up.Addr6 = extAddr6
	check(t, h.AttachUplink(up))
	h.wantDrop(t, h.c1.Ifindex, "no_uplink", func() result { return h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge) })
}

// An uplink that has link-local addresses only has none to translate to.
func TestLinkLocalIsNoExternalAddress(t *testing.T) {
	h := translated6(t)
	own := mustAddr("fe80::77")
	h.ns.Do(t, func() { addAddress(t, h.uplink.Ifindex, own, 64) })
	h.setAddrs(t, own)
	up := h.uplink
	up.Addr6 = netip.Addr{}
	check(t, h.AttachUplink(up))
	h.wantDrop(t, h.c1.Ifindex, "no_uplink", func() result { return h.uplinkOut(t, h.routed(h.fromC1()).Bytes(t), h.bridge) })
}

// IPv6 flows stay also where the network says which IPv4 address, or which way, is its own.
func TestExternalIPv6AddressStaysDespiteIPv4(t *testing.T) {
	for name, set := range map[string]func(h sixth, n *Network){
		"IPv4's address": func(_ sixth, n *Network) { n.SNAT = extAddr },
		"one way":        func(h sixth, n *Network) { n.OneWay, n.Via = true, h.uplink.Ifindex },
	} {
		t.Run(name, func(t *testing.T) {
			h := translated6(t)
			h.setNetwork(t, func(n *Network) { set(h, n) })
			h.setAddrs(t, later6)
			f := toward(h.samples()["udp"], near6)
			h.wantSource(t, "at first", f, later6)
			nearer := mustAddr("2001:db8:1:8000::77")
			h.setAddrs(t, later6, nearer)
			h.wantSource(t, "the flow", f, later6)
			h.wantSource(t, "another", f.With(func(f *testutil.Frame) { f.UDP.SrcPort++ }), nearer)
		})
	}
}

// A mapping keeps its address and its uplink whoever else sends to it, when it moves to another
// port, and across an upgrade. A session that was begun outside answers by the uplink that it
// came by.
func TestMappingKeepsItsUplink(t *testing.T) {
	begin := func(t *testing.T, h sixth) (testutil.Frame, uint16) {
		h.setNetwork(t, func(n *Network) { n.NAT.Filtering = EIF })
		h.setAddrs(t, extAddr6)
		f := h.samples()["udp"]
		eport := h.open(t, f)
		h.setAddrs(t, extAddr6, later6)
		h.wantSource(t, "another mapping", toward(f, near6).With(func(f *testutil.Frame) { f.UDP.SrcPort++ }), later6)
		return f, eport
	}
	visited := func(t *testing.T, h sixth, f testutil.Frame, eport uint16, who netip.Addr) testutil.Frame {
		in := h.reply(f, eport).With(func(f *testutil.Frame) { f.Src = who })
		if got := h.uplinkIn(t, in.Bytes(t)); got.verdict != next || netip.AddrFrom16([16]byte(got.frame[38:54])) != c1Addr6 {
			t.Fatalf("from %s: verdict %d, frame %x", who, got.verdict, got.frame)
		}
		return toward(f, who)
	}
	t.Run("from outside", func(t *testing.T) {
		h := translated6(t)
		f, eport := begin(t, h)
		h.wantSource(t, "the answer", visited(t, h, f, eport, mustAddr("2001:db8:f::12")), extAddr6)
		h.wantSource(t, "the next of the mapping", toward(f, near6), extAddr6)
		answer, other := visited(t, h, f, eport, mustAddr("2001:db8:f::13")), h.second(t)
		if got := h.leaves(t, answer, other.Ifindex).Addr(); got != other.Addr6 {
			t.Errorf("by another uplink the answer leaves from %s, want %s", got, other.Addr6)
		}
	})
	t.Run("moved", func(t *testing.T) {
		h := translated6(t)
		f, eport := begin(t, h)
		own := translated(h.routed(f), eport).Bytes(t) // the host's own
		if got := h.uplinkOut(t, own, 0); got.verdict != next || string(got.frame) != string(own) {
			t.Fatalf("the host's: verdict %d", got.verdict)
		}
		if h.eport(t, f) == eport {
			t.Fatal("the session has not moved")
		}
		h.wantSource(t, "the next of the mapping", toward(f, near6), extAddr6)
	})
	t.Run("upgraded", func(t *testing.T) {
		earlier := inet6
		earlier.from = otherwise(loadTc6)
		real := newReal(t, Config{FlowsMax: 64}, nil)
		real.families.load6 = earlier.loading(tuning(nil))
		h := withIP6(t, real)
		f, eport := begin(t, h)
		visited(t, h, f, eport, mustAddr("2001:db8:f::12"))
		h.otherBuild(t)
		n := sixth{h.upgraded(t).speaking(of6)}
		n.wantSource(t, "the next of the mapping", toward(f, near6), extAddr6)
	})
}

// second makes another uplink.
func (h sixth) second(t *testing.T) Uplink {
	t.Helper()
	u := Uplink{Ifindex: h.foreign, Addr: mustAddr("203.0.113.1"), Addr6: mustAddr("2001:db8:2::1"), MTU: 1500}
	h.ns.Do(t, func() {
		check(t, os.WriteFile("/proc/sys/net/ipv6/conf/nic2/disable_ipv6", []byte("0"), 0))
		addAddress(t, u.Ifindex, u.Addr6, 64)
	})
	check(t, h.AttachUplink(u))
	return u
}

// What a network keeps its own address for keeps each of them, with its port.
func TestEachOwnAddressStays(t *testing.T) {
	for name, x := range map[string]struct {
		allowed netip.Prefix
		source  netip.Addr
	}{
		"IPv4": {netip.MustParsePrefix("172.30.0.96/29"), mustAddr("172.30.0.100")},
		"IPv6": {netip.MustParsePrefix("fd00:1::100/120"), mustAddr("fd00:1::123")},
	} {
		t.Run(name, func(t *testing.T) {
			h := translated6(t)
			h.c1.AllowedAddrs = []netip.Prefix{x.allowed}
			h.setNetwork(t, func(n *Network) { n.Masquerade, n.Routed6, n.PublishedOnly = false, true, true })
			p, f := h.harness, h.samples()["udp"]
			if x.source.Is4() {
				p = h.speaking(of4)
				f = p.samples()["udp"]
			}
			for _, src := range []netip.Addr{f.Src, x.source} {
				f.Src = src
				if got := p.portIn(t, f.Bytes(t)); got.verdict != next {
					t.Fatalf("%s: verdict %d", src, got.verdict)
				}
				if got := p.uplinkOut(t, p.routed(f).Bytes(t), p.bridge); got.verdict != next || string(got.frame) != string(p.routed(f).Bytes(t)) {
					t.Errorf("%s: verdict %d\n got %x\nwant %x", src, got.verdict, got.frame, p.routed(f).Bytes(t))
				}
			}
		})
	}
}

// Only the first fragment shows what follows the extension headers behind the fragment header.
func TestFragmentsWithOptions(t *testing.T) {
	h := translated6(t)
	f := h.routed(h.big()["udp"]).With(func(f *testutil.Frame) { f.Ext = []testutil.Ext{testutil.Options(testutil.DestOptions, 1, 0)} })
	whole, err := testutil.Join(h.sendOut(t, testutil.Fragments(t, f.Bytes(t), fragment, 77))...)
	check(t, err)
	if got := netip.AddrFrom16([16]byte(whole[22:38])); got != extAddr6 {
		t.Errorf("left from %s, want %s", got, extAddr6)
	}
	if n := h.tracked(t, false); n != 0 {
		t.Errorf("%d datagrams are tracked after the last fragment", n)
	}
}

// A tunnel's datagram without checksum has none afterwards, neither with segments that are
// still to be cut, nor without.
func TestTunnelWithoutChecksumByIPv6(t *testing.T) {
	h := translated6(t)
	inner := testutil.Frame{Src: mustAddr("fd00:7::1"), Dst: mustAddr("fd00:7::2"), TCP: &testutil.TCP{SrcPort: 1, DstPort: 2, ACK: true}, Payload: make([]byte, 1200)}
	f := h.samples()["udp"].With(func(f *testutil.Frame) { f.UncheckedUDP = true })
	eport := h.open(t, f)
	in := h.reply(f, eport).With(func(f *testutil.Frame) { f.Payload = inner.IP(t) })
	const tcp = 14 + 40 + 8 + 40 // offset of the inner header
	h.ns.Do(t, func() {
		// What is written to a tap has come in by it, with whatever is still to be done. A raw
		// socket hears what arrives at c1's address, which is the host's here.
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0", HardwareAddr: in.DstMAC}, Mode: netlink.TUNTAP_MODE_TAP,
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, Queues: 1}
		check(t, netlink.LinkAdd(tap))
		dev := tap.Fds[0]
		t.Cleanup(func() { _ = dev.Close() })
		l, err := netlink.LinkByName("tap0")
		check(t, err)
		check(t, netlink.LinkSetHardwareAddr(l, in.DstMAC))
		check(t, netlink.LinkSetUp(l))
		check(t, os.WriteFile("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", []byte("0"), 0))
		addAddress(t, h.uplink.Ifindex, c1Addr6, 128)
		check(t, h.AttachUplink(Uplink{Ifindex: l.Attrs().Index, MTU: 1500}))
		raw, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		check(t, err)
		t.Cleanup(func() { _ = unix.Close(raw) })
		check(t, unix.SetsockoptTimeval(raw, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}))
		for name, virtio := range map[string][10]byte{ // struct virtio_net_hdr
			"whole":    {1, 0, 0, 0, 0, 0, tcp, 0, 16, 0},
			"segments": {1, 4, tcp + 20, 0, 0xf4, 1, tcp, 0, 16, 0}, // TCPv6, of 500 bytes
		} {
			if _, err := dev.Write(append(virtio[:], in.Bytes(t)...)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			buf := make([]byte, 1<<16)
			n, err := unix.Read(raw, buf)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if to := binary.BigEndian.Uint16(buf[2:]); n != len(in.Bytes(t))-54 || to != f.UDP.SrcPort || buf[6] != 0 || buf[7] != 0 {
				t.Errorf("%s: %d bytes to port %d, with checksum %x", name, n, to, buf[6:8])
			}
		}
	})
}
