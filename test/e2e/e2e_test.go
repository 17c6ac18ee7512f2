// Package e2e runs the real binary in labs. Each topic has a file of its own; this file
// holds what they share. Tests that need the machine to themselves (throughput, the
// kernel's single ARP table) are not parallel.
package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

const (
	// pingPatience is how long to wait for a reply that never comes.
	pingPatience = 15 * time.Second
	// arpRetry is the time after which the kernel repeats an ARP request.
	arpRetry = time.Second
)

// e2e is a rig with the steps that several topics share.
type e2e struct{ *harness.Rig }

// newE2E is a rig with nothing up.
func newE2E(t *testing.T, m harness.Mode, o lab.Options) *e2e {
	t.Helper()
	return &e2e{harness.New(t, m, o)}
}

// upE2E is a rig with the default network up and every container attached.
func upE2E(t *testing.T, m harness.Mode, o lab.Options, upArgs ...string) *e2e {
	t.Helper()
	return &e2e{harness.Up(t, m, o, upArgs...)}
}

func e2eModes() []harness.Mode {
	return []harness.Mode{
		{Name: "fast"},
		{Name: "slow", Up: []string{"--lease", "0"}},
		{Name: "plain", Plain: true},
	}
}

// eachMode runs a test in every mode.
func eachMode(t *testing.T, test func(t *testing.T, m harness.Mode)) {
	for _, m := range e2eModes() {
		t.Run(m.Name, func(t *testing.T) { test(t, m) })
	}
}

// fastbrModes runs a test in every mode that has fastbr in it.
func fastbrModes(t *testing.T, test func(t *testing.T, m harness.Mode)) {
	for _, m := range e2eModes() {
		if !m.Plain {
			t.Run(m.Name, func(t *testing.T) { test(t, m) })
		}
	}
}

// ports are what `port ls` shows, by name.
func (h *e2e) ports(t *testing.T) map[string]ctl.PortView {
	t.Helper()
	var list []ctl.PortView
	h.JSON(t, &list, "port", "ls")
	m := map[string]ctl.PortView{}
	for _, p := range list {
		m[p.Name] = p
	}
	return m
}

// drops counts the dropped packets of one reason over all ports and uplinks.
func (h *e2e) drops(t *testing.T, reason string) (n uint64) {
	t.Helper()
	for _, p := range h.ports(t) {
		n += p.Drops[reason]
	}
	return n
}

// waitDrops waits until a reason was counted at least n times more than before.
func (h *e2e) waitDrops(t *testing.T, reason string, before, n uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
	defer cancel()
	var now uint64
	err := lab.Poll(ctx, func() (bool, error) {
		now = h.drops(t, reason)
		return now >= before+n, nil
	})
	if err != nil {
		t.Errorf("%s counted %d drops, want %d; all: %v", reason, now-before, n, h.allDrops(t))
	}
}

func (h *e2e) allDrops(t *testing.T) map[string]map[string]uint64 {
	t.Helper()
	m := map[string]map[string]uint64{}
	for name, p := range h.ports(t) {
		if len(p.Drops) > 0 {
			m[name] = p.Drops
		}
	}
	return m
}

// gateway is the address of the default network's bridge, in every mode.
func (h *e2e) gateway() netip.Addr {
	return netip.PrefixFrom(h.Containers[0].Addr, 16).Masked().Addr().Next()
}

// mustPing expects a reply to each request, however long a loaded machine takes. It
// logs a reply that took as long as a repeated ARP request: the first request may have
// been lost.
func (h *e2e) mustPing(t *testing.T, from *lab.Namespace, to netip.Addr, o lab.PingOptions) {
	t.Helper()
	if o.Wait == 0 {
		o.Wait = pingPatience
	}
	r, err := from.Ping(h.Ctx, to, o)
	for _, rtt := range r.RTT {
		if rtt >= arpRetry {
			t.Logf("ping %v from %s: a reply took %v", to, from.Name, rtt)
		}
	}
	if err != nil || r.Received != r.Sent {
		t.Errorf("ping %v from %s: %d of %d, ICMP errors from %v, %v", to, from.Name, r.Received, r.Sent, r.Errors, err)
	}
}

// noPing expects that nothing comes back.
func (h *e2e) noPing(t *testing.T, from *lab.Namespace, to netip.Addr) {
	t.Helper()
	r, err := from.Ping(h.Ctx, to, lab.PingOptions{Count: 1})
	if err == nil && r.Received > 0 {
		t.Errorf("ping %v from %s was answered", to, from.Name)
	}
}

// assertPeers fails if a server has seen a client with any other address than these.
func assertPeers(t *testing.T, s *lab.Server, only ...netip.Addr) {
	t.Helper()
	if len(s.Peers()) == 0 {
		t.Errorf("server %v saw nobody", s.Addr)
	}
next:
	for p := range s.Peers() {
		for _, o := range only {
			if p.Addr() == o {
				continue next
			}
		}
		t.Errorf("server %v saw %v, want only %v", s.Addr, p, only)
	}
}

// arriving is a frame from an outside to its host, as it is on their link. It is f with
// the MAC addresses filled in.
func (h *e2e) arriving(t *testing.T, outside int, f testutil.Frame) testutil.Frame {
	t.Helper()
	from, err := h.Outsides[outside].MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	to, err := h.Host.MAC(fmt.Sprint("eth", outside))
	if err != nil {
		t.Fatal(err)
	}
	f.SrcMAC, f.DstMAC = from, to
	return f
}

// port is an address without a host: for a source port, or a listener on any address.
func port(p uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, p) }

var on = netip.AddrPortFrom
