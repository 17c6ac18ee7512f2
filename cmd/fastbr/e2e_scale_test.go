package main_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl/lab"
)

// TestE2EManyPorts attaches 500 containers to one network. How long that takes
// is reported, not asserted.
func TestE2EManyPorts(t *testing.T) {
	if testing.Short() {
		t.Skip("500 ports: left out by -short")
	}
	const n = 500
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: n})
	h.must(t, "up")
	var first, last time.Duration
	for i, c := range h.Containers {
		start := time.Now()
		h.attach(t, c, fmt.Sprintf("c%d", i+1))
		switch took := time.Since(start); {
		case i < 5:
			first += took / 5
		case i >= n-5:
			last += took / 5
		}
	}
	start := time.Now()
	if got := len(h.ports(t)); got != n+1 {
		t.Errorf("port ls shows %d ports, want %d and the uplink", got, n)
	}
	t.Logf("attach: first five %v, last five %v on average; port ls %v", first, last, time.Since(start))
	start = time.Now()
	h.must(t, "metrics")
	t.Logf("metrics: %v", time.Since(start))
	c1 := h.Containers[0]
	for i, c := range h.Containers[1:] {
		h.mustPing(t, c1, c.Addr, lab.PingOptions{Count: 1})
		if i%10 == 0 {
			h.mustPing(t, c, h.Outside.Addr, lab.PingOptions{Count: 1})
		}
		// The kernel's ARP table is one for all namespaces of the machine and
		// ends at 1024 entries, whatever bridge lies between.
		for _, n := range []*lab.Namespace{c1, c} {
			if _, err := n.Run(h.ctx, "ip", "neigh", "flush", "dev", "eth0"); err != nil {
				t.Fatal(err)
			}
		}
		if t.Failed() {
			break
		}
	}
}
