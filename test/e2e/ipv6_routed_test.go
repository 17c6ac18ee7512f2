package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EIPv6RouteOfHost: a host that has its address and its default route from router
// advertisements keeps them while a network is routed by IPv6, whatever makes it a router,
// when its prefix changes and when its temporary address does. A connection of its own goes
// on meanwhile. `down` restores every setting.
func TestE2EIPv6RouteOfHost(t *testing.T) {
	t.Parallel()
	m := harness.Mode{Name: "fast"}
	h := newE2E(t, m, lab.Options{Containers: 1, IPv6: lab.Automatic})
	before := h.snapshot(t)
	s := h.ServeTCP(t, h.Outside, on(h.Outside.Addr6, 7))
	c, err := h.Host.DialTCP(h.Ctx, netip.AddrPort{}, s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	keeps := func(when string) {
		t.Helper()
		if out, err := h.Host.Run(h.Ctx, "ip", "-6", "route", "show", "default", "proto", "ra"); err != nil || out == "" {
			t.Errorf("%s: the advertised default route has gone (%v)", when, err)
		}
		h.mustPing(t, h.Host, h.Outside.Addr6, lab.PingOptions{Count: 1})
		if err := lab.Echo(h.Ctx, c, "still there"); err != nil {
			t.Errorf("%s: the host's own connection: %v", when, err)
		}
	}
	h.Must(t, "up", "--subnet", "2001:db8:77::/64", "--masquerade6=false")
	keeps("up")
	h.Attach(t, h.Containers[0], "c1")
	for range 2 {
		h.sysctl6(t, "all.forwarding", "1")
		keeps("somebody makes the host a router")
	}
	h.sysctl6(t, "all.forwarding", "0")
	h.Must(t, "up")
	keeps("up again")
	if err := h.Host.SetSysctl("net.ipv6.conf.eth0.accept_ra", "1"); err != nil {
		t.Fatal(err)
	}
	forwards := "only containers' packets are forwarded"
	if _, err := h.Host.Sysctl("net.ipv6.conf.eth0.force_forwarding"); err != nil {
		forwards = "this kernel cannot open single devices"
	}
	if out := h.Must(t, "check"); !strings.Contains(out, "accept_ra is 1 on eth0") || !strings.Contains(out, forwards) {
		t.Errorf("check says %s", out)
	}
	h.Must(t, "up")
	if out := h.Must(t, "check"); !strings.Contains(out, "the host keeps those by eth0") {
		t.Errorf("check says %s", out)
	}
	restored := func() {
		t.Helper()
		for key, want := range map[string]string{"eth0.accept_ra": "1", "eth0.forwarding": "0", "eth0.force_forwarding": "0", "default.force_forwarding": "0"} {
			if now, err := h.Host.Sysctl("net.ipv6.conf." + key); err == nil && now != want {
				t.Errorf("%s is %s after down, want %s", key, now, want)
			}
		}
	}
	h.Must(t, "detach", "c1")
	h.Must(t, "down", "--all")
	restored()
	h.assertAsBefore(t, before)
	h.Must(t, "up", "--subnet", "2001:db8:77::/64", "--masquerade6=false")

	// The router renumbers its link. Connections keep the old address.
	for _, prefix := range []string{"2001:db8:9::/64", "2001:db8:a::/64"} {
		if _, err := h.Outside.Run(h.Ctx, "ip", "-6", "route", "add", prefix, "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	a := lab.FirstAdvertisement(0)
	a.Prefixes[0].Preferred = 0
	a.Prefixes = append(a.Prefixes, lab.AdvertisedPrefix{Prefix: netip.MustParsePrefix("2001:db8:9::/64"), Valid: time.Hour, Preferred: time.Hour})
	if err := lab.Advertise(h.Ctx, h.Outside, "eth0", a); err != nil {
		t.Fatal(err)
	}
	keeps("renumbered")
	h.sysctl6(t, "eth0.use_tempaddr", "2")
	a.Prefixes = append(a.Prefixes, lab.AdvertisedPrefix{Prefix: netip.MustParsePrefix("2001:db8:a::/64"), Valid: 2 * time.Hour, Preferred: 2 * time.Hour})
	if err := lab.Advertise(h.Ctx, h.Outside, "eth0", a); err != nil {
		t.Fatal(err)
	}
	h.Must(t, "up")
	keeps("a temporary address")
	h.sysctl6(t, "all.forwarding", "1")
	keeps("a router with other addresses")
	h.sysctl6(t, "all.forwarding", "0")
	h.sysctl6(t, "eth0.use_tempaddr", "0")

	h.Must(t, "down", "--all")
	keeps("down")
	restored()
}

// TestE2EIPv6Proxies: with --nd-proxy an uplink is a member of the groups in which others
// ask for containers' addresses, as long as the container is there.
func TestE2EIPv6Proxies(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 2, IPv6: lab.Static})
	entries := func() string {
		t.Helper()
		out, err := h.Host.Run(h.Ctx, "ip", "-6", "neigh", "show", "proxy")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	h.Must(t, "up", "--subnet", "2001:db8:1::c000/114", "--masquerade6=false", "--nd-proxy")
	c1 := h.Attach(t, h.Containers[0], "c1")
	c2 := h.Attach(t, h.Containers[1], "c2")
	for _, r := range []string{c1.IP6, c2.IP6} {
		want := fmt.Sprintf("%s dev eth0", netip.MustParsePrefix(r).Addr())
		if out := entries(); !strings.Contains(out, want) {
			t.Errorf("entries %q, want %s", out, want)
		}
	}
	if _, err := h.Host.Run(h.Ctx, "ip", "-6", "neigh", "del", "proxy", netip.MustParsePrefix(c1.IP6).Addr().String(), "dev", "eth0"); err != nil {
		t.Fatal(err)
	}
	if out := h.Must(t, "check"); !strings.Contains(out, "does not stand for") {
		t.Errorf("check does not tell of a missing entry: %s", out)
	}
	h.Must(t, "up")
	if out := entries(); strings.Count(out, "dev eth0") != 2 {
		t.Errorf("after mending: %q", out)
	}
	h.Must(t, "detach", "c1")
	if out := entries(); strings.Count(out, "dev eth0") != 1 {
		t.Errorf("after detaching: %q", out)
	}
	h.Must(t, "down", "--all")
	if out := entries(); out != "" {
		t.Errorf("left behind: %q", out)
	}
}

// sysctl6 sets a setting of the host's IPv6 devices.
func (h *e2e) sysctl6(t *testing.T, key, value string) {
	t.Helper()
	if err := h.Host.SetSysctl("net.ipv6.conf."+key, value); err != nil {
		t.Fatal(err)
	}
}
