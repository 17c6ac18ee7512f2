package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EHostUsesRange: the host, a masqueraded neighbour and containers use the same
// source port, inside the NAT range, to the same server at the same time. Either may
// come first.
func TestE2EHostUsesRange(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2, Neighbour: true})
		tcp := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
		udp := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		c1, c2 := h.Containers[0], h.Containers[1]
		for i, order := range [][]*lab.Namespace{
			{h.Host, h.Neighbour, c1, c2},
			{c1, c2, h.Neighbour, h.Host},
			{c1, h.Host, c2, h.Neighbour},
			{h.Neighbour, c1, h.Host, c2},
		} {
			p := uint16(20001 + i)
			t.Run(fmt.Sprintf("tcp order %d", i), func(t *testing.T) { h.sharePort(t, order, p, tcp.Addr) })
			t.Run(fmt.Sprintf("udp order %d", i), func(t *testing.T) { h.sharePortUDP(t, order, p, udp.Addr) })
		}
		assertPeers(t, tcp, h.HostAddr(0))
		assertPeers(t, udp, h.HostAddr(0))
	})
}

func (h *e2e) sharePort(t *testing.T, order []*lab.Namespace, p uint16, to netip.AddrPort) {
	conns := make([]net.Conn, len(order))
	for i, n := range order {
		ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
		defer cancel()
		c, err := n.DialTCP(ctx, port(p), to)
		if err != nil {
			t.Fatalf("%s is number %d to use port %d: %v", n.Name, i+1, p, err)
		}
		defer func() { _ = c.Close() }()
		conns[i] = c
	}
	for round := range 3 {
		for i, n := range order {
			ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
			defer cancel()
			if err := lab.Echo(ctx, conns[i], fmt.Sprintf("%s round %d", n.Name, round)); err != nil {
				t.Errorf("%s, round %d: %v", n.Name, round, err)
			}
		}
	}
}

func (h *e2e) sharePortUDP(t *testing.T, order []*lab.Namespace, p uint16, to netip.AddrPort) {
	socks := make([]*net.UDPConn, len(order))
	for i, n := range order {
		s, err := n.ListenUDP(on(netip.IPv4Unspecified(), p))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		socks[i] = s
	}
	for round := range 3 {
		for i, n := range order {
			ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
			defer cancel()
			if err := lab.EchoUDPOn(ctx, socks[i], to, fmt.Sprintf("%s round %d", n.Name, round)); err != nil {
				t.Errorf("%s is number %d on port %d, round %d: %v", n.Name, i+1, p, round, err)
			}
		}
	}
}

// TestE2EHostListensInRange: services of the host listen in the NAT range. A container
// that uses the same port must not take it from them.
func TestE2EHostListensInRange(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		const p = 20777
		hostTCP := h.ServeTCP(t, h.Host, on(netip.IPv4Unspecified(), p))
		hostUDP := h.ServeUDP(t, h.Host, on(h.HostAddr(0), p))
		out := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
		outUDP := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		both := func(when string) {
			t.Helper()
			err := errors.Join(
				h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), p), when),
				h.Outside.EchoUDP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), p), when),
			)
			if err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		both("before the container uses the port")
		c, u := h.usePort(t, h.Containers[0], p, out.Addr)
		for range 3 {
			if err := errors.Join(lab.Echo(h.Ctx, c, "hello"), lab.EchoUDPOn(h.Ctx, u, outUDP.Addr, "hello")); err != nil {
				t.Error(err)
			}
			both("while the container uses the port")
		}
		for _, s := range []*lab.Server{out, outUDP} {
			for peer := range s.Peers() {
				if peer.Port() == p {
					t.Errorf("the container got port %d, on which the host listens", p)
				}
			}
		}
		if len(hostTCP.Peers()) == 0 || len(hostUDP.Peers()) == 0 {
			t.Error("the host's services saw nobody")
		}
	})
}

// TestE2EHostErrorsDoNotLeak: the host answers translated packets with ICMP errors and
// RSTs of its own. They leave translated or not at all. The lab's leak capture also
// looks inside them.
func TestE2EHostErrorsDoNotLeak(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1}, "--mtu", "1400")
		if m.Name == "fast" {
			h.Must(t, "up", "--lease", "1s")
		}
		t.Run("reject reply", h.testRejectReply)
		t.Run("ttl of reply", h.testReplyTTL)
		t.Run("reply too big", h.testReplyTooBig)
		t.Run("tcp reset", h.testRejectTCP)
		t.Run("own ttl", func(t *testing.T) {
			r, err := h.Containers[0].Ping(h.Ctx, h.Outside.Addr, lab.PingOptions{TTL: 1, Count: 1})
			if err != nil || len(r.Errors) != 1 || r.Errors[0] != h.gateway() {
				t.Errorf("ping with TTL 1: %+v, %v; want one error from the gateway", r, err)
			}
		})
	})
}

