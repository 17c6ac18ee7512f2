package datapath

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/fastbr/fastbr/internal/testutil"
)

// segment is a TCP segment of a container.
func (h *harness) segment(src, dst netip.Addr, port uint16, change func(*testutil.TCP)) testutil.Frame {
	return h.fromC1().With(func(f *testutil.Frame) { f.Src, f.Dst, f.TCP.SrcPort = src, dst, port; change(f.TCP) })
}

func syn(s *testutil.TCP)    { s.SYN, s.ACK = true, false }
func synAck(s *testutil.TCP) { s.SYN = true }
func fin(s *testutil.TCP)    { s.FIN = true }

// connection opens and closes a connection from both sides. It is false if that was
// refused.
func (h *harness) connection(t *testing.T, src, dst netip.Addr, port uint16) bool {
	t.Helper()
	first := h.uplinkOut(t, h.routed(h.segment(src, dst, port, syn)).Bytes(t), h.bridge)
	if first.verdict != next {
		return false
	}
	eport := binary.BigEndian.Uint16(first.frame[34:])
	h.uplinkIn(t, h.reply(h.segment(src, dst, port, synAck), eport).Bytes(t))
	h.uplinkOut(t, h.routed(h.segment(src, dst, port, fin)).Bytes(t), h.bridge)
	h.uplinkIn(t, h.reply(h.segment(src, dst, port, fin), eport).Bytes(t))
	return true
}

// burst opens n connections one after another and returns how many were refused. A
// closed connection keeps its port for 20 ms, so that time passes after each few.
func (h *harness) burst(t *testing.T, src netip.Addr, n, few int, dst func(i int) (netip.Addr, uint16)) (refused int) {
	t.Helper()
	for i := range n {
		to, port := dst(i)
		if !h.connection(t, src, to, port) {
			refused++
		}
		if i%few == few-1 {
			h.age(t, 25*time.Millisecond)
		}
	}
	return refused
}

// The sweep also removes what it frees from fbr_closed. A quiet past must not cost a
// busy present.
func TestQuietPastDoesNotHinderReclaim(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, func(v *tcVariableSpecs) error { return v.CfgToTcpClosing.Set(uint32(1)) })
	port := uint16(40000)
	anew := func(int) (netip.Addr, uint16) { port++; return server, port }
	for range 3 {
		if n := h.burst(t, c1Addr, 30, 100, anew); n != 0 {
			t.Fatalf("%d refused in a quiet round", n)
		}
		h.sweepAfter(t, 4*time.Second)
		if n := h.live(t); n != 0 {
			t.Fatalf("%d sessions are left", n)
		}
	}
	if n := h.burst(t, c1Addr, 300, 8, anew); n != 0 {
		st, _ := h.NATStats()
		t.Errorf("%d of 300 refused: %+v", n, st)
	}
}

func TestOthersClosedSessionsAreNotInTheWay(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 4096, NATFirst: 10000, NATLast: 10399}, nil)
	to := func(i int) (netip.Addr, uint16) { return server, 40000 + uint16(i) }
	if n := h.burst(t, c2Addr, 60, 100, to); n != 0 {
		t.Fatalf("c2: %d refused", n)
	}
	if n := h.burst(t, c1Addr, 800, 40, to); n != 0 {
		st, _ := h.NATStats()
		t.Errorf("c1: %d of 800 refused: %+v", n, st)
	}
}

func TestSharedMappingsDoNotHinderReclaim(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 8192, NATFirst: 10000, NATLast: 10399}, nil)
	rnd := testutil.Rand(t)
	// Many destinations from few source ports: reclaiming a session rarely frees its
	// port.
	n := h.burst(t, c1Addr, 2000, 40, func(int) (netip.Addr, uint16) {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + rnd.IntN(20))}), 40000 + uint16(rnd.IntN(565))
	})
	if n != 0 {
		st, _ := h.NATStats()
		t.Errorf("%d of 2000 refused: %+v", n, st)
	}
}

