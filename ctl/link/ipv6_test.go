package link

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ipv6Pair makes a pair of devices into another namespace, whose end there has this MAC
// address. dev and far are the ends' ifindexes. It skips a test on a kernel without IPv6.
func ipv6Pair(t *testing.T, mac net.HardwareAddr) (c *Conn, dev int, in *Conn, far int) {
	t.Helper()
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		t.Skip("no IPv6")
	}
	c, peer := inNetns(t), openPeer(t)
	dev, _, err := c.CreateVeth(Veth{Name: "v0", PeerName: "v1", PeerMAC: mac, PeerNS: peer, MTU: 1500})
	if err != nil {
		t.Fatal(err)
	}
	if in, err = OpenIn(peer); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.Close)
	d, err := in.ByName("v1")
	if err != nil {
		t.Fatal(err)
	}
	return c, dev, in, d.Index
}

// TestIPv6 gives both ends of a pair IPv6 addresses, routes and neighbours. The far end
// learns a MAC address from an announcement.
func TestIPv6(t *testing.T) {
	here, there := net.HardwareAddr{2, 0x42, 10, 0, 0, 1}, net.HardwareAddr{2, 0x42, 10, 0, 0, 2}
	c, dev, in, far := ipv6Pair(t, there)
	for _, end := range []*Conn{c, in} { // without lo there are no routes to the own addresses
		lo, err := end.ByName("lo")
		if err == nil {
			err = end.SetUp(lo.Index, true)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ours, theirs := netip.MustParsePrefix("2001:db8::1/64"), netip.MustParsePrefix("2001:db8::2/64")
	if err := c.SetMAC(dev, here); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is there already is no error
		err := errors.Join(c.AddAddr(dev, ours), in.AddAddr(far, theirs), c.SetUp(dev, true), in.SetUp(far, true),
			in.AddDefault(far, ours.Addr()),
			c.AddRoute(Route{Dst: netip.MustParsePrefix("2001:db8:5::/48"), Index: dev, Gateway: theirs.Addr()}))
		if err != nil {
			t.Fatal(err)
		}
	}
	if !c.WaitCarrier(dev, carrierTestLimit) {
		t.Fatal("no carrier")
	}
	if addrs, err := c.Addrs(IPv6); err != nil || !slices.Contains(addrs[dev], ours) {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	if has, err := c.WithAddr(ours.Addr()); err != nil || len(has) != 1 || has[0].Index != dev {
		t.Errorf("devices with %s: %v, %v", ours.Addr(), has, err)
	}
	routes, err := c.Routes(IPv6)
	if err != nil {
		t.Fatal(err)
	}
	for dst, connected := range map[string]bool{"2001:db8::/64": true, "2001:db8:5::/48": false} {
		if !slices.ContainsFunc(routes, func(r Route) bool {
			return r.Dst.String() == dst && r.Index == dev && r.Connected == connected && r.Leads && !r.Local
		}) {
			t.Errorf("no route to %s as wanted in %+v", dst, routes)
		}
	}
	inside, err := in.Routes(IPv6)
	if err != nil || !slices.Equal(DefaultDevices(inside), []int{far}) {
		t.Errorf("default devices of %+v: %v, %v", inside, DefaultDevices(inside), err)
	}
	if err := errors.Join(c.AddNeighbour(dev, theirs.Addr(), there), c.DeleteNeighbour(dev, theirs.Addr()), c.DeleteNeighbour(dev, theirs.Addr())); err != nil {
		t.Error(err)
	}

	// The far end knows us by a wrong MAC address.
	if err := in.AddNeighbour(far, ours.Addr(), net.HardwareAddr{2, 0, 0, 0, 0, 9}); err != nil {
		t.Fatal(err)
	}
	stale := neighbour(far, ours.Addr())
	stale.State, stale.HardwareAddr = unix.NUD_STALE, net.HardwareAddr{2, 0, 0, 0, 0, 9}
	if err := in.h.NeighSet(stale); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(carrierTestLimit); ; time.Sleep(10 * time.Millisecond) {
		if err := Announce(dev, ours.Addr(), here); err != nil {
			t.Fatal(err)
		}
		list, err := in.neighbours(netlink.Ndmsg{})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(n netlink.Neigh) bool { return n.IP.Equal(ours.Addr().AsSlice()) })
		if i >= 0 && list[i].HardwareAddr.String() == here.String() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the announcement was not heard: %v", list)
		}
	}
}
