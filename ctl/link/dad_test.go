package link

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestTentative: an address is asked about before it is used. One that the other end of
// the pair has is not given to this one.
func TestTentative(t *testing.T) {
	c, dev, in, far := ipv6Pair(t, net.HardwareAddr{2, 0x42, 10, 0, 0, 2})
	asking := Tentative{in, far}
	taken, free := netip.MustParsePrefix("2001:db8::1/64"), netip.MustParsePrefix("2001:db8::2/64")
	err := errors.Join(c.AddAddr(dev, taken), c.SetUp(dev, true), asking.AddAddr(free))
	if err != nil {
		t.Fatal(err)
	}
	if err := asking.Wait(0); err == nil || !strings.Contains(err.Error(), "still looks") {
		t.Errorf("a device that is down and cannot ask: %v", err)
	}
	if err := in.SetUp(far, true); err != nil {
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
