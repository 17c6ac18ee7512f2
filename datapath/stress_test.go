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

// stressFlows is how many flows the stress test opens: FASTBR_STRESS_FLOWS, or
// enough for every day.
func stressFlows(t *testing.T) int {
	t.Helper()
	s := os.Getenv("FASTBR_STRESS_FLOWS")
	if s == "" {
		return 100_000
	}
	n, err := strconv.Atoi(s)
	check(t, err)
	return n
}

// Two containers open connections from equal ports to one server, on two CPUs at
// once, as fast as they can: no external tuple is given twice, every reply finds
// its connection, and at the end the mappings are the ports in use.
func TestTwoCPUsOpenFlowsFromEqualPorts(t *testing.T) {
	const round = 4000 // of one container: less than its share of the range
	h := newHarness(t, Config{FlowsMax: 4 * round, NATFirst: 10000, NATLast: 10000 + 4*round - 1}, nil)
	for left := stressFlows(t); left > 0; left -= 2 * round {
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

// openAll opens n connections of a container and sends each a reply, which must
// come to the port it was opened from.
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

// assertMappings checks that there are n sessions, each with a port of its own
// and a mapping that leads to it.
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
