package e2e

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

const bridgeCall = "net.bridge.bridge-nf-call-iptables"

// TestE2EBridgeCalls: while bridge netfilter is on, each flow between ports has a lease of
// its own, unless connection tracking translates it. A service address with a container of the same network behind it
// answers, and a rule between two containers holds. A change of the sysctl takes effect
// within a lease, whichever flow sends first afterwards.
func TestE2EBridgeCalls(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2, NFCall: true})
		h.shortLease(t)
		c1, c2 := h.Containers[0], h.Containers[1]
		if _, err := h.Host.Sysctl(bridgeCall); err != nil {
			t.Skipf("no br_netfilter here: %v", err)
		}
		tcp, udp := h.ServeTCP(t, c2, on(c2.Addr, 8080)), h.ServeUDP(t, c2, on(c2.Addr, 8080))
		service := netip.MustParseAddr("10.96.0.10")
		for _, proto := range []string{"tcp", "udp"} {
			if err := h.Host.IPTables(h.Ctx, "-t", "nat", "-A", "PREROUTING", "-d", service.String(), "-p", proto, "--dport", "80",
				"-j", "DNAT", "--to-destination", tcp.Addr.String()); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			if err := c1.EchoTCP(h.Ctx, netip.AddrPort{}, on(service, 80), "by the service's address"); err != nil {
				t.Error(err)
			}
			if err := c1.EchoUDP(h.Ctx, netip.AddrPort{}, on(service, 80), "by the service's address"); err != nil {
				t.Error(err)
			}
		}
		assertPeers(t, tcp, c1.Addr)
		assertPeers(t, udp, c1.Addr)

		// A rule between two containers of one network.
		rule := func(op string) func() error {
			return func() error {
				return h.Host.IPTables(h.Ctx, op, "FORWARD", "-s", c1.Addr.String(), "-d", c2.Addr.String(), "-p", "udp", "--dport", "9090", "-j", "DROP")
			}
		}
		s := h.ServeUDP(t, c2, on(c2.Addr, 9090))
		sock, err := c1.ListenUDP(on(netip.IPv4Unspecified(), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sock.Close() }()
		passes := func(want bool, set func() error) {
			t.Helper()
			if err := set(); err != nil {
				t.Fatal(err)
			}
			h.comesToPass(t, sock, s.Addr, want)
		}
		sysctl := func(v string) func() error { return func() error { return h.Host.SetSysctl(bridgeCall, v) } }
		own := func(v string) func() error {
			return func() error {
				_, err := h.Host.Run(h.Ctx, "ip", "link", "set", "fastbr0", "type", "bridge", "nf_call_iptables", v)
				return err
			}
		}
		passes(false, rule("-I"))
		passes(true, rule("-D"))
		h.becomesFast(t, m, "c1", func() {
			h.comesToPass(t, sock, s.Addr, true)
			// One socket asks one container by both addresses. Each answer has the address that was asked.
			for _, to := range []netip.AddrPort{udp.Addr, on(service, 80), udp.Addr} {
				if err := lab.EchoUDPOn(h.Ctx, sock, to, "by both addresses"); err != nil {
					t.Error(err)
				}
			}
		})
		passes(false, rule("-I"))
		passes(true, sysctl("0"))
		passes(false, sysctl("1"))
		passes(true, sysctl("0"))
		passes(false, own("1"))
		passes(true, own("0"))
		passes(true, sysctl("0"))
		h.becomesFast(t, m, "c1", func() { h.comesToPass(t, sock, s.Addr, true) })
	})
}

// comesToPass waits until datagrams to an echo service get an answer, or get none any more.
func (h *e2e) comesToPass(t *testing.T, sock *net.UDPConn, to netip.AddrPort, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.Ctx, harness.Deadline)
	defer cancel()
	err := lab.Poll(ctx, func() (bool, error) {
		patience := time.Second
		if !want {
			patience = 300 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return (lab.EchoUDPOn(ctx, sock, to, "may it pass") == nil) == want, nil
	})
	if err != nil {
		t.Errorf("a datagram that should pass: %v; %v", want, err)
	}
}

// becomesFast repeats the traffic until packets of a port are fast. In the mode
// without a fast path none is.
func (h *e2e) becomesFast(t *testing.T, m harness.Mode, port string, traffic func()) {
	t.Helper()
	before := h.ports(t)[port].FastPackets
	ctx, cancel := context.WithTimeout(h.Ctx, harness.Deadline)
	defer cancel()
	err := lab.Poll(ctx, func() (bool, error) {
		traffic()
		traffic()
		return m.Name != "fast" || h.ports(t)[port].FastPackets > before, nil
	})
	if now := h.ports(t)[port].FastPackets; err != nil || m.Name != "fast" && now > before {
		t.Errorf("%d packets of %s are fast: %v", now-before, port, err)
	}
}
