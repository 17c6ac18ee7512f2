package lab_test

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

func TestIPv6LabCarriesTraffic(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Containers: 2, Plain: true, Uplinks: 2, IPv6: lab.Static})
	c1, c2 := l.Containers[0], l.Containers[1]
	for _, to := range append(l.Servers6(), c2.Addr6, l.HostAddr6(0), l.Outside.Addr, c2.Addr) {
		if r, err := c1.Ping(ctx, to, lab.PingOptions{}); err != nil || r.Received != r.Sent {
			t.Errorf("ping %v: %+v, %v", to, r, err)
		}
	}
	for i, out := range l.Outsides {
		tcp, err := out.ServeTCPEcho(at(out.Addr6, 7))
		if err != nil {
			t.Fatal(err)
		}
		udp, err := out.ServeUDPEcho(at(out.Addr6, 7))
		if err != nil {
			t.Fatal(err)
		}
		if err := c1.EchoTCP(ctx, at(netip.Addr{}, 4444), tcp.Addr, "hello"); err != nil {
			t.Error(err)
		}
		if err := c1.EchoUDP(ctx, at(netip.Addr{}, 4444), udp.Addr, "hello"); err != nil {
			t.Error(err)
		}
		for _, s := range []*lab.Server{tcp, udp} {
			if p := s.Peers(); len(p) != 1 || p[at(l.HostAddr6(i), 4444)] != 1 {
				t.Errorf("%v saw %v, want the host's address", s.Addr, p)
			}
		}
	}
	if err := lab.Bulk(ctx, c1, l.Outside, l.Outside.Addr6, 8<<20, true); err != nil {
		t.Error(err)
	}
	if _, err := lab.Iperf(ctx, c1, c2, c2.Addr6, lab.IperfOptions{Bytes: 1 << 20}); err != nil {
		t.Error(err)
	}
	r, err := c1.Ping(ctx, l.Outside.Addr6, lab.PingOptions{TTL: 1, Count: 1})
	if err != nil || len(r.Errors) != 1 || r.Errors[0] != netip.MustParseAddr("fd00:172:30::1") {
		t.Errorf("hop limit 1: %+v, %v; want a time exceeded from the gateway", r, err)
	}
	got, err := l.Outside.NextHop(ctx, l.HostAddr6(0))
	if want, merr := l.Host.MAC("eth0"); err != nil || merr != nil || got.String() != want.String() {
		t.Errorf("next hop to the host: %v, %v; want %v", got, err, want)
	}
	assertNoLeak(t, l)
}

func TestIPv6RouterAndTunnel(t *testing.T) {
	l, ctx := newLab(t, lab.Options{Containers: 1, Plain: true, Router: true, IPv6: lab.Static})
	c1 := l.Containers[0]
	tun, err := l.AddTunnel("tun0")
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{l.Outside.Addr6, l.Router.Addr6, l.Far.Addr6, l.LAN.Addr6, tun.Outside.Addr6} {
		if r, err := c1.Ping(ctx, to, lab.PingOptions{}); err != nil || r.Received != r.Sent {
			t.Errorf("ping %v: %+v, %v", to, r, err)
		}
	}
	if err := lab.Bulk(ctx, c1, l.Far, l.Far.Addr6, 1<<20, false); err != nil {
		t.Errorf("upload through the narrow link: %v", err)
	}
	assertNoLeak(t, l)
	// Routing without masquerade is what a leak looks like.
	if err := l.Host.NFT(ctx, "flush ruleset"); err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{l.Outside.Addr6, tun.Outside.Addr6} {
		if _, err := c1.Ping(ctx, to, lab.PingOptions{Count: 1, Wait: time.Millisecond}); err != nil {
			t.Fatal(err)
		}
	}
	err = lab.Poll(ctx, func() (bool, error) {
		leaks, err := l.Captures[0].Leaks()
		return len(leaks) == 1 && len(tun.Leaks()) == 1 && strings.Contains(leaks[0].Why, "IPv6 source fd00:172:30::2"), err
	})
	if err != nil {
		t.Errorf("the unmasqueraded pings were not recorded: %v", err)
	}
}

