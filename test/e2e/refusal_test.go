package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2ERuleRefusesAPortOfTheRange: an admin's REJECT rule for a port of the NAT range
// answers outside, by an uplink of either kind. It also answers a container that asks
// for another container's external port. A refusal by the stack alone answers nobody.
func TestE2ERuleRefusesAPortOfTheRange(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h, tun := tunE2E(t, m)
		c1, c2 := h.Containers[0], h.Containers[1]
		const mapped = 20300 // c1's source ports lie in the range
		far := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
		conn, err := c1.DialTCP(h.Ctx, on(c1.Addr, mapped), far.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		for _, way := range []struct {
			name   string
			from   *lab.Namespace
			to     netip.AddrPort
			reason string
		}{
			{"ethernet", h.Outside, on(h.HostAddr(0), 20100), "foreign"},
			{"tun", tun.Outside, on(tun.HostAddr(), 20200), "foreign"},
			{"hairpin", c2, on(h.HostAddr(0), mapped), "filtered"},
		} {
			t.Run(way.name, func(t *testing.T) { h.refusals(t, way.from, way.to, way.reason) })
		}
	})
}

// refusals sends from from to the host at to, with rules that refuse it and without.
// reason is the drop reason of the stack's refusal.
func (h *e2e) refusals(t *testing.T, from *lab.Namespace, to netip.AddrPort, reason string) {
	h.wantSilence(t, from, to, reason)
	dport := fmt.Sprint(to.Port())
	for _, rule := range []struct {
		proto, with string
		want        syscall.Errno
	}{
		{"tcp", "tcp-reset", syscall.ECONNREFUSED},
		{"tcp", "icmp-port-unreachable", syscall.ECONNREFUSED},
		{"tcp", "icmp-admin-prohibited", syscall.EHOSTUNREACH},
		{"udp", "icmp-port-unreachable", syscall.ECONNREFUSED},
	} {
		args := []string{"INPUT", "-p", rule.proto, "--dport", dport, "-j", "REJECT", "--reject-with", rule.with}
		if err := h.Host.IPTables(h.Ctx, append([]string{"-I"}, args...)...); err != nil {
			t.Fatal(err)
		}
		h.wantRefusal(t, rule.proto+" by iptables with "+rule.with, rule.proto, from, to, rule.want)
		if err := h.Host.IPTables(h.Ctx, append([]string{"-D"}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	for _, hook := range []string{"input", "prerouting"} {
		table := "refuse_" + dport
		rules := fmt.Sprintf(`table ip %s {
			chain c { type filter hook %s priority 200; tcp dport %s reject with tcp reset; udp dport %s reject; }
		}`, table, hook, dport, dport)
		if err := h.Host.NFT(h.Ctx, rules); err != nil {
			t.Fatal(err)
		}
		for _, proto := range []string{"tcp", "udp"} {
			h.wantRefusal(t, proto+" by nft in "+hook, proto, from, to, syscall.ECONNREFUSED)
		}
		if err := h.Host.NFT(h.Ctx, "delete table ip "+table); err != nil {
			t.Fatal(err)
		}
	}
	h.wantSilence(t, from, to, reason)
}

// wantRefusal sends to to until the socket is told of the refusal.
func (h *e2e) wantRefusal(t *testing.T, what, proto string, from *lab.Namespace, to netip.AddrPort, want syscall.Errno) {
	t.Helper()
	if proto == "udp" {
		h.wantSocketError(t, from, to, want)
		return
	}
	waitFor(t, h.Ctx, what, func() bool {
		ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
		defer cancel()
		c, err := from.DialTCP(ctx, netip.AddrPort{}, to)
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, want)
	})
}

// wantSilence connects to a port without a listener until the host's refusal is counted
// as dropped. The socket is not told.
func (h *e2e) wantSilence(t *testing.T, from *lab.Namespace, to netip.AddrPort, reason string) {
	t.Helper()
	before := h.drops(t, reason)
	ctx, cancel := context.WithCancel(h.Ctx)
	defer cancel()
	told := make(chan error, 1)
	go func() {
		c, err := from.DialTCP(ctx, netip.AddrPort{}, to)
		if err == nil {
			_ = c.Close()
		}
		told <- err
	}()
	h.waitDrops(t, reason, before, 1)
	cancel()
	if err := <-told; err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s from %s, where nobody listens: %v, want silence", to, from.Name, err)
	}
}

// TestE2EClosedListenerRefuses: a port of the NAT range that a listener of the host has
// used refuses like any other port after the listener is gone.
func TestE2EClosedListenerRefuses(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 1})
		at := on(h.HostAddr(0), 20400)
		tcp, udp := h.ServeTCP(t, h.Host, at), h.ServeUDP(t, h.Host, at)
		err := errors.Join(h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, at, "hello"), h.Outside.EchoUDP(h.Ctx, netip.AddrPort{}, at, "hello"))
		if err != nil {
			t.Fatal(err)
		}
		tcp.Close()
		udp.Close()
		for _, proto := range []string{"tcp", "udp"} {
			h.wantRefusal(t, proto, proto, h.Outside, at, syscall.ECONNREFUSED)
		}
		h.wantSilence(t, h.Outside, on(h.HostAddr(0), 20401), "foreign")
	})
}
