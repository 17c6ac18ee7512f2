package main_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/fastbr/fastbr/bench"
	"github.com/fastbr/fastbr/ctl/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// stress is whether this is `make stress`: the sizes at which these tests say
// what they are about, instead of those that every day has time for.
func stress() bool { return os.Getenv("FASTBR_STRESS") != "" }

// sized is one of two sizes.
func sized[T any](everyday, full T) T {
	if stress() {
		return full
	}
	return everyday
}

// TestE2EConnectionRate opens connections to one server as fast as the machine
// can, by defaults: none fails, however many ports their predecessors still hold.
func TestE2EConnectionRate(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	d := sized(2*time.Second, time.Minute)
	s, err := bench.ConnMax{}.Run(h.ctx, h.Lab, d, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	text := h.must(t, "metrics")
	reclaimed := value(t, text, "fastbr_nat_ports_reclaimed_total")
	t.Logf("%.0f connections/s for %v, %.1f ms at most for 99 %%; %.0f ports reclaimed, %.0f shared",
		s.Value, d, s.P99, reclaimed, value(t, text, "fastbr_nat_port_overloads_total"))
	if s.Requests == 0 || len(s.Failures) != 0 {
		t.Errorf("of %d connections these failed: %v", s.Requests, s.Failures)
	}
	if n := h.refused(t); n != 0 {
		t.Errorf("%d flows were refused: %v", n, h.allDrops(t))
	}
	// Each holds its port for 240 seconds if nobody needs it.
	if s.Requests > natLast-natFirst+1 && reclaimed == 0 {
		t.Errorf("%d connections, and no port was reclaimed", s.Requests)
	}
}

// TestE2ERangeAt95Percent fills the default range to 95 % with live flows to one
// destination: each finds a port of its own, and the metrics tell how hard it was.
func TestE2ERangeAt95Percent(t *testing.T) {
	t.Parallel()
	const each = (natLast - natFirst + 1) * 95 / 200
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	h.listenUDP(t, h.Outside, on(h.Outside.Addr, 4000)) // so that nobody answers with errors
	for _, c := range h.Containers {
		in, err := c.NewInjector("eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		frame := h.toOutside(t, c, 0).With(func(f *testutil.Frame) { f.UncheckedUDP = true }).Bytes(t)
		for i := range uint16(each) {
			binary.BigEndian.PutUint16(frame[34:], 32768+i)
			if err := in.Send(frame); err != nil {
				t.Fatal(err)
			}
		}
	}
	var text string
	waitFor(t, h.ctx, "all flows", func() bool {
		text = h.must(t, "metrics")
		return value(t, text, "fastbr_nat_flows") == 2*each
	})
	ports := map[uint16]bool{}
	for _, f := range h.flows(t) {
		ports[netip.MustParseAddrPort(f.NAT).Port()] = true
	}
	if len(ports) != 2*each {
		t.Errorf("%d flows have %d ports", 2*each, len(ports))
	}
	for series, want := range map[string]float64{
		"fastbr_nat_flows": 2 * each, "fastbr_nat_port_overloads_total": 0,
		`fastbr_nat_port_probes_bucket{le="1"}`: 2 * each, "fastbr_nat_port_probes_count": 2 * each,
	} {
		if got := value(t, text, series); got != want {
			t.Errorf("%s = %v, want %v", series, got, want)
		}
	}
	if n := h.refused(t); n != 0 {
		t.Errorf("%d flows were refused", n)
	}
}

// latencies are how long connections of a bystander took, by bystander.
type latencies map[string][]time.Duration

// connect opens a short connection for each of the bystanders.
func (l latencies) connect(t *testing.T, h *e2e, to netip.AddrPort) {
	t.Helper()
	for who, ns := range map[string]*lab.Namespace{"c2": h.Containers[1], "the host": h.Host} {
		ctx, cancel := context.WithTimeout(h.ctx, pingPatience)
		begin := time.Now()
		if err := ns.EchoTCP(ctx, netip.AddrPort{}, to, fmt.Sprint(len(l[who]))); err != nil {
			t.Errorf("connection %d of %s: %v", len(l[who]), who, err)
		}
		cancel()
		l[who] = append(l[who], time.Since(begin))
	}
}

// log tells median and 99th percentile.
func (l latencies) log(t *testing.T, when string) {
	t.Helper()
	for who, all := range l {
		slices.Sort(all)
		t.Logf("%s, %d connections of %s: median %v, 99 %% within %v", when, len(all), who, all[len(all)/2], all[len(all)*99/100])
	}
}
