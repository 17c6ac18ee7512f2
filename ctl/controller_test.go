package ctl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
	"github.com/fastbr/fastbr/internal/testutil"
)

func TestUpAttachDownLeavesNothing(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	v := h.up(t)
	if v.Subnet != "172.30.0.0/16" || v.Gateway != "172.30.0.1" || v.Bridge != "fastbr0" || v.MTU != 1500 || !v.Up {
		t.Errorf("network = %+v", v)
	}
	target := testutil.NewNetns(t)
	res := h.attach(t, target.Path(), "c1")
	want := AttachResult{Name: "c1", Port: res.Port, Network: "default", Ifname: "eth0", IP: "172.30.0.2/16",
		MAC: "02:42:ac:1e:00:02", Gateway: "172.30.0.1", MTU: 1500, DNS: "172.30.0.1",
		AllowedAddresses: []string{}, AllowedMACs: []string{}, PortMAC: res.PortMAC, Bridge: "fastbr0", BridgeMAC: "02:42:ac:1e:00:01"}
	if !reflect.DeepEqual(res, want) {
		t.Errorf("attach = %+v, want %+v", res, want)
	}
	assertInside(t, target, res)
	ports, err := h.ctl(t).Ports(h.ctx, "")
	if err != nil || len(ports) != 1 {
		t.Fatalf("ports = %+v, %v", ports, err)
	}
	if p := ports[0]; p.RXPackets != 3 || p.FastPackets != 2 || p.SlowPackets != 1 || p.Drops["spoof_ip"] != 4 {
		t.Errorf("counters = %+v", p)
	}
	h.downAll(t)
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// insideOf opens a container's namespace until the test ends, and returns its eth0.
func insideOf(t *testing.T, target string) (*link.Conn, link.Device) {
	t.Helper()
	ns, err := link.OpenTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	inside, err := link.OpenIn(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(inside.Close)
	d, err := inside.ByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return inside, d
}

// assertInside wants the container's end as containers expect it.
func assertInside(t *testing.T, n *testutil.Netns, res AttachResult) {
	t.Helper()
	c, d := insideOf(t, n.Path())
	if !d.Up || d.MAC.String() != res.MAC {
		t.Errorf("eth0 = %+v", d)
	}
	if lo, err := c.ByName("lo"); err != nil || !lo.Up {
		t.Errorf("lo = %+v, %v", lo, err)
	}
	if addrs, err := c.Addrs(link.IPv4); err != nil || len(addrs[d.Index]) != 1 || addrs[d.Index][0].String() != res.IP {
		t.Errorf("addresses = %v, %v", addrs, err)
	}
	routes, err := c.Routes(link.IPv4)
	if devs := link.DefaultDevices(routes); err != nil || len(devs) != 1 || devs[0] != d.Index {
		t.Errorf("default route by %v, %v", devs, err)
	}
}

func TestUpTwiceIsOne(t *testing.T) {
	h := newHost(t)
	h.up(t)
	before := h.traces(t)
	_, created, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
	if err != nil || created {
		t.Errorf("second up: created %v, %v", created, err)
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	lease := 5 * time.Second
	if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{Lease: &lease}); err != nil {
		t.Error(err)
	}
	if f := h.fake(t); f.LeaseNow != lease {
		t.Errorf("lease = %s", f.LeaseNow)
	}
	for _, nr := range []NetworkRequest{{Bridge: "other"}, {MTU: 1400}, {Subnet: netip.MustParsePrefix("10.0.0.0/24")}} {
		if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, nr, InstanceRequest{}); !errors.Is(err, ErrExists) {
			t.Errorf("up %+v: %v, want ErrExists", nr, err)
		}
	}
	if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{NATFirst: 2000, NATLast: 3000}); err != nil {
		t.Errorf("another NAT range: %v", err)
	}
	if c := h.fake(t).Conf; c.NATFirst != 2000 || c.NATLast != 3000 {
		t.Errorf("NAT range %d-%d, want 2000-3000", c.NATFirst, c.NATLast)
	}
	h.downAll(t)
}

