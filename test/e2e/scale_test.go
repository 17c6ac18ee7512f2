package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// mostPorts is the most ports that the kernel's bridge can have.
const mostPorts = 1023

// TestE2EManyPorts attaches dozens of containers to one network, or in `make stress` as
// many as possible. Each is reached by others, also at far addresses, and no question
// goes to every port. The time is logged, not checked.
func TestE2EManyPorts(t *testing.T) {
	t.Parallel()
	n := sized(48, mostPorts)
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: n})
	h.Must(t, "up")
	var first, last time.Duration
	for i, c := range h.Containers {
		h.Renew()
		var at []string
		if i%5 == 4 { // every byte of an address must count
			at = []string{"--ip", fmt.Sprintf("172.30.%d.%d", 255-i/5, i/5%2*255)}
		}
		start := time.Now()
		h.Attach(t, c, fmt.Sprintf("c%d", i+1), at...)
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
	h.Must(t, "metrics")
	t.Logf("metrics: %v", time.Since(start))
	bystander, err := h.Containers[n-1].NewSniffer("eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer bystander.Close()
	h.pingAll(t, h.Containers[:n-1])
	h.assertNotAsked(t, bystander)
	h.Renew() // `down` removes them all
}

// pingAll pings from the first container to every other, and from some to the outside.
func (h *e2e) pingAll(t *testing.T, all []*lab.Namespace) {
	t.Helper()
	for i, c := range all[1:] {
		h.Renew()
		h.mustPing(t, all[0], c.Addr, lab.PingOptions{Count: 1})
		if i%10 == 0 {
			h.mustPing(t, c, h.Outside.Addr, lab.PingOptions{Count: 1})
		}
		// The machine has one ARP table of 1024 entries for all namespaces, whatever
		// bridge lies between.
		for _, n := range []*lab.Namespace{all[0], c} {
			if _, err := n.Run(h.Ctx, "ip", "neigh", "flush", "dev", "eth0"); err != nil {
				t.Fatal(err)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// assertNotAsked checks that a bystander has seen no ARP request but the last. That one
// is for an address that nobody has, and goes to all ports.
func (h *e2e) assertNotAsked(t *testing.T, bystander *lab.Sniffer) {
	t.Helper()
	nobody := h.gateway().As4()
	nobody[2], nobody[3] = 100, 100
	h.noPing(t, h.Containers[0], netip.AddrFrom4(nobody))
	question, err := bystander.Next(h.Ctx, func(f []byte) bool {
		const arp, request = 0x0806, 1
		return len(f) >= 42 && binary.BigEndian.Uint16(f[12:]) == arp && binary.BigEndian.Uint16(f[20:]) == request
	})
	if err != nil {
		t.Fatal(err)
	}
	if [4]byte(question[38:]) != nobody {
		t.Errorf("a bystander was asked who has %v", netip.AddrFrom4([4]byte(question[38:])))
	}
}

// assertFull checks that one more port is refused in one line, and that nothing of it
// is left.
func (h *e2e) assertFull(t *testing.T) {
	t.Helper()
	extra, err := h.Add("extra")
	if err != nil {
		t.Fatal(err)
	}
	links := func(n *lab.Namespace) string {
		out, err := n.Run(h.Ctx, "ip", "-o", "link")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(strings.Count(out, "\n"))
	}
	before := links(h.Host) + " " + links(extra)
	r := h.Fastbr(t, "attach", extra.Path(), "--name", "extra")
	if r.Code != 1 || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "the most a bridge can have") {
		t.Errorf("a port too many: exit %d, %q; want 1 and one clear line", r.Code, r.Stderr)
	}
	if after := links(h.Host) + " " + links(extra); after != before {
		t.Errorf("devices of the host and of the container refused: %s before, %s after", before, after)
	}
	if _, ok := h.ports(t)["extra"]; ok {
		t.Error("the refused container has a port")
	}
}