func TestFINFirstIsNoConnection(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	h.sentFrom(t, h.segment(c1Addr, server, 40001, fin))
	if f := h.flow(t); f.Expires > 240*time.Second {
		t.Errorf("%s, expires in %s", f.State, f.Expires)
	}
}

// RSTs and port-unreachable errors are kept back only where the host's stack itself
// answers for a port of the range, and nobody uses that port.
func TestOthersRefusalsPass(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	routed := mustAddr("10.9.9.9")
	rst := func(src netip.Addr, change func(*testutil.TCP)) []byte {
		f := testutil.Frame{Src: src, Dst: server, TCP: &testutil.TCP{SrcPort: 15000, DstPort: 80, RST: true}}
		return h.routed(f.With(func(f *testutil.Frame) { change(f.TCP) })).Bytes(t)
	}
	unreachable := func(src netip.Addr) []byte {
		inner := testutil.Frame{Src: server, Dst: src, UDP: &testutil.UDP{SrcPort: 5, DstPort: 15001}}.IP(t)
		return h.routed(testutil.Frame{Src: src, Dst: server, ICMP: &testutil.ICMPError{Type: 3, Code: 3, Inner: inner}}).Bytes(t)
	}
	plain := func(*testutil.TCP) {}
	for name, tc := range map[string]struct {
		frame   []byte
		iif     int
		verdict int32
	}{
		"routed RST":                 {rst(routed, plain), h.foreign, next},
		"routed unreachable":         {unreachable(routed), h.foreign, next},
		"neighbour's RST":            {rst(extAddr, plain), h.foreign, next},
		"host ends its connection":   {rst(extAddr, func(s *testutil.TCP) { s.ACK, s.Seq = true, 12345 }), 0, next},
		"host answers a SYN":         {rst(extAddr, func(s *testutil.TCP) { s.ACK = true }), 0, shot},
		"host answers a stray":       {rst(extAddr, plain), 0, shot},
		"host's port is unreachable": {unreachable(extAddr), 0, shot},
	} {
		// INPUT has let the packets through that the host answers so.
		h.input(t, testutil.Frame{Src: server, Dst: extAddr, TCP: &testutil.TCP{SrcPort: 80, DstPort: 15000}})
		h.input(t, testutil.Frame{Src: server, Dst: extAddr, UDP: &testutil.UDP{SrcPort: 5, DstPort: 15001}})
		if got := h.uplinkOut(t, tc.frame, tc.iif); got.verdict != tc.verdict {
			t.Errorf("%s: verdict %d, want %d", name, got.verdict, tc.verdict)
		}
	}
}

func TestRoutedNetworkIsReachedFromEverywhere(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	check(t, h.SetNetwork(Network{Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: mustAddr("172.30.0.1"), Bridge: h.bridge}))
	check(t, h.AttachPort(h.c1))
	f := testutil.Frame{SrcMAC: h.gateway, DstMAC: h.c1.MAC, Src: server, Dst: c1Addr, UDP: &testutil.UDP{SrcPort: 53, DstPort: 20000}}
	if got := h.portOut(t, f.Bytes(t), h.foreign); got.verdict != next {
		t.Errorf("verdict %d", got.verdict)
	}
	if got := h.portOut(t, f.Bytes(t), h.bridge2); got.verdict != shot {
		t.Errorf("from another network: verdict %d, want drop", got.verdict)
	}
}

func TestClosedUplinkLetsNothingOut(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f := h.fromC1()
	h.open(t, f)
	check(t, h.CloseUplink(h.uplink.Ifindex))
	if got := h.portIn(t, f.Bytes(t)); got.verdict != next {
		t.Errorf("a lease outlived the uplink: verdict %d", got.verdict)
	}
	if got := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge); got.verdict != shot {
		t.Errorf("a container's packet left by a closed uplink: verdict %d", got.verdict)
	}
	host := f.With(func(f *testutil.Frame) { f.Src = extAddr })
	if got := h.uplinkOut(t, h.routed(host).Bytes(t), 0); got.verdict != next {
		t.Errorf("the host's packet: verdict %d", got.verdict)
	}
}