func TestAttachRefuses(t *testing.T) {
	h := newHost(t)
	h.up(t)
	target := testutil.NewNetns(t).Path()
	h.attach(t, target, "c1")
	before := h.traces(t)
	free := testutil.NewNetns(t).Path()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		req  AttachRequest
		want error
	}{
		{"taken name", AttachRequest{Target: free, Name: "c1"}, ErrExists},
		{"taken address", AttachRequest{Target: free, IP: netip.MustParseAddr("172.30.0.2")}, ipam.ErrTaken},
		{"gateway", AttachRequest{Target: free, IP: netip.MustParseAddr("172.30.0.1")}, ipam.ErrReserved},
		{"broadcast", AttachRequest{Target: free, IP: netip.MustParseAddr("172.30.255.255")}, ipam.ErrReserved},
		{"outside", AttachRequest{Target: free, IP: netip.MustParseAddr("10.0.0.1")}, ipam.ErrOutside},
		{"multicast MAC", AttachRequest{Target: free, MAC: net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}}, ErrInvalid},
		{"taken MAC", AttachRequest{Target: free, MAC: net.HardwareAddr{2, 0x42, 0xac, 0x1e, 0, 2}}, ErrExists},
		{"bridge's MAC", AttachRequest{Target: free, MAC: net.HardwareAddr{2, 0x42, 0xac, 0x1e, 0, 1}}, ErrExists},
		{"long ifname", AttachRequest{Target: free, Ifname: "sixteencharacter"}, ErrInvalid},
		{"bad name", AttachRequest{Target: free, Name: "a b"}, ErrInvalid},
		{"ifname there", AttachRequest{Target: free, Ifname: "lo"}, ErrExists},
		{"attached already", AttachRequest{Target: target}, ErrExists},
		{"own namespace", AttachRequest{Target: "/proc/thread-self/ns/net"}, ErrInvalid},
		{"no such path", AttachRequest{Target: "/nonexistent"}, link.ErrGone},
		{"no such name", AttachRequest{Target: "netns:fastbr-nonexistent"}, link.ErrGone},
		{"no such process", AttachRequest{Target: "pid:2147483646"}, link.ErrGone},
		{"a file", AttachRequest{Target: file}, link.ErrNotNetns},
		{"another kind", AttachRequest{Target: "/proc/self/ns/mnt"}, link.ErrNotNetns},
		{"unknown network", AttachRequest{Target: free, Network: "nosuch"}, ErrNoNetwork},
	}
	for _, test := range tests {
		// No t.Run: a subtest is another goroutine, outside of the namespace.
		_, err := h.ctl(t).Attach(h.ctx, test.req)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error has several lines: %q", test.name, err)
		}
		if after := h.traces(t); after != before {
			t.Errorf("%s: before:\n%s\nafter:\n%s", test.name, before, after)
		}
	}
	h.downAll(t)
}

func TestAttachNotUp(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	_, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: testutil.NewNetns(t).Path()})
	if !errors.Is(err, ErrNotUp) {
		t.Errorf("error %v, want ErrNotUp", err)
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestAttachSubnetFull(t *testing.T) {
	h := newHost(t)
	nr := NetworkRequest{Subnet: netip.MustParsePrefix("10.1.2.0/30")}
	if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, nr, InstanceRequest{}); err != nil {
		t.Fatal(err)
	}
	h.attach(t, testutil.NewNetns(t).Path(), "c1")
	if _, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: testutil.NewNetns(t).Path()}); !errors.Is(err, ipam.ErrFull) {
		t.Errorf("error %v, want ErrFull", err)
	}
	h.downAll(t)
}

func TestTakenSlotMovesOn(t *testing.T) {
	h := newHost(t)
	h.planes.takenSlots = map[int]bool{2: true, 3: true, 4: true, 5: true}
	h.up(t)
	res := h.attach(t, testutil.NewNetns(t).Path(), "c1")
	for _, name := range []string{res.Port, fragmentsDevice} {
		d, err := h.conn.ByName(name)
		if err != nil || h.planes.takenSlots[d.Index%datapath.MaxDevices] {
			t.Errorf("%s = %+v, %v", name, d, err)
		}
	}
	h.downAll(t)
}

