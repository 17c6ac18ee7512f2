package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
)

// stressFlows is how many flows a stress test opens: FASTBR_STRESS_FLOWS, or a number
// for every day.
func stressFlows(t *testing.T, everyday int) int {
	t.Helper()
	s := os.Getenv("FASTBR_STRESS_FLOWS")
	if s == "" {
		return everyday
	}
	n, err := strconv.Atoi(s)
	check(t, err)
	return n
}

// Two containers open connections from equal ports to one server, on two CPUs at once,
// as fast as they can. No external tuple is used twice, and every reply reaches its
// connection. At the end the mappings are the ports in use.
func TestTwoCPUsOpenFlowsFromEqualPorts(t *testing.T) {
	const round = 4000 // of one container: less than its share of the range
	h := newReal(t, Config{FlowsMax: 4 * round, NATFirst: 10000, NATLast: 10000 + 4*round - 1}, nil)
	for left := stressFlows(t, 100_000); left > 0; left -= 2 * round {
		var owners sync.Map
		var errs [2]error
		h.eachOnCPU(t, 2, func(w int) {
			errs[w] = h.openAll(t, []netip.Addr{c1Addr, c2Addr}[w], round, &owners)
		})
		check(t, errors.Join(errs[:]...))
		h.assertMappings(t, 2*round)
		_, err := h.FlushFlows()
		check(t, err)
	}
	st, err := h.NATStats()
	check(t, err)
	if st.PortOverloads != 0 || st.PortsNotFound != 0 || st.Refused["nat_full"]+st.Refused["quota"] != 0 {
		t.Errorf("%+v", st)
	}
}

// openAll opens n connections of a container and sends each a reply. The reply must
// arrive at the port that opened the connection.
func (h *harness) openAll(t *testing.T, src netip.Addr, n int, owners *sync.Map) error {
	var r runner
	out := h.routed(h.udpFrom(src, 0)).Bytes(t)
	in := h.reply(h.udpFrom(src, 0), 0).Bytes(t)
	binary.BigEndian.PutUint16(out[40:], 0) // no checksum: the port is written into the frame
	binary.BigEndian.PutUint16(in[40:], 0)
	for i := range n {
		port := uint16(40000 + i)
		binary.BigEndian.PutUint16(out[34:], port)
		got, err := r.exec(h.progs.FbrUplinkOut, out, h.uplink.Ifindex, h.bridge, 0)
		if err != nil || got.verdict != next {
			return fmt.Errorf("%s:%d: verdict %d, %w", src, port, got.verdict, err)
		}
		eport := binary.BigEndian.Uint16(got.frame[34:])
		if other, taken := owners.LoadOrStore(eport, src); taken {
			return fmt.Errorf("%s:%d got port %d, which %s has", src, port, eport, other)
		}
		binary.BigEndian.PutUint16(in[36:], eport)
		got, err = r.exec(h.progs.FbrUplinkIn, in, h.uplink.Ifindex, h.uplink.Ifindex, 0)
		if err != nil || got.verdict != next || mustAddr4(got.frame[30:34]) != src || binary.BigEndian.Uint16(got.frame[36:]) != port {
			return fmt.Errorf("the reply to %s:%d at port %d: verdict %d, %x, %w", src, port, eport, got.verdict, got.frame, err)
		}
	}
	return nil
}

// assertMappings checks that there are n sessions, each with a port of its own and a
// mapping that leads to it.
func (h *harness) assertMappings(t *testing.T, n int) {
	t.Helper()
	got := h.table(t)
	refs := 0
	for _, class := range got.Ports {
		for _, p := range class {
			refs += p.Refs
			if p.Taken != (p.Refs > 0) || p.Taken != p.Bound {
				t.Errorf("port %+v", p)
			}
		}
	}
	if len(got.Sessions) != n || refs != n || len(got.Binds) != n {
		t.Errorf("%d sessions, %d references to ports, %d mappings; want %d of each", len(got.Sessions), refs, len(got.Binds), n)
	}
}

// A container opens and closes 15,000 connections a second to one server, on the test's
// clock, in a range of the default size. Each finds a port, since closed connections
// give theirs up. A million connections take 67 seconds of that clock.
func TestFifteenThousandConnectionsASecond(t *testing.T) {
	const perSecond, ports = 15_000, 20_000
	n := stressFlows(t, 40_000)
	in := newInjected(t, Config{FlowsMax: 131072, NATFirst: 10000, NATLast: 10000 + ports - 1}, nil)
	hz := int(in.meta.Hz)
	segments := [2][]byte{in.routed(in.fromC1()).Bytes(t), in.reply(in.fromC1(), 0).Bytes(t)}
	for i := range n {
		if i%(perSecond/hz) == 0 {
			in.set(t, 1<<30+uint64(i*hz/perSecond), uint64(i))
		}
		check(t, in.connection(segments, uint16(1024+i%(1<<16-1024))))
	}
	st, err := in.NATStats()
	check(t, err)
	held := ports - ports/5 // what one container may hold
	if st.Refused["nat_full"]+st.Refused["quota"]+st.PortOverloads != 0 || st.PortsReclaimed < uint64(n-held) {
		t.Errorf("of %d connections: %+v", n, st)
	}
}

// connection opens, uses and closes a connection from port of c1. segments are
// templates of the outbound and the inbound segments. Nobody checks their checksums.
func (in *injected) connection(segments [2][]byte, port uint16) error {
	eport := uint16(0)
	for _, s := range []struct {
		out   bool
		flags byte
	}{{true, 0x02}, {false, 0x12}, {true, 0x10}, {true, 0x11}, {false, 0x11}, {true, 0x10}} {
		prog, frame, from, at := in.progs.FbrUplinkOut, segments[0], in.bridge, 34
		if !s.out {
			prog, frame, from, at = in.progs.FbrUplinkIn, segments[1], in.uplink.Ifindex, 36
			binary.BigEndian.PutUint16(frame[at:], eport)
		} else {
			binary.BigEndian.PutUint16(frame[at:], port)
		}
		frame[47] = s.flags
		got, err := in.exec(prog, frame, in.uplink.Ifindex, from, 0)
		if err != nil || got.verdict != next {
			return fmt.Errorf("flags %x of port %d: verdict %d, %w", s.flags, port, got.verdict, err)
		}
		now := binary.BigEndian.Uint16(got.frame[at:])
		switch {
		case !s.out && now != port:
			return fmt.Errorf("flags %x for port %d arrive at port %d", s.flags, port, now)
		case s.out && eport != 0 && now != eport:
			return fmt.Errorf("port %d left from %d, and then from %d", port, eport, now)
		case s.out:
			eport = now
		}
	}
	return nil
}
