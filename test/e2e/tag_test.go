package e2e

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// tag is a VLAN tag of a frame.
type tag struct{ proto, tci uint16 }

const (
	ctag, stag = 0x8100, 0x88a8
	pcp5       = 5 << 13
)

// tagged puts tags into a frame, outermost first.
func tagged(frame []byte, tags ...tag) []byte {
	b := append([]byte(nil), frame[:12]...)
	for _, t := range tags {
		b = append(b, byte(t.proto>>8), byte(t.proto), byte(t.tci>>8), byte(t.tci))
	}
	return append(b, frame[12:]...)
}

// tagAll tags whatever n's stack, or an injector there, sends by dev, until the
// returned function is called.
func tagAll(t *testing.T, n *lab.Namespace, dev string, tags ...tag) func() {
	t.Helper()
	insns := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for i := len(tags) - 1; i >= 0; i-- { // the innermost first
		be := func(v uint16) int32 { return int32(v>>8 | v<<8&0xff00) }
		insns = append(insns, asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, be(tags[i].proto)),
			asm.Mov.Imm(asm.R3, int32(tags[i].tci)), asm.FnSkbVlanPush.Call())
	}
	insns = append(insns, asm.Mov.Imm(asm.R0, -1), asm.Return())
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: insns})
	if err != nil {
		t.Fatal(err)
	}
	idx, err := n.Index(dev)
	if err != nil {
		t.Fatal(err)
	}
	var l link.Link
	err = n.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Program: p, Interface: idx, Attach: ebpf.AttachTCXEgress})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(l.Close(), p.Close()); err != nil {
			t.Error(err)
		}
	}
}

// priorityTags are the ways to say "no VLAN".
func priorityTags() map[string][]tag {
	return map[string][]tag{
		"802.1Q":            {{ctag, 0}},
		"with a priority":   {{ctag, pcp5}},
		"802.1ad":           {{stag, 0}},
		"802.1Q in 802.1ad": {{stag, pcp5}, {ctag, 0}},
		"802.1ad in 802.1Q": {{ctag, 0}, {stag, 0}},
		"five":              {{ctag, 0}, {ctag, 0}, {stag, pcp5}, {ctag, 0}, {stag, 0}},
		"nine":              {{ctag, 0}, {ctag, 0}, {ctag, 0}, {ctag, 0}, {ctag, 0}, {ctag, 0}, {ctag, 0}, {ctag, 0}, {ctag, 0}},
	}
}

// TestE2EPriorityTags sends from outside with tags that the kernel would strip. What is
// dropped without them is dropped with them, and what is delivered without them is
// delivered with them.
func TestE2EPriorityTags(t *testing.T) {
	t.Parallel()
	for _, m := range append(e2eModes()[:2], native()) {
		t.Run(m.Name, func(t *testing.T) {
			h := upE2E(t, m, lab.Options{Containers: 1})
			if err := h.Outside.AddRoute(netip.MustParsePrefix("172.30.0.0/16"), h.HostAddr(0)); err != nil {
				t.Fatal(err)
			}
			h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{})
			t.Run("no door", h.testTagsOpenNoDoor)
			for name, tags := range map[string][]tag{
				"802.1Q": {{ctag, pcp5}}, "802.1ad": {{stag, 0}}, "both": {{stag, 0}, {ctag, pcp5}},
			} {
				t.Run(name, func(t *testing.T) {
					defer tagAll(t, h.Outside, "eth0", tags...)()
					h.testTaggedTraffic(t)
				})
			}
		})
	}
}

// testTagsOpenNoDoor forges packets to a container's own address.
func (h *e2e) testTagsOpenNoDoor(t *testing.T) {
	c1 := h.Containers[0]
	h.sendClosing(t, h.Host, c1) // the neighbours are known, so whatever is let in arrives
	w := newWitness(t, c1, "eth0", hasMark)
	datagram := h.forgedOutside(t, c1.Addr)
	syn := datagram.With(func(f *testutil.Frame) {
		f.UDP, f.TCP = nil, &testutil.TCP{SrcPort: 1111, DstPort: 80, SYN: true}
	})
	want, before := map[string]uint64{}, map[string]uint64{}
	for _, reason := range []string{"direct", "l2_proto"} {
		before[reason] = h.drops(t, reason)
	}
	var frames [][]byte
	for name, tags := range priorityTags() {
		for _, f := range []testutil.Frame{
			syn, datagram,
			datagram.With(func(f *testutil.Frame) { f.UDP, f.Echo = nil, &testutil.Echo{ID: 1} }),
			datagram.With(func(f *testutil.Frame) { f.MF = true }),
			datagram.With(func(f *testutil.Frame) { f.FragOff = 100 }),
		} {
			frames = append(frames, tagged(f.Bytes(t), tags...))
			if name == "nine" {
				want["l2_proto"]++
			} else {
				want["direct"]++
			}
		}
	}
	// A frame in a VLAN is for the host, which has no such VLAN.
	frames = append(frames, tagged(syn.Bytes(t), tag{ctag, 5}), tagged(syn.Bytes(t), tag{stag, pcp5}, tag{ctag, 5}))
	if err := h.Outside.Inject("eth0", frames...); err != nil {
		t.Fatal(err)
	}
	for reason, n := range want {
		h.waitDrops(t, reason, before[reason], n)
	}
	h.sendClosing(t, c1, h.Outside)
	w.assertClean(t, h.Ctx, isClosing)
}

