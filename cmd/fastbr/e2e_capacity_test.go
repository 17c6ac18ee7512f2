package main_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// TestE2EManyFlowsInSmallTable opens far more connections, one after another,
// than the flow table holds, with no process of fastbr's running: dead entries
// must never keep a live flow out.
func TestE2EManyFlowsInSmallTable(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1}, "--nat-flows", "1024")
	h.churnTCP(t, 10_000, 0)
	if n := h.refused(t); n != 0 {
		t.Errorf("%d flows were refused: %v", n, h.allDrops(t))
	}
	if n := len(h.flows(t)); n > 1024 {
		t.Errorf("%d flows in a table for 1024", n)
	}
}

// TestE2EChurnInSmallRange makes 500 short connections and 500 DNS-like
// exchanges a second, each from a new source port, with a tenth of the default
// range. A closed connection keeps its port for two seconds, and an answered
// exchange with a well-known port for 20, so the numbers are below the range.
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

// churnTCP connects n times to one server, exchanges a few bytes and closes;
// perSecond 0: as fast as it goes.
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

// churn runs one exchange after another, at most perSecond of them a second.
// Each has the time of a few lost packets.
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
		ctx, cancel := context.WithTimeout(h.ctx, 10*time.Second)
		err := one(ctx, i)
		cancel()
		if err != nil {
			t.Errorf("exchange %d of %d: %v", i, n, err)
			return
		}
	}
}

// TestE2EGreedyContainer lets one container use up all that it may have, with
// UDP flows and connections that never open: the others' new flows, and the
// host's, must not notice. The table and the range are small, so that the
// quotas are reached many times over.
func TestE2EGreedyContainer(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m e2eMode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 2}, "--nat-flows", "4096", "--nat-range", "10000-13999")
		v := h.victims(t, netip.Addr{})
		if _, err := h.Outside.Run(h.ctx, "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"); err != nil {
			t.Fatal(err)
		}
		in, err := h.Containers[0].NewInjector("eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		done := make(chan struct{})
		var flood sync.WaitGroup
		flood.Go(func() {
			defer close(done)
			base := testutil.Frame{SrcMAC: v.mac1, DstMAC: v.gwMAC, Src: v.c1, Dst: h.Outside.Addr}
			for i := range 30_000 {
				source := uint16(1024 + i%60_000)
				f := base.With(func(f *testutil.Frame) { f.TCP = &testutil.TCP{SrcPort: source, DstPort: 9, SYN: true} })
				if i%2 == 0 {
					f = base.With(func(f *testutil.Frame) { f.UDP = &testutil.UDP{SrcPort: source, DstPort: 9} })
				}
				if err := in.Send(f.Bytes(t)); err != nil {
					t.Error(err)
					return
				}
			}
		})
		s, err := h.Outside.ServeTCPEcho(on(h.Outside.Addr, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for i := 0; ; i++ {
			for who, ns := range map[string]*lab.Namespace{"c2": h.Containers[1], "the host": h.Host} {
				ctx, cancel := context.WithTimeout(h.ctx, 10*time.Second)
				if err := ns.EchoTCP(ctx, netip.AddrPort{}, s.Addr, fmt.Sprint(i)); err != nil {
					t.Errorf("connection %d of %s: %v", i, who, err)
				}
				cancel()
			}
			select {
			case <-done:
			default:
				continue
			}
			break
		}
		flood.Wait()
		if n := h.drops(t, "quota"); n == 0 {
			t.Error("the greedy container never met its quota")
		}
		if n := h.drops(t, "nat_full"); n != 0 {
			t.Errorf("%d flows found no room: %v", n, h.allDrops(t))
		}
	})
}
