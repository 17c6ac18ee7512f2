package link

import (
	"bytes"
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

// carrierTestLimit only catches hangs.
const carrierTestLimit = 10 * time.Second

// inNetns moves the test into its own namespace and connects to it.
func inNetns(t *testing.T) *Conn {
	t.Helper()
	testutil.NewNetns(t).Enter(t)
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func openPeer(t *testing.T) *Netns {
	t.Helper()
	ns, err := OpenTarget(testutil.NewNetns(t).Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

func TestBridgeAndPort(t *testing.T) {
	c, peer := inNetns(t), openPeer(t)
	mac := net.HardwareAddr{2, 0x42, 10, 0, 0, 1}
	bridge, err := c.CreateBridge("br0", mac, 1400)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateBridge("br0", mac, 1400); !errors.Is(err, ErrExists) {
		t.Errorf("second creation: %v, want ErrExists", err)
	}
	if err := errors.Join(c.ShapeBridge(bridge, true), c.SetAlias(bridge, "ours"), c.SetUp(bridge, true)); err != nil {
		t.Fatal(err)
	}
	inside := net.HardwareAddr{2, 0x42, 10, 0, 0, 2}
	port, _, err := c.CreateVeth(Veth{Name: "v0", Alias: "ours", Index: 77, PeerName: "eth0", PeerMAC: inside, PeerNS: peer, MTU: 1400})
	if err != nil || port != 77 {
		t.Fatalf("port %d, %v", port, err)
	}
	err = errors.Join(c.SetMaster(port, bridge), c.AddFDB(port, inside), c.SetUp(port, true),
		c.AddNeighbour(bridge, netip.MustParseAddr("10.0.0.2"), inside))
	if err != nil {
		t.Fatal(err)
	}
	in, err := OpenIn(peer)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	d, err := in.ByName("eth0")
	if err != nil || d.MAC.String() != inside.String() || d.MTU != 1400 {
		t.Fatalf("peer %+v, %v", d, err)
	}
	if err := in.SetUp(d.Index, true); err != nil {
		t.Fatal(err)
	}
	if !c.WaitCarrier(port, carrierTestLimit) {
		t.Error("no carrier")
	}
	entries, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Name == "br0" })
	if e := entries[i]; e.Kind != "bridge" || e.Alias != "ours" || e.STP || !bytes.Equal(e.ID[:], append([]byte{0x80, 0}, mac...)) {
		t.Errorf("bridge entry %+v", e)
	}
	if p, err := c.ByIndex(port); err != nil || p.Master != bridge || p.Kind != "veth" || !p.Ethernet {
		t.Errorf("port %+v, %v", p, err)
	}
	for range 2 {
		if err := errors.Join(c.DeleteNeighbour(bridge, netip.MustParseAddr("10.0.0.2")), c.Delete(port)); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.ByName("v0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after deletion: %v, want ErrNotFound", err)
	}
}

func TestRoutesOfAllTables(t *testing.T) {
	c, peer := inNetns(t), openPeer(t)
	dev, _, err := c.CreateVeth(Veth{Name: "v0", PeerName: "v1", PeerNS: peer})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.AddAddr(dev, netip.MustParsePrefix("10.0.0.1/24")), c.SetUp(dev, true)); err != nil {
		t.Fatal(err)
	}
	if err := c.AddDefault(dev, netip.MustParseAddr("10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	routes, err := c.Routes(IPv4)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range routes {
		got = append(got, r.Dst.String())
	}
	for _, want := range []string{"0.0.0.0/0", "10.0.0.0/24", "10.0.0.1/32"} {
		if !slices.Contains(got, want) {
			t.Errorf("routes %v lack %s", got, want)
		}
	}
	if devs := DefaultDevices(routes); !slices.Equal(devs, []int{dev}) {
		t.Errorf("default devices %v", devs)
	}
	if leading := Leading(routes); len(leading) != 1 || !leading[dev].Leads {
		t.Errorf("leading devices %v, want %d only", leading, dev)
	}
}

// TestSourceOfADeviceWithoutAddress: a device that has no address of its own leads with
// another's.
func TestSourceOfADeviceWithoutAddress(t *testing.T) {
	c, peer := inNetns(t), openPeer(t)
	bare, _, err := c.CreateVeth(Veth{Name: "v0", PeerName: "v1", PeerNS: peer})
	if err != nil {
		t.Fatal(err)
	}
	lo, err := c.ByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.SetUp(lo.Index, true), c.SetUp(bare, true), c.AddRoute(Route{Index: bare, Dst: netip.MustParsePrefix("0.0.0.0/1"), Scope: unix.RT_SCOPE_LINK})); err != nil {
		t.Fatal(err)
	}
	source := func(want netip.Addr) {
		t.Helper()
		routes, err := c.Routes(IPv4)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Source(bare, Leading(routes)[bare]); err != nil || got != want {
			t.Errorf("source %v, %v, want %v", got, err, want)
		}
	}
	source(netip.Addr{})
	a := netip.MustParseAddr("192.0.2.77")
	if err := c.AddAddr(lo.Index, netip.PrefixFrom(a, 32)); err != nil {
		t.Fatal(err)
	}
	source(a)
}

func TestDefaultDevicesOfLowestMetric(t *testing.T) {
	any4 := netip.MustParsePrefix("0.0.0.0/0")
	main := unix.RT_TABLE_MAIN
	tests := []struct {
		name   string
		routes []Route
		want   []int
	}{
		{"none", nil, nil},
		{"another table", []Route{{Dst: any4, Index: 2, Table: 100}}, nil},
		{"lower metric wins", []Route{{Dst: any4, Index: 2, Table: main, Metric: 600}, {Dst: any4, Index: 3, Table: main, Metric: 100}}, []int{3}},
		{"multipath", []Route{{Dst: any4, Table: main, hops: []int{5, 4, 5}}}, []int{4, 5}},
		{"unreachable", []Route{{Dst: any4, Table: main}}, nil},
	}
	for _, test := range tests {
		if got := DefaultDevices(test.routes); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestOpenTargetRefuses(t *testing.T) {
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]error{
		"": ErrGone, "/nonexistent": ErrGone, "netns:fastbr-none": ErrGone, "netns:../x": ErrTarget, "netns:": ErrTarget,
		"pid:0": ErrTarget, "pid:x": ErrTarget, "pid:2147483646": ErrGone, file: ErrNotNetns, fifo: ErrNotNetns,
		"/proc/self/ns/mnt": ErrNotNetns, file + "/x": ErrGone, dir: ErrNotNetns,
	} {
		if ns, err := OpenTarget(target); !errors.Is(err, want) {
			t.Errorf("%q: %v, %v, want %v", target, ns, err, want)
		}
	}
}

func TestDoLeavesCallerAlone(t *testing.T) {
	peer := openPeer(t)
	before, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	var inside NetnsID
	err = peer.Do(func() error {
		ns, err := Current()
		if err == nil {
			inside = ns.ID()
			ns.Close()
		}
		return err
	})
	if err != nil || inside != peer.ID() || inside == before.ID() {
		t.Errorf("inside %v, target %v, before %v, %v", inside, peer.ID(), before.ID(), err)
	}
}

func TestGratuitousARP(t *testing.T) {
	mac := net.HardwareAddr{2, 0x42, 10, 0, 0, 2}
	f := gratuitousARP(netip.MustParseAddr("10.0.0.2"), mac)
	want := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0x42, 10, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
		2, 0x42, 10, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2}
	if !bytes.Equal(f, want) {
		t.Errorf("% x", f)
	}
}

func TestQueuesTellWhatIsUpAndShaped(t *testing.T) {
	c, peer := inNetns(t), openPeer(t)
	dev, _, err := c.CreateVeth(Veth{Name: "v0", PeerName: "v1", PeerNS: peer, MTU: 1500})
	if err != nil {
		t.Fatal(err)
	}
	want := func(there, shaped bool) {
		t.Helper()
		queues, err := c.Queues()
		if got, ok := queues[dev]; err != nil || ok != there || got != shaped {
			t.Errorf("there %v, shaped %v, %v; want %v, %v", ok, got, err, there, shaped)
		}
	}
	want(false, false) // never up
	if err := c.SetUp(dev, true); err != nil {
		t.Fatal(err)
	}
	want(true, false)
	if err := c.SetUp(dev, false); err != nil {
		t.Fatal(err)
	}
	want(true, false)
	if err := c.Shape(dev, 1500, Limit{Rate: 1e6}); err != nil {
		t.Fatal(err)
	}
	want(true, true)
	if err := c.Delete(dev); err != nil {
		t.Fatal(err)
	}
	want(false, false)
}

func TestDeleteAllTakesOnlyThese(t *testing.T) {
	c, peer := inNetns(t), openPeer(t)
	var pairs []int
	for _, name := range []string{"v0", "v1", "v2", "v3"} {
		index, _, err := c.CreateVeth(Veth{Name: name, PeerName: name, PeerMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, PeerNS: peer, MTU: 1500})
		if err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, index)
	}
	if err := c.Delete(pairs[0]); err != nil {
		t.Fatal(err)
	}
	for range 2 { // devices that are gone are no error, whether some or all
		if err := c.DeleteAll(pairs[:3]); err != nil {
			t.Error(err)
		}
	}
	for i, index := range pairs {
		if _, err := c.ByIndex(index); (err == nil) != (i == 3) {
			t.Errorf("v%d after deleting v0 to v2: %v", i, err)
		}
	}
	if _, err := c.ByName("lo"); err != nil {
		t.Error(err)
	}
}

// TestBucketFits checks the numbers given to the kernel at the ends of their
// range.
func TestBucketFits(t *testing.T) {
	for _, x := range []struct {
		limit        Limit
		burst, queue uint64 // bytes
	}{
		{Limit{Rate: 2_500_000, Burst: 100_000}, 100_000, 62_500},
		{Limit{Rate: 2_500_000}, 2 * 1514, 62_500},                       // a bucket holds two frames
		{Limit{Rate: 125, Burst: 0}, 2 * 1514, 24 * 1514},                // and some may wait
		{Limit{Rate: 125_000, Burst: 1 << 40}, math.MaxInt32, 24 * 1514}, // kubelet's largest values are not far below
	} {
		q := x.limit.tbf(1, 1500)
		if got := uint64(q.Limit); got != x.burst+x.queue {
			t.Errorf("%+v: limit %d, want %d + %d", x.limit, got, x.burst, x.queue)
		}
		ticks := float64(x.burst) / float64(x.limit.Rate) * 1e6 * netlink.TickInUsec()
		if want := min(ticks, math.MaxUint32); math.Abs(float64(q.Buffer)-want) > 1 {
			t.Errorf("%+v: buffer %d ticks, want %.0f", x.limit, q.Buffer, want)
		}
	}
}
