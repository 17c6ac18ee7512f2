package main_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/fastbr/fastbr/ctl/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// A tag of a frame, outermost first.
type tag struct{ proto, tci uint16 }

const (
	ctag, stag = 0x8100, 0x88a8
	pcp5       = 5 << 13
)

// tagged puts tags into a frame.
func tagged(frame []byte, tags ...tag) []byte {
	b := append([]byte(nil), frame[:12]...)
	for _, t := range tags {
		b = append(b, byte(t.proto>>8), byte(t.proto), byte(t.tci>>8), byte(t.tci))
	}
	return append(b, frame[12:]...)
}

// tagAll tags whatever the stack of n, or an injector there, sends by dev.
func tagAll(t *testing.T, n *lab.Namespace, dev string, tags ...tag) {
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
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), p.Close()); err != nil {
			t.Error(err)
		}
	})
}

// priorityTags are ways to say "no VLAN".
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

func tagModes(t *testing.T, test func(t *testing.T, m e2eMode)) {
	for _, m := range append(e2eModes()[:2], native()) {
		t.Run(m.name, func(t *testing.T) { test(t, m) })
	}
}

// TestE2EPriorityTagOpensNoDoor sends to a container's own address from outside,
// with tags that the kernel would strip: what is dropped without them, is with them.
func TestE2EPriorityTagOpensNoDoor(t *testing.T) {
	t.Parallel()
	tagModes(t, func(t *testing.T, m e2eMode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		c1 := h.Containers[0]
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{})
		h.sendClosing(t, h.Host, c1) // the neighbours are known: whatever is let in arrives
		w := newWitness(t, c1, "eth0", hasMark)
		syn := h.forgedOutside(t, c1.Addr).With(func(f *testutil.Frame) {
			f.UDP, f.TCP = nil, &testutil.TCP{SrcPort: 1111, DstPort: 80, SYN: true}
		})
		for name, tags := range priorityTags() {
			for what, f := range map[string]testutil.Frame{
				"SYN": syn, "datagram": h.forgedOutside(t, c1.Addr),
				"echo":           h.forgedOutside(t, c1.Addr).With(func(f *testutil.Frame) { f.UDP, f.Echo = nil, &testutil.Echo{ID: 1} }),
				"first fragment": h.forgedOutside(t, c1.Addr).With(func(f *testutil.Frame) { f.MF = true }),
				"later fragment": h.forgedOutside(t, c1.Addr).With(func(f *testutil.Frame) { f.FragOff = 100 }),
			} {
				reason := "direct"
				if name == "nine" {
					reason = "l2_proto"
				}
				before := h.drops(t, reason)
				if err := h.Outside.Inject("eth0", tagged(f.Bytes(t), tags...)); err != nil {
					t.Fatal(err)
				}
				t.Run(name+"/"+what, func(t *testing.T) { h.waitDrops(t, reason, before, 1) })
			}
		}
		// A VLAN is the host's, which has none of that number.
		for _, tags := range [][]tag{{{ctag, 5}}, {{stag, pcp5}, {ctag, 5}}} {
			if err := h.Outside.Inject("eth0", tagged(syn.Bytes(t), tags...)); err != nil {
				t.Fatal(err)
			}
		}
		h.sendClosing(t, c1, h.Outside)
		w.assertClean(t, h.ctx, isClosing)
	})
}

// forgedOutside is a forged datagram from outside to an address in the host's hands.
func (h *e2e) forgedOutside(t *testing.T, to netip.Addr) testutil.Frame {
	t.Helper()
	macs := map[*lab.Namespace]net.HardwareAddr{}
	for _, n := range []*lab.Namespace{h.Outside, h.Host} {
		mac, err := n.MAC("eth0")
		if err != nil {
			t.Fatal(err)
		}
		macs[n] = mac
	}
	return testutil.Frame{
		SrcMAC: macs[h.Outside], DstMAC: macs[h.Host], Src: h.OutsideAddr(0), Dst: to,
		UDP: &testutil.UDP{SrcPort: 1111, DstPort: 2222}, Payload: forgedMark,
	}
}

// TestE2EPriorityTaggedTraffic lets everything outside be tagged so: containers'
// flows work, on both paths, with tags in the frame and beside it; a container
// stays out of reach.
func TestE2EPriorityTaggedTraffic(t *testing.T) {
	t.Parallel()
	tagModes(t, func(t *testing.T, m e2eMode) {
		for name, tags := range map[string][]tag{
			"802.1Q": {{ctag, pcp5}}, "802.1ad": {{stag, 0}}, "both": {{stag, 0}, {ctag, pcp5}},
		} {
			t.Run(name, func(t *testing.T) {
				h := upE2E(t, m, lab.Options{Containers: 1})
				c1 := h.Containers[0]
				tagAll(t, h.Outside, "eth0", tags...)
				if err := h.Outside.AddRoute(netip.MustParsePrefix("172.30.0.0/16"), h.HostAddr(0)); err != nil {
					t.Fatal(err)
				}
				before := h.drops(t, "direct")
				h.noPing(t, h.Outside, c1.Addr)
				h.waitDrops(t, "direct", before, 1)
				h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{Count: 3})
				h.echoes(t, 5)
				s := h.serveTCP(t, h.Outside, on(h.Outside.Addr, 80))
				if err := c1.EchoTCP(h.ctx, netip.AddrPort{}, s.Addr, "hello"); err != nil {
					t.Error(err)
				}
				if err := lab.Bulk(h.ctx, c1, h.Outside, h.Outside.Addr, 1<<20, true); err != nil {
					t.Error(err)
				}
				if h.mode.name != "slow" {
					if n := h.ports(t)["c1"].FastPackets; n == 0 {
						t.Error("no packet was fast")
					}
				}
			})
		}
	})
}
