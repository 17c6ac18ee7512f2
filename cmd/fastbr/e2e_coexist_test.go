package main_test

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/fastbr/fastbr/ctl/lab"
)

// natFirst and natLast bound the default NAT range.
const natFirst, natLast = 10000, 29999

// TestE2EHostPingsWithMappedID lets the host ping with the very id that a
// container's ping has outside: each must get its own replies.
func TestE2EHostPingsWithMappedID(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m e2eMode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		c1 := h.Containers[0]
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{Count: 1, ID: 77})
		var id uint16
		for _, f := range h.flows(t) {
			if f.Proto == "icmp" && f.Src == on(c1.Addr, 77).String() {
				id = netip.MustParseAddrPort(f.NAT).Port()
			}
		}
		if id < natFirst || id > natLast {
			t.Fatalf("the container's id 77 is %d outside: %+v", id, h.flows(t))
		}
		var wg sync.WaitGroup
		wg.Go(func() { h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{Count: 5, ID: 77}) })
		wg.Go(func() { h.mustPing(t, h.Host, h.Outside.Addr, lab.PingOptions{Count: 5, ID: id}) })
		wg.Wait()
	})
}

// TestE2EHostListenerIsSilent has a service of the host in the NAT range that
// has never sent when a container comes with its port.
func TestE2EHostListenerIsSilent(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m e2eMode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		const p = 20778
		h.serveTCP(t, h.Host, on(netip.IPv4Unspecified(), p))
		h.serveUDP(t, h.Host, on(h.HostAddr(0), p))
		tcp, udp := h.serveTCP(t, h.Outside, on(h.Outside.Addr, 7)), h.serveUDP(t, h.Outside, on(h.Outside.Addr, 7))
		for what, echo := range map[string]func() error{
			"container, TCP": func() error { return h.Containers[0].EchoTCP(h.ctx, port(p), tcp.Addr, "hello") },
			"container, UDP": func() error { return h.Containers[0].EchoUDP(h.ctx, port(p), udp.Addr, "hello") },
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
		if err := h.Outside.EchoTCP(h.ctx, netip.AddrPort{}, on(h.HostAddr(0), p), "first"); err != nil {
			t.Error(err)
		}
		if err := h.Outside.EchoUDP(h.ctx, netip.AddrPort{}, on(h.HostAddr(0), p), "first"); err != nil {
			t.Error(err)
		}
	})
}

// TestE2EHostPortRange widens the host's ephemeral ports over the NAT range,
// before and after `up`: its own connections stay out of it, and work.
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
			h.must(t, "up")
			h.attach(t, h.Containers[0], "c1")
			if when == "after" {
				widen()
			}
			s := h.serveUDP(t, h.Outside, on(h.Outside.Addr, 7))
			for range 60 {
				c, err := h.Host.ListenUDP(on(netip.IPv4Unspecified(), 0))
				if err != nil {
					t.Fatal(err)
				}
				if p := c.LocalAddr().(*net.UDPAddr).Port; p >= natFirst && p <= natLast {
					t.Errorf("the kernel gave the host's socket port %d of the NAT range", p)
				}
				if err := lab.EchoUDPOn(h.ctx, c, s.Addr, "the host's"); err != nil {
					t.Error(err)
				}
				_ = c.Close()
				if err := h.Containers[0].EchoUDP(h.ctx, netip.AddrPort{}, s.Addr, "the container's"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestE2ENeighbourPublishesInRange publishes a port of a docker0-style container
// inside the NAT range, with nothing but a DNAT rule, while a container of ours
// uses that port.
func TestE2ENeighbourPublishesInRange(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m e2eMode) {
		h := upE2E(t, m, lab.Options{Containers: 1, Neighbour: true})
		nb := h.Neighbour
		const p = 20010
		for _, proto := range []string{"tcp", "udp"} {
			err := h.Host.IPTables(h.ctx, "-t", "nat", "-A", "PREROUTING", "-p", proto, "-d", h.HostAddr(0).String(),
				"--dport", fmt.Sprint(p), "-j", "DNAT", "--to-destination", on(nb.Addr, 80).String())
			if err != nil {
				t.Fatal(err)
			}
		}
		h.serveTCP(t, nb, on(nb.Addr, 80))
		h.serveUDP(t, nb, on(nb.Addr, 80))
		tcp, udp := h.serveTCP(t, h.Outside, on(h.Outside.Addr, 7)), h.serveUDP(t, h.Outside, on(h.Outside.Addr, 7))
		c, err := h.Containers[0].DialTCP(h.ctx, port(p), tcp.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		u, err := h.Containers[0].ListenUDP(on(netip.IPv4Unspecified(), p))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = u.Close() }()
		for range 3 {
			if err := lab.Echo(h.ctx, c, "ours"); err != nil {
				t.Error(err)
			}
			if err := lab.EchoUDPOn(h.ctx, u, udp.Addr, "ours"); err != nil {
				t.Error(err)
			}
			if err := h.Outside.EchoTCP(h.ctx, netip.AddrPort{}, on(h.HostAddr(0), p), "the neighbour's"); err != nil {
				t.Error(err)
			}
			if err := h.Outside.EchoUDP(h.ctx, netip.AddrPort{}, on(h.HostAddr(0), p), "the neighbour's"); err != nil {
				t.Error(err)
			}
		}
	})
}
