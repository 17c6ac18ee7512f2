package link_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/internal/lab"
)

// TestWatchReportsIPv6: what changes the way of IPv6 packets is reported as such. What the
// kernel does by itself for every device, and advertisements that change nothing, are not.
func TestWatchReportsIPv6(t *testing.T) {
	rootOnly(t)
	l, err := lab.New(t.Context(), lab.Options{Containers: 1, IPv6: lab.Automatic, Private: []netip.Prefix{}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := watchIn(t, l.Host)
	run := func(argv ...string) error {
		_, err := l.Host.Run(t.Context(), argv...)
		return err
	}
	advertise := func(change func(*lab.Advertisement)) error {
		a := lab.FirstAdvertisement(0)
		change(&a)
		return lab.Advertise(t.Context(), l.Outside, "eth0", a)
	}
	same := func(*lab.Advertisement) {}
	if err := advertise(same); err != nil { // the watcher learns of the address
		t.Fatal(err)
	}
	settle(w)
	for _, c := range []struct {
		name string
		do   func() error
		want link.Change
		not  link.Change
	}{
		{"the same once more", func() error { return advertise(same) }, 0, link.IPv6Change},
		{"another prefix", func() error {
			return advertise(func(a *lab.Advertisement) {
				a.Prefixes = append(a.Prefixes, lab.AdvertisedPrefix{Prefix: netip.MustParsePrefix("2001:db8:9::/64"), Valid: time.Hour, Preferred: time.Hour})
			})
		}, link.IPv6Change, link.RouteChange | link.AddressChange},
		{"deprecated", func() error { return advertise(func(a *lab.Advertisement) { a.Prefixes[0].Preferred = 0 }) }, link.IPv6Change, link.AddressChange},
		{"no router any more", func() error { return advertise(func(a *lab.Advertisement) { a.Lifetime = 0 }) }, link.IPv6Change, link.RouteChange},
		{"a router again", func() error { return advertise(same) }, link.IPv6Change, link.RouteChange},
		{"a route", func() error { return l.Host.AddRoute(netip.MustParsePrefix("2001:db8:55::/64"), l.OutsideAddr6(0)) }, link.IPv6Change, link.RouteChange},
		{"a rule", func() error { return run("ip", "-6", "rule", "add", "from", "2001:db8:55::/64", "lookup", "main") }, link.IPv6Change, link.RouteChange},
		{"an address goes", func() error { return l.Host.DelAddr("eth0", netip.PrefixFrom(l.HostAddr6(0), 64)) }, link.IPv6Change, link.AddressChange},
		{"the route of IPv4", func() error { return l.Host.AddRoute(netip.MustParsePrefix("192.0.2.99/32"), l.OutsideAddr(0)) }, link.RouteChange, link.IPv6Change},
		{"forwarding", func() error { return l.Host.SetSysctl("net.ipv6.conf.eth0.forwarding", "1") }, link.LinkChange, 0},
		{"a container", func() error { return lab.Veth(l.Host, "v0", l.Containers[0], "eth0", 0) }, link.LinkChange, link.IPv6Change | link.RouteChange | link.AddressChange},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := expect(t, w, c.want)
		for quiet := false; !quiet; {
			select {
			case <-w.Ready():
				got |= w.Take()
			case <-time.After(200 * time.Millisecond):
				quiet = true
			}
		}
		if got&c.not != 0 {
			t.Errorf("%s: changes %09b, must not have %09b", c.name, got, c.not)
		}
	}
}

// TestWatchReportsGateway6: gateways of two links may have the same link-local address.
func TestWatchReportsGateway6(t *testing.T) {
	rootOnly(t)
	l, err := lab.New(t.Context(), lab.Options{Uplinks: 2, IPv6: lab.Static, Private: []netip.Prefix{}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	run := func(argv ...string) {
		t.Helper()
		if _, err := l.Host.Run(t.Context(), argv...); err != nil {
			t.Fatal(err)
		}
	}
	neighbour := func(dev, mac string) {
		t.Helper()
		run("ip", "-6", "neigh", "replace", "fe80::1", "lladdr", mac, "dev", dev)
	}
	w := watchIn(t, l.Host)
	run("ip", "-6", "route", "add", "2001:db8:77::/64", "via", "fe80::1", "dev", "eth0")
	run("ip", "-6", "route", "add", "2001:db8:78::/64", "via", "fe80::1", "dev", "eth1")
	expect(t, w, link.IPv6Change)
	settle(w)
	neighbour("eth0", "02:00:00:00:00:01")
	neighbour("eth1", "02:00:00:00:00:02")
	time.Sleep(200 * time.Millisecond)
	if got := w.Take(); got&link.IPv6Change != 0 {
		t.Errorf("changes %09b: no gateway is known to have had another address", got)
	}
	neighbour("eth1", "02:00:00:00:00:03")
	if got := expect(t, w, link.IPv6Change); got&link.GatewayChange != 0 {
		t.Errorf("changes %09b: no gateway of IPv4 has changed", got)
	}
}
