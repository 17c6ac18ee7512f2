package e2e

import (
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// trackedForward accepts only packets that conntrack follows, and new flows of containers
// or clients.
const trackedForward = `table inet strict {
chain forward {
type filter hook forward priority 0; policy drop;
ct state invalid counter drop comment "invalid"
ct state established,related counter accept comment "established"
ct state new counter accept comment "new"
}
chain late {
type filter hook forward priority 10; policy accept;
}
}`

// TestE2ERoutedWays: flows of a network that is not translated are fast in both
// directions, whoever begins them. FORWARD and connection tracking see enough of them, and a new rule
// reaches them within a lease.
func TestE2ERoutedWays(t *testing.T) {
	t.Parallel()
	for _, m := range []harness.Mode{{Name: "fast", Leaky: true}, {Name: "slow", Leaky: true, Up: []string{"--lease", "0"}}} {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			h := upE2E(t, m, lab.Options{Containers: 1}, "--masquerade=false")
			h.shortLease(t)
			c1 := h.Containers[0]
			if _, err := h.Outside.Run(h.Ctx, "ip", "route", "add", "172.30.0.0/16", "via", h.Host.Addr.String()); err != nil {
				t.Fatal(err)
			}
			if err := h.Host.NFT(h.Ctx, trackedForward); err != nil {
				t.Fatal(err)
			}
			for _, reverse := range []bool{false, true} {
				for name, ends := range map[string][2]*lab.Namespace{"begun inside": {c1, h.Outside}, "begun outside": {h.Outside, c1}} {
					before := h.ports(t)["c1"]
					if err := lab.Bulk(h.Ctx, ends[0], ends[1], ends[1].Addr, 16<<20, reverse); err != nil {
						t.Errorf("%s, reverse %v: %v", name, reverse, err)
					}
					after := h.ports(t)["c1"]
					fast, slow := after.FastPackets-before.FastPackets, after.SlowPackets-before.SlowPackets
					if (m.Name == "fast") != (fast > 10*slow) || m.Name == "slow" && fast > 0 {
						t.Errorf("%s, reverse %v: %d packets were fast, %d slow", name, reverse, fast, slow)
					}
				}
			}
			if n, err := h.Host.RuleCounter(h.Ctx, "invalid"); err != nil || n != 0 {
				t.Errorf("%d packets were INVALID (%v), want none", n, err)
			}

			inside, outside := h.ServeUDP(t, c1, on(c1.Addr, 9090)), h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 9090))
			for _, x := range []struct {
				client *lab.Namespace
				server *lab.Server
				rule   string
			}{
				{c1, outside, "udp dport 9090 drop"},
				{c1, outside, "udp sport 9090 drop"},
				{h.Outside, inside, "udp dport 9090 drop"},
				{h.Outside, inside, "udp sport 9090 drop"},
			} {
				sock, err := x.client.ListenUDP(on(netip.IPv4Unspecified(), 0))
				if err != nil {
					t.Fatal(err)
				}
				h.becomesFast(t, m, "c1", func() { h.comesToPass(t, sock, x.server.Addr, true) })
				if err := h.Host.NFT(h.Ctx, "add rule inet strict late "+x.rule); err != nil {
					t.Fatal(err)
				}
				h.comesToPass(t, sock, x.server.Addr, false)
				if err := h.Host.NFT(h.Ctx, "flush chain inet strict late"); err != nil {
					t.Fatal(err)
				}
				h.comesToPass(t, sock, x.server.Addr, true)
				_ = sock.Close()
			}
			assertPeers(t, outside, c1.Addr)
			assertPeers(t, inside, h.OutsideAddr(0))
		})
	}
}
