package link

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// TestTentative: an address is asked about before it is used. One that the other end of
// the pair has is not given to this one.
func TestTentative(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		t.Skip("no IPv6")
	}
	c, peer := inNetns(t), openPeer(t)
	dev, _, err := c.CreateVeth(Veth{Name: "v0", PeerName: "v1", PeerMAC: net.HardwareAddr{2, 0x42, 10, 0, 0, 2}, PeerNS: peer, MTU: 1500})
	if err != nil {
		t.Fatal(err)
	}
	in, err := OpenIn(peer)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	far, err := in.ByName("v1")
	if err != nil {
		t.Fatal(err)
	}
	asking := Tentative{in, far.Index}
	taken, free := netip.MustParsePrefix("2001:db8::1/64"), netip.MustParsePrefix("2001:db8::2/64")
	err = errors.Join(c.AddAddr(dev, taken), c.SetUp(dev, true), asking.AddAddr(free))
	if err != nil {
		t.Fatal(err)
	}
	if err := asking.Wait(0); err == nil || !strings.Contains(err.Error(), "still looks") {
		t.Errorf("a device that is down and cannot ask: %v", err)
	}
	if err := in.SetUp(far.Index, true); err != nil {
		t.Fatal(err)
	}
	if err := asking.Wait(time.Minute); err != nil {
		t.Errorf("a free address: %v", err)
	}
	if err := asking.AddAddr(taken); err != nil {
		t.Fatal(err)
	}
	if err := asking.Wait(time.Minute); err == nil || !strings.Contains(err.Error(), taken.Addr().String()) || !strings.Contains(err.Error(), "another host") {
		t.Errorf("an address that the other end has: %v", err)
	}
}
