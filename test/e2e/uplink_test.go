package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2ETwoUplinks routes to servers behind two uplinks. Each server must see the
// address of its own uplink.
func TestE2ETwoUplinks(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2, Uplinks: 2}, "--uplink", "eth0", "--uplink", "eth1")
		for i, out := range h.Outsides {
			tcp := h.ServeTCP(t, out, on(out.Addr, 7))
			udp := h.ServeUDP(t, out, on(out.Addr, 7))
			for _, c := range h.Containers {
				h.mustPing(t, c, out.Addr, lab.PingOptions{})
				for k := range 3 {
					if err := c.EchoTCP(h.Ctx, netip.AddrPort{}, tcp.Addr, fmt.Sprint(k)); err != nil {
						t.Error(err)
					}
					if err := c.EchoUDP(h.Ctx, port(20000), udp.Addr, fmt.Sprint(k)); err != nil {
						t.Error(err)
					}
				}
			}
			if err := lab.Bulk(h.Ctx, h.Containers[0], out, out.Addr, 16<<20, false); err != nil {
				t.Error(err)
			}
			assertPeers(t, tcp, h.HostAddr(i))
			assertPeers(t, udp, h.HostAddr(i))
		}
		h.assertBytesEqual(t)
	})
}

// TestE2ENotAnUplink: the host has a second NIC that is no uplink. No packet of a
// container leaves by it, and nobody there reaches a container.
func TestE2ENotAnUplink(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := upE2E(t, m, lab.Options{Containers: 2, Uplinks: 2}, "--uplink", "eth0")
		c1, far := h.Containers[0], h.Outsides[1]
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{})
		h.mustPing(t, h.Host, far.Addr, lab.PingOptions{}) // the host itself may

		before := h.drops(t, "no_uplink")
		h.noPing(t, c1, far.Addr)
		h.waitDrops(t, "no_uplink", before, 1)

		h.setForward(t, "1") // another program sets it: fastbr has opened only its own uplink
		if err := far.AddRoute(netip.MustParsePrefix("172.30.0.0/16"), h.HostAddr(1)); err != nil {
			t.Fatal(err)
		}
		w := newWitness(t, c1, "eth0", hasMark)
		mac, err := far.MAC("eth0")
		if err != nil {
			t.Fatal(err)
		}
		hostMAC, err := h.Host.MAC("eth1")
		if err != nil {
			t.Fatal(err)
		}
		before = h.drops(t, "direct")
		f := testutil.Frame{
			SrcMAC: mac, DstMAC: hostMAC, Src: h.OutsideAddr(1), Dst: c1.Addr,
			UDP: &testutil.UDP{SrcPort: 1, DstPort: 2}, Payload: forgedMark,
		}.Bytes(t)
		if err := far.Inject("eth0", f, f, f); err != nil {
			t.Fatal(err)
		}
		h.waitDrops(t, "direct", before, 3)
		h.noPing(t, far, c1.Addr)
		h.sendClosing(t, h.Host, c1)
		w.assertClean(t, h.Ctx, isClosing)
	})
}

// TestE2EUplinkAppearsLater brings fastbr up without a default route. It must say so,
// and a later command must find the uplink. Super-packets stay large as long as no
// uplink would have to cut them.
func TestE2EUplinkAppearsLater(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	if _, err := h.Host.Run(h.Ctx, "ip", "route", "del", "default"); err != nil {
		t.Fatal(err)
	}
	r := h.Fastbr(t, "up")
	if r.Code != 0 || r.Stderr == "" {
		t.Fatalf("up without a default route: exit %d, said %q; want 0 and a message", r.Code, r.Stderr)
	}
	size := func(want int) {
		t.Helper()
		if got, err := h.Containers[0].GSO("eth0"); err != nil || got != want {
			t.Errorf("super-packets of %d bytes (%v), want %d", got, err, want)
		}
	}
	h.Attach(t, h.Containers[0], "c1")
	size(lab.CableGSO)
	h.mustPing(t, h.Containers[0], h.gateway(), lab.PingOptions{})
	if err := errors.Join(h.Host.SetGSO("eth0", usualGSO), h.Host.AddRoute(netip.Prefix{}, h.OutsideAddr(0))); err != nil {
		t.Fatal(err)
	}
	h.Must(t, "up")
	size(usualGSO)
	h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{})
}
