package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EFlowMovesToOtherDevice: a changed route moves running flows of containers to a
// device that is no uplink. UDP continues there at once. What the kernel translates there
// goes on when the device becomes an uplink, with the same external port.
func TestE2EFlowMovesToOtherDevice(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 1})
		tun, err := h.AddTunnel("tun0")
		if err != nil {
			t.Fatal(err)
		}
		c1, far := h.Containers[0], tun.Outside
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
		lead(tun.OutsideAddr())
		if err := lab.Poll(h.Ctx, func() (bool, error) {
			return c1.EchoUDP(h.Ctx, port(20000), then.Addr, "moved") == nil && len(then.Peers()) > 0, nil
		}); err != nil {
			t.Error("the flow does not go on by the other device")
		}
		assertPeers(t, first, h.HostAddr(0))
		assertPeers(t, then, tun.HostAddr())

		s := h.ServeTCP(t, far, on(far.Addr, 8))
		conn, err := c1.DialTCP(h.Ctx, netip.AddrPort{}, s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		peers := len(then.Peers())
		for _, when := range []string{"before", "after"} {
			if err := lab.Echo(h.Ctx, conn, when); err != nil {
				t.Errorf("TCP %s the device is an uplink: %v", when, err)
			}
			if err := c1.EchoUDP(h.Ctx, port(20000), then.Addr, when); err != nil {
				t.Errorf("UDP %s the device is an uplink: %v", when, err)
			}
			h.Must(t, "up")
			if err := h.isUplink(t, "tun0"); err != nil {
				t.Error(err)
			}
		}
		if now := len(then.Peers()); now != peers {
			t.Errorf("the server has seen %d peers, want %d", now, peers)
		}
	})
}
