package e2e

import (
	"net"
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// aims are places at which a sender may ask for a checksum though there is none. Each
// is an offset at which summing begins and one of the field, in a frame with a UDP
// datagram.
func aims() (all []lab.VirtioHeader) {
	for _, a := range [][2]uint16{
		{20, 2}, {20, 4}, {20, 6}, {20, 8}, {20, 10}, {20, 12}, // TTL, checksum, addresses
		{26, 0}, {30, 0}, {32, 0}, {33, 1}, {34, 0}, {34, 2}, {34, 4}, {34, 8}, {34, 16}, {35, 5}, {41, 1},
	} {
		all = append(all, lab.VirtioHeader{Flags: 1, CsumStart: a[0], CsumOff: a[1]})
	}
	return all
}

// TestE2EForgedChecksums: c1 asks for checksums where there are none. Whoever fills
// them in, after every check, would write addresses of c1's choice.
func TestE2EForgedChecksums(t *testing.T) {
	t.Parallel()
	testutil.RequireCommand(t, "ethtool")
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		h.ethtool(t, h.Host, "-K", "eth0", "tx", "off") // the kernel fills in checksums of what leaves
		v := h.victims(t, netip.Addr{})
		c1, c2 := h.Containers[0], h.Containers[1]
		s := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		sock, err := c1.ListenUDP(on(netip.IPv4Unspecified(), 5555))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sock.Close() }()
		for range 3 { // so that there is a session with a lease
			if err := lab.EchoUDPOn(h.Ctx, sock, s.Addr, "honest"); err != nil {
				t.Fatal(err)
			}
		}
		out := testutil.Frame{SrcMAC: v.mac1, DstMAC: v.gwMAC, Src: v.c1, Dst: h.Outside.Addr,
			UDP: &testutil.UDP{SrcPort: 5555, DstPort: 7}, Payload: forgedMark}
		between := out.With(func(f *testutil.Frame) { f.DstMAC, f.Dst = v.mac2, v.c2 })
		echo := out.With(func(f *testutil.Frame) { f.UDP, f.Echo = nil, &testutil.Echo{ID: 9} })
		first := out.With(func(f *testutil.Frame) { f.MF = true })
		arp := testutil.ARP{SrcMAC: v.mac1, DstMAC: net.HardwareAddr{255, 255, 255, 255, 255, 255}, SenderMAC: v.mac1, SenderIP: v.c1, TargetIP: v.c2}
		seen := []*witness{newWitness(t, c2, "eth0", hasMark), newWitness(t, h.Outside, "eth0", hasMark)}
		inj, err := c1.NewVirtioInjector("eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer inj.Close()

		before, sent := h.drops(t, "bad_csum"), uint64(0)
		send := func(a lab.VirtioHeader, frame []byte) {
			t.Helper()
			if err := inj.SendVirtio(a, frame); err != nil {
				t.Fatalf("%+v: %v", a, err)
			}
			sent++
		}
		for _, a := range aims() {
			send(a, out.Bytes(t))
			send(a, between.Bytes(t))
		}
		own := lab.VirtioHeader{Flags: 1, CsumStart: 34, CsumOff: 6}
		send(own, echo.Bytes(t))
		send(lab.VirtioHeader{Flags: 1, CsumStart: 34, CsumOff: 2}, echo.Bytes(t))
		send(own, first.Bytes(t))
		send(lab.VirtioHeader{Flags: 1, CsumStart: 20, CsumOff: 8}, arp.Bytes(t))
		h.waitDrops(t, "bad_csum", before, sent)

		// A wrong header checksum is not corrected on the way.
		wrong := out.Bytes(t)
		wrong[24] ^= 0x10
		if err := inj.SendVirtio(lab.VirtioHeader{}, wrong); err != nil {
			t.Fatal(err)
		}
		h.sendClosing(t, c1, c2)
		h.sendClosing(t, c1, h.Outside)
		for _, w := range seen {
			w.assertClean(t, h.Ctx, isClosing)
		}
		assertPeers(t, s, h.HostAddr(0))
		if err := lab.EchoUDPOn(h.Ctx, sock, s.Addr, "still honest"); err != nil {
			t.Error(err)
		}
	})
}

