package datapath

import (
	"os"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// hairpinned is a harness in which c1 and c2 each have a UDP mapping.
func hairpinned(t *testing.T) (h *harness, ext1, ext2 uint16) {
	t.Helper()
	h = newHarness(t, Config{FlowsMax: 64}, nil)
	h.ns.Do(t, func() { check(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)) })
	one := h.udpOf(h.c1, server.String(), 7)
	two := h.udpOf(h.c2, server.String(), 7)
	for _, f := range []testutil.Frame{one, two} {
		if got := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge); got.verdict != next {
			t.Fatalf("verdict %d", got.verdict)
		}
	}
	return h, h.eport(t, one), h.eport(t, two)
}

func (h *harness) udpOf(p Port, to string, port uint16) testutil.Frame {
	return testutil.Frame{SrcMAC: p.MAC, DstMAC: h.gateway, Src: p.IP, Dst: mustAddr(to),
		UDP: &testutil.UDP{SrcPort: 40000, DstPort: port}, Payload: []byte("hello, neighbour")}
}

func (h *harness) portInOf(t *testing.T, p Port, f testutil.Frame) result {
	t.Helper()
	return h.run(t, h.progs.FbrPortIn, f.Bytes(t), p.Ifindex, p.Ifindex)
}

// Between two containers that use external addresses, the kernel gets a packet with
// their own addresses, once the receiver has written first.
func TestHairpin(t *testing.T) {
	h, ext1, ext2 := hairpinned(t)
	to1 := h.udpOf(h.c2, extAddr.String(), ext1)
	// Before that, the packet is for the host, whose refusal does not reach the sender.
	if got := h.portInOf(t, h.c2, to1); got.verdict != next || string(got.frame) != string(to1.Bytes(t)) {
		t.Errorf("to who has not asked: verdict %d, changed: %v", got.verdict, string(got.frame) != string(to1.Bytes(t)))
	}
	refusal := testutil.Frame{SrcMAC: h.gateway, DstMAC: h.c2.MAC, Src: extAddr, Dst: c2Addr,
		ICMP: &testutil.ICMPError{Type: 3, Code: 3, Inner: to1.IP(t)}}.Bytes(t)
	refused := func() result { return h.run(t, h.progs.FbrPortOut, refusal, h.c2.Ifindex, 0) }
	if got := refused(); got.verdict != next || string(got.frame) != string(refusal) {
		t.Errorf("a rule's refusal: verdict %d, changed: %v", got.verdict, string(got.frame) != string(refusal))
	}
	h.input(t, to1)
	h.wantDrop(t, h.c2.Ifindex, "filtered", refused)
	to2 := h.udpOf(h.c1, extAddr.String(), ext2)
	for range 2 {
		want := to2.With(func(f *testutil.Frame) { f.Dst, f.UDP.DstPort = c2Addr, 40000 }).Bytes(t)
		if got := h.portInOf(t, h.c1, to2); got.verdict != next || string(got.frame) != string(want) {
			t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, want)
		}
		want = to1.With(func(f *testutil.Frame) { f.Dst, f.UDP.DstPort = c1Addr, 40000 }).Bytes(t)
		if got := h.portInOf(t, h.c2, to1); got.verdict != next || string(got.frame) != string(want) {
			t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, want)
		}
	}

	// Nobody outside can pretend to be the host and so reach a hairpin's session.
	forged := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: extAddr, Dst: extAddr,
		UDP: &testutil.UDP{SrcPort: ext2, DstPort: ext1}, Payload: []byte("it is me")}
	h.wantDrop(t, h.uplink.Ifindex, "martian", func() result { return h.uplinkIn(t, forged.Bytes(t)) })
}

// What is for the host itself stays the host's.
func TestHairpinLeavesTheHostAlone(t *testing.T) {
	h, ext1, _ := hairpinned(t)
	check(t, h.Publish(h.publication(false)))
	before := h.live(t)
	tcp := func(port uint16) testutil.Frame {
		return h.udpOf(h.c2, extAddr.String(), 0).With(func(f *testutil.Frame) {
			f.UDP, f.TCP = nil, &testutil.TCP{SrcPort: 40000, DstPort: port, SYN: true}
		})
	}
	for what, f := range map[string]testutil.Frame{
		"a port that is nobody's":         h.udpOf(h.c2, extAddr.String(), ext1+1),
		"another protocol":                tcp(ext1),
		"a port below the range":          tcp(443),
		"no first packet":                 tcp(8080).With(func(f *testutil.Frame) { f.TCP.SYN, f.TCP.ACK = false, true }),
		"somebody else's published port":  tcp(8080).With(func(f *testutil.Frame) { f.Dst = server }),
		"the loopback address, a martian": tcp(8080).With(func(f *testutil.Frame) { f.Dst = mustAddr("127.0.0.1") }),
	} {
		if got := h.portInOf(t, h.c2, f); got.verdict != next || string(got.frame) != string(f.Bytes(t)) {
			t.Errorf("%s: verdict %d, changed: %v", what, got.verdict, string(got.frame) != string(f.Bytes(t)))
		}
	}
	if n := h.live(t); n != before {
		t.Errorf("%d sessions, want %d", n, before)
	}
	got := h.portInOf(t, h.c2, tcp(8081))
	want := tcp(81).With(func(f *testutil.Frame) { f.Dst = c1Addr })
	if got.verdict != next || string(got.frame) != string(want.Bytes(t)) {
		t.Errorf("a published port: verdict %d\n got %x\nwant %x", got.verdict, got.frame, want.Bytes(t))
	}
}

