package e2e

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// forgedMark is in the payload of every forged packet. A witness recognises the packet
// by it, whatever its addresses are.
var forgedMark = []byte("forged by the test")

// witness records the forged packets that arrive in one place.
type witness struct {
	where string
	sniff *lab.Sniffer
	match func(frame []byte) bool
}

func newWitness(t *testing.T, n *lab.Namespace, dev string, match func([]byte) bool) *witness {
	t.Helper()
	s, err := n.NewSniffer(dev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &witness{n.Name + ":" + dev, s, match}
}

// assertClean reads frames up to the closing one, which the caller has sent last:
// everything else has then arrived. It reports the forged ones.
func (w *witness) assertClean(t *testing.T, ctx context.Context, last func([]byte) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		f, err := w.sniff.Next(ctx, func(f []byte) bool { return w.match(f) || last(f) })
		if err != nil {
			t.Errorf("%s: the closing frame never came: %v", w.where, err)
			return
		}
		if last(f) {
			return
		}
		t.Errorf("%s received a forged frame: % x", w.where, f[:min(len(f), 96)])
	}
}

func hasMark(f []byte) bool { return bytes.Contains(f, forgedMark) }

// closing is the payload of the honest datagrams that end an observation.
var closing = []byte("the test is over")

func isClosing(f []byte) bool { return bytes.Contains(f, closing) }

// sendClosing sends an honest datagram until it is answered. It must arrive.
func (h *e2e) sendClosing(t *testing.T, from, to *lab.Namespace) {
	t.Helper()
	h.sendHonest(t, from, to, closing)
}

// sendHonest is sendClosing with a payload of the caller's.
func (h *e2e) sendHonest(t *testing.T, from, to *lab.Namespace, payload []byte) {
	t.Helper()
	s := h.ServeUDP(t, to, on(to.Addr, 0))
	defer s.Close()
	if err := from.EchoUDP(h.Ctx, netip.AddrPort{}, s.Addr, string(payload)); err != nil {
		t.Errorf("honest datagram from %s to %s: %v", from.Name, to.Name, err)
	}
}

// victims are the addresses that the attacker c1 knows.
type victims struct {
	c1, c2, gw netip.Addr
	mac1, mac2 net.HardwareAddr
	gwMAC      net.HardwareAddr
	other      netip.Addr // a container of another network
	outside    netip.Addr
}

func (h *e2e) victims(t *testing.T, other netip.Addr) victims {
	t.Helper()
	v := victims{c1: h.Containers[0].Addr, c2: h.Containers[1].Addr, gw: h.gateway(), other: other, outside: h.Outside.Addr}
	for _, m := range []struct {
		to  *net.HardwareAddr
		of  *lab.Namespace
		dev string
	}{{&v.mac1, h.Containers[0], "eth0"}, {&v.mac2, h.Containers[1], "eth0"}, {&v.gwMAC, h.Host, "fastbr0"}} {
		mac, err := m.of.MAC(m.dev)
		if err != nil {
			t.Fatal(err)
		}
		*m.to = mac
	}
	return v
}

type attack struct {
	name   string
	frame  []byte
	reason string // the drop that must be counted
}

