package ipam

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestPoolsInOrder(t *testing.T) {
	all := slices.Collect(Pools())
	if len(all) != 16+256 {
		t.Errorf("%d pools, want 272", len(all))
	}
	for i, want := range map[int]string{0: "192.168.0.0/20", 1: "192.168.16.0/20", 15: "192.168.240.0/20", 16: "172.16.0.0/20", 271: "172.31.240.0/20"} {
		if all[i].String() != want {
			t.Errorf("pool %d is %s, want %s", i, all[i], want)
		}
	}
}

func TestNextSkipsUsed(t *testing.T) {
	tests := []struct {
		name string
		used []netip.Prefix
		wish []netip.Prefix
		want string
	}{
		{"nothing used", nil, prefixes("172.30.0.0/16"), "172.30.0.0/16"},
		{"wish inside a route", prefixes("172.16.0.0/12"), prefixes("172.30.0.0/16"), "192.168.0.0/20"},
		{"wish around an address", prefixes("172.30.7.7/32"), prefixes("172.30.0.0/16"), "192.168.0.0/20"},
		{"first pools used", prefixes("192.168.0.0/24", "192.168.31.0/24"), nil, "192.168.32.0/20"},
		{"a whole range used", prefixes("192.168.0.0/16"), nil, "172.16.0.0/20"},
		{"default route", prefixes("0.0.0.0/0"), prefixes("172.30.0.0/16"), "172.30.0.0/16"},
		{"halves of the default route", prefixes("0.0.0.0/1", "128.0.0.0/1"), nil, "192.168.0.0/20"},
	}
	for _, test := range tests {
		got, err := Next(test.used, test.wish...)
		if err != nil || got.String() != test.want {
			t.Errorf("%s: %s, %v, want %s", test.name, got, err, test.want)
		}
	}
	if _, err := Next(prefixes("192.168.0.0/16", "172.16.0.0/12")); !errors.Is(err, ErrNoPool) {
		t.Errorf("all used: %v, want ErrNoPool", err)
	}
}

func TestCheckSubnet(t *testing.T) {
	for s, ok := range map[string]bool{
		"10.0.0.0/8": true, "10.1.2.0/30": true, "172.30.0.0/16": true, "100.64.0.0/10": true,
		"10.0.0.0/7": false, "10.0.0.0/31": false, "10.0.0.1/24": false, "224.0.0.0/24": false,
		"127.0.0.0/8": false, "169.254.0.0/16": false, "0.0.0.0/8": false, "240.0.0.0/8": false,
	} {
		if err := CheckSubnet(netip.MustParsePrefix(s)); (err == nil) != ok || err != nil && !errors.Is(err, ErrSubnet) {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestAllocateLowestFree(t *testing.T) {
	p, gw := netip.MustParsePrefix("10.0.0.0/29"), netip.MustParseAddr("10.0.0.3")
	used := map[netip.Addr]bool{}
	taken := func(a netip.Addr) bool { return used[a] }
	for _, want := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"} {
		got, err := Allocate(p, gw, taken)
		if err != nil || got.String() != want {
			t.Fatalf("%s, %v, want %s", got, err, want)
		}
		used[got] = true
	}
	if _, err := Allocate(p, gw, taken); !errors.Is(err, ErrFull) {
		t.Errorf("full: %v, want ErrFull", err)
	}
	delete(used, netip.MustParseAddr("10.0.0.2"))
	if got, err := Allocate(p, gw, taken); err != nil || got.String() != "10.0.0.2" {
		t.Errorf("given back: %s, %v", got, err)
	}
}

func TestCheckAddress(t *testing.T) {
	p := netip.MustParsePrefix("10.0.0.0/24")
	taken := func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.9") }
	for s, want := range map[string]error{
		"10.0.0.2": nil, "10.0.0.254": nil, "10.0.0.0": ErrReserved, "10.0.0.255": ErrReserved, "10.0.0.1": ErrReserved,
		"10.0.0.9": ErrTaken, "10.0.1.2": ErrOutside, "::1": ErrOutside,
	} {
		if err := Check(p, Gateway(p), netip.MustParseAddr(s), taken); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", s, err, want)
		}
	}
}

func TestMACFollowsAddress(t *testing.T) {
	if got := MAC(netip.MustParseAddr("172.30.1.255")).String(); got != "02:42:ac:1e:01:ff" {
		t.Error(got)
	}
}
