package e2e

import (
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// wgQuick leads everything into tun0, as wg-quick does for AllowedIPs = 0.0.0.0/0.
var wgQuick = []string{
	"ip route add default dev tun0 table 51820",
	"ip rule add not fwmark 51820 table 51820",
	"ip rule add table main suppress_prefixlength 0",
}

// TestE2EVPN: a VPN's device is an uplink beside the default route's device. Containers
// reach what is behind it, also where a routing rule sends everything there, as wg-quick
// sets it. If only another uplink is named, no packet of a container enters the VPN.
func TestE2EVPN(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 1})
	tun, err := h.AddTunnel("tun0")
	if err != nil {
		t.Fatal(err)
	}
	h.Must(t, "up", "--uplink", "eth0")
	c1, far := h.Containers[0], tun.Outside
	h.Attach(t, c1, "c1")
	s := h.ServeTCP(t, far, on(far.Addr, 7))
	before := h.drops(t, "no_uplink")
	if !h.blocked(c1, s.Addr) {
		t.Error("a container gets into a tunnel that is no uplink")
	}
	h.waitDrops(t, "no_uplink", before, 1)
	h.Must(t, "up", "--uplink", "eth0", "--uplink", "tun0")
	if err := h.reaches(c1, s.Addr, passTime); err != nil {
		t.Errorf("named: %v", err)
	}
	h.ServeTCP(t, c1, on(c1.Addr, 80))
	h.Must(t, "publish", "add", "8080:80", "c1")
	if err := h.reaches(far, on(tun.HostAddr(), 8080), passTime); err != nil {
		t.Errorf("published: %v", err)
	}
	h.onHost(t, "ip route del "+far.Addr.String()+" dev tun0")
	h.onHost(t, wgQuick...)
	if err := h.reaches(c1, s.Addr, passTime); err != nil {
		t.Errorf("led there by a rule: %v", err)
	}
	assertPeers(t, s, tun.HostAddr())
}
