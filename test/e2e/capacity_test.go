package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EManyFlowsInSmallTable opens far more connections, one after another, than the
// flow table holds. No process of fastbr runs meanwhile. Dead entries must never keep a
// live flow out.
func TestE2EManyFlowsInSmallTable(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1}, "--nat-flows", "1024")
	h.churnTCP(t, 10_000, 0)
	if n := h.refused(t); n != 0 {
		t.Errorf("%d flows were refused: %v", n, h.allDrops(t))
	}
	if n := len(h.Flows(t)); n > 1024 {
		t.Errorf("%d flows in a table for 1024", n)
	}
}

// TestE2EChurnInSmallRange makes 500 short connections and 500 DNS-like exchanges a
// second, each from a new source port, in a tenth of the default range. A closed
// connection keeps its port for two seconds. An answered exchange with a well-known
// port keeps it for 20. So the numbers stay below the range.
func TestE2EChurnInSmallRange(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1}, "--nat-range", "10000-11999")
	var wg sync.WaitGroup
	wg.Go(func() { h.churnTCP(t, 3000, 500) })
	wg.Go(func() { h.churnDNS(t, 1200, 500) })
	wg.Wait()
	if n := h.refused(t); n != 0 {
		t.Errorf("%d flows were refused: %v", n, h.allDrops(t))
	}
}

func (h *e2e) refused(t *testing.T) uint64 {
	t.Helper()
	return h.drops(t, "nat_full") + h.drops(t, "quota")
}

// churnTCP connects n times to one server, exchanges a few bytes and closes. perSecond
// 0 means as fast as possible.
func (h *e2e) churnTCP(t *testing.T, n, perSecond int) {
	t.Helper()
	s, err := h.Outside.ServeTCPEcho(on(h.Outside.Addr, 80))
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close()
	h.churn(t, n, perSecond, func(ctx context.Context, i int) error {
		return h.Containers[0].EchoTCP(ctx, netip.AddrPort{}, s.Addr, fmt.Sprint(i))
	})
}

func (h *e2e) churnDNS(t *testing.T, n, perSecond int) {
	t.Helper()
	s, err := h.Outside.ServeUDPEcho(on(h.Outside.Addr, 53))
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close()
	h.churn(t, n, perSecond, func(ctx context.Context, i int) error {
		return h.Containers[0].EchoUDP(ctx, port(uint16(32768+i)), s.Addr, fmt.Sprint(i))
	})
}

// churn runs one exchange after another, at most perSecond a second. Each may take as
// long as a few lost packets cost.
func (h *e2e) churn(t *testing.T, n, perSecond int, one func(ctx context.Context, i int) error) {
	t.Helper()
	var pace <-chan time.Time
	if perSecond > 0 {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		pace = tick.C
	}
	for i := range n {
		if perSecond > 0 {
			<-pace
		}
		ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
		err := one(ctx, i)
		cancel()
		if err != nil {
			t.Errorf("exchange %d of %d: %v", i, n, err)
			return
		}
	}
}

// TestE2EGreedyContainer lets one container use up all that it may have, with UDP flows
// and with connections that never open. The new flows of other containers and of the
// host must not be affected. Without `make stress` the table and the range are small,
// so that the quotas are reached many times.
func TestE2EGreedyContainer(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		if !stress() { // make stress logs latency, so the modes take turns
			t.Parallel()
		}
		small := []string{"--nat-flows", "4096", "--nat-range", "10000-13999"}
		h := upE2E(t, m, lab.Options{Containers: 2}, sized(small, nil)...)
		if _, err := h.Outside.Run(h.Ctx, "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9:10", "-j", "DROP"); err != nil {
			t.Fatal(err)
		}
		b := h.newBystanders(t)
		for range sized(1, 500) {
			b.round(t)
		}
		b.tell(t, "before")
		done := make(chan struct{})
		var flood sync.WaitGroup
		flood.Go(func() {
			defer close(done)
			h.askForAll(t, sized(15_000, 60_000), sized(15_000, 100_000))
		})
		for going := true; going; {
			b.round(t)
			select {
			case <-done:
				going = false
			default:
			}
		}
		flood.Wait()
		b.tell(t, "meanwhile")
		if n := h.drops(t, "quota"); n == 0 {
			t.Error("the greedy container never met its quota")
		}
		if n := h.drops(t, "nat_full"); n != 0 {
			t.Errorf("%d flows found no room: %v", n, h.allDrops(t))
		}
	})
}

// askForAll sends the first packets of UDP flows and of connections from c1. All flows
// are different.
func (h *e2e) askForAll(t *testing.T, flows, half int) {
	in, err := h.Containers[0].NewInjector("eth0")
	if err != nil {
		t.Error(err)
		return
	}
	defer in.Close()
	base := h.toOutside(t, h.Containers[0], 0)
	for i := range max(flows, half) {
		source, dest := uint16(1024+i%60_000), uint16(9+i/60_000)
		if i < flows {
			f := base.With(func(f *testutil.Frame) { f.UDP.SrcPort, f.UDP.DstPort = source, dest })
			err = in.Send(f.Bytes(t))
		}
		if i < half && err == nil {
			f := base.With(func(f *testutil.Frame) { f.UDP, f.TCP = nil, &testutil.TCP{SrcPort: source, DstPort: dest, SYN: true} })
			err = in.Send(f.Bytes(t))
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}
