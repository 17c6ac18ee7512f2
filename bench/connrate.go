package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// ConnRate makes short TCP connections and DNS exchanges with one server, each
// from a new source port, at a steady rate. It counts failures. A NAT that runs
// out of ports or entries, or reuses them too early, fails here; throughput
// does not show it.
type ConnRate struct {
	// PerSecond is the rate of each kind; 0: 500.
	PerSecond int
}

const (
	defaultRate = 500
	tcpPatience = 5 * time.Second // survives two lost SYNs
	udpPatience = 2 * time.Second // one datagram, no retry
	exchange    = 64              // bytes each way
	// dnsPort matters: a NAT may soon forget an answered DNS query, but not
	// other UDP.
	dnsPort = 53
	// inFlight bounds the pending requests. A request beyond it fails because of
	// the generator, and counts as a failure.
	inFlight = 4096
)

// Name implements Workload.
func (c ConnRate) Name() string { return "conn-rate" }

// Title implements Workload.
func (c ConnRate) Title() string {
	return fmt.Sprintf("%d TCP connections/s and %d DNS exchanges/s", c.rate(), c.rate())
}

// Unit implements Workload.
func (c ConnRate) Unit() string { return "failures" }

func (c ConnRate) rate() int {
	if c.PerSecond == 0 {
		return defaultRate
	}
	return c.PerSecond
}

// Run implements Workload.
func (c ConnRate) Run(ctx context.Context, l *lab.Lab, d time.Duration, start func() error) (Sample, error) {
	client, server := l.Containers[0], l.Outside
	// The container closes first, and keeps its ports in TIME-WAIT for 60 s. At
	// 470 connections a second the kernel's default range would run out.
	if err := client.SetSysctl("net.ipv4.ip_local_port_range", "1024 65535"); err != nil {
		return Sample{}, err
	}
	tcp, err := server.ServeTCPEcho(netip.AddrPortFrom(server.Addr, 0))
	if err != nil {
		return Sample{}, err
	}
	defer tcp.Close()
	udp, err := server.ServeUDPEcho(netip.AddrPortFrom(server.Addr, dnsPort))
	if err != nil {
		return Sample{}, err
	}
	defer udp.Close()

	if err := start(); err != nil {
		return Sample{}, err
	}
	t := newTally()
	var all sync.WaitGroup
	all.Go(func() {
		c.pace(ctx, d, t, "TCP", func() error { return connectOnce(ctx, client, tcp.Addr) })
	})
	all.Go(func() {
		c.pace(ctx, d, t, "UDP", func() error { return askOnce(client, udp.Addr) })
	})
	all.Wait()
	if ctx.Err() != nil {
		return Sample{}, ctx.Err()
	}
	return t.sample(), nil
}

// pace calls one at the workload's rate for d, each call in its own goroutine.
func (c ConnRate) pace(ctx context.Context, d time.Duration, t *tally, kind string, one func() error) {
	var all sync.WaitGroup
	defer all.Wait()
	slots := make(chan struct{}, inFlight)
	start := time.Now()
	every := time.Second / time.Duration(c.rate())
	for i := range int(d / every) {
		// By the clock and not after the previous call, so that the rate holds.
		select {
		case <-time.After(time.Until(start.Add(time.Duration(i) * every))):
		case <-ctx.Done():
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			t.add(kind, 0, errBehind)
			continue
		}
		all.Go(func() {
			defer func() { <-slots }()
			begin := time.Now()
			err := one()
			t.add(kind, time.Since(begin), err)
		})
	}
}

var errBehind = errors.New("generator is behind")

// connectOnce makes one short connection: a question, an answer, an orderly
// close.
func connectOnce(ctx context.Context, n *lab.Namespace, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, tcpPatience)
	defer cancel()
	return n.EchoTCP(ctx, netip.AddrPort{}, to, message)
}

// askOnce makes one exchange on its own socket, and so its own port.
func askOnce(n *lab.Namespace, to netip.AddrPort) error {
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = net.Dial("udp4", to.String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(udpPatience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(message)); err != nil {
		return err
	}
	answer := make([]byte, 2*exchange)
	got, err := c.Read(answer)
	if err == nil && string(answer[:got]) != message {
		err = errors.New("wrong answer")
	}
	return err
}

var message = string(make([]byte, exchange))

// tally collects the results of many goroutines.
type tally struct {
	mu       sync.Mutex
	requests int
	failures map[string]int
	took     []time.Duration
}

func newTally() *tally { return &tally{failures: map[string]int{}} }

func (t *tally) add(kind string, took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.requests++
	if err != nil {
		t.failures[kind+", "+cause(err)]++
		return
	}
	t.took = append(t.took, took)
}

func (t *tally) sample() Sample {
	s := Sample{Requests: t.requests, Failures: t.failures}
	for _, n := range t.failures {
		s.Value += float64(n)
	}
	if len(t.took) > 0 {
		slices.Sort(t.took)
		at := func(q float64) float64 {
			return float64(t.took[int(q*float64(len(t.took)-1))]) / float64(time.Millisecond)
		}
		s.P50, s.P99, s.P999 = at(0.5), at(0.99), at(0.999)
	}
	return s
}

// cause returns an error's text without the addresses and ports that make each
// one unique.
func cause(err error) string {
	var errno syscall.Errno
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}