func TestHostGoesFirstWhenFull(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 1}, func(v *tcVariableSpecs) error { return v.CfgFlowsQuota.Set(uint32(10)) })
	f := h.own("tcp")
	h.open(t, f) // established: it would stay if there were room for both
	frame := h.theirs(t, f)
	if got := h.uplinkOut(t, frame, 0); got.verdict != next || string(got.frame) != string(frame) {
		t.Errorf("verdict %d, changed %v; want the host's packet untouched", got.verdict, string(got.frame) != string(frame))
	}
	if n := h.live(t); n != 0 {
		t.Errorf("%d sessions; the container's should have given way", n)
	}
}

// eachOnCPU runs work n times at once, each on a thread inside the namespace.
func (h *harness) eachOnCPU(t *testing.T, n int, work func(w int)) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() { h.ns.Do(t, func() { runtime.LockOSThread(); work(w) }) })
	}
	wg.Wait()
}

// raw runs a program without failing the test, for use in other goroutines.
func (h *harness) raw(p *ebpf.Program, frame []byte, ifindex, iif int) (int32, []byte, error) {
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: skb{Ifindex: uint32(ifindex), IngressIfindex: uint32(iif)}}
	ret, err := p.Run(&opts)
	return int32(ret), opts.DataOut, err
}

func TestSameFlowOnTwoCPUs(t *testing.T) {
	h := newReal(t, Config{FlowsMax: 16384}, nil)
	frames := make([][]byte, 4000)
	for i := range frames {
		frames[i] = h.routed(h.udpFrom(c1Addr, 40000+uint16(i))).Bytes(t)
	}
	var errs [2]error
	h.eachOnCPU(t, 2, func(w int) {
		for _, b := range frames {
			if v, _, err := h.raw(h.progs.FbrUplinkOut, b, h.uplink.Ifindex, h.bridge); err != nil || v != next {
				errs[w] = errors.Join(errs[w], err, errors.New("dropped"))
				return
			}
		}
	})
	check(t, errors.Join(errs[:]...))
	st, err := h.NATStats()
	check(t, err)
	if st.Flows != uint32(len(frames)) || st.Refused["nat_full"] != 0 || st.PortOverloads != 0 {
		t.Errorf("%+v, want %d flows and nothing refused", st, len(frames))
	}
}

// Two CPUs open and close colliding sessions while the sweep and a flush end them.
// Afterwards every slot, port and count is back where it belongs.
func TestNothingIsLostUnderContention(t *testing.T) {
	const ports = 100
	h := newReal(t, Config{FlowsMax: 200, NATFirst: 10000, NATLast: 10000 + ports - 1}, func(v *tcVariableSpecs) error {
		return errors.Join(v.CfgToUdpOneway.Set(uint32(1)), v.CfgToTcpClosing.Set(uint32(1)),
			v.CfgFlowsQuota.Set(uint32(1000)), v.CfgPortsQuota.Set(uint32(1000)))
	})
	var frames [][]byte
	for p := range uint16(25) {
		source := 40000 + p
		if p%3 == 0 {
			source = 10000 + p
		}
		for d := range byte(3) {
			dst := netip.AddrFrom4([4]byte{192, 0, 2, 11 + d})
			for _, src := range []netip.Addr{c1Addr, c2Addr} {
				frames = append(frames,
					h.routed(h.segment(src, dst, source, syn)).Bytes(t),
					h.routed(h.segment(src, dst, source, fin)).Bytes(t),
					h.routed(h.udpFrom(src, source).With(func(f *testutil.Frame) { f.Dst = dst })).Bytes(t))
			}
		}
	}
	seeds := []uint64{testutil.Rand(t).Uint64(), testutil.Rand(t).Uint64()}
	var errs [3]error
	var flushed int
	done := make(chan struct{})
	var workers sync.WaitGroup
	workers.Add(2)
	go func() { workers.Wait(); close(done) }()
	h.eachOnCPU(t, 3, func(w int) {
		if w == 2 {
			for {
				select {
				case <-done:
					return
				case <-time.After(3 * time.Millisecond):
				}
				n, err := h.FlushFlows()
				flushed, errs[w] = flushed+n, errors.Join(errs[w], err)
			}
		}
		defer workers.Done()
		errs[w] = h.hammer(frames, seeds[w], 100_000)
	})
	check(t, errors.Join(errs[:]...))
	if flushed == 0 {
		t.Error("the flush never met a session")
	}
	_, err := h.FlushFlows()
	check(t, err)
	h.assertEmpty(t, ports)
}