// TestE2EChecksumsOfTunnels: a container may leave the checksum of an inner packet to
// be filled in, as VXLAN does.
func TestE2EChecksumsOfTunnels(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		v := h.victims(t, netip.Addr{})
		c1, c2 := h.Containers[0], h.Containers[1]
		h.mustPing(t, c1, c2.Addr, lab.PingOptions{})
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{})
		inj, err := c1.NewVirtioInjector("eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer inj.Close()
		for _, to := range []struct {
			ns  *lab.Namespace
			mac net.HardwareAddr
		}{{c2, v.mac2}, {h.Outside, v.gwMAC}} {
			f := testutil.Frame{SrcMAC: v.mac1, DstMAC: to.mac, Src: v.c1, Dst: to.ns.Addr, UncheckedUDP: true,
				UDP: &testutil.UDP{SrcPort: 4789, DstPort: 4789}, Payload: append(make([]byte, 40), forgedMark...)}
			for range 3 {
				w := newWitness(t, to.ns, "eth0", nil)
				if err := inj.SendVirtio(lab.VirtioHeader{Flags: 1, CsumStart: 50, CsumOff: 6}, f.Bytes(t)); err != nil {
					t.Fatal(err)
				}
				got, err := w.sniff.Next(h.Ctx, hasMark)
				if err != nil {
					t.Fatal(err)
				}
				if got[40] != 0 || got[41] != 0 {
					t.Errorf("to %s the absent checksum became %x", to.ns.Name, got[40:42])
				}
			}
		}
	})
}

// TestE2EInternalStaysInside sends from an internal network to addresses outside it, in
// every kind of frame that the kernel accepts.
func TestE2EInternalStaysInside(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		h.Must(t, "up", "inner", "--bridge", "fastbr2", "--subnet", "172.28.0.0/24", "--internal")
		inner, err := h.Add("inner")
		if err != nil {
			t.Fatal(err)
		}
		r := h.Attach(t, inner, "inner1", "--network", "inner")
		mac := func(n *lab.Namespace, dev string) net.HardwareAddr {
			m, err := n.MAC(dev)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		gateway := netip.MustParseAddr("172.28.0.1")
		all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
		s := h.ServeUDP(t, h.Host, on(netip.IPv4Unspecified(), 7))
		f := testutil.Frame{SrcMAC: mac(inner, "eth0"), Src: inner.Addr,
			UDP: &testutil.UDP{SrcPort: 1111, DstPort: 7}, Payload: forgedMark}
		w := newWitness(t, inner, "eth0", func(b []byte) bool {
			return len(b) > 34 && string(b[30:34]) == string(inner.Addr.AsSlice()) && hasMark(b)
		})
		before, sent := h.drops(t, "isolated"), uint64(0)
		for _, dst := range []net.HardwareAddr{
			all, {1, 0, 0x5e, 0, 0, 1}, {1, 0x80, 0xc2, 0, 0, 0x0e}, {3, 0, 0, 0, 0, 1},
			mac(h.Host, r.Port), mac(h.Host, "fastbr2"), {2, 1, 2, 3, 4, 5},
		} {
			for _, to := range []netip.Addr{h.HostAddr(0), h.gateway(), h.Containers[0].Addr, h.Outside.Addr, netip.MustParseAddr("127.0.0.1")} {
				b := f.With(func(f *testutil.Frame) { f.DstMAC, f.Dst = dst, to })
				for _, b := range [][]byte{b.Bytes(t), b.With(func(f *testutil.Frame) { f.UDP, f.Echo = nil, &testutil.Echo{ID: 1} }).Bytes(t)} {
					if err := inner.Inject("eth0", b); err != nil {
						t.Fatal(err)
					}
					sent++
				}
			}
		}
		h.waitDrops(t, "isolated", before, sent)
		for p := range s.Peers() {
			t.Errorf("%v reached the host", p)
		}
		// From a network that is not internal, another network's gateway is not reached
		// either.
		c1 := h.Containers[0]
		before = h.drops(t, "isolated")
		if err := c1.Inject("eth0", f.With(func(f *testutil.Frame) { f.SrcMAC, f.Src, f.DstMAC, f.Dst = mac(c1, "eth0"), c1.Addr, all, gateway }).Bytes(t)); err != nil {
			t.Fatal(err)
		}
		h.waitDrops(t, "isolated", before, 1)

		for _, to := range []netip.Addr{gateway, netip.MustParseAddr("172.28.0.255"), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("255.255.255.255")} {
			if err := inner.Inject("eth0", f.With(func(f *testutil.Frame) { f.DstMAC, f.Dst = all, to }).Bytes(t)); err != nil {
				t.Fatal(err)
			}
		}
		h.sendClosing(t, h.Host, inner)
		w.assertOnlyFrom(t, h, gateway)
		h.mustPing(t, inner, gateway, lab.PingOptions{})
	})
}

