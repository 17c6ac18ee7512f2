package datapath

import (
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

// An ICMPv6 error about a translated packet reaches its sender as if nobody had translated
// anything, down to the last checksum, however much it quotes. Packet Too Big below 1280 is
// the container's to judge. An error of the container leaves translated, and one with a wrong
// checksum is dropped in either direction.
func TestErrorsByIPv6(t *testing.T) {
	h := translated6(t)
	router := mustAddr("2001:db8:ee::fe")
	for name, f := range h.samples() {
		eport := h.open(t, f)
		sent, quoted := h.routed(f).IP(t), translated(h.routed(f), eport).IP(t)
		for what, e := range map[string]testutil.ICMPError{
			"too big":          {Type: 2, MTU: 1400},
			"too big for IPv6": {Type: 2, MTU: 600},
			"port":             {Type: 1, Code: 4},
			"time exceeded":    {Type: 3},
			"parameter":        {Type: 4, Code: 1},
		} {
			for _, cut := range []int{len(quoted), 60, 48} {
				cut = min(cut, len(quoted))
				in := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: router, Dst: extAddr6, ICMP: &e}
				e.Inner = quoted[:cut]
				arrives := in.Bytes(t)
				e.Inner = sent[:cut]
				in.Dst = c1Addr6
				want := in.Bytes(t)
				if got := h.uplinkIn(t, arrives); got.verdict != next || string(got.frame) != string(want) {
					t.Errorf("%s, %s, %d bytes quoted: verdict %d\n got %x\nwant %x", name, what, cut, got.verdict, got.frame, want)
				}
				arrives[14+40+2] ^= 0x40
				h.wantDrop(t, h.uplink.Ifindex, "bad_csum", func() result { return h.uplinkIn(t, arrives) })
			}
		}
		back := testutil.ICMPError{Type: 1, Code: 4, Inner: h.asSeenByC1(f, eport).IP(t)}
		out := testutil.Frame{Src: c1Addr6, Dst: outside6, ICMP: &back}
		leaves := h.routed(out).Bytes(t)
		back.Inner = h.reply(f, eport).IP(t)
		out.Src = extAddr6
		want := h.routed(out).Bytes(t)
		if got := h.uplinkOut(t, leaves, h.bridge); got.verdict != next || string(got.frame) != string(want) {
			t.Errorf("c1's error about %s: verdict %d\n got %x\nwant %x", name, got.verdict, got.frame, want)
		}
		leaves[14+40+2] ^= 0x40
		h.wantDrop(t, h.c1.Ifindex, "bad_csum", func() result { return h.uplinkOut(t, leaves, h.bridge) })
	}
}

// A frame that the device has summed (CHECKSUM_COMPLETE) is fast, and the kernel finds its sum
// right afterwards.
func TestIPv6KeepsCompleteChecksums(t *testing.T) {
	const testSkbChecksumComplete = 1 << 2 // BPF_F_TEST_SKB_CHECKSUM_COMPLETE
	h := translated6(t)
	for name, f := range h.samples() {
		frame := h.reply(f, h.open(t, f)).Bytes(t)
		opts := ebpf.RunOptions{
			Data: frame, DataOut: make([]byte, len(frame)+256), Flags: testSkbChecksumComplete,
			Context: skb{Ifindex: uint32(h.uplink.Ifindex), IngressIfindex: uint32(h.uplink.Ifindex)},
		}
		ret, err := h.prog(tcProgFbrUplinkIn).Run(&opts)
		testutil.SkipUnsupported(t, err, unix.EINVAL, "6.11")
		if err != nil || ret != redirect {
			t.Errorf("%s: verdict %d, %v", name, ret, err)
		} else if err := testutil.CheckSums(opts.DataOut); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Two containers reach each other by the host's address and their external ports.
func TestHairpinByIPv6(t *testing.T) {
	h := translated6(t)
	h.setAddrs(t, extAddr6)
	of := func(p Port) testutil.Frame {
		return testutil.Frame{SrcMAC: p.MAC, DstMAC: h.gateway, Src: p.IP6, Dst: outside6,
			UDP: &testutil.UDP{SrcPort: 40000, DstPort: 7}, Payload: []byte("hello, neighbour")}
	}
	ext := map[int]uint16{}
	for _, p := range []Port{h.c1, h.c2} {
		if got := h.uplinkOut(t, h.routed(of(p)).Bytes(t), h.bridge); got.verdict != next {
			t.Fatalf("verdict %d", got.verdict)
		}
		ext[p.Ifindex] = h.eport(t, of(p))
	}
	to := func(from, peer Port) testutil.Frame {
		return of(from).With(func(f *testutil.Frame) { f.Dst, f.UDP.DstPort = extAddr6, ext[peer.Ifindex] })
	}
	// Who has not asked gets nothing: it is the host's.
	first := to(h.c2, h.c1).Bytes(t)
	if got := h.in(t, first, h.c2); got.verdict != next || string(got.frame) != string(first) {
		t.Errorf("to who has not asked: verdict %d, changed: %v", got.verdict, string(got.frame) != string(first))
	}
	for _, pair := range [][2]Port{{h.c1, h.c2}, {h.c2, h.c1}, {h.c1, h.c2}} {
		f := to(pair[0], pair[1])
		want := f.With(func(f *testutil.Frame) { f.Dst, f.UDP.DstPort = pair[1].IP6, 40000 }).Bytes(t)
		if got := h.in(t, f.Bytes(t), pair[0]); got.verdict != next || string(got.frame) != string(want) {
			t.Errorf("%s to %s: verdict %d\n got %x\nwant %x", f.Src, pair[1].IP6, got.verdict, got.frame, want)
		}
	}
	// A link-local address is the link's own.
	ll := to(h.c1, h.c2).With(func(f *testutil.Frame) { f.Dst = testutil.LinkLocal(h.gateway) }).Bytes(t)
	if got := h.in(t, ll, h.c1); string(got.frame) != string(ll) {
		t.Errorf("to a link-local address: changed, verdict %d", got.verdict)
	}
}
