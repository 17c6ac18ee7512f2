package cni

import (
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
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
