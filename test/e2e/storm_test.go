package e2e

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// stormRate is how many ports a storm attaches or detaches per second.
const stormRate = 50

// TestE2EAttachStorm attaches and detaches ports beside two that stay. Those must not
// lose a packet. It uses the Docker driver, and commands, each of which starts a
// process. The rate that is reached is logged.
func TestE2EAttachStorm(t *testing.T) {
	t.Parallel()
	lasts := sized(2*time.Second, 30*time.Second)
	t.Run("driver", func(t *testing.T) {
		r := newReplay(t, e2eModes()[0], 2)
		r.Must(t, "up")
		r.createNetwork(t)
		for i, c := range r.Containers {
			r.join(t, endpointID(fmt.Sprint(i)), c, fmt.Sprintf("10.77.0.%d/24", i+2), "")
		}
		r.storm(t, lasts, func(worker int, attach bool) error {
			f, call := r.ids(endpointID(fmt.Sprint(worker+5))), "DeleteEndpoint"
			if attach {
				f, call = r.with(endpointID(fmt.Sprint(worker+5)), fields{"Interface": fields{"Address": fmt.Sprintf("10.77.0.%d/24", worker+5)}, "Options": fields{}}), "CreateEndpoint"
			}
			_, err := r.try("/NetworkDriver."+call, f)
			return err
		})
	})
	t.Run("commands", func(t *testing.T) {
		h := upE2E(t, e2eModes()[0], lab.Options{Containers: 2})
		var comers [stormWorkers]*lab.Namespace
		for i := range comers {
			var err error
			if comers[i], err = h.Add(fmt.Sprint("comer", i)); err != nil {
				t.Fatal(err)
			}
		}
		h.storm(t, lasts, func(worker int, attach bool) error {
			name := comers[worker].Name
			c := h.Cmd("detach", name)
			if attach {
				c = h.Cmd("attach", comers[worker].Path(), "--name", name)
			}
			if out, err := c.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	})
}

// stormWorkers is how many ports come and go at the same time.
const stormWorkers = 4

// storm makes each worker attach and detach its port in turn. Together they change
// stormRate ports per second if the machine can. The first two containers and the
// outside talk meanwhile.
func (h *e2e) storm(t *testing.T, lasts time.Duration, change func(worker int, attach bool) error) {
	t.Helper()
	traffic := h.bystanders(t, "storm", h.Containers[0], h.Containers[1])
	tick := time.NewTicker(time.Second / stormRate)
	defer tick.Stop()
	begin := time.Now()
	var changes atomic.Int64
	var workers sync.WaitGroup
	for w := range stormWorkers {
		workers.Go(func() {
			for attach := true; time.Since(begin) < lasts || !attach; attach = !attach {
				<-tick.C
				if err := change(w, attach); err != nil {
					t.Errorf("worker %d, attach %v: %v", w, attach, err)
					return
				}
				changes.Add(1)
			}
		})
	}
	workers.Wait()
	rate := float64(changes.Load()) / time.Since(begin).Seconds()
	for _, s := range traffic {
		s.end(t)
	}
	t.Logf("%.0f ports a second attached or detached", rate)
}

// bystanders are streams of datagrams from a container to another one and to the
// outside. A single lost datagram is an error.
func (h *e2e) bystanders(t *testing.T, when string, from, other *lab.Namespace) []*stream {
	t.Helper()
	in, out := h.ServeUDP(t, other, on(other.Addr, 0)), h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 0))
	return []*stream{
		h.startStream(t, when+", bridge", true, from, in.Addr),
		h.startStream(t, when+", outwards", true, from, out.Addr),
	}
}

// TestE2ESweepBesideTraffic opens as many flows as a table is made for. A bystander's
// traffic must not be disturbed while they are opened, while the timer walks over them,
// or while it removes them.
func TestE2ESweepBesideTraffic(t *testing.T) {
	t.Parallel()
	sources, dests := sized(1000, 5000), sized(10, 100)
	flows := 2 * sources * dests
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 4}, "--nat-flows", fmt.Sprint(flows+flows/4))
	if _, err := h.Outside.Run(h.Ctx, "iptables", "-A", "INPUT", "-p", "udp", "--dport", fmt.Sprintf("%d:%d", sweepPort, sweepPort+dests), "-j", "DROP"); err != nil {
		t.Fatal(err)
	}
	during := func(what string, f func()) {
		h.Renew()
		traffic := h.bystanders(t, what, h.Containers[2], h.Containers[3])
		f()
		for _, s := range traffic {
			s.end(t)
		}
	}
	live := func() float64 { return value(t, h.Must(t, "metrics"), "fastbr_nat_flows") }
	look := sized(time.Second, 20*time.Second)
	during("before", func() { time.Sleep(look) })
	during("opening", func() {
		begin := time.Now()
		var both sync.WaitGroup
		for _, c := range h.Containers[:2] {
			both.Go(func() { h.openFlows(t, c, sources, dests) })
		}
		both.Wait()
		t.Logf("%d flows were opened in %v", flows, time.Since(begin).Round(time.Millisecond))
	})
	if n := live(); n < float64(flows) {
		t.Errorf("%v flows are live, want %d; refused %d: %v", n, flows, h.refused(t), h.allDrops(t))
	}
	during("all live", func() { time.Sleep(look) })
	if !stress() { // they live for two minutes
		h.Must(t, "flows", "flush")
		return
	}
	during("expiring", func() {
		for live() > float64(flows/100) && h.Ctx.Err() == nil {
			time.Sleep(time.Second)
		}
	})
	if n := live(); n > float64(flows/100) {
		t.Errorf("%v flows are left", n)
	}
}

// sweepPort is the first of the ports at which nobody answers.
const sweepPort = 20000

// openFlows sends a datagram from every source port to every port of the outside.
func (h *e2e) openFlows(t *testing.T, c *lab.Namespace, sources, dests int) {
	in, err := c.NewInjector("eth0")
	if err != nil {
		t.Error(err)
		return
	}
	defer in.Close()
	frame := h.toOutside(t, c, 0).With(func(f *testutil.Frame) { f.UncheckedUDP = true }).Bytes(t)
	for i := range sources * dests {
		binary.BigEndian.PutUint16(frame[34:], uint16(32768+i/dests))
		binary.BigEndian.PutUint16(frame[36:], uint16(sweepPort+i%dests))
		if err := in.Send(frame); err != nil {
			t.Error(err)
			return
		}
	}
}
