package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// natFirst and natLast bound the default NAT range.
const natFirst, natLast = 10000, 29999

// usePort opens a TCP connection to a server and a UDP socket, both from port p of n.
func (h *e2e) usePort(t *testing.T, n *lab.Namespace, p uint16, to netip.AddrPort) (net.Conn, *net.UDPConn) {
	t.Helper()
	c, err := n.DialTCP(h.Ctx, port(p), to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, h.listenUDP(t, n, on(netip.IPv4Unspecified(), p))
}

// TestE2EHostPingsWithMappedID: the host pings with the id that a container's ping has
// outside. Each must get its own replies.
func TestE2EHostPingsWithMappedID(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		c1 := h.Containers[0]
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{Count: 1, ID: 77})
		var id uint16
		for _, f := range h.Flows(t) {
			if f.Proto == "icmp" && f.Src == on(c1.Addr, 77).String() {
				id = netip.MustParseAddrPort(f.NAT).Port()
			}
		}
		if id < natFirst || id > natLast {
			t.Fatalf("the container's id 77 is %d outside: %+v", id, h.Flows(t))
		}
		// The host takes the id. A reply under way at that moment would go to the host.
		h.mustPing(t, h.Host, h.Outside.Addr, lab.PingOptions{Count: 1, ID: id})
		var wg sync.WaitGroup
		wg.Go(func() { h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{Count: 5, ID: 77}) })
		wg.Go(func() { h.mustPing(t, h.Host, h.Outside.Addr, lab.PingOptions{Count: 5, ID: id}) })
		wg.Wait()
	})
}

// TestE2EHostListenerIsSilent: a service of the host listens in the NAT range and has
// never sent when a container comes with its port.
func TestE2EHostListenerIsSilent(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		const p = 20778
		h.ServeTCP(t, h.Host, on(netip.IPv4Unspecified(), p))
		h.ServeUDP(t, h.Host, on(h.HostAddr(0), p))
		tcp, udp := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7)), h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		for what, echo := range map[string]func() error{
			"container, TCP": func() error { return h.Containers[0].EchoTCP(h.Ctx, port(p), tcp.Addr, "hello") },
			"container, UDP": func() error { return h.Containers[0].EchoUDP(h.Ctx, port(p), udp.Addr, "hello") },
		} {
			if err := echo(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		for _, s := range []*lab.Server{tcp, udp} {
			for peer := range s.Peers() {
				if peer.Port() == p {
					t.Errorf("the container got port %d, on which the host listens", p)
				}
			}
		}
		if err := h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), p), "first"); err != nil {
			t.Error(err)
		}
		if err := h.Outside.EchoUDP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), p), "first"); err != nil {
			t.Error(err)
		}
	})
}

// TestE2EHostPortRange widens the host's ephemeral ports over the NAT range, before and
// after `up`. The host's own connections stay out of the NAT range, and work.
func TestE2EHostPortRange(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
			widen := func() {
				if err := h.Host.SetSysctl("net.ipv4.ip_local_port_range", "1024 65535"); err != nil {
					t.Fatal(err)
				}
			}
			if when == "before" {
				widen()
			}
			h.Must(t, "up")
			h.Attach(t, h.Containers[0], "c1")
			if when == "after" {
				widen()
			}
			s := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
			for range 60 {
				c, err := h.Host.ListenUDP(on(netip.IPv4Unspecified(), 0))
				if err != nil {
					t.Fatal(err)
				}
				if p := c.LocalAddr().(*net.UDPAddr).Port; p >= natFirst && p <= natLast {
					t.Errorf("the kernel gave the host's socket port %d of the NAT range", p)
				}
				if err := lab.EchoUDPOn(h.Ctx, c, s.Addr, "the host's"); err != nil {
					t.Error(err)
				}
				_ = c.Close()
				if err := h.Containers[0].EchoUDP(h.Ctx, netip.AddrPort{}, s.Addr, "the container's"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestE2ENeighbourPublishesInRange publishes a port of a docker0-style container inside
// the NAT range, by a DNAT rule alone. One of our containers uses that port.
func TestE2ENeighbourPublishesInRange(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1, Neighbour: true})
		nb := h.Neighbour
		const p = 20010
		for _, proto := range []string{"tcp", "udp"} {
			err := h.Host.IPTables(h.Ctx, "-t", "nat", "-A", "PREROUTING", "-p", proto, "-d", h.HostAddr(0).String(),
				"--dport", fmt.Sprint(p), "-j", "DNAT", "--to-destination", on(nb.Addr, 80).String())
			if err != nil {
				t.Fatal(err)
			}
		}
		h.ServeTCP(t, nb, on(nb.Addr, 80))
		h.ServeUDP(t, nb, on(nb.Addr, 80))
		tcp, udp := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7)), h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		c, u := h.usePort(t, h.Containers[0], p, tcp.Addr)
		for range 3 {
			if err := lab.Echo(h.Ctx, c, "ours"); err != nil {
				t.Error(err)
			}
			if err := lab.EchoUDPOn(h.Ctx, u, udp.Addr, "ours"); err != nil {
				t.Error(err)
			}
			if err := h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), p), "the neighbour's"); err != nil {
				t.Error(err)
			}
			if err := h.Outside.EchoUDP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), p), "the neighbour's"); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestE2ENeighbourTakesTuple: the host, or a neighbour whose masquerade does not know
// our flows, comes with the tuple of a container's flow. It keeps the tuple, and the
// container goes on from another port. An established connection of the container
// cannot move. Then the newcomer gets another port, as the kernel's own NAT would give
// it one.
func TestE2ENeighbourTakesTuple(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1, Neighbour: true})
		for i, them := range []*lab.Namespace{h.Neighbour, h.Host} {
			p := uint16(20031 + i)
			t.Run("udp "+them.Name, func(t *testing.T) { h.takeUDP(t, them, p) })
			t.Run("icmp "+them.Name, func(t *testing.T) { h.takeEcho(t, them, p) })
			t.Run("tcp "+them.Name, func(t *testing.T) { h.takeTCP(t, them, p) })
		}
	})
}

