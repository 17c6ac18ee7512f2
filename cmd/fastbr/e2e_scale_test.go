package main_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl/lab"
)

// mostPorts is what the kernel's bridge can have.
const mostPorts = 1023

// TestE2EManyPorts attaches hundreds of containers to one network, or as many as
// are possible. How long that takes is reported, not asserted.
func TestE2EManyPorts(t *testing.T) {
	if testing.Short() {
		t.Skip("hundreds of ports: left out by -short")
	}
	n := sized(300, mostPorts)
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
	if n == mostPorts {
		h.assertFull(t)
	}
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

// assertFull wants one more port refused in one line, and nothing left of it.
func (h *e2e) assertFull(t *testing.T) {
	t.Helper()
	extra, err := h.Add("extra")
	if err != nil {
		t.Fatal(err)
	}
	links := func(n *lab.Namespace) string {
		out, err := n.Run(h.ctx, "ip", "-o", "link")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(strings.Count(out, "\n"))
	}
	before := links(h.Host) + " " + links(extra)
	r := h.fastbr(t, "attach", extra.Path(), "--name", "extra")
	if r.code != 1 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "the most a bridge can have") {
		t.Errorf("a port too many: exit %d, %q; want 1 and one clear line", r.code, r.stderr)
	}
	if after := links(h.Host) + " " + links(extra); after != before {
		t.Errorf("devices of the host and of the container refused: %s before, %s after", before, after)
	}
	if _, ok := h.ports(t)["extra"]; ok {
		t.Error("the refused container has a port")
	}
}
