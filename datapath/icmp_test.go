package datapath

import (
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// asSeenByC1 is the server's answer as the container receives it.
func (h *harness) asSeenByC1(f testutil.Frame, eport uint16) testutil.Frame {
	in := h.reply(f, eport)
	in.Dst = h.addr.c1
	switch {
	case in.TCP != nil:
		in.TCP.DstPort = f.TCP.SrcPort
	case in.UDP != nil:
		in.UDP.DstPort = f.UDP.SrcPort
	default:
		in.Echo.ID = f.Echo.ID
	}
	return in
}

// An error about a translated packet reaches its sender as if nobody had translated
// anything, down to the last checksum, however much it quotes.
func TestErrorsFromOutsideReachTheContainer(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	router := mustAddr("203.0.113.254")
	for name, f := range h.samples() {
		eport := h.open(t, f)
		sent, quoted := h.routed(f).IP(t), translated(h.routed(f), eport).IP(t)
		for what, e := range map[string]testutil.ICMPError{
			"frag-needed":   {Type: 3, Code: 4, MTU: 1280},
			"port":          {Type: 3, Code: 3},
			"time exceeded": {Type: 11},
		} {
			for _, cut := range []int{len(quoted), 40, 28} {
				cut = min(cut, len(quoted))
				frame := func(dst string, inner []byte) []byte {
					e := e
					e.Inner = inner
					return testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: router, Dst: mustAddr(dst), ICMP: &e}.Bytes(t)
				}
				want := frame("172.30.0.2", sent[:cut])
				got := h.uplinkIn(t, frame("198.51.100.1", quoted[:cut]))
				if got.verdict != next || string(got.frame) != string(want) {
					t.Errorf("%s, %s, %d bytes quoted: verdict %d\n got %x\nwant %x", name, what, cut, got.verdict, got.frame, want)
				}
			}
		}
	}
}

// Any router outside may send an error, but not with an address of one of our networks.
func TestErrorsFromOutsideAreNoNeighbours(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	h.gatewayUp(t, h.bridge, "172.30.0.1/16")
	for name, f := range h.samples() {
		quoted := translated(h.routed(f), h.open(t, f)).IP(t)
		for _, src := range []string{"172.30.0.77", "172.30.255.255", "172.31.0.2"} {
			h.wantDrop(t, h.uplink.Ifindex, "martian", func() result {
				t.Logf("%s, %s", name, src)
				return h.uplinkIn(t, testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: mustAddr(src), Dst: extAddr,
					ICMP: &testutil.ICMPError{Type: 3, Code: 1, Inner: quoted}}.Bytes(t))
			})
		}
	}
}

func TestErrorsFromInsideLeaveTranslated(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	for name, f := range h.samples() {
		eport := h.open(t, f)
		seen, outside := h.asSeenByC1(f, eport).IP(t), h.reply(f, eport).IP(t)
		for who, tc := range map[string]struct {
			src string
			iif int
		}{"container": {"172.30.0.2", h.bridge}, "host": {"198.51.100.1", 0}} {
			frame := func(src string, inner []byte) []byte {
				return h.routed(testutil.Frame{Src: mustAddr(src), Dst: server, ICMP: &testutil.ICMPError{Type: 3, Code: 3, Inner: inner}}).Bytes(t)
			}
			want := frame("198.51.100.1", outside)
			got := h.uplinkOut(t, frame(tc.src, seen), tc.iif)
			if got.verdict != next || string(got.frame) != string(want) {
				t.Errorf("%s's error about %s: verdict %d\n got %x\nwant %x", who, name, got.verdict, got.frame, want)
			}
		}
	}
}

func TestErrorsAboutNothingOfOursPass(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f := h.samples()["udp"]
	eport := h.open(t, f)
	for name, inner := range map[string][]byte{
		"the host's own": translated(h.routed(f), 50000).IP(t),
		"another remote": translated(h.routed(f.With(func(f *testutil.Frame) { f.Dst = mustAddr("192.0.2.99") })), eport).IP(t),
		"cut short":      translated(h.routed(f), eport).IP(t)[:20],
	} {
		b := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: server, Dst: extAddr, ICMP: &testutil.ICMPError{Type: 3, Code: 3, Inner: inner}}.Bytes(t)
		if got := h.uplinkIn(t, b); got.verdict != next || string(got.frame) != string(b) {
			t.Errorf("%s: verdict %d", name, got.verdict)
		}
	}
	// A container cannot send an error about another's packet.
	spoof := testutil.Frame{Src: c1Addr, Dst: server, ICMP: &testutil.ICMPError{Type: 3, Code: 3, Inner: testutil.Frame{Src: server, Dst: c2Addr, UDP: &testutil.UDP{SrcPort: 9999, DstPort: 1}}.IP(t)}}
	h.wantDrop(t, h.c1.Ifindex, "spoof_ip", func() result { return h.uplinkOut(t, h.routed(spoof).Bytes(t), h.bridge) })
}

// An error is dropped in either direction if its checksum is wrong, or that of the
// quoted IPv4 header (RFC 5508 REQ-3). The checksum of the quoted L4 header does not
// matter.
func TestErrorsWithWrongSumsAreDropped(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f := h.samples()["udp"]
	eport := h.open(t, f)
	quoted := translated(h.routed(f), eport).IP(t)
	const icmp = 14 + 20
	in := func(inner []byte) []byte {
		return testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: server, Dst: extAddr, ICMP: &testutil.ICMPError{Type: 3, Code: 1, Inner: inner}}.Bytes(t)
	}
	out := func(inner []byte) []byte {
		return h.routed(testutil.Frame{Src: c1Addr, Dst: server, ICMP: &testutil.ICMPError{Type: 3, Code: 3, Inner: inner}}).Bytes(t)
	}
	flip := func(b []byte, off int) []byte {
		b = append([]byte(nil), b...)
		b[off] ^= 0x40
		return b
	}
	long := append(append([]byte(nil), quoted...), make([]byte, 1001)...)
	for name, b := range map[string][]byte{
		"outer sum": flip(in(quoted), icmp+2), "last byte": flip(in(long), icmp+8+len(long)-1), "quoted header": in(flip(quoted, 10)),
	} {
		t.Run("in, "+name, func(t *testing.T) {
			h.wantDrop(t, h.uplink.Ifindex, "bad_csum", func() result { return h.uplinkIn(t, b) })
		})
	}
	seen := h.asSeenByC1(f, eport).IP(t)
	for name, b := range map[string][]byte{"outer sum": flip(out(seen), icmp+2), "quoted header": out(flip(seen, 10))} {
		t.Run("out, "+name, func(t *testing.T) {
			h.wantDrop(t, h.c1.Ifindex, "bad_csum", func() result { return h.uplinkOut(t, b, h.bridge) })
		})
	}
	for name, b := range map[string][]byte{"whole": in(quoted), "odd length": in(long), "quoted UDP sum": in(flip(quoted, 20+6))} {
		if got := h.uplinkIn(t, b); got.verdict != next || string(got.frame) == string(b) {
			t.Errorf("%s: verdict %d, want it translated", name, got.verdict)
		}
	}
}
