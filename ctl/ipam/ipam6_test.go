package ipam

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

func TestCheckSubnetIPv6(t *testing.T) {
	for s, ok := range map[string]bool{
		"fd00:1::/64": true, "2001:db8::/32": true, "2001:db8:1::/126": true, "2001:db8:1::/80": true,
		"1100:200::/24": true, "1100:200::/23": false, "2001:db8:1::/127": false, "2001:db8::1/64": false, "fe80::/64": false, "ff02::/64": false,
		"fec0::/64": false, "::/64": false, "::1/126": false, "::ffff:10.0.0.0/104": false,
	} {
		if err := CheckSubnet(netip.MustParsePrefix(s)); (err == nil) != ok || err != nil && !errors.Is(err, ErrSubnet) {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// TestAllocateIPv6: neither the routers' anycast address nor the gateway's is ever given
// out, the last address is, and the size of the subnet costs nothing.
func TestAllocateIPv6(t *testing.T) {
	free := func(netip.Addr) bool { return false }
	for _, x := range []struct{ subnet, gateway, want string }{
		{"fd00:1::/64", "fd00:1::1", "fd00:1::2"},
		{"fd00:1::/32", "fd00:1::ff", "fd00:1::1"},
		{"2001:db8::10/126", "2001:db8::12", "2001:db8::11"},
	} {
		got, err := Allocate(netip.MustParsePrefix(x.subnet), netip.MustParseAddr(x.gateway), free)
		if err != nil || got.String() != x.want {
			t.Errorf("%s: %v, %v, want %s", x.subnet, got, err, x.want)
		}
	}
	small, gw := netip.MustParsePrefix("2001:db8::10/126"), netip.MustParseAddr("2001:db8::11")
	used := map[netip.Addr]bool{}
	taken := func(a netip.Addr) bool { return used[a] }
	for _, want := range []string{"2001:db8::12", "2001:db8::13"} {
		got, err := Allocate(small, gw, taken)
		if err != nil || got.String() != want {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
		used[got] = true
	}
	if got, err := Allocate(small, gw, taken); !errors.Is(err, ErrFull) {
		t.Errorf("full: %v, %v", got, err)
	}
	if err := Check(small, gw, netip.MustParseAddr("2001:db8::10"), free); !errors.Is(err, ErrReserved) {
		t.Errorf("the routers' anycast address: %v", err)
	}
	if err := Check(small, gw, netip.MustParseAddr("2001:db8::14"), free); !errors.Is(err, ErrOutside) {
		t.Errorf("outside: %v", err)
	}
}

func TestULA(t *testing.T) {
	site := NewULA([5]byte{0x12, 0x34, 0x56, 0x78, 0x9a})
	if site.String() != "fd12:3456:789a::/48" {
		t.Errorf("site %v", site)
	}
	var used []netip.Prefix
	for _, want := range []string{"fd12:3456:789a::/64", "fd12:3456:789a:1::/64", "fd12:3456:789a:3::/64"} {
		got, err := NextOf(site, 0, used)
		if err != nil || got.String() != want {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
		used = append(used, got, netip.MustParsePrefix("fd12:3456:789a:2::1/128"))
	}
	if got, err := NextOf(site, 0xffff, append(used, netip.MustParsePrefix("fd12:3456:789a:ffff::/64"))); err != nil || got.String() != "fd12:3456:789a:4::/64" {
		t.Errorf("from the last one on: %v, %v", got, err)
	}
	if _, err := NextOf(site, 0, []netip.Prefix{netip.MustParsePrefix("fd00::/8")}); !errors.Is(err, ErrNoPool) {
		t.Errorf("all used: %v", err)
	}
}

func TestLinkLocal(t *testing.T) {
	if got := LinkLocal(net.HardwareAddr{2, 0x42, 172, 30, 0, 1}); got.String() != "fe80::42:acff:fe1e:1" {
		t.Error(got)
	}
}
