package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EOtherDevices: containers get outside by whatever device the host's routes lead
// to, with the address that the host has there, and without a command or a process. The
// second network card is there before `up`, the tunnel comes later.
func TestE2EOtherDevices(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := newE2E(t, m, lab.Options{Containers: 1, Uplinks: 2})
		before := h.snapshot(t)
		h.Must(t, append([]string{"up"}, m.Up...)...)
		c1, far := h.Containers[0], h.Outsides[1]
		h.Attach(t, c1, "c1")
		tun, err := h.AddTunnel("tun0")
		if err != nil {
			t.Fatal(err)
		}
		next := uint16(7)
		reach := func(what string, server *lab.Namespace, as netip.Addr) {
			t.Helper()
			h.mustPing(t, c1, server.Addr, lab.PingOptions{})
			h.mustPing(t, c1, server.Addr, lab.PingOptions{Size: 4000})
			at := on(server.Addr, next)
			next++
			s, u := h.ServeTCP(t, server, at), h.ServeUDP(t, server, at)
			if err := h.reaches(c1, s.Addr, passTime); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if err := c1.EchoUDP(h.Ctx, netip.AddrPort{}, u.Addr, "x"); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if err := lab.Bulk(h.Ctx, c1, server, server.Addr, 8<<20, false); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			assertPeers(t, s, as)
			assertPeers(t, u, as)
		}
		reach("default route", h.Outside, h.HostAddr(0))
		reach("second card", far, h.HostAddr(1))
		reach("split tunnel", tun.Outside, tun.HostAddr())

		h.onHost(t, "ip route del "+tun.Outside.Addr.String()+" dev tun0",
			"ip route add 0.0.0.0/1 dev tun0", "ip route add 128.0.0.0/1 dev tun0")
		reach("two halves, as openvpn", tun.Outside, tun.HostAddr())
		h.onHost(t, "ip route del 0.0.0.0/1 dev tun0", "ip route del 128.0.0.0/1 dev tun0")
		h.onHost(t, wgQuick...)
		reach("a rule, as wg-quick", tun.Outside, tun.HostAddr())
		h.noPing(t, far, c1.Addr)
		h.onHost(t, "ip rule del table main", "ip rule del table 51820", "ip link del tun0")
		h.Must(t, "detach", "c1")
		h.Must(t, "down", "--all")
		h.assertAsBefore(t, before)
	})
}

// TestE2EFlowMovesToOtherDevice: a changed route moves running flows of containers to a
// device that is no uplink. UDP continues there at once.
func TestE2EFlowMovesToOtherDevice(t *testing.T) {
	t.Parallel()
	h := upE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 1, Uplinks: 2})
	c1, far := h.Containers[0], h.Outsides[1]
	if err := h.Outside.AddAddr("lo", netip.PrefixFrom(far.Addr, 32)); err != nil {
		t.Fatal(err)
	}
	lead := func(via netip.Addr) {
		t.Helper()
		h.onHost(t, fmt.Sprintf("ip route replace %s/32 via %s", far.Addr, via))
	}
	lead(h.OutsideAddr(0))
	first := h.ServeUDP(t, h.Outside, on(far.Addr, 7))
	then := h.ServeUDP(t, far, on(far.Addr, 7))
	for k := range 3 {
		if err := c1.EchoUDP(h.Ctx, port(20000), first.Addr, fmt.Sprint(k)); err != nil {
			t.Fatal(err)
		}
	}
	lead(h.OutsideAddr(1))
	if err := lab.Poll(h.Ctx, func() (bool, error) {
		return c1.EchoUDP(h.Ctx, port(20000), then.Addr, "moved") == nil && len(then.Peers()) > 0, nil
	}); err != nil {
		t.Error("the flow does not go on by the other device")
	}
	assertPeers(t, first, h.HostAddr(0))
	assertPeers(t, then, h.HostAddr(1))
}
