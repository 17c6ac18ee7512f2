package datapath

import (
	"net"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// A promiscuous uplink hears frames for other MAC addresses. They are not the host's, so
// no lease takes them on.
var (
	strangersMAC = mustMAC("02:00:00:00:00:77")
	// What is for a group the kernel may deliver to the host, but does not forward.
	groupsMAC = mustMAC("01:00:5e:00:00:77")
)

func to(mac net.HardwareAddr) func(*testutil.Frame) {
	return func(f *testutil.Frame) { f.DstMAC = mac }
}

func TestTranslatedFramesForOtherMACs(t *testing.T) {
	h := newXDPHarness(t)
	samples, replies := h.samples(), map[string]testutil.Frame{}
	for name, f := range samples {
		reply := h.reply(f, h.open(t, f))
		replies[name] = reply
		if got := h.uplinkIn(t, reply.Bytes(t)); got.verdict != redirect {
			t.Fatalf("%s: an answer is not fast: verdict %d", name, got.verdict)
		}
		sent := reply.With(to(strangersMAC)).Bytes(t)
		if got := h.uplinkIn(t, sent); got.verdict != next || string(got.frame) != string(sent) {
			t.Errorf("%s: for a stranger's MAC address: verdict %d\n got %x\nwant %x", name, got.verdict, got.frame, sent)
		}
		if got := h.uplinkIn(t, reply.With(to(groupsMAC)).Bytes(t)); got.verdict != next {
			t.Errorf("%s: for a group's MAC address: verdict %d", name, got.verdict)
		}
	}
	reply := replies["udp"]
	direct := reply.With(func(f *testutil.Frame) { f.Dst = c1Addr })
	if a, b := h.xdpIn(t, reply.Bytes(t)), h.xdpIn(t, direct.Bytes(t)); a.verdict != xdpRedirect || b.verdict != xdpDrop {
		t.Fatalf("XDP: verdicts %d, %d", a.verdict, b.verdict)
	}
	for _, f := range []testutil.Frame{reply, direct} {
		for _, mac := range []net.HardwareAddr{strangersMAC, groupsMAC} {
			sent := f.With(to(mac)).Bytes(t)
			before := h.of(t, h.uplink.Ifindex)
			if got := h.xdpIn(t, sent); got.verdict != xdpPass || string(got.frame) != string(sent) || h.of(t, h.uplink.Ifindex).RX != before.RX {
				t.Errorf("XDP, to %s at %s: verdict %d", f.Dst, mac, got.verdict)
			}
		}
	}
	// A closing segment of somebody else's frame does not end the session.
	rst := replies["tcp"].With(func(f *testutil.Frame) { f.DstMAC, f.TCP.RST, f.TCP.ACK = strangersMAC, true, false })
	if got := h.uplinkIn(t, rst.Bytes(t)); got.verdict != next || string(got.frame) != string(rst.Bytes(t)) {
		t.Errorf("a stranger's RST: verdict %d", got.verdict)
	}
	if got := h.portIn(t, samples["tcp"].Bytes(t)); got.verdict != redirect {
		t.Errorf("after a stranger's RST: verdict %d", got.verdict)
	}
}

func TestRoutedFramesForOtherMACs(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	h.toRouted(t)
	f := h.fromC1()
	answer := h.answer(f)
	delivered := answer.With(func(f *testutil.Frame) { f.SrcMAC, f.DstMAC, f.TTL = h.gateway, h.c1.MAC, 63 })
	h.uplinkIn(t, answer.Bytes(t))
	h.out(t, delivered.Bytes(t), h.c1, h.uplink.Ifindex)
	if got := h.uplinkIn(t, answer.Bytes(t)); got.verdict != redirect {
		t.Fatalf("an answer has no way: verdict %d", got.verdict)
	}
	for _, mac := range []net.HardwareAddr{strangersMAC, groupsMAC} {
		sent := answer.With(to(mac)).Bytes(t)
		if got := h.uplinkIn(t, sent); got.verdict != next || string(got.frame) != string(sent) {
			t.Errorf("for %s: verdict %d\n got %x\nwant %x", mac, got.verdict, got.frame, sent)
		}
	}
}

// A fragment that comes back from the namespace for fragments is still addressed to that
// (fbr_frag_returned), and is the host's.
func TestReturnedFragmentIsForTheHost(t *testing.T) {
	h := newHarness(t, usual, nil)
	f := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: strangersMAC, Src: server, Dst: extAddr, MF: true,
		UDP: &testutil.UDP{SrcPort: 53, DstPort: 9}, Payload: make([]byte, 64)}
	for mark, want := range map[uint32]uint32{h.meta.Mark: 0, h.meta.Mark + 1: h.meta.Mark + 1} {
		got := h.uplinkIn(t, f.Bytes(t), func(s *skb) { s.Mark = mark })
		if got.verdict != next || got.mark != want {
			t.Errorf("with the mark %#x: verdict %d, mark %#x; want mark %#x", mark, got.verdict, got.mark, want)
		}
	}
}