func TestVanishedPortIsForgotten(t *testing.T) {
	h := newHost(t)
	h.up(t)
	res := h.attach(t, testutil.NewNetns(t).Path(), "c1")
	d, err := h.conn.ByName(res.Port)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.conn.Delete(d.Index); err != nil { // as the end of the container's namespace does
		t.Fatal(err)
	}
	if ports, err := h.ctl(t).Ports(h.ctx, ""); err != nil || len(ports) != 0 {
		t.Errorf("listed %+v, %v", ports, err)
	}
	if again := h.attach(t, testutil.NewNetns(t).Path(), "c1"); again.IP != res.IP {
		t.Errorf("the address was not given back: %s", again.IP)
	}
	if f := h.fake(t); len(f.Ports) != 1 {
		t.Errorf("datapath ports %+v", f.Ports)
	}
	h.downAll(t)
}

// TestSomebodyElsesFragmentsDevice: no reason to refuse a container, but `up` says so.
func TestSomebodyElsesFragmentsDevice(t *testing.T) {
	h := newHost(t)
	h.up(t)
	d, err := h.conn.ByName(fragmentsDevice)
	if err == nil {
		err = h.conn.Delete(d.Index)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.addDevice(t, fragmentsDevice, "", true)
	h.attach(t, testutil.NewNetns(t).Path(), "c1")
	if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{}); !errors.Is(err, ErrExists) {
		t.Errorf("up with a device of that name: %v, want ErrExists", err)
	}
	h.downAll(t)
	if _, err := h.conn.ByName(fragmentsDevice); err != nil {
		t.Errorf("somebody else's device is gone: %v", err)
	}
}