func (v victims) attacks(t *testing.T) []attack {
	foreign := net.HardwareAddr{2, 0xba, 0xad, 0, 0, 1}
	all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	udp := testutil.Frame{
		SrcMAC: v.mac1, DstMAC: v.mac2, Src: v.c1, Dst: v.c2,
		UDP: &testutil.UDP{SrcPort: 1111, DstPort: 2222}, Payload: forgedMark,
	}
	with := func(change func(*testutil.Frame)) []byte { return udp.With(change).Bytes(t) }
	arp := func(change func(*testutil.ARP)) []byte {
		a := testutil.ARP{SrcMAC: v.mac1, DstMAC: all, Reply: true, SenderMAC: v.mac1, SenderIP: v.c1, TargetMAC: all, TargetIP: v.c2}
		change(&a)
		return a.Bytes(t)
	}
	ethertype := with(func(f *testutil.Frame) {})
	ethertype[12], ethertype[13] = 0x88, 0xb5
	return []attack{
		{"foreign MAC to c2", with(func(f *testutil.Frame) { f.SrcMAC = foreign }), "spoof_mac"},
		{"MAC of c2", with(func(f *testutil.Frame) { f.SrcMAC = v.mac2; f.DstMAC = v.gwMAC; f.Dst = v.outside }), "spoof_mac"},
		{"foreign IPv4 to c2", with(func(f *testutil.Frame) { f.Src = netip.MustParseAddr("172.30.99.99") }), "spoof_ip"},
		{"address of c2 to outside", with(func(f *testutil.Frame) { f.Src, f.Dst, f.DstMAC = v.c2, v.outside, v.gwMAC }), "spoof_ip"},
		{"public address to outside", with(func(f *testutil.Frame) {
			f.Src, f.Dst, f.DstMAC = netip.MustParseAddr("8.8.8.8"), v.outside, v.gwMAC
		}), "spoof_ip"},
		{"address of another network to c2", with(func(f *testutil.Frame) { f.Src = v.other }), "spoof_ip"},
		{"address of another network to outside", with(func(f *testutil.Frame) { f.Src, f.Dst, f.DstMAC = v.other, v.outside, v.gwMAC }), "spoof_ip"},
		{"address of the gateway to c2", with(func(f *testutil.Frame) { f.Src = v.gw }), "spoof_ip"},
		{"ARP for the gateway", arp(func(a *testutil.ARP) { a.SenderIP = v.gw }), "spoof_arp"},
		{"ARP for c2", arp(func(a *testutil.ARP) { a.SenderIP = v.c2; a.TargetIP = v.gw }), "spoof_arp"},
		{"ARP with another MAC", arp(func(a *testutil.ARP) { a.SenderMAC = foreign }), "spoof_arp"},
		{"tagged", with(func(f *testutil.Frame) { f.VLAN = []uint16{5} }), "l2_proto"},
		{"tagged with a foreign address", with(func(f *testutil.Frame) { f.VLAN = []uint16{5}; f.Src = v.gw }), "l2_proto"},
		{"priority-tagged", with(func(f *testutil.Frame) { f.VLAN = []uint16{0} }), "l2_proto"},
		{"double-tagged", with(func(f *testutil.Frame) { f.VLAN = []uint16{5, 6}; f.Src = v.gw }), "l2_proto"},
		{"unknown ethertype", ethertype, "l2_proto"},
	}
}

// TestE2ESpoofing sends each forgery from c1. It must be counted, and nobody may
// receive it. ARP packets carry no payload to recognise, so the test looks at what c2
// and the host believe afterwards.
func TestE2ESpoofing(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2})
		other := h.otherNetwork(t)
		v := h.victims(t, other.Addr)
		c1, c2 := h.Containers[0], h.Containers[1]
		h.mustPing(t, c1, v.c2, lab.PingOptions{}) // warms the bridge's and the neighbours' tables
		seen := []*witness{
			newWitness(t, c2, "eth0", hasMark), newWitness(t, other, "eth0", hasMark), newWitness(t, h.Outside, "eth0", hasMark),
		}
		for _, a := range v.attacks(t) {
			before := h.drops(t, a.reason)
			const copies = 3
			for range copies {
				if err := c1.Inject("eth0", a.frame); err != nil {
					t.Fatal(err)
				}
			}
			t.Run(a.name, func(t *testing.T) { h.waitDrops(t, a.reason, before, copies) })
		}
		h.sendClosing(t, c1, c2)
		h.sendClosing(t, c1, h.Outside)
		h.sendClosing(t, h.Host, other)
		for _, w := range seen {
			w.assertClean(t, h.Ctx, isClosing)
		}
		h.assertNeighbour(t, c2, v.gw, v.gwMAC)
		h.assertNeighbour(t, h.Host, v.c2, v.mac2)
		h.mustPing(t, c1, v.c2, lab.PingOptions{})
		h.assertBytesEqual(t)
	})
}