// remapped runs do, which must make one more flow get another port than its own.
func (h *e2e) remapped(t *testing.T, do func()) {
	t.Helper()
	const name = "fastbr_nat_port_remaps_total"
	before := value(t, h.Must(t, "metrics"), name)
	do()
	if n := value(t, h.Must(t, "metrics"), name) - before; n != 1 {
		t.Errorf("%s has risen by %v, want 1", name, n)
	}
}

// asSeen is the source of a datagram of c as its server sees it. The server's answer
// must reach c.
func (h *e2e) asSeen(t *testing.T, c, server *net.UDPConn, msg string) netip.AddrPort {
	t.Helper()
	var from netip.AddrPort
	answered := make(chan error, 1)
	go func() {
		buf := make([]byte, 100)
		for {
			n, peer, err := server.ReadFromUDPAddrPort(buf)
			if err == nil {
				from = peer
				_, err = server.WriteToUDPAddrPort(buf[:n], peer)
			}
			if err != nil || string(buf[:n]) == msg {
				answered <- err
				return
			}
		}
	}()
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := errors.Join(lab.EchoUDPOn(h.Ctx, c, to, msg), <-answered); err != nil {
		t.Fatalf("%s: %v", msg, err)
	}
	return from
}

func (h *e2e) takeUDP(t *testing.T, them *lab.Namespace, p uint16) {
	server := h.listenUDP(t, h.Outside, on(h.Outside.Addr, 0))
	tuple := on(h.HostAddr(0), p)
	ours := h.listenUDP(t, h.Containers[0], on(netip.IPv4Unspecified(), p))
	if at := h.asSeen(t, ours, server, "ours, first"); at != tuple {
		t.Fatalf("the container is at %v, want %v", at, tuple)
	}
	theirs := h.listenUDP(t, them, on(netip.IPv4Unspecified(), p))
	h.remapped(t, func() {
		if at := h.asSeen(t, theirs, server, "theirs"); at != tuple {
			t.Errorf("%s is at %v, want %v", them.Name, at, tuple)
		}
	})
	for range 3 {
		if at := h.asSeen(t, ours, server, "ours"); at.Addr() != tuple.Addr() || at == tuple {
			t.Errorf("the container is at %v, as %s", at, them.Name)
		}
		if at := h.asSeen(t, theirs, server, "theirs, again"); at != tuple {
			t.Errorf("%s is at %v, want %v", them.Name, at, tuple)
		}
	}
}

func (h *e2e) takeEcho(t *testing.T, them *lab.Namespace, id uint16) {
	c1, pings := h.Containers[0], lab.PingOptions{ID: id}
	outside := func() uint16 {
		for _, f := range h.Flows(t) {
			if f.Proto == "icmp" && f.Src == on(c1.Addr, id).String() {
				return netip.MustParseAddrPort(f.NAT).Port()
			}
		}
		return 0
	}
	h.mustPing(t, c1, h.Outside.Addr, pings)
	if got := outside(); got != id {
		t.Fatalf("the container's id %d is %d outside", id, got)
	}
	h.remapped(t, func() { h.mustPing(t, them, h.Outside.Addr, pings) })
	var wg sync.WaitGroup
	for _, n := range []*lab.Namespace{c1, them} {
		wg.Go(func() { h.mustPing(t, n, h.Outside.Addr, pings) })
	}
	wg.Wait()
	if got := outside(); got == id || got < natFirst || got > natLast {
		t.Errorf("the container's id is %d outside, beside the same of %s", got, them.Name)
	}
}

func (h *e2e) takeTCP(t *testing.T, them *lab.Namespace, p uint16) {
	s := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 0))
	defer s.Close()
	var conns []net.Conn
	dial := func(n *lab.Namespace) {
		c, err := n.DialTCP(h.Ctx, port(p), s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		for _, c := range conns {
			if err := lab.Echo(h.Ctx, c, "hello"); err != nil {
				t.Error(err)
			}
		}
	}
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	dial(h.Containers[0])
	if s.Peers()[on(h.HostAddr(0), p)] != 1 {
		t.Fatalf("the container is at %v, want port %d", s.Peers(), p)
	}
	h.remapped(t, func() { dial(them) })
	if len(s.Peers()) != 2 {
		t.Errorf("the server saw %v, want the container and %s", s.Peers(), them.Name)
	}
}

// TestE2ENeighbourSendsFromAPublishedPort: a docker0-style container sends from a
// source port that masquerade keeps and that is published for our container. It gets
// its own answers.
func TestE2ENeighbourSendsFromAPublishedPort(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1, Neighbour: true})
		web := h.ServeUDP(t, h.Containers[0], on(h.Containers[0].Addr, 53))
		defer web.Close()
		h.Must(t, "publish", "add", "40000:53/udp", "c1")
		out := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		defer out.Close()
		for i := range 3 {
			if err := h.Neighbour.EchoUDP(h.Ctx, on(h.Neighbour.Addr, 40000), out.Addr, fmt.Sprint("the neighbour's ", i)); err != nil {
				t.Error(err)
			}
		}
		assertPeers(t, out, h.HostAddr(0))
		if n := len(web.Peers()); n != 0 {
			t.Errorf("our container has seen %d clients", n)
		}
		if err := h.Outside.EchoUDP(h.Ctx, on(h.Outside.Addr, 0), on(h.HostAddr(0), 40000), "a client's"); err != nil {
			t.Error(err)
		}
	})
}
