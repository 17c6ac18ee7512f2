package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2ERouted6: flows of a network whose IPv6 is routed are fast in both directions, whoever
// begins them. FORWARD and connection tracking see enough of them.
func TestE2ERouted6(t *testing.T) {
	t.Parallel()
	for _, m := range []harness.Mode{{Name: "fast", Leaky: true}, {Name: "slow", Leaky: true, Up: []string{"--lease", "0"}}} {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			h := newE2E(t, m, lab.Options{Containers: 1, IPv6: lab.Static})
			h.Must(t, append([]string{"up", "--ipv6", "--subnet", "2001:db8:c::/64", "--masquerade6=false"}, m.Up...)...)
			c1 := h.Containers[0]
			h.Attach(t, c1, "c1")
			if _, err := h.Outside.Run(h.Ctx, "ip", "-6", "route", "add", "2001:db8:c::/64", "via", h.HostAddr6(0).String()); err != nil {
				t.Fatal(err)
			}
			if err := h.Host.NFT(h.Ctx, trackedForward); err != nil {
				t.Fatal(err)
			}
			for _, reverse := range []bool{false, true} {
				for name, ends := range map[string][2]*lab.Namespace{"begun inside": {c1, h.Outside}, "begun outside": {h.Outside, c1}} {
					before := h.ports(t)["c1"]
					if err := lab.Bulk(h.Ctx, ends[0], ends[1], ends[1].Addr6, 64<<20, reverse); err != nil {
						t.Errorf("%s, reverse %v: %v", name, reverse, err)
					}
					after := h.ports(t)["c1"]
					fast, slow := after.FastPackets-before.FastPackets, after.SlowPackets-before.SlowPackets
					t.Logf("%s, reverse %v: %d packets were fast, %d slow", name, reverse, fast, slow)
					if (m.Name == "fast") != (fast > 100*slow) || m.Name == "slow" && fast > 0 {
						t.Errorf("%s, reverse %v: %d packets were fast, %d slow", name, reverse, fast, slow)
					}
				}
			}
			if n, err := h.Host.RuleCounter(h.Ctx, "invalid"); err != nil || n != 0 {
				t.Errorf("%d packets were INVALID (%v), want none", n, err)
			}
			inside, outside := h.ServeUDP(t, c1, on(c1.Addr6, 9090)), h.ServeUDP(t, h.Outside, on(h.Outside.Addr6, 9090))
			for client, server := range map[*lab.Namespace]*lab.Server{c1: outside, h.Outside: inside} {
				sock, err := client.ListenUDP(on(netip.IPv6Unspecified(), 0))
				if err != nil {
					t.Fatal(err)
				}
				h.becomesFast(t, m, "c1", func() { h.comesToPass(t, sock, server.Addr, true) })
				_ = sock.Close()
			}
			assertPeers(t, outside, c1.Addr6)
			if drops := h.allDrops(t); len(drops) > 0 {
				t.Errorf("drops %v", drops)
			}
		})
	}
}

// TestE2ERouted6BesideTranslated: a network whose IPv6 is translated leaks nothing beside one
// that is routed, which the host forwards for. Nobody reaches it from outside, nor from the
// other.
func TestE2ERouted6BesideTranslated(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := newE2E(t, m, lab.Options{Containers: 2, IPv6: lab.Static})
		h.Must(t, append([]string{"up", "routed", "--ipv6", "--subnet", "2001:db8:c::/64", "--masquerade6=false"}, m.Up...)...)
		h.Must(t, "up", "hidden", "--subnet", "fd00:99::/64")
		c1, c2 := h.Containers[0], h.Containers[1]
		h.Attach(t, c1, "c1", "--network", "routed")
		h.Attach(t, c2, "c2", "--network", "hidden")
		for _, subnet := range []string{"2001:db8:c::/64", "fd00:99::/64"} {
			if _, err := h.Outside.Run(h.Ctx, "ip", "-6", "route", "add", subnet, "via", h.HostAddr6(0).String()); err != nil {
				t.Fatal(err)
			}
		}
		h.mustPing(t, c1, h.Outside.Addr6, lab.PingOptions{})
		for _, ends := range [][2]*lab.Namespace{{h.Outside, c2}, {c2, c1}, {c1, c2}} {
			r, err := ends[0].Ping(h.Ctx, ends[1].Addr6, lab.PingOptions{Count: 2, Wait: 300 * time.Millisecond})
			if err != nil || r.Received > 0 {
				t.Errorf("%d answers from %s (%v), want none", r.Received, ends[1].Addr6, err)
			}
		}
	})
}

// TestE2ERouted6IsNoRouter: the host forwards IPv6 for containers only, whatever an uplink
// without an IPv6 address brings. When the last routed network goes and another stays,
// every device is closed again.
func TestE2ERouted6IsNoRouter(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast", Leaky: true}, lab.Options{Containers: 1, Uplinks: 2, IPv6: lab.Static})
	const forced = "cat /proc/sys/net/ipv6/conf/*/force_forwarding"
	if _, err := h.Host.Run(h.Ctx, "sh", "-c", forced); err != nil {
		t.Skip("before Linux 6.17 a network that is routed makes the host a router")
	}
	h.onHost(t, "ip -6 addr del "+h.HostAddr6(1).String()+"/64 dev eth1")
	before := h.snapshot(t)
	h.Must(t, "up", "other", "--subnet", "192.168.9.0/24")
	// A part of the uplink's subnet, defined: it comes up again.
	h.Must(t, "network", "create", "routed", "--subnet", "2001:db8:1::c000/114", "--masquerade6=false", "--nd-proxy")
	h.Must(t, "down", "routed")
	h.Must(t, "up", "routed")
	c1, stranger := h.Containers[0], h.Outsides[1]
	h.Attach(t, c1, "c1", "--network", "routed")

	out, err := h.Host.Run(h.Ctx, "sh", "-c", "ip -6 -o addr show dev eth1 scope link | awk '{sub(\"/.*\", \"\", $4); print $4}'")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Run(h.Ctx, "ip", "-6", "route", "replace", h.Outside.Addr6.String(), "via", strings.TrimSpace(out), "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	server := h.ServeUDP(t, h.Outside, on(h.Outside.Addr6, 9090))
	strange, err := stranger.ListenUDP(on(netip.IPv6Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = strange.Close() }()
	for range 3 {
		if _, err := strange.WriteToUDPAddrPort([]byte("through"), server.Addr); err != nil {
			t.Fatal(err)
		}
	}
	sock, err := c1.ListenUDP(on(netip.IPv6Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sock.Close() }()
	h.comesToPass(t, sock, server.Addr, true)
	assertPeers(t, server, c1.Addr6)

	h.Must(t, "detach", "c1")
	h.Must(t, "down", "routed")
	if out, err := h.Host.Run(h.Ctx, "sh", "-c", forced); err != nil || strings.Contains(out, "1") {
		t.Errorf("devices are open for IPv6 without a routed network: %q, %v", out, err)
	}
	h.Must(t, "network", "rm", "routed")
	h.Must(t, "down", "--all")
	for kind, now := range h.snapshot(t) {
		if diff := lineDiff(before[kind], now); diff != "" {
			t.Errorf("%s differ from before:\n%s", kind, diff)
		}
	}
}