// forgedOutside is a forged datagram from outside to an address behind the host.
func (h *e2e) forgedOutside(t *testing.T, to netip.Addr) testutil.Frame {
	t.Helper()
	return h.arriving(t, 0, testutil.Frame{Src: h.OutsideAddr(0), Dst: to, UDP: &testutil.UDP{SrcPort: 1111, DstPort: 2222}, Payload: forgedMark})
}

// testTaggedTraffic tags everything that comes from outside.
func (h *e2e) testTaggedTraffic(t *testing.T) {
	c1 := h.Containers[0]
	before := h.drops(t, "direct")
	h.noPing(t, h.Outside, c1.Addr)
	h.waitDrops(t, "direct", before, 1)
	fast := h.ports(t)["c1"].FastPackets
	h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{Count: 3})
	h.echoes(t, 5)
	if err := lab.Bulk(h.Ctx, c1, h.Outside, h.Outside.Addr, 1<<20, true); err != nil {
		t.Error(err)
	}
	if now := h.ports(t)["c1"].FastPackets; now == fast && h.Mode.Name != "slow" {
		t.Error("no packet was fast")
	}
}

// TestE2ESecondDoor removes the program that guards the uplink. Packets from there that
// belong to no session still do not reach a container. The host's own rules, by which
// conntrack translates, still lead to one.
func TestE2ESecondDoor(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		c1 := h.Containers[0]
		if err := h.Outside.AddRoute(netip.MustParsePrefix("172.30.0.0/16"), h.HostAddr(0)); err != nil {
			t.Fatal(err)
		}
		err := h.Host.NFT(h.Ctx, `table ip admin {
			chain pre {
				type nat hook prerouting priority dstnat;
				iifname "eth0" tcp dport 9999 dnat to `+on(c1.Addr, 80).String()+`
				iifname "eth0" udp dport 9999 dnat to `+on(c1.Addr, 81).String()+`
			}
		}`)
		if err != nil {
			t.Fatal(err)
		}
		tcp, udp := h.ServeTCP(t, c1, on(c1.Addr, 80)), h.ServeUDP(t, c1, on(c1.Addr, 81))
		dnat := func() {
			t.Helper()
			if err := h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), 9999), "by the admin's rule"); err != nil {
				t.Error(err)
			}
			if err := h.Outside.EchoUDP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), 9999), "by the admin's rule"); err != nil {
				t.Error(err)
			}
		}
		dnat()
		assertPeers(t, tcp, h.OutsideAddr(0))
		assertPeers(t, udp, h.OutsideAddr(0))
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{})

		idx, err := h.Host.Index("eth0")
		if err != nil {
			t.Fatal(err)
		}
		pins, err := filepath.Glob(filepath.Join(h.BPFFS, "fastbr", "*", "links", strconv.Itoa(idx)+"-in"))
		if err != nil || len(pins) != 1 {
			t.Fatalf("pins %q: %v", pins, err)
		}
		if err := os.Remove(pins[0]); err != nil {
			t.Fatal(err)
		}
		w := newWitness(t, c1, "eth0", func(f []byte) bool {
			return hasMark(f) || len(f) > 34 && netip.AddrFrom4([4]byte(f[26:30])) == h.OutsideAddr(0)
		})
		before := h.drops(t, "direct")
		h.noPing(t, h.Outside, c1.Addr)
		datagram := h.forgedOutside(t, c1.Addr)
		about := testutil.ICMPError{Type: 3, Code: 3, Inner: datagram.With(func(f *testutil.Frame) { f.Src, f.Dst = f.Dst, f.Src }).IP(t)}
		if err := h.Outside.Inject("eth0", datagram.Bytes(t), datagram.With(func(f *testutil.Frame) {
			f.UDP, f.TCP = nil, &testutil.TCP{SrcPort: 1111, DstPort: 80, SYN: true}
		}).Bytes(t), datagram.With(func(f *testutil.Frame) { f.UDP, f.ICMP = nil, &about }).Bytes(t)); err != nil {
			t.Fatal(err)
		}
		h.waitDrops(t, "direct", before, 4)
		h.sendClosing(t, h.Host, c1)
		w.assertClean(t, h.Ctx, isClosing)
		dnat()
	})
}
