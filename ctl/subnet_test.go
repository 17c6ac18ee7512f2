package ctl

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/internal/testutil"
)

// TestFixedSubnet: a subnet that somebody has chosen gives way to nothing but
// what it would cut off. The same routes keep fastbr from choosing it itself.
func TestFixedSubnet(t *testing.T) {
	h := newHost(t)
	h.addDevice(t, "lan0", "10.1.0.1/24", true)
	h.addDevice(t, "far0", "10.2.0.0/32", true) // as flannel.1
	for _, route := range []string{
		"10.0.0.0/8 via 10.1.0.9",
		"blackhole 10.2.0.0/16",
		"10.2.1.0/24 via 10.2.1.0 dev far0 onlink",
		"10.3.0.0/16 dev lan0 table 100",
		"10.4.0.0/16 dev lan0", // as wg-quick adds them
		"default via 10.5.0.1 dev lan0 onlink",
	} {
		if out, err := exec.Command("ip", append([]string{"route", "add"}, strings.Fields(route)...)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", route, err, out)
		}
	}
	h.up(t)
	for subnet, why := range map[string]string{
		"10.2.0.0/24":   "",
		"10.2.1.0/24":   "",
		"10.2.0.0/16":   "",
		"10.3.0.0/16":   "",
		"10.4.7.0/24":   "",
		"10.1.0.128/25": "overlaps 10.1.0.0/24, which this host's device lan0 is in",
		"10.0.0.0/15":   "overlaps 10.1.0.0/24, which this host's device lan0 is in",
		"10.5.0.0/24":   "overlaps 10.5.0.1, which this host's default route leads to",
		"172.30.7.0/24": "overlaps 172.30.0.0/16 of network default",
	} {
		nr := NetworkRequest{Subnet: netip.MustParsePrefix(subnet)}
		_, err := h.ctl(t).NetworkCreate(h.ctx, "fixed", nr)
		switch {
		case why == "" && err != nil:
			t.Errorf("%s: %v", subnet, err)
		case why != "" && (!errors.Is(err, ipam.ErrOverlap) || !strings.Contains(err.Error(), why)):
			t.Errorf("%s: %v, want %q", subnet, err, why)
		}
		if why == "" {
			// As after a reboot.
			_, down := h.ctl(t).Down(h.ctx, "fixed")
			_, _, up := h.ctl(t).Up(h.ctx, "fixed", NetworkRequest{}, InstanceRequest{})
			if err := errors.Join(down, up, h.ctl(t).NetworkRemove(h.ctx, "fixed")); err != nil {
				t.Errorf("%s, defined: %v", subnet, err)
			}
		}
	}
	h.clear(t)
}

// TestContainersDoNotGetTheHostsAddresses, which a subnet of the user's may contain.
func TestContainersDoNotGetTheHostsAddresses(t *testing.T) {
	h := newHost(t)
	h.addDevice(t, "vip0", "10.9.0.2/32", true)
	if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{Subnet: netip.MustParsePrefix("10.9.0.0/24")}, InstanceRequest{}); err != nil {
		t.Fatal(err)
	}
	c1, c2 := testutil.NewNetns(t).Path(), testutil.NewNetns(t).Path()
	if got := h.attach(t, c1, "c1"); got.IP != "10.9.0.3/24" {
		t.Errorf("c1 has %s, want 10.9.0.3/24", got.IP)
	}
	_, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: c2, Name: "c2", IP: netip.MustParseAddr("10.9.0.2")})
	if !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("the host's address: %v, want ErrTaken", err)
	}
	h.clear(t)
}

// TestBridgeOfTheSameName is named, not its addresses.
func TestBridgeOfTheSameName(t *testing.T) {
	h := newHost(t)
	h.addDevice(t, "br-x", "10.9.0.1/24", true)
	nr := NetworkRequest{Bridge: "br-x", Subnet: netip.MustParsePrefix("10.9.0.0/24")}
	if _, err := h.ctl(t).NetworkCreate(h.ctx, "lab", nr); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "device br-x exists") {
		t.Errorf("a bridge that exists: %v", err)
	}
	h.up(t)
	nr.Bridge = DefaultBridge
	if _, err := h.ctl(t).NetworkCreate(h.ctx, "lab", nr); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "the bridge of network default") {
		t.Errorf("another network's bridge: %v", err)
	}
	h.clear(t)
}
