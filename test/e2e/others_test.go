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
		route := func(argv ...string) {
			t.Helper()
			if _, err := h.Host.Run(h.Ctx, append([]string{"ip"}, argv...)...); err != nil {
				t.Fatal(err)
			}
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

		route("route", "del", tun.Outside.Addr.String(), "dev", "tun0")
		for _, half := range []string{"0.0.0.0/1", "128.0.0.0/1"} {
			route("route", "add", half, "dev", "tun0")
		}
		reach("two halves, as openvpn", tun.Outside, tun.HostAddr())
		for _, half := range []string{"0.0.0.0/1", "128.0.0.0/1"} {
			route("route", "del", half, "dev", "tun0")
		}
		for _, argv := range [][]string{
			{"route", "add", "default", "dev", "tun0", "table", "51820"},
			{"rule", "add", "not", "fwmark", "51820", "table", "51820"},
			{"rule", "add", "table", "main", "suppress_prefixlength", "0"},
		} {
			route(argv...)
		}
		reach("a rule, as wg-quick", tun.Outside, tun.HostAddr())
		h.noPing(t, far, c1.Addr)
		for _, argv := range [][]string{{"rule", "del", "table", "main"}, {"rule", "del", "table", "51820"}, {"link", "del", "tun0"}} {
			route(argv...)
		}
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
		if _, err := h.Host.Run(h.Ctx, "ip", "route", "replace", far.Addr.String()+"/32", "via", via.String()); err != nil {
			t.Fatal(err)
		}
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