// hammer sends n of the frames in random order. Every other TCP segment is answered by
// a FIN.
func (h *harness) hammer(frames [][]byte, seed uint64, n int) error {
	for i := range n {
		seed = seed*6364136223846793005 + 1442695040888963407
		v, out, err := h.raw(h.progs.FbrUplinkOut, frames[seed>>33%uint64(len(frames))], h.uplink.Ifindex, h.bridge)
		if err != nil {
			return err
		}
		if v != next || out[23] != 6 || i%2 == 0 {
			continue
		}
		answer := append([]byte(nil), out[:54]...)
		copy(answer[26:30], out[30:34])
		copy(answer[30:34], out[26:30])
		copy(answer[34:36], out[36:38])
		copy(answer[36:38], out[34:36])
		answer[47] = 0x11 // FIN, ACK; nobody checks the checksums
		if _, _, err := h.raw(h.progs.FbrUplinkIn, answer, h.uplink.Ifindex, h.uplink.Ifindex); err != nil {
			return err
		}
	}
	return nil
}

// assertEmpty checks that no session is left and that nothing got lost.
func (h *harness) assertEmpty(t *testing.T, ports uint32) {
	t.Helper()
	st, err := h.four.state()
	check(t, err)
	if st.Live != 0 {
		t.Errorf("%d sessions", st.Live)
	}
	for name, m := range map[string]*ebpf.Map{"fbr_flow_of": h.maps.FbrFlowOf, "fbr_bind": h.maps.FbrBind} {
		var k, v []byte
		if m.Iterate().Next(&k, &v) {
			t.Errorf("%s is not empty", name)
		}
	}
	for class := range classes {
		if n := h.free(t, class); n != int(ports) {
			t.Errorf("class %d: %d ports are free, want %d", class, n, ports)
		}
	}
	check(t, eachElement(h.maps.FbrNport, 1<<14, 1, classes<<16, func(i uint32, np []tcFbrNport) {
		if np[0].Refs != 0 || np[0].Bound != 0 {
			t.Errorf("fbr_nport[%#x] = %+v", i, np[0])
		}
	}))
	for _, port := range []Port{h.c1, h.c2} {
		dev, _, err := h.Datapath.devs.device(port.Ifindex)
		check(t, err)
		var q tcFbrQuota
		check(t, h.maps.FbrQuota.Lookup(uint32(dev.Stats), &q))
		if q.Ports != 0 || q.Sessions != 0 {
			t.Errorf("quota of %s: %+v", port.IP, q)
		}
	}
	for name, q := range map[string]struct {
		m    *ebpf.Map
		want uint32
	}{
		"fbr_free": {h.maps.FbrFree, uint32(min(st.Fresh, uint64(h.meta.FlowsMax)))},
	} {
		seen, n := map[uint32]bool{}, uint32(0)
		for x := uint32(0); q.m.LookupAndDelete(nil, &x) == nil; n++ {
			seen[x] = true
		}
		if n != q.want || uint32(len(seen)) != q.want {
			t.Errorf("%s holds %d, %d of them different; want %d", name, n, len(seen), q.want)
		}
	}
}
