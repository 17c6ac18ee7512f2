package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2ESourceAddress: two networks leave by one uplink with an address each, by
// --snat-address, also from the same source port. When the host loses an address, nothing
// leaves from its network; when it comes back, all is as before.
func TestE2ESourceAddress(t *testing.T) {
	t.Parallel()
	for _, m := range []harness.Mode{{Name: "fast"}, {Name: "slow", Up: []string{"--lease", "0"}}} {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			h := newE2E(t, m, lab.Options{Containers: 1})
			mail := netip.MustParsePrefix("198.51.100.25/32")
			for _, args := range [][]string{
				{"up", "--snat-address", "198.51.100.25"}, // not the host's yet
				{"up", "--snat-address", "127.0.0.1"},
				{"up", "--snat-address", "fd00::1"},
				{"up", "--snat-address", "198.51.100.1", "--masquerade=false"},
			} {
				if r := h.Fastbr(t, args...); r.Code == 0 || strings.Count(r.Stderr, "\n") != 1 {
					t.Errorf("%v: exit %d, %q", args, r.Code, r.Stderr)
				}
			}
			if err := h.Host.AddAddr("eth0", mail); err != nil {
				t.Fatal(err)
			}
			h.Must(t, append([]string{"up", "--snat-address", mail.Addr().String()}, m.Up...)...)
			c1 := h.Containers[0]
			h.Attach(t, c1, "c1")
			c2 := h.otherNetwork(t)
			reach := func(c *lab.Namespace, as netip.Addr) {
				t.Helper()
				tcp, udp := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 0)), h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 0))
				if err := c.EchoTCP(h.Ctx, port(20000), tcp.Addr, "tcp"); err != nil {
					t.Errorf("TCP: %v", err)
				}
				if err := c.EchoUDP(h.Ctx, port(20000), udp.Addr, strings.Repeat("x", 4000)); err != nil {
					t.Errorf("UDP: %v", err)
				}
				h.mustPing(t, c, h.Outside.Addr, lab.PingOptions{Count: 1})
				assertPeers(t, tcp, as)
				assertPeers(t, udp, as)
				if peer, err := exchangeRaw(c, h.Outside, 253, []byte("question"), []byte("answer")); err != nil || peer != as {
					t.Errorf("another protocol: from %v: %v", peer, err)
				}
				tcp.Close()
				udp.Close()
			}
			reach(c1, mail.Addr())
			reach(c2, h.HostAddr(0))
			udp := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
			sock, err := c1.ListenUDP(on(netip.IPv4Unspecified(), 20001))
			if err != nil {
				t.Fatal(err)
			}
			defer sock.Close()
			h.becomesFast(t, m, "c1", func() { h.comesToPass(t, sock, udp.Addr, true) })
			h.Upgrade(t)
			h.comesToPass(t, sock, udp.Addr, true)

			if err := h.Host.DelAddr("eth0", mail); err != nil {
				t.Fatal(err)
			}
			h.comesToPass(t, sock, udp.Addr, false)
			before := h.drops(t, "no_uplink")
			h.noPing(t, c1, h.Outside.Addr)
			if h.drops(t, "no_uplink") == before {
				t.Error("what cannot leave is not counted")
			}
			if notes := h.notes(t); !strings.Contains(notes, mail.Addr().String()) {
				t.Errorf("status does not say so: %q", notes)
			}
			reach(c2, h.HostAddr(0))
			// A rule of the host, or of another engine, has its answers translated itself.
			h.ServeTCP(t, c1, on(c1.Addr, 80))
			h.Must(t, "publish", "add", "8081:80", "other1")
			if err := h.Host.IPTables(h.Ctx, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "5555", "-j", "DNAT", "--to", on(c1.Addr, 80).String()); err != nil {
				t.Fatal(err)
			}
			if err := h.reaches(h.Outside, on(h.HostAddr(0), 5555), passTime); err != nil {
				t.Errorf("by a rule of the host: %v", err)
			}
			if err := h.Host.AddAddr("eth0", mail); err != nil {
				t.Fatal(err)
			}
			h.comesToPass(t, sock, udp.Addr, true)
			assertPeers(t, udp, mail.Addr())
		})
	}
}