// exchange is a UDP session between c1 and a server outside. The test holds both ends.
type exchange struct {
	client, server *net.UDPConn
	nat            netip.AddrPort // the client's address as the server sees it
}

func (h *e2e) exchange(t *testing.T, size int) exchange {
	t.Helper()
	var e exchange
	var err error
	if e.server, err = h.Outside.ListenUDP(on(h.Outside.Addr, 0)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.server.Close() })
	if e.client, err = h.Containers[0].ListenUDP(on(netip.IPv4Unspecified(), 0)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.client.Close() })
	to := e.server.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := e.client.WriteToUDPAddrPort(make([]byte, size), to); err != nil {
		t.Fatal(err)
	}
	if err := e.server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, e.nat, err = e.server.ReadFromUDPAddrPort(make([]byte, 2000))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// assertRefused sends replies until the server's socket gets an error about one of
// them. That proves that the host's ICMP error was translated: the server's kernel
// would match no other.
func (e exchange) assertRefused(t *testing.T, h *e2e, size int, want syscall.Errno) {
	t.Helper()
	// Only a connected socket gets errors.
	local := e.server.LocalAddr().(*net.UDPAddr).AddrPort()
	_ = e.server.Close()
	c, err := h.Outside.DialUDP(local, e.nat)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if want == syscall.EHOSTUNREACH || want == syscall.EMSGSIZE {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) { // soft errors are reported only on request
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_RECVERR, 1)
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_MTU_DISCOVER, syscall.IP_PMTUDISC_PROBE)
		})
		if err != nil {
			t.Fatal(err)
		}
		if want == syscall.EHOSTUNREACH {
			if err := ipv4.NewConn(c).SetTTL(1); err != nil {
				t.Fatal(err)
			}
		}
	}
	var last error
	waitFor(t, h.Ctx, fmt.Sprintf("%v at the server", want), func() bool {
		_, werr := c.Write(make([]byte, size))
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, rerr := c.Read(make([]byte, 100))
		last = errors.Join(werr, rerr)
		return errors.Is(last, want)
	})
	if t.Failed() {
		t.Logf("the server's socket said last: %v", last)
	}
}

func (h *e2e) testRejectReply(t *testing.T) {
	h.withRule(t, []string{"FORWARD", "-d", h.Containers[0].Addr.String(), "-p", "udp", "-j", "REJECT"})
	h.exchange(t, 10).assertRefused(t, h, 10, syscall.ECONNREFUSED)
}

func (h *e2e) withRule(t *testing.T, rule []string) {
	t.Helper()
	if err := h.Host.IPTables(h.Ctx, append([]string{"-I"}, rule...)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Host.IPTables(h.Ctx, append([]string{"-D"}, rule...)...); err != nil {
			t.Error(err)
		}
	})
}

func (h *e2e) testReplyTTL(t *testing.T) {
	h.exchange(t, 10).assertRefused(t, h, 10, syscall.EHOSTUNREACH)
}

func (h *e2e) testReplyTooBig(t *testing.T) {
	h.exchange(t, 10).assertRefused(t, h, 1450, syscall.EMSGSIZE)
}

// testRejectTCP: the host answers the container's data with an RST to the container,
// and the server's data with an RST to the server.
func (h *e2e) testRejectTCP(t *testing.T) {
	s := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
	c, err := h.Containers[0].DialTCP(h.Ctx, netip.AddrPort{}, s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := lab.Echo(h.Ctx, c, "before the rule"); err != nil {
		t.Fatal(err)
	}
	h.withRule(t, []string{"FORWARD", "-d", h.Containers[0].Addr.String(), "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"})
	waitFor(t, h.Ctx, "the lease of the inbound direction to end", func() bool {
		ctx, cancel := context.WithTimeout(h.Ctx, 500*time.Millisecond)
		defer cancel()
		return lab.Echo(ctx, c, "after the rule") != nil
	})
	// On a new connection the SYN-ACK is rejected, and an RST goes to the server.
	short, cancel := context.WithTimeout(h.Ctx, time.Second)
	defer cancel()
	if c, err := h.Containers[0].DialTCP(short, netip.AddrPort{}, s.Addr); err == nil {
		_ = c.Close()
		t.Error("a connection was made although every answer is rejected")
	}
}