// otherNetwork brings up a second network with one container.
func (h *e2e) otherNetwork(t *testing.T) *lab.Namespace {
	t.Helper()
	h.Must(t, "up", "other", "--bridge", "fastbr1", "--subnet", "172.29.0.0/24")
	n, err := h.Add("other")
	if err != nil {
		t.Fatal(err)
	}
	h.Attach(t, n, "other1", "--network", "other")
	return n
}

// assertNeighbour fails if n has another MAC address than mac for addr.
func (h *e2e) assertNeighbour(t *testing.T, n *lab.Namespace, addr netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	out, err := n.Run(h.Ctx, "ip", "neigh", "show", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains([]byte(out), []byte("lladdr")) && !bytes.Contains([]byte(out), []byte(mac.String())) {
		t.Errorf("%s believes %q, want %v", n.Name, out, mac)
	}
}

// TestE2ENetworksAreIsolated sends honest packets from one network to another.
func TestE2ENetworksAreIsolated(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		other := h.otherNetwork(t)
		c1 := h.Containers[0]
		before := h.drops(t, "isolated")
		h.noPing(t, c1, other.Addr)
		h.waitDrops(t, "isolated", before, 1)
		before = h.drops(t, "isolated")
		h.noPing(t, other, c1.Addr)
		h.waitDrops(t, "isolated", before, 1)
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{})
		h.mustPing(t, other, h.Outside.Addr, lab.PingOptions{})
		h.mustPing(t, h.Host, other.Addr, lab.PingOptions{})
	})
}

// TestE2ESocketMark sets SO_MARK in a container. It must not be able to forge the
// host's instance mark, and marked traffic is translated as usual.
func TestE2ESocketMark(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		s := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		rnd := testutil.Rand(t)
		for range 20 {
			c, err := h.Containers[0].ListenUDP(on(netip.IPv4Unspecified(), 0))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			mark := rnd.Uint32()
			err = raw.Control(func(fd uintptr) {
				if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
					t.Errorf("SO_MARK %#x: %v", mark, err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if err := lab.EchoUDPOn(h.Ctx, c, s.Addr, "marked"); err != nil {
					t.Errorf("mark %#x: %v", mark, err)
				}
			}
			_ = c.Close()
		}
		assertPeers(t, s, h.HostAddr(0))
	})
}

// TestE2ENeighbourSpoofs: a container on a docker0-style bridge of the host sends with
// c1's address.
func TestE2ENeighbourSpoofs(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2, Neighbour: true})
		c1, c2, nb := h.Containers[0], h.Containers[1], h.Neighbour
		// Without that bridge's masquerade only fastbr stops the packets.
		if err := h.Host.NFT(h.Ctx, "flush table ip lab-docker0"); err != nil {
			t.Fatal(err)
		}
		nbMAC, err := nb.MAC("eth0")
		if err != nil {
			t.Fatal(err)
		}
		brMAC, err := h.Host.MAC("docker0")
		if err != nil {
			t.Fatal(err)
		}
		seen := []*witness{newWitness(t, h.Outside, "eth0", hasMark), newWitness(t, c2, "eth0", hasMark)}
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{})
		total := h.totalDrops(t)
		for _, to := range []netip.Addr{h.Outside.Addr, c2.Addr} {
			f := testutil.Frame{
				SrcMAC: nbMAC, DstMAC: brMAC, Src: c1.Addr, Dst: to,
				UDP: &testutil.UDP{SrcPort: 1111, DstPort: 2222}, Payload: forgedMark,
			}.Bytes(t)
			if err := nb.Inject("eth0", f, f, f); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
		defer cancel()
		err = lab.Poll(ctx, func() (bool, error) { return h.totalDrops(t) >= total+6, nil })
		if err != nil {
			t.Errorf("%d drops counted, want 6: %v", h.totalDrops(t)-total, h.allDrops(t))
		}
		h.sendClosing(t, c1, h.Outside)
		h.sendClosing(t, c1, c2)
		for _, w := range seen {
			w.assertClean(t, h.Ctx, isClosing)
		}
		for _, f := range h.Flows(t) {
			if f.Proto == "udp" && f.Src == on(c1.Addr, 1111).String() {
				t.Errorf("the neighbour created a flow for c1: %+v", f)
			}
		}
	})
}

