package e2e

import (
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EFragmentsByIPv6: datagrams that need fragments reach the outside and come back, and
// the host's own come in as before, to every address that it has.
func TestE2EFragmentsByIPv6(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := newE2E(t, m, lab.Options{Containers: 1, IPv6: lab.Static})
		h.Must(t, append([]string{"up", "--ipv6"}, m.Up...)...)
		c1 := h.Containers[0]
		h.Attach(t, c1, "c1")
		udp := h.ServeUDP(t, h.Outside, on(h.Outside.Addr6, 0))
		defer udp.Close()
		for range 3 {
			if err := c1.EchoUDP(h.Ctx, netip.AddrPort{}, udp.Addr, string(big(bigPayload))); err != nil {
				t.Errorf("a container's: %v", err)
			}
		}
		assertPeers(t, udp, h.HostAddr6(0))
		h.mustPing(t, c1, h.Outside.Addr6, lab.PingOptions{Count: 1, Size: bigPayload})

		second := netip.MustParseAddr("2001:db8:77::1")
		h.onHost(t, "ip -6 addr add "+second.String()+"/128 dev lo nodad")
		if _, err := h.Outside.Run(h.Ctx, "ip", "-6", "route", "add", second.String(), "via", h.HostAddr6(0).String()); err != nil {
			t.Fatal(err)
		}
		for _, own := range []netip.Addr{h.HostAddr6(0), second} {
			server := h.ServeUDP(t, h.Host, on(own, 0))
			if err := h.Outside.EchoUDP(h.Ctx, netip.AddrPort{}, server.Addr, string(big(bigPayload))); err != nil {
				t.Errorf("the host's own, to %v: %v", own, err)
			}
			server.Close()
		}
		if drops := h.allDrops(t); len(drops) > 0 {
			t.Errorf("drops %v", drops)
		}
	})
}
