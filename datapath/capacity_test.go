package datapath

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/testutil"
)

func mustAddr(s string) netip.Addr  { return netip.MustParseAddr(s) }
func mustAddr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
func quick(v *tcVariableSpecs) error {
	return errors.Join(v.CfgToUdpOneway.Set(uint32(1)), v.CfgToUdp.Set(uint32(1)), v.CfgToTcpClosing.Set(uint32(1)))
}
func (h *harness) live(t *testing.T) uint32 {
	t.Helper()
	st, err := h.NATStats()
	check(t, err)
	return st.Flows
}

// waitLive waits until exactly want sessions are left.
func (h *harness) waitLive(t *testing.T, want uint32) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); h.live(t) != want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions left, want %d", h.live(t), want)
		}
	}
}

// sweepAfter lets d pass and then sweeps, as the timer would.
func (h *harness) sweepAfter(t *testing.T, d time.Duration) {
	t.Helper()
	h.age(t, d)
	h.run(t, h.prog(sweepName), make([]byte, 64), 0, 0)
}

// udpFrom is a UDP packet of c1 or c2 from this port.
func (h *harness) udpFrom(src netip.Addr, port uint16) testutil.Frame {
	f := h.fromC1()
	f.Src, f.TCP, f.UDP = src, nil, &testutil.UDP{SrcPort: port, DstPort: 9999}
	return f
}

// TestExpiredSessionsAreSwept: the kernel's own timer removes them.
func TestExpiredSessionsAreSwept(t *testing.T) {
	h := newReal(t, Config{FlowsMax: 64}, quick)
	for p := range uint16(20) {
		h.sentFrom(t, h.udpFrom(c1Addr, 40000+p))
	}
	h.waitLive(t, 0)
	for class := range classes {
		if n := h.free(t, class); n != int(h.meta.NatCount) {
			t.Errorf("class %d: %d ports are free of %d", class, n, h.meta.NatCount)
		}
	}
	// The timer has stopped with the last session and must start again.
	h.sentFrom(t, h.udpFrom(c1Addr, 50000))
	h.waitLive(t, 0)
}

func TestFullTableRefusesNewAndKeepsOld(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 50}, nil)
	for p := range uint16(40) { // c1's quota is 4/5
		h.sentFrom(t, h.udpFrom(c1Addr, 40000+p))
	}
	h.wantRefused(t, h.c1, "quota", h.udpFrom(c1Addr, 41000))
	for p := range uint16(10) {
		h.sentFrom(t, h.udpFrom(c2Addr, 40000+p))
	}
	h.wantRefused(t, h.c2, "nat_full", h.udpFrom(c2Addr, 41000))
	st, err := h.NATStats()
	check(t, err)
	if st.Flows != 50 || st.Refused["quota"] != 1 || st.Refused["nat_full"] != 1 {
		t.Errorf("%+v", st)
	}
	for p := range uint16(40) {
		h.sentFrom(t, h.udpFrom(c1Addr, 40000+p)) // the old ones still work
	}
	if at, err := h.PortAt(c1Addr); err != nil || at != h.c1.Ifindex {
		t.Errorf("the port at %s is %d, %v; want %d", c1Addr, at, err, h.c1.Ifindex)
	}
	check(t, h.DetachPort(h.c1.Ifindex))
	if at, err := h.PortAt(c1Addr); err != nil || at != 0 {
		t.Errorf("the port at %s is still %d, %v", c1Addr, at, err)
	}
	if n := h.live(t); n != 10 {
		t.Errorf("%d sessions after c1 has gone, want c2's 10", n)
	}
}

func TestExpiredSessionsMakeRoomAtOnce(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 16}, func(v *tcVariableSpecs) error {
		return errors.Join(quick(v), v.CfgFlowsQuota.Set(uint32(1000)))
	})
	for p := range uint16(16) {
		h.sentFrom(t, h.udpFrom(c1Addr, 40000+p))
	}
	h.age(t, 4*time.Second) // nothing sweeps
	for p := range uint16(16) {
		h.sentFrom(t, h.udpFrom(c1Addr, 42000+p))
	}
}

func TestClosedConnectionsMakeRoom(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 32, NATFirst: 10000, NATLast: 10039}, nil)
	seg := func(port uint16, change func(*testutil.TCP)) testutil.Frame {
		return h.fromC1().With(func(f *testutil.Frame) { f.TCP.SrcPort = port; change(f.TCP) })
	}
	for i := range uint16(400) {
		port := 30000 + i
		eport := h.sentFrom(t, seg(port, func(s *testutil.TCP) { s.SYN, s.ACK = true, false }))
		h.uplinkIn(t, h.reply(seg(port, func(s *testutil.TCP) { s.SYN = true }), eport).Bytes(t))
		h.sentFrom(t, seg(port, func(s *testutil.TCP) { s.FIN = true }))
		h.uplinkIn(t, h.reply(seg(port, func(s *testutil.TCP) { s.FIN = true }), eport).Bytes(t))
		if i%16 == 15 {
			h.age(t, 30*time.Millisecond) // a closed connection keeps its port for 20 ms
		}
	}
	st, err := h.NATStats()
	check(t, err)
	if st.Refused["nat_full"]+st.Refused["quota"] != 0 || st.PortsReclaimed == 0 {
		t.Errorf("%+v", st)
	}
}

func TestPortsAreSharedOnlyWhenNoneIsFree(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64, NATFirst: 10000, NATLast: 10007}, func(v *tcVariableSpecs) error {
		return v.CfgPortsQuota.Set(uint32(1000))
	})
	seen := map[uint16]bool{}
	for i := range uint16(8) {
		seen[h.sentFrom(t, h.udpFrom(c1Addr, 40000+i))] = true
	}
	if len(seen) != 8 {
		t.Errorf("8 sources share %d ports of 8", len(seen))
	}
	if st, _ := h.NATStats(); st.PortOverloads != 0 {
		t.Errorf("%d overloads before the range was full", st.PortOverloads)
	}
	f := h.udpFrom(c1Addr, 45000).With(func(f *testutil.Frame) { f.Dst = mustAddr("192.0.2.12") })
	h.sentFrom(t, f)
	if st, _ := h.NATStats(); st.PortOverloads != 1 {
		t.Errorf("%d overloads, want 1", st.PortOverloads)
	}
	h.wantRefused(t, h.c1, "nat_full", h.udpFrom(c1Addr, 46000)) // every tuple to the first server is taken
}

// A container keeps its own source port, unless another has just had it (RFC 6888
// REQ-8).
func TestReleasedPortIsOnHold(t *testing.T) {
	for _, hold := range []uint32{120, 0} {
		h := newHarness(t, Config{FlowsMax: 64}, func(v *tcVariableSpecs) error { return v.CfgToHold.Set(hold) })
		for i, want := range []struct {
			from netip.Addr
			kept bool
		}{{c1Addr, true}, {c1Addr, true}, {c2Addr, hold == 0}} {
			if got := h.sentFrom(t, h.udpFrom(want.from, 12345)); (got == 12345) != want.kept {
				t.Errorf("hold %d, packet %d: port %d", hold, i, got)
			}
			_, err := h.FlushFlows()
			check(t, err)
		}
	}
}

func TestReplyToAPortThatHasGone(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f := h.samples()["udp"]
	eport := h.open(t, f)
	check(t, h.DetachPort(h.c1.Ifindex))
	b := h.reply(f, eport).Bytes(t)
	if got := h.uplinkIn(t, b); got.verdict != next || string(got.frame) != string(b) {
		t.Errorf("verdict %d; want the host to have it untouched", got.verdict)
	}
}
