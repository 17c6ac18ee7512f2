package datapath

import (
	"math"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

const (
	portOpen  = tcFbrPortStateFBR_PORT_OPEN
	portFree  = tcFbrPortStateFBR_PORT_FREE
	portTaken = tcFbrPortStateFBR_PORT_TAKEN
)

func (h *harness) pool(t testing.TB, class uint32) *tcFbrPool {
	t.Helper()
	p := new(tcFbrPool)
	check(t, h.maps.FbrPool.Lookup(class, p))
	return p
}

// free counts the free ports of a class. It checks that each is in the pool once, at
// its place, and open.
func (h *harness) free(t testing.TB, class uint32) int {
	t.Helper()
	pool := h.pool(t, class)
	n, open := 0, 0
	for port, state := range pool.State {
		if state&portOpen != 0 {
			open++
		}
		if state&portFree == 0 {
			continue
		}
		n++
		at := pool.At[port]
		if state != portFree|portOpen || int(pool.Ring[at]) != port || uint32(at-uint16(pool.Head)) >= pool.Tail-pool.Head {
			t.Errorf("port %d of class %d: state %d, place %d of [%d, %d)", port, class, state, at, pool.Head, pool.Tail)
		}
	}
	if n != int(pool.Tail-pool.Head) || open != int(pool.Open) || pool.Ripe-pool.Head > pool.Tail-pool.Head {
		t.Errorf("class %d: %d ports are free and %d open, the pool says %d to %d to %d and %d",
			class, n, open, pool.Head, pool.Ripe, pool.Tail, pool.Open)
	}
	return n
}

// TestEveryPortIsFree: each port of the range is in the pool once, also the first and
// the last port that exist.
func TestEveryPortIsFree(t *testing.T) {
	for _, r := range [][2]uint16{{20000, 20000 + requestChunk}, {1, 8}, {65530, 65535}} {
		h := newHarness(t, Config{FlowsMax: 64, NATFirst: r[0], NATLast: r[1]}, nil)
		for class := range classes {
			if n := h.free(t, class); n != int(h.meta.NatCount) {
				t.Errorf("class %d: %d ports are free, want %d", class, n, h.meta.NatCount)
			}
		}
		if p := h.sentFrom(t, h.udpFrom(c1Addr, 40000)); p < r[0] || p > r[1] {
			t.Errorf("port %d is none of %d to %d", p, r[0], r[1])
		}
	}
}

// knower is a container that remembers which ports it has had, and in what order.
type knower struct {
	*injected
	now uint64
}

// take opens UDP flows from n source ports and returns their external ports.
func (k *knower) take(t *testing.T, from testutil.Frame, n int) (ext []uint16) {
	t.Helper()
	for i := range n {
		got := k.uplinkOut(t, k.routed(from.With(func(f *testutil.Frame) { f.UDP.SrcPort = uint16(30000 + i) })).Bytes(t), k.bridge)
		if got.verdict != next {
			t.Fatalf("flow %d: verdict %d", i, got.verdict)
		}
		ext = append(ext, eportOf(got.frame))
	}
	return ext
}

// pass lets time pass and sweeps.
func (k *knower) pass(t *testing.T, secs uint64) {
	t.Helper()
	k.now += secs * uint64(k.meta.Hz)
	k.set(t, k.now, k.now*0x9e3779b97f4a7c15)
	for range k.meta.FlowsMax/256 + 1 {
		if _, err := k.exec(k.prog(sweepName), make([]byte, 64), 0, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNextPortIsNotKnown plays a container that takes all the ports it may have, lets
// them expire, and takes those that were left. It then guesses which ports another
// container gets next: those that it gave back first, in that order. If the choice were
// not random, every guess would be right. The test sets the time and the random
// numbers, so the result is always the same.
func TestNextPortIsNotKnown(t *testing.T) {
	const (
		ports  = 2000
		quota  = ports - ports/5
		wanted = 30
		rounds = 8
	)
	h := newInjected(t, Config{FlowsMax: 4096, NATFirst: 10000, NATLast: 10000 + ports - 1}, nil)
	k := &knower{h, 1 << 30}
	k.pass(t, 0)
	placed, known, sum := 0, 0, 0.0
	for range rounds {
		released := k.take(t, k.udpFrom(c1Addr, 0), quota)
		k.pass(t, 130) // UDP that was never answered lives 120 s
		if n := h.live(t); n != 0 {
			t.Fatalf("%d sessions have not expired", n)
		}
		rest := k.take(t, k.udpFrom(c1Addr, 0).With(func(f *testutil.Frame) { f.Dst = mustAddr("192.0.2.12") }), ports-quota)
		got := k.take(t, k.udpFrom(c2Addr, 0), wanted)

		mine, order := map[uint16]bool{}, map[uint16]int{}
		for _, p := range rest {
			mine[p] = true
		}
		for _, p := range released {
			if !mine[p] {
				order[p] = len(order)
			}
		}
		for _, p := range got {
			at, ok := order[p]
			if !ok {
				continue
			}
			if at < wanted {
				known++
			}
			placed++
			sum += float64(at) / float64(len(order))
		}
		k.pass(t, 130)
		k.pass(t, 130) // and the hold ends
	}
	t.Logf("%d of %d ports were among the %d guessed; %d had been the other's, at %.2f of what it gave back on average",
		known, rounds*wanted, wanted, placed, sum/float64(placed))
	// A port is chosen from at least half of the free ports, 800 here. By chance 9 of
	// 240 guesses are right, with a standard deviation of 3.
	if known > 21 {
		t.Errorf("%d of %d ports were guessed", known, rounds*wanted)
	}
	// The place of a port in that half must be random, too. The mean is 0.25 if all
	// were on hold and 0.5 if none was, with a standard deviation of at most 0.29.
	if mean := sum / float64(placed); mean < 0.25-4*0.29/math.Sqrt(float64(placed)) {
		t.Errorf("the next ports are those given back first: %.2f", mean)
	}
}

// TestReleasedPortsComeLast: one container releases ports, and another takes all there
// are. Ports on hold come after the others.
func TestReleasedPortsComeLast(t *testing.T) {
	h := newInjected(t, Config{FlowsMax: 256, NATFirst: 10000, NATLast: 10099}, func(v *tcVariableSpecs) error { return v.CfgPortsQuota.Set(uint32(1000)) })
	k := &knower{h, 1 << 30}
	k.pass(t, 0)
	released := map[uint16]bool{}
	for _, p := range k.take(t, k.udpFrom(c1Addr, 0), 40) {
		released[p] = true
	}
	k.pass(t, 130)
	got := k.take(t, k.udpFrom(c2Addr, 0), 100)
	early := 0
	for _, p := range got[:20] { // then 60 to 41 others are left, and 40 on hold
		if released[p] {
			early++
		}
	}
	if early != 0 {
		t.Errorf("%d of the first 20 ports were another's less than 120 s ago, with others free", early)
	}
	if n := h.free(t, 1); n != 0 {
		t.Errorf("%d ports are free, want none: full means full", n)
	}
}

// TestPublishedPortsAreNoMappings publishes a port of the range twice, at two
// addresses. No mapping gets it until both are withdrawn. Another range does not open
// it either.
func TestPublishedPortsAreNoMappings(t *testing.T) {
	const tcp, udp = 0, 1
	h := newHarness(t, Config{FlowsMax: 64, NATFirst: 10000, NATLast: 10007}, nil)
	want := func(when string, class uint32, n int) {
		t.Helper()
		if got := h.free(t, class); got != n {
			t.Errorf("%s: %d ports of class %d are free, want %d", when, got, class, n)
		}
	}
	one := Publication{Proto: unix.IPPROTO_TCP, HostAddr: extAddr, First: 9998, Last: 10001, Ifindex: h.c1.Ifindex, Container: c1Addr, Port: 80}
	two := Publication{Proto: unix.IPPROTO_TCP, HostAddr: mustAddr("198.51.100.9"), First: 10001, Last: 10001, Ifindex: h.c1.Ifindex, Container: c1Addr, Port: 90}
	for range 2 { // a second time changes nothing
		check(t, h.Publish(one, two))
	}
	want("published", tcp, 6)
	want("published", udp, 8)
	check(t, h.SetNATRange(9999, 10004))
	want("another range", tcp, 3)
	want("another range", udp, 6)
	f := h.udpFrom(c1Addr, 10003)
	check(t, h.SetNATRange(20000, 20003))
	want("a third range", tcp, 4)
	if p := h.sentFrom(t, f); p < 20000 || p > 20003 {
		t.Errorf("a new mapping has port %d", p)
	}
	check(t, h.SetNATRange(10000, 10007))
	unpublish := func(p Publication) {
		t.Helper()
		h.ns.Do(t, func() { check(t, h.Unpublish(p)) })
	}
	unpublish(one)
	want("one of two taken back", tcp, 7)
	unpublish(two)
	want("both taken back", tcp, 8)
	// The old mapping lives on, and its port is not given out again.
	if p := h.sentFrom(t, f); p < 20000 || p > 20003 {
		t.Errorf("the old mapping moved to port %d", p)
	}
	_, err := h.FlushFlows()
	check(t, err)
	want("after its end", udp, 8)
}
