package datapath

import (
	"encoding/binary"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
)

// passedPlace is the index of a packet in fbr_passed, which has so many places:
// fbr_flow_hash of bpf/lib/flow.h.
func passedPlace(places, mark uint32, t nm.Tuple) int {
	swap := func(p uint16) uint64 { return uint64(p>>8 | p<<8) }
	var h uint64
	if t.Src.Is4() {
		addr := func(a nm.Addr) uint64 { return uint64(binary.LittleEndian.Uint32(a.AsSlice())) }
		h = ((addr(t.Src) | addr(t.Dst)<<32) + uint64(mark)) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	} else {
		half := func(a nm.Addr, at int) uint64 { return binary.LittleEndian.Uint64(a.AsSlice()[at:]) }
		s := uint64(mark) * 0x9e3779b97f4a7c15
		a, b := (half(t.Src, 0)^s)*0x9e3779b97f4a7c15, (half(t.Src, 8)+s)*0xc2b2ae3d27d4eb4f
		c, d := (half(t.Dst, 0)^^s)*0x165667b19e3779f9, (half(t.Dst, 8)-s)*0x27d4eb2f165667c5
		h = (a ^ a>>32) + (b ^ b>>29) + (c ^ c>>31) + (d ^ d>>33)
	}
	last := swap(t.SPort) | swap(t.DPort)<<16 | uint64(t.Proto)<<32
	near := last >> 8 & 7
	h = (h ^ last&^(7<<8)) * 0xd6e8feb86659fd93
	place := uint32(h^h>>32) ^ uint32(near)
	return int(max(place, 1) % places)
}

// refusals are packets to a port of the range, each with the answer of the stack or of
// a rule.
func refusals(t *testing.T, port uint16) map[string][2]testutil.Frame {
	segment := testutil.Frame{Src: server, Dst: extAddr, TCP: &testutil.TCP{SrcPort: 80, DstPort: port, ACK: true}}
	syn := segment.With(func(f *testutil.Frame) { f.TCP.SYN, f.TCP.ACK = true, false })
	datagram := testutil.Frame{Src: server, Dst: extAddr, UDP: &testutil.UDP{SrcPort: 5, DstPort: port}}
	reset := testutil.Frame{Src: extAddr, Dst: server, TCP: &testutil.TCP{SrcPort: port, DstPort: 80, RST: true}}
	unreachable := func(about testutil.Frame) testutil.Frame {
		return testutil.Frame{Src: extAddr, Dst: server, ICMP: &testutil.ICMPError{Type: 3, Code: 3, Inner: about.IP(t)}}
	}
	return map[string][2]testutil.Frame{
		"segment, RST":           {segment, reset},
		"SYN, RST":               {syn, reset},
		"datagram, unreachable":  {datagram, unreachable(datagram)},
		"segment, unreachable":   {segment, unreachable(segment)},
		"options, unreachable":   {datagram.With(func(f *testutil.Frame) { f.Options = make([]byte, 8) }), unreachable(datagram)},
		"another port, and this": {datagram.With(func(f *testutil.Frame) { f.UDP.SrcPort = 6 }), unreachable(datagram.With(func(f *testutil.Frame) { f.UDP.SrcPort = 6 }))},
	}
}

// The stack's refusal for a port of the range does not leave. A rule's refusal does:
// its packet has not passed INPUT.
func TestOnlyTheStacksRefusalIsKeptBack(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	const free = 15000
	for name, r := range refusals(t, free) {
		t.Run(name, func(t *testing.T) {
			answer := h.routed(r[1]).Bytes(t)
			leaves := func(when string) {
				t.Helper()
				if got := h.uplinkOut(t, answer, 0); got.verdict != next || string(got.frame) != string(answer) {
					t.Errorf("%s: verdict %d", when, got.verdict)
				}
			}
			keptBack := func() {
				t.Helper()
				h.wantDrop(t, h.uplink.Ifindex, "foreign", func() result { return h.uplinkOut(t, answer, 0) })
			}
			leaves("a rule's refusal")
			h.input(t, r[0])
			keptBack()
			leaves("a rule's refusal after the stack's")
			h.input(t, r[0])
			h.input(t, r[0])
			keptBack()
			h.input(t, r[0])
			keptBack()
		})
	}
}

// The host may refuse a port that it has used, however long ago, until a mapping takes
// it.
func TestRefusalForAPortOfTheHost(t *testing.T) {
	h := newInjected(t, Config{FlowsMax: 64}, nil)
	now := uint64(1) << 30
	h.set(t, now, 1)
	const port = 15000
	refused := refusals(t, port)["SYN, RST"]
	answer := h.routed(refused[1]).Bytes(t)
	used := testutil.Frame{Src: extAddr, Dst: server, TCP: &testutil.TCP{SrcPort: port, DstPort: 80, SYN: true, ACK: true}}
	h.input(t, refused[0]) // a listener's first SYN, before it has sent anything
	h.uplinkOut(t, h.routed(used).Bytes(t), 0)
	for _, later := range []uint64{0, 1, 86400} {
		h.set(t, now+later*uint64(h.meta.Hz), 1)
		if got := h.uplinkOut(t, answer, 0); got.verdict != next {
			t.Errorf("%d seconds after the host has used the port: verdict %d", later, got.verdict)
		}
		h.input(t, refused[0])
	}

	now += 100_000 * uint64(h.meta.Hz)
	h.set(t, now, 1)
	own := testutil.Frame{Src: c1Addr, Dst: mustAddr("203.0.113.5"), TCP: &testutil.TCP{SrcPort: port, DstPort: 80, SYN: true}}
	if got := h.uplinkOut(t, h.routed(own).Bytes(t), h.bridge); got.verdict != next {
		t.Fatalf("verdict %d", got.verdict)
	}
	if got := h.eport(t, own); got != port {
		t.Fatalf("the mapping has port %d, want %d", got, port)
	}
	keptBack := func() {
		t.Helper()
		h.input(t, refused[0])
		h.wantDrop(t, h.uplink.Ifindex, "foreign", func() result { return h.uplinkOut(t, answer, 0) })
	}
	keptBack()
	_, err := h.FlushFlows()
	check(t, err)
	keptBack()
}
