package cni

import (
	"net"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fastbr/fastbr/ctl"
)

// TestResultHasBothFamilies: of a fastbr network with IPv6, a runtime learns the addresses
// and the default routes of both families, IPv4's first, and CHECK wants both.
func TestResultHasBothFamilies(t *testing.T) {
	c := &config{Network: "six"}
	args := &skel.CmdArgs{Netns: "/run/netns/a", IfName: "eth0"}
	res := ctl.AttachResult{Ifname: "eth0", MAC: "02:42:0a:09:00:02", Port: "veth0", IP: "10.9.0.2/24", Gateway: "10.9.0.1", IP6: "2001:db8:9::2/64", Gateway6: "2001:db8:9::1"}
	out, err := c.result(args, res, allocation{})
	if err != nil || len(out.IPs) != 2 || len(out.Routes) != 2 {
		t.Fatalf("%+v, %v", out, err)
	}
	for i, want := range []struct{ address, gateway, route string }{
		{"10.9.0.2/24", "10.9.0.1", "0.0.0.0/0"}, {"2001:db8:9::2/64", "2001:db8:9::1", "::/0"},
	} {
		ip, route := out.IPs[i], out.Routes[i]
		if ip.Address.String() != want.address || ip.Gateway.String() != want.gateway || *ip.Interface != 2 || route.Dst.String() != want.route || route.GW.String() != want.gateway {
			t.Errorf("address %v, route %v, want %v", ip, route, want)
		}
	}
	to := destinations(out.Routes)
	if len(to) != 2 || to[1].Dst.String() != "::/0" {
		t.Errorf("CHECK wants the routes %v", to)
	}
	if err := agree(out, res, args.Netns); err != nil {
		t.Error(err)
	}
	less := *out
	less.IPs = []*current.IPConfig{out.IPs[0]}
	if err := agree(&less, res, args.Netns); err == nil {
		t.Error("CHECK does not miss the IPv6 address")
	}
}

// given is what an IPAM plugin gives out: addresses, and default routes of both families.
func given(t *testing.T, addrs ...string) (allocation, error) {
	t.Helper()
	var ips []*current.IPConfig
	for _, text := range addrs {
		ip, n, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		n.IP = ip
		ips = append(ips, &current.IPConfig{Address: *n})
	}
	var a allocation
	return a, a.assign(ips)
}

// TestOneAddressOfEachFamily: an IPAM plugin gives one IPv4 address and at most one IPv6
// address, in either order, which the result keeps.
func TestOneAddressOfEachFamily(t *testing.T) {
	for addrs, want := range map[string]string{
		"10.9.0.2/24":                                 "10.9.0.2/24",
		"10.9.0.2/24 2001:db8:9::2/64":                "10.9.0.2/24 2001:db8:9::2/64",
		"2001:db8:9::2/64 10.9.0.2/24":                "2001:db8:9::2/64 10.9.0.2/24",
		"2001:db8:9::2/64":                            "",
		"10.9.0.2/24 10.9.0.3/24":                     "",
		"10.9.0.2/24 2001:db8:9::2/64 2001:db8::9/64": "",
	} {
		a, err := given(t, strings.Fields(addrs)...)
		if (err != nil) != (want == "") || err != nil && codeOf(err) != types.ErrUnsupportedField {
			t.Errorf("%s: %v, want %q", addrs, err, want)
		}
		if err != nil {
			continue
		}
		res := ctl.AttachResult{IP: a.v4.addr.String(), Gateway: "10.9.0.1"}
		if a.v6.addr.IsValid() {
			res.IP6, res.Gateway6 = a.v6.addr.String(), "2001:db8:9::1"
		}
		out, err := parsed(t, bridged, "").result(&skel.CmdArgs{}, res, a)
		var got []string
		for _, ip := range out.IPs {
			got = append(got, ip.Address.String())
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: the result has %v (%v), want %s", addrs, got, err, want)
		}
	}
	if _, err := given(t); err == nil {
		t.Error("no address at all is taken")
	}
}

// TestBridgeBecomesNetworkOfBothFamilies: ipMasq is for both families, and a bridge that is
// no gateway leads nowhere by either.
func TestBridgeBecomesNetworkOfBothFamilies(t *testing.T) {
	both, err := given(t, "10.88.0.5/16", "2001:db8:9::5/64")
	if err != nil {
		t.Fatal(err)
	}
	yes, no := true, false
	for keys, masq := range map[string]*bool{
		bridged:                         nil,
		bridged + `, "isGateway": true`: &no,
		bridged + `, "isGateway": true, "ipMasq": true`:         &yes,
		bridged + `, "isDefaultGateway": true, "ndProxy": true`: &no,
	} {
		r := parsed(t, keys, "").network(both)
		if r.IPv6 != ctl.IPv6On || r.Subnet6.String() != "2001:db8:9::/64" || (r.Masquerade6 == nil) != (masq == nil) || masq != nil && *masq != *r.Masquerade6 {
			t.Errorf("%s: %s %s, masquerade %v", keys, r.IPv6, r.Subnet6, r.Masquerade6)
		}
		if proxy := r.NDProxy != nil && *r.NDProxy; proxy != strings.Contains(keys, "ndProxy") {
			t.Errorf("%s: nd-proxy %v", keys, proxy)
		}
	}
	one, err := given(t, "10.88.0.5/16")
	if r := parsed(t, bridged+`, "isGateway": true`, "").network(one); err != nil || r.IPv6 != ctl.IPv6Off || r.Subnet6.IsValid() || r.Masquerade6 != nil {
		t.Errorf("of one family: %+v, %v", r, err)
	}
	if code := codeOf(parsed(t, bridged+`, "ipMasq": true, "ndProxy": true`, "").check()); code != types.ErrInvalidNetworkConfig {
		t.Errorf("ndProxy beside ipMasq: code %d", code)
	}
}

// TestDefaultGatewayOfBothFamilies: isDefaultGateway adds what the IPAM plugin does not say.
func TestDefaultGatewayOfBothFamilies(t *testing.T) {
	a, err := given(t, "10.88.0.5/16", "2001:db8:9::5/64")
	if err != nil {
		t.Fatal(err)
	}
	_, any6, _ := net.ParseCIDR("::/0")
	a.routes = []*types.Route{{Dst: *any6, GW: net.ParseIP("2001:db8:9::7")}}
	a.addDefaults()
	if len(a.routes) != 2 || a.routes[1].Dst.String() != "0.0.0.0/0" {
		t.Errorf("routes %v, want one default route of each family", a.routes)
	}
	a.routes, a.v6 = nil, assignment{}
	a.addDefaults()
	if len(a.routes) != 1 {
		t.Errorf("routes %v of a container without IPv6", a.routes)
	}
}