func TestLostBridgeAndPinsAreRebuilt(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, h *host){
		"bridge": func(t *testing.T, h *host) {
			d, err := h.conn.ByName(DefaultBridge)
			if err == nil {
				err = h.conn.Delete(d.Index)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"pins": func(t *testing.T, h *host) {
			if err := errors.Join(removeFakeNetns(h.ctl(t).instance.pins), os.RemoveAll(h.opts.BPFFS)); err != nil {
				t.Fatal(err)
			}
		},
		"device of the fragments": func(t *testing.T, h *host) {
			d, err := h.conn.ByName(fragmentsDevice)
			if err == nil {
				err = h.conn.Delete(d.Index)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			before := h.traces(t)
			h.up(t)
			res := h.attach(t, testutil.NewNetns(t).Path(), "c1")
			lose(t, h)
			if v := h.up(t); !v.Up || len(v.Ports) != 1 {
				t.Errorf("network = %+v", v)
			}
			bridge, err := h.conn.ByName(DefaultBridge)
			if err != nil {
				t.Fatal(err)
			}
			port, err := h.conn.ByName(res.Port)
			if err != nil || port.Master != bridge.Index || !bridge.Up || !port.Up {
				t.Errorf("port %+v, bridge %+v, %v", port, bridge, err)
			}
			frags, err := h.conn.ByName(fragmentsDevice)
			if err != nil || !frags.Carrier {
				t.Errorf("device of the fragments: %+v, %v", frags, err)
			}
			if f := h.fake(t); len(f.Ports) != 1 || len(f.Networks) != 1 || f.Ports[port.Index].Bridge != bridge.Index || f.Fragments != frags.Index {
				t.Errorf("datapath = %+v", f)
			}
			h.downAll(t)
			if after := h.traces(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

func TestUpRefusesForeignBridge(t *testing.T) {
	h := newHost(t)
	if _, err := h.conn.CreateBridge(DefaultBridge, net.HardwareAddr{2, 0, 0, 0, 0, 1}, 1500); err != nil {
		t.Fatal(err)
	}
	before := h.traces(t)
	_, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
	if !errors.Is(err, ErrExists) {
		t.Errorf("error %v, want ErrExists", err)
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestUpChoosesFreePool(t *testing.T) {
	h := newHost(t)
	h.addDevice(t, "lan0", "172.30.9.1/24", true)
	v := h.up(t)
	if v.Subnet != "192.168.0.0/20" || !strings.Contains(h.messages.String(), "172.30.0.0/16 overlaps 172.30.9") {
		t.Errorf("subnet %s, messages %q", v.Subnet, h.messages)
	}
	second, err := h.ctl(t).NetworkCreate(h.ctx, "lab", NetworkRequest{})
	if err != nil || second.Subnet != "192.168.16.0/20" {
		t.Errorf("second network %s, %v", second.Subnet, err)
	}
	nr := NetworkRequest{Subnet: netip.MustParsePrefix("172.30.9.128/25")}
	if _, err := h.ctl(t).NetworkCreate(h.ctx, "third", nr); !errors.Is(err, ipam.ErrOverlap) {
		t.Errorf("overlapping a route: %v, want ErrOverlap", err)
	}
	h.clear(t)
}

func TestUpRefusesUnfitKernel(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	h.planes.missing = "tcx,btf"
	_, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
	if !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), "tcx") || !strings.Contains(err.Error(), "6.6") {
		t.Errorf("error %v", err)
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	findings, able, err := h.ctl(t).Check(h.ctx)
	if err != nil || able {
		t.Errorf("check: able %v, %v", able, err)
	}
	missing := map[string]bool{}
	for _, f := range findings {
		missing[f.Name] = f.State == "missing"
	}
	if !missing["tcx"] || !missing["btf"] || missing["xdp"] {
		t.Errorf("findings %+v", findings)
	}
}

func TestNetworkDefinitionOutlivesDown(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	created, err := h.ctl(t).NetworkCreate(h.ctx, "lab", NetworkRequest{MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ctl(t).NetworkCreate(h.ctx, "lab", NetworkRequest{}); !errors.Is(err, ErrExists) {
		t.Errorf("second create: %v, want ErrExists", err)
	}
	h.downAll(t)
	down, err := h.ctl(t).NetworkInspect(h.ctx, "lab")
	if err != nil || down.Up || down.ID != created.ID {
		t.Errorf("after down: %+v, %v", down, err)
	}
	if _, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: testutil.NewNetns(t).Path(), Network: "lab"}); !errors.Is(err, ErrNotUp) {
		t.Errorf("attach to a defined network: %v, want ErrNotUp", err)
	}
	again, _, err := h.ctl(t).Up(h.ctx, "lab", NetworkRequest{}, InstanceRequest{})
	if err != nil || again.ID != created.ID || again.Subnet != created.Subnet || again.MTU != 1400 {
		t.Errorf("up again: %+v, %v", again, err)
	}
	if _, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: testutil.NewNetns(t).Path(), Network: "lab"}); err != nil {
		t.Error(err)
	}
	if err := h.ctl(t).NetworkRemove(h.ctx, "lab"); !errors.Is(err, ErrInUse) {
		t.Errorf("rm with ports: %v, want ErrInUse", err)
	}
	h.downAll(t)
	if err := h.ctl(t).NetworkRemove(h.ctx, "lab"); err != nil {
		t.Error(err)
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestLeftoversOfDeadInstanceAreRemoved(t *testing.T) {
	h := newHost(t)
	dead := testutil.NewNetns(t)
	var pins, dir string
	var err error
	dead.Do(t, func() {
		opts := h.opts
		opts.planes = h.planes
		var c *Controller
		if c, err = Open(opts); err == nil {
			pins, dir = c.instance.pins, c.instance.dir()
			_, _, err = c.Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	h.up(t)
	if _, err := os.Stat(pins); err != nil {
		t.Fatalf("a living instance was touched: %v", err)
	}
	// The test keeps the namespace open, so its death is played: another inode.
	b, err := os.ReadFile(filepath.Join(dir, "instance.json"))
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(string(b), `"ino":`, `"ino":9`, 1)
	if err := os.WriteFile(filepath.Join(dir, "instance.json"), []byte(forged), 0o600); err != nil {
		t.Fatal(err)
	}
	h.up(t)
	for _, path := range []string{pins, dir, dir + ".lock"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", path)
		}
	}
	h.downAll(t)
}

func TestDownAllRemovesPinsOfAnotherSchema(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	h.up(t)
	h.planes.openErr = datapath.ErrSchemaNewer
	if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{}); !errors.Is(err, datapath.ErrSchemaNewer) {
		t.Errorf("up: %v, want ErrSchemaNewer", err)
	}
	h.downAll(t)
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestSysctlsAreRestored(t *testing.T) {
	h := newHost(t)
	h.addDevice(t, "lan0", "", false)
	for path, value := range map[string]string{hostconf.Reserved: "8080,29990-30010", hostconf.Conf + "lan0/forwarding": "1"} {
		if err := hostconf.Write(path, value); err != nil {
			t.Fatal(err)
		}
	}
	before := h.traces(t)
	h.up(t)
	if v, _ := hostconf.Read(hostconf.Reserved); v != "8080,10000-30010" {
		t.Errorf("reserved ports while up: %s", v)
	}
	h.downAll(t)
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	h.up(t)
	if err := hostconf.Write(hostconf.Reserved, "8080,10000-30010,40000"); err != nil {
		t.Fatal(err)
	}
	h.downAll(t)
	if v, _ := hostconf.Read(hostconf.Reserved); v != "8080,29990-30010,40000" {
		t.Errorf("reserved ports after somebody added one: %s", v)
	}
}

func TestUplinkIsPickedUpLater(t *testing.T) {
	h := newHost(t)
	h.up(t)
	if !strings.Contains(h.messages.String(), "no default route") {
		t.Errorf("messages %q", h.messages)
	}
	index := h.addDevice(t, "wan0", "203.0.113.2/24", true)
	if err := h.conn.AddDefault(index, netip.MustParseAddr("203.0.113.1")); err != nil {
		t.Fatal(err)
	}
	h.attach(t, testutil.NewNetns(t).Path(), "c1")
	if f := h.fake(t); f.Uplinks[index].Addr != netip.MustParseAddr("203.0.113.2") {
		t.Errorf("uplinks %+v", f.Uplinks)
	}
	h.downAll(t)
}

func TestUplinkRefusals(t *testing.T) {
	h := newHost(t)
	before := h.traces(t)
	for _, name := range []string{"nosuch0", "lo"} {
		_, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{Uplinks: []string{name}})
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("uplink %s: %v", name, err)
		}
	}
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestDownAllRemovesStrayAfterLostState(t *testing.T) {
	h := newHost(t)
	h.up(t)
	h.attach(t, testutil.NewNetns(t).Path(), "c1")
	if err := os.RemoveAll(h.opts.StateDir); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{}); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "down --all") {
		t.Errorf("up: %v", err)
	}
	h.downAll(t)
	entries, err := h.conn.List()
	if err != nil || len(entries) != 1 || h.fake(t) != nil {
		t.Errorf("devices %+v, %v, pins %+v", entries, err, h.fake(t))
	}
}

func TestReconcileMends(t *testing.T) {
	h := newHost(t)
	if err := h.ctl(t).Reconcile(h.ctx); err != nil {
		t.Errorf("nothing up: %v", err)
	}
	before := h.traces(t)
	h.up(t)
	target := testutil.NewNetns(t)
	res := h.attach(t, target.Path(), "c1")
	d, err := h.conn.ByName(res.Port)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.ctl(t).Reconcile(h.ctx), hostconf.Write(hostconf.IPv4.Forwarding("fastbr0"), "0"), h.conn.SetUp(d.Index, false)); err != nil {
		t.Fatal(err)
	}
	if h.fake(t).Ports[d.Index].Slow {
		t.Error("a healthy port is slow")
	}
	if err := h.ctl(t).Reconcile(h.ctx); err != nil {
		t.Fatal(err)
	}
	if v, _ := hostconf.Read(hostconf.IPv4.Forwarding("fastbr0")); v != "1" {
		t.Errorf("forwarding of fastbr0 %s", v)
	}
	if d, err := h.conn.ByName(res.Port); err != nil || !d.Up {
		t.Errorf("the port's device: %+v, %v", d, err)
	}
	target.Do(t, func() { // the container's own end is its own affair
		inside, err := link.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer inside.Close()
		eth0, err := inside.ByName("eth0")
		if err := errors.Join(err, inside.SetUp(eth0.Index, false)); err != nil {
			t.Fatal(err)
		}
	})
	for end := time.Now().Add(carrierLimit); !h.fake(t).Ports[d.Index].Slow; time.Sleep(time.Millisecond) {
		if err := h.ctl(t).Reconcile(h.ctx); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("a port without carrier is fast")
		}
	}
	h.downAll(t)
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestAttachRefusesMoreThanABridgeHolds(t *testing.T) {
	n := &network{Definition: Definition{Name: "lab"}, Ports: map[string]*port{}}
	for i := range maxPorts {
		n.Ports[fmt.Sprint("veth", i)] = &port{}
	}
	_, err := (&operation{}).ports.create(n, AttachRequest{}, link.NetnsID{})
	if err == nil || !strings.Contains(err.Error(), "network lab has 1023 ports, the most a bridge can have") {
		t.Errorf("one port too many: %v", err)
	}
}