// A fragmented datagram takes the same way, with an id of its own. Its receiver gets it
// from the host, as datagrams of other containers.
func TestHairpinFragments(t *testing.T) {
	h, ext1, ext2 := hairpinned(t)
	h.portInOf(t, h.c1, h.udpOf(h.c1, extAddr.String(), ext2))
	f := h.udpOf(h.c2, extAddr.String(), ext1).With(func(f *testutil.Frame) { f.Payload = make([]byte, 4000) })
	fill(f.Payload)
	var out [][]byte
	for i, piece := range testutil.Fragments(t, f.Bytes(t), fragment, 7) {
		got := h.run(t, h.progs.FbrPortIn, piece, h.c2.Ifindex, h.c2.Ifindex)
		if got.verdict != next {
			t.Fatalf("fragment %d: verdict %d", i, got.verdict)
		}
		out = append(out, got.frame)
	}
	id := testutil.FragmentID(out[0])
	if id == 7 {
		t.Error("the id is still the sender's")
	}
	whole := f.With(func(f *testutil.Frame) { f.Dst, f.UDP.DstPort = c1Addr, 40000 }).Bytes(t)
	for i, want := range testutil.Fragments(t, whole, fragment, id) {
		if string(out[i]) != string(want) {
			t.Errorf("fragment %d:\n got %x\nwant %x", i, out[i][:42], want[:42])
		}
	}
	if n := h.tracked(t, false); n != 0 {
		t.Errorf("%d datagrams are tracked after the last fragment", n)
	}

	// Nothing is known of a datagram whose first fragment was not seen. It is the
	// host's.
	later := testutil.Fragments(t, f.Bytes(t), fragment, 8)[1]
	if got := h.run(t, h.progs.FbrPortIn, later, h.c2.Ifindex, h.c2.Ifindex); got.verdict != next || string(got.frame) != string(later) {
		t.Errorf("verdict %d, header %x", got.verdict, got.frame[:42])
	}
}

// A host's ICMP error about a hairpinned packet quotes it as the kernel has routed it.
// The sender gets an error that quotes the packet as it was sent.
func TestHairpinErrorsOfTheHost(t *testing.T) {
	h, ext1, ext2 := hairpinned(t)
	h.portInOf(t, h.c1, h.udpOf(h.c1, extAddr.String(), ext2))
	sent := h.udpOf(h.c2, extAddr.String(), ext1)
	routed := h.portInOf(t, h.c2, sent)
	if routed.verdict != next {
		t.Fatalf("verdict %d", routed.verdict)
	}
	about := func(quote []byte) []byte {
		return testutil.Frame{SrcMAC: h.gateway, DstMAC: h.c2.MAC, Src: mustAddr("172.30.0.1"), Dst: c2Addr,
			ICMP: &testutil.ICMPError{Type: 3, Code: 4, Inner: quote}}.Bytes(t)
	}
	deliver := func(frame []byte) result { return h.run(t, h.progs.FbrPortOut, frame, h.c2.Ifindex, 0) }
	got := deliver(about(routed.frame[14:]))
	if want := about(sent.IP(t)); got.verdict != next || string(got.frame) != string(want) {
		t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, want)
	}
	// An error about a packet that nobody has translated stays as it is.
	for what, f := range map[string]testutil.Frame{
		"from another port":    sent.With(func(f *testutil.Frame) { f.Dst, f.UDP.SrcPort, f.UDP.DstPort = c1Addr, 40001, 40000 }),
		"to another port":      sent.With(func(f *testutil.Frame) { f.Dst, f.UDP.DstPort = c1Addr, 40001 }),
		"to another container": sent.With(func(f *testutil.Frame) { f.Dst, f.UDP.DstPort = mustAddr("172.30.0.9"), 40000 }),
	} {
		frame := about(f.IP(t))
		if got := deliver(frame); got.verdict != next || string(got.frame) != string(frame) {
			t.Errorf("%s: verdict %d, changed: %v", what, got.verdict, string(got.frame) != string(frame))
		}
	}
}

// A RST of the host, as a firewall's answer to a hairpinned segment, has as its source
// the address to which the segment was sent.
func TestHairpinRSTOfTheHost(t *testing.T) {
	h, _, _ := hairpinned(t)
	check(t, h.Publish(h.publication(false)))
	syn := h.udpOf(h.c2, extAddr.String(), 0).With(func(f *testutil.Frame) {
		f.UDP, f.TCP = nil, &testutil.TCP{SrcPort: 40000, DstPort: 8081, SYN: true}
	})
	if got := h.portInOf(t, h.c2, syn); got.verdict != next {
		t.Fatalf("verdict %d", got.verdict)
	}
	rst := testutil.Frame{SrcMAC: h.gateway, DstMAC: h.c2.MAC, Src: c1Addr, Dst: c2Addr,
		TCP: &testutil.TCP{SrcPort: 81, DstPort: 40000, RST: true, ACK: true}}
	deliver := func(f testutil.Frame) result { return h.run(t, h.progs.FbrPortOut, f.Bytes(t), h.c2.Ifindex, 0) }
	for what, change := range map[string]func(*testutil.Frame){
		"no RST":       func(f *testutil.Frame) { f.TCP.RST = false },
		"another port": func(f *testutil.Frame) { f.TCP.SrcPort = 82 },
	} {
		f := rst.With(change)
		if got := deliver(f); got.verdict != next || string(got.frame) != string(f.Bytes(t)) {
			t.Errorf("%s: verdict %d, changed: %v", what, got.verdict, string(got.frame) != string(f.Bytes(t)))
		}
	}
	want := rst.With(func(f *testutil.Frame) { f.Src, f.TCP.SrcPort = extAddr, 8081 }).Bytes(t)
	if got := deliver(rst); got.verdict != next || string(got.frame) != string(want) {
		t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, want)
	}
}
