package datapath

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/testutil"
)

// client is the i-th invented address outside.
func client(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}) }

// asks is the first packet of a client to c1's published port, by TCP or UDP.
func (h *harness) asks(i int, udp bool) testutil.Frame {
	f := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mustMAC("02:00:00:00:00:01"), Src: client(i), Dst: extAddr}
	if udp {
		f.UDP = &testutil.UDP{SrcPort: 40000, DstPort: 8080}
	} else {
		f.TCP = &testutil.TCP{SrcPort: 40000, DstPort: 8080, SYN: true}
	}
	return f
}

// answers is c1's SYN-ACK or datagram in answer to f.
func (h *harness) answers(f testutil.Frame) testutil.Frame {
	a := f.With(func(a *testutil.Frame) { a.Src, a.Dst = c1Addr, f.Src })
	if f.UDP != nil {
		a.UDP.SrcPort, a.UDP.DstPort = 80, f.UDP.SrcPort
	} else {
		a.TCP.SrcPort, a.TCP.DstPort, a.TCP.SYN, a.TCP.ACK = 80, f.TCP.SrcPort, true, true
		a.TCP.Seq = 7000
	}
	return h.routed(a)
}

// Invented senders take room only from other invented senders. They take none from c1's
// own flows, from another container's, or from a real client.
func TestInventedClientsTakeNobodysRoom(t *testing.T) {
	for _, udp := range []bool{false, true} {
		h := newHarness(t, Config{FlowsMax: 256}, nil)
		check(t, h.Publish(h.publication(udp)))
		for i := range 2000 {
			f := h.asks(i, udp)
			h.uplinkIn(t, f.Bytes(t))
			h.uplinkOut(t, h.answers(f).Bytes(t), h.bridge)
		}
		for i := range uint16(20) {
			for _, src := range []netip.Addr{c1Addr, c2Addr} {
				if got := h.uplinkOut(t, h.routed(h.udpFrom(src, 41000+i)).Bytes(t), h.bridge); got.verdict != next {
					t.Errorf("UDP %v: flow %d of %s: verdict %d", udp, i, src, got.verdict)
				}
			}
		}
		honest := h.asks(5000, udp)
		if got := h.uplinkIn(t, honest.Bytes(t)); got.verdict != next || string(got.frame) == string(honest.Bytes(t)) {
			t.Errorf("UDP %v: a client who is there is not let in", udp)
		}
		if got := h.uplinkOut(t, h.answers(honest).Bytes(t), h.bridge); got.verdict != next {
			t.Errorf("UDP %v: its answer: verdict %d", udp, got.verdict)
		}
		st, err := h.NATStats()
		check(t, err)
		if st.EarlyDrops == 0 || st.Refused["quota"]+st.Refused["nat_full"] != 0 {
			t.Errorf("UDP %v: %+v", udp, st)
		}
	}
}

// Only a client that acknowledges the container's sequence number has received its
// answer. Its session stays, whatever is invented afterwards.
func TestAClientThatIsThereStays(t *testing.T) {
	for ack, stays := range map[uint32]bool{7001: true, 7001 + 1448: true, 6999: false, 7001 + 1<<17: false} {
		t.Run(strconv.FormatUint(uint64(ack), 10), func(t *testing.T) {
			h := newHarness(t, Config{FlowsMax: 64}, nil)
			check(t, h.Publish(h.publication(false)))
			f := h.asks(0, false)
			h.uplinkIn(t, f.Bytes(t))
			h.uplinkOut(t, h.answers(f).Bytes(t), h.bridge)
			h.uplinkIn(t, f.With(func(f *testutil.Frame) { f.TCP.SYN, f.TCP.ACK, f.TCP.Ack = false, true, ack }).Bytes(t))
			for i := range 200 {
				h.uplinkIn(t, h.asks(1+i, false).Bytes(t))
			}
			fs, err := h.Flows()
			check(t, err)
			found := false
			for _, x := range fs {
				found = found || x.Dst.Addr() == client(0) && x.State == "established"
			}
			if found != stays {
				t.Errorf("stays: %v, want %v", found, stays)
			}
		})
	}
}

// A SYN-ACK whose session is gone begins no session: it would count as c1's own.
func TestAnAnswerBeginsNothing(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	check(t, h.Publish(h.publication(false)))
	if got := h.uplinkOut(t, h.answers(h.asks(0, false)).Bytes(t), h.bridge); got.verdict != shot || h.live(t) != 0 {
		t.Errorf("verdict %d, %d sessions", got.verdict, h.live(t))
	}
}

// What c2 sends to c1's published port counts as c2's, on both sides.
func TestHairpinIsTheSenders(t *testing.T) {
	h, _, _ := hairpinned(t)
	check(t, h.Publish(h.publication(true)))
	for i := range uint16(100) {
		f := h.udpOf(h.c2, extAddr.String(), 8080).With(func(f *testutil.Frame) { f.UDP.SrcPort = 42000 + i })
		h.portInOf(t, h.c2, f)
	}
	for i := range uint16(5) {
		if got := h.uplinkOut(t, h.routed(h.udpFrom(c1Addr, 43000+i)).Bytes(t), h.bridge); got.verdict != next {
			t.Errorf("c1's flow %d: verdict %d", i, got.verdict)
		}
	}
}

// A forged RST and full tables do not end a connection. Other sessions go first.
func TestAForgedRSTIsBelievedLast(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f := h.segment(c1Addr, server, 40000, syn)
	h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge)
	eport := h.eport(t, f)
	h.uplinkIn(t, h.reply(h.segment(c1Addr, server, 40000, synAck), eport).Bytes(t))
	data := h.segment(c1Addr, server, 40000, func(*testutil.TCP) {})
	h.uplinkOut(t, h.routed(data).Bytes(t), h.bridge)
	h.uplinkIn(t, h.reply(h.segment(c1Addr, server, 40000, func(s *testutil.TCP) { s.RST, s.ACK = true, false }), eport).Bytes(t))
	if n := h.burst(t, c2Addr, 200, 8, func(i int) (netip.Addr, uint16) { return server, 44000 + uint16(i) }); n != 0 {
		t.Errorf("%d of c2's connections refused", n)
	}
	if got := h.uplinkIn(t, h.reply(data, eport).Bytes(t)); got.verdict != next || string(got.frame[30:34]) != string(c1Addr.AsSlice()) {
		t.Errorf("verdict %d: the connection has ended", got.verdict)
	}
}

// Only a question to port 53 and its answer make a short session.
func TestOnlyQuestionsToNameServersAreShort(t *testing.T) {
	for _, tc := range []struct {
		port  uint16
		again bool
		want  time.Duration
	}{{443, false, 300 * time.Second}, {53, false, 20 * time.Second}, {53, true, 300 * time.Second}} {
		t.Run(fmt.Sprintf("%d again %v", tc.port, tc.again), func(t *testing.T) {
			h := newHarness(t, Config{FlowsMax: 64}, nil)
			f := h.udpFrom(c1Addr, 40000).With(func(f *testutil.Frame) { f.UDP.DstPort = tc.port })
			eport := h.open(t, f)
			if tc.again {
				if got := h.portIn(t, f.Bytes(t)); got.verdict != next {
					t.Errorf("the second question passes unseen: verdict %d", got.verdict)
				}
				h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge)
				h.uplinkIn(t, h.reply(f, eport).Bytes(t))
			}
			if got := h.flow(t).Expires; got != tc.want {
				t.Errorf("lives %s, want %s", got, tc.want)
			}
		})
	}
}