// TestAutomaticAddresses: a host follows what its router advertises, and loses its
// route as hosts do.
func TestAutomaticAddresses(t *testing.T) {
	l, ctx := newLab(t, lab.Options{IPv6: lab.Automatic})
	source := func() string {
		out, err := l.Host.Run(ctx, "ip", "-6", "route", "get", l.Outside.Addr6.String())
		if err != nil {
			return ""
		}
		_, out, _ = strings.Cut(out, " src ")
		return strings.Fields(out)[0]
	}
	if got := source(); got != l.HostAddr6(0).String() {
		t.Errorf("the host sends from %q, want %v", got, l.HostAddr6(0))
	}
	if r, err := l.Host.Ping(ctx, l.Outside.Addr6, lab.PingOptions{}); err != nil || r.Received != r.Sent {
		t.Errorf("ping: %+v, %v", r, err)
	}

	// The route outlives an answer of the router to the question for its hardware address.
	mac, err := l.Outside.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	ip6, err := l.Host.Run(ctx, "ip", "-6", "route", "show", "default")
	if err != nil {
		t.Fatal(err)
	}
	router := strings.Fields(ip6)[2]
	if _, err := l.Host.Run(ctx, "ip", "-6", "neigh", "replace", router, "lladdr", mac.String(), "dev", "eth0", "router", "nud", "probe"); err != nil {
		t.Fatal(err)
	}
	err = lab.Poll(ctx, func() (bool, error) {
		out, err := l.Host.Run(ctx, "ip", "-6", "neigh", "show", router)
		return strings.Contains(out, "REACHABLE"), err
	})
	if err != nil || source() == "" {
		t.Errorf("after the router has answered (%v) the host sends from %q", err, source())
	}

	// Another prefix, and the first one deprecated.
	renumbered := lab.FirstAdvertisement(0)
	renumbered.Prefixes[0].Preferred = 0
	next := netip.MustParsePrefix("2001:db8:9::/64")
	renumbered.Prefixes = append(renumbered.Prefixes, lab.AdvertisedPrefix{Prefix: next, Valid: time.Hour, Preferred: time.Hour})
	want, err := lab.SLAAC(l.Host, "eth0", next)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Advertise(ctx, l.Outside, "eth0", renumbered); err != nil {
		t.Fatal(err)
	}
	if err := lab.Poll(ctx, func() (bool, error) { return source() == want.String(), nil }); err != nil {
		t.Errorf("after renumbering the host sends from %q, want %v", source(), want)
	}

	// Temporary addresses are made with the next advertisement.
	if err := l.Host.SetSysctl("net.ipv6.conf.eth0.use_tempaddr", "2"); err != nil {
		t.Fatal(err)
	}
	third := netip.MustParsePrefix("2001:db8:a::/64")
	renumbered.Prefixes = append(renumbered.Prefixes, lab.AdvertisedPrefix{Prefix: third, Valid: 2 * time.Hour, Preferred: 2 * time.Hour})
	if err := lab.Advertise(ctx, l.Outside, "eth0", renumbered); err != nil {
		t.Fatal(err)
	}
	err = lab.Poll(ctx, func() (bool, error) {
		out, err := l.Host.Run(ctx, "ip", "-6", "addr", "show", "dev", "eth0", "temporary", "to", third.String())
		return strings.Contains(out, "temporary"), err
	})
	if err != nil {
		t.Errorf("no temporary address: %v", err)
	}

	// A host that begins to forward has no route any more, unless accept_ra is 2.
	for _, accept := range []int{1, 2} {
		if err := l.Host.SetSysctl("net.ipv6.conf.all.forwarding", "0"); err != nil {
			t.Fatal(err)
		}
		if err := l.Host.SetSysctl("net.ipv6.conf.eth0.accept_ra", strconv.Itoa(accept)); err != nil {
			t.Fatal(err)
		}
		if err := lab.Advertise(ctx, l.Outside, "eth0", renumbered); err != nil {
			t.Fatal(err)
		}
		if err := lab.Poll(ctx, func() (bool, error) { return source() != "", nil }); err != nil {
			t.Fatalf("accept_ra %d: no default route: %v", accept, err)
		}
		if err := l.Host.SetSysctl("net.ipv6.conf.all.forwarding", "1"); err != nil {
			t.Fatal(err)
		}
		if has := source() != ""; has != (accept == 2) {
			t.Errorf("accept_ra %d, then forwarding: a default route: %v", accept, has)
		}
	}
}