func (h *e2e) totalDrops(t *testing.T) (n uint64) {
	t.Helper()
	for _, p := range h.ports(t) {
		for _, d := range p.Drops {
			n += d
		}
	}
	return n
}

// TestE2EDirectAccess sends from outside to a container's own address, and with source
// addresses that cannot come from there.
func TestE2EDirectAccess(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		c1 := h.Containers[0]
		if err := h.Outside.AddRoute(netip.MustParsePrefix("172.30.0.0/16"), h.HostAddr(0)); err != nil {
			t.Fatal(err)
		}
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{})
		w := newWitness(t, c1, "eth0", func(f []byte) bool {
			return hasMark(f) || len(f) > 34 && netip.AddrFrom4([4]byte(f[26:30])) == h.OutsideAddr(0)
		})
		before := h.drops(t, "direct")
		h.noPing(t, h.Outside, c1.Addr) // its source is the address on the link
		h.waitDrops(t, "direct", before, 1)

		f := h.arriving(t, 0, testutil.Frame{Src: h.OutsideAddr(0), Dst: c1.Addr, UDP: &testutil.UDP{SrcPort: 1, DstPort: 2}, Payload: forgedMark})
		before = h.drops(t, "martian")
		for _, src := range []netip.Addr{c1.Addr, h.gateway(), h.HostAddr(0)} {
			if err := h.Outside.Inject("eth0", f.With(func(f *testutil.Frame) { f.Src, f.Dst = src, h.HostAddr(0) }).Bytes(t)); err != nil {
				t.Fatal(err)
			}
		}
		h.waitDrops(t, "martian", before, 2) // the kernel also drops the third by itself
		h.sendClosing(t, h.Host, c1)
		w.assertClean(t, h.Ctx, isClosing)
	})
}

// TestE2EUnsolicitedIsSilent sends a SYN and a datagram from outside to a free port of
// the NAT range. Neither an RST nor an ICMP error may come back. A port outside the
// range is the host's, which answers.
func TestE2EUnsolicitedIsSilent(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		w := newWitness(t, h.Outside, "eth0", func(f []byte) bool { return isFrom(f, h.HostAddr(0), 20123) })
		ctx, cancel := context.WithTimeout(h.Ctx, 2*time.Second)
		defer cancel()
		if c, err := h.Outside.DialTCP(ctx, netip.AddrPort{}, on(h.HostAddr(0), 20123)); err == nil {
			t.Error("somebody answers on a port of the NAT range")
			_ = c.Close()
		} else if errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("the SYN was answered: %v", err)
		}
		if _, err := h.Outside.DialTCP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), 9)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a port outside of the range: %v, want a refusal", err)
		}
		h.sendClosing(t, h.Containers[0], h.Outside)
		w.assertClean(t, h.Ctx, isClosing)
	})
}

// isFrom reports whether f is TCP from this address and port.
func isFrom(f []byte, a netip.Addr, p uint16) bool {
	const tcp = 6
	return len(f) >= 38 && f[12] == 8 && f[13] == 0 && f[23] == tcp &&
		netip.AddrFrom4([4]byte(f[26:30])) == a && uint16(f[34])<<8|uint16(f[35]) == p
}
