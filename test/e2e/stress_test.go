package e2e

import (
	"context"
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/bench"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// stress reports whether this is `make stress`. Then tests run at full size, which takes
// too long for everyday use.
func stress() bool { return os.Getenv("FASTBR_STRESS") != "" }

// sized is everyday or, in `make stress`, full.
func sized[T any](everyday, full T) T {
	if stress() {
		return full
	}
	return everyday
}

// TestE2EConnectionRate opens connections to one server as fast as the machine can,
// with default settings. None fails, however many ports the earlier ones still hold.
func TestE2EConnectionRate(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	d := sized(time.Second, time.Minute)
	s, err := bench.ConnMax{}.Run(h.Ctx, h.Lab, d, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	text := h.Must(t, "metrics")
	reclaimed := value(t, text, "fastbr_nat_ports_reclaimed_total")
	t.Logf("%.0f connections/s for %v, %.1f ms at most for 99 %%; %.0f ports reclaimed, %.0f shared",
		s.Value, d, s.P99, reclaimed, value(t, text, "fastbr_nat_port_overloads_total"))
	if s.Requests == 0 || len(s.Failures) != 0 {
		t.Errorf("of %d connections these failed: %v", s.Requests, s.Failures)
	}
	if n := h.refused(t); n != 0 {
		t.Errorf("%d flows were refused: %v", n, h.allDrops(t))
	}
	// Each connection holds its port for 240 seconds if nobody needs it.
	if s.Requests > natLast-natFirst+1 && reclaimed == 0 {
		t.Errorf("%d connections, and no port was reclaimed", s.Requests)
	}
}

// TestE2EFifteenThousandConnectionsASecond makes that many connections to one server,
// with default settings. Both ends are simulated by the test's packets; everything
// between them is real. None fails, and no port goes to another connection before both
// ends are done with it.
func TestE2EFifteenThousandConnectionsASecond(t *testing.T) {
	t.Parallel()
	const perSecond = 15_000
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	n := sized(2, 60) * perSecond
	r, err := bench.Handshakes{Client: h.Containers[0], Server: h.Outside, PerSecond: perSecond}.Run(h.Ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	text := h.Must(t, "metrics")
	reclaimed := value(t, text, "fastbr_nat_ports_reclaimed_total")
	t.Logf("%d connections, %.0f a second, %d segments sent again; %.0f ports reclaimed, %.0f shared",
		r.Begun, float64(r.Begun)/r.Took.Seconds(), r.Repeated, reclaimed, value(t, text, "fastbr_nat_port_overloads_total"))
	if r.Begun != uint64(n) || r.Failed() != 0 || r.Unfinished != 0 || r.Unexpected != 0 {
		t.Errorf("of %d connections %d failed: %+v", n, r.Failed(), r)
	}
	if refused := h.refused(t); refused != 0 {
		t.Errorf("%d flows were refused: %v", refused, h.allDrops(t))
	}
	// Each connection would hold its port for 240 seconds.
	if want := float64(n - (natLast - natFirst + 1)); reclaimed < want {
		t.Errorf("%d connections, and only %.0f ports were reclaimed, want %.0f", n, reclaimed, want)
	}
}

// TestE2ERangeAt95Percent fills the default range to 95 % with live flows to one
// destination. Each finds a port of its own, and the metrics show how hard that was.
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
	waitFor(t, h.Ctx, "all flows", func() bool {
		text = h.Must(t, "metrics")
		return value(t, text, "fastbr_nat_flows") == 2*each
	})
	ports := map[uint16]bool{}
	for _, f := range h.Flows(t) {
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

// bystanders are a host and a container that go on working beside a harmful container.
type bystanders struct {
	h    *e2e
	echo netip.AddrPort // a server outside, by TCP and UDP
	flow *net.UDPConn   // a flow of c2 that lasts
	ssh  *net.TCPConn   // somebody outside types into the host
	took map[string][]time.Duration
}

// newBystanders begins what lasts. The lab ends it.
func (h *e2e) newBystanders(t *testing.T) *bystanders {
	t.Helper()
	b := &bystanders{h: h, echo: on(h.Outside.Addr, 80), took: map[string][]time.Duration{}}
	h.ServeTCP(t, h.Outside, b.echo)
	h.ServeUDP(t, h.Outside, b.echo)
	b.flow = h.listenUDP(t, h.Containers[1], on(netip.IPv4Unspecified(), 0))
	ssh := h.ServeTCP(t, h.Host, on(h.HostAddr(0), 22))
	var err error
	if b.ssh, err = h.Outside.DialTCP(h.Ctx, netip.AddrPort{}, ssh.Addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.ssh.Close() })
	return b
}

// round does everything once. Each action must succeed.
func (b *bystanders) round(t *testing.T) {
	t.Helper()
	msg := strings.Repeat("x", 1+len(b.took)) // messages of different length
	for who, do := range map[string]func(context.Context) error{
		"connections of c2": func(ctx context.Context) error {
			return b.h.Containers[1].EchoTCP(ctx, netip.AddrPort{}, b.echo, msg)
		},
		"connections of the host": func(ctx context.Context) error {
			return b.h.Host.EchoTCP(ctx, netip.AddrPort{}, b.echo, msg)
		},
		"datagrams of c2":        func(ctx context.Context) error { return lab.EchoUDPOn(ctx, b.flow, b.echo, msg) },
		"keystrokes at the host": func(ctx context.Context) error { return lab.Echo(ctx, b.ssh, msg) },
	} {
		ctx, cancel := context.WithTimeout(b.h.Ctx, pingPatience)
		begin := time.Now()
		if err := do(ctx); err != nil {
			t.Errorf("%s, number %d: %v", who, len(b.took[who]), err)
		}
		cancel()
		b.took[who] = append(b.took[who], time.Since(begin))
	}
}

// tell logs how long everything took and begins anew. A lost datagram is sent again
// after a second, and so is a lost SYN; other segments after a fifth of a second.
func (b *bystanders) tell(t *testing.T, when string) {
	t.Helper()
	for _, who := range slices.Sorted(maps.Keys(b.took)) {
		all := b.took[who]
		slices.Sort(all)
		late := len(all) - sort.Search(len(all), func(i int) bool { return all[i] >= 200*time.Millisecond })
		t.Logf("%s, %d %s: median %v, 99 %% within %v, %d sent again", when, len(all), who, all[len(all)/2], all[len(all)*99/100], late)
	}
	clear(b.took)
}