// assertOnlyFrom reads up to the closing frame. Everything else must come from addr.
func (w *witness) assertOnlyFrom(t *testing.T, h *e2e, addr netip.Addr) {
	t.Helper()
	for {
		f, err := w.sniff.Next(h.Ctx, func(f []byte) bool { return w.match(f) || isClosing(f) })
		if err != nil {
			t.Error(err)
			return
		}
		if isClosing(f) {
			return
		}
		if src := netip.AddrFrom4([4]byte(f[26:30])); src != addr {
			t.Errorf("%s heard from %v: % x", w.where, src, f)
		}
	}
}

// TestE2EIPv4NetworkCarriesNoIPv6 gives the host, its bridge and the containers IPv6, as an
// admin's sysctl may. What a container sends reaches nobody, whatever it is.
func TestE2EIPv4NetworkCarriesNoIPv6(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		c1, c2 := h.Containers[0], h.Containers[1]
		v := h.victims(t, netip.Addr{})
		for n, list := range map[*lab.Namespace][]string{
			h.Host: {"fd01::1/64", "fastbr0", "fd02::1/64", "eth0"}, h.Outside: {"fd02::2/64", "eth0"},
			c1: {"fd01::2/64", "eth0"}, c2: {"fd01::3/64", "eth0"},
		} {
			for i := 0; i < len(list); i += 2 {
				for _, key := range []string{"all", "default", list[i+1]} {
					if err := n.SetSysctl("net.ipv6.conf."+key+".disable_ipv6", "0"); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := n.Run(h.Ctx, "ip", "-6", "addr", "add", list[i], "dev", list[i+1], "nodad"); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := h.Host.SetSysctl("net.ipv6.conf.all.forwarding", "1"); err != nil {
			t.Fatal(err)
		}
		isC1s := func(b []byte) bool {
			return len(b) > 14 && b[12] == 0x86 && b[13] == 0xdd && string(b[6:12]) == string(v.mac1)
		}
		routed := func(b []byte) bool { return len(b) > 54 && b[12] == 0x86 && b[13] == 0xdd && hasMark(b) }
		seen := []*witness{newWitness(t, c2, "eth0", isC1s), newWitness(t, h.Outside, "eth0", routed)}

		addr := netip.MustParseAddr
		all, own := addr("ff02::1"), testutil.LinkLocal(v.mac1)
		f := testutil.Frame{SrcMAC: v.mac1, DstMAC: v.mac2, Src: addr("fd01::2"), Dst: addr("fd01::3"),
			UDP: &testutil.UDP{SrcPort: 5555, DstPort: 7}, Payload: forgedMark}
		said := func(m *testutil.ICMP6) testutil.Frame {
			return testutil.Frame{SrcMAC: v.mac1, DstMAC: testutil.GroupMAC(all), Src: own, Dst: all, Msg: m}
		}
		mine := testutil.TargetLink(v.mac1)
		frames := []testutil.Frame{
			f, f.With(func(f *testutil.Frame) { f.Src, f.Dst = own, testutil.LinkLocal(v.mac2) }),
			f.With(func(f *testutil.Frame) { f.DstMAC, f.Dst = testutil.GroupMAC(all), all }),
			f.With(func(f *testutil.Frame) { f.DstMAC, f.Dst = v.gwMAC, addr("fd01::1") }),
			f.With(func(f *testutil.Frame) { f.DstMAC, f.Dst = v.gwMAC, addr("fd02::2") }),
			said(testutil.NeighborAdvertisement(addr("fd01::1"), testutil.NAOverride, mine)),
			said(testutil.NeighborAdvertisement(addr("fd01::3"), testutil.NAOverride, mine)),
			said(testutil.NeighborSolicitation(addr("fd01::3"), testutil.SourceLink(v.mac1))),
			said(testutil.RouterAdvertisement(1800)), said(testutil.Redirect(own, addr("fd02::2"))),
		}
		before := h.drops(t, "l2_proto")
		for _, f := range frames {
			if err := c1.Inject("eth0", f.Bytes(t)); err != nil {
				t.Fatal(err)
			}
		}
		h.waitDrops(t, "l2_proto", before, uint64(len(frames)))
		h.sendClosing(t, c1, c2)
		h.sendClosing(t, c1, h.Outside)
		for _, w := range seen {
			w.assertClean(t, h.Ctx, isClosing)
		}
	})
}
