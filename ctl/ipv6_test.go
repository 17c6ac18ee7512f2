package ctl

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/internal/testutil"
)

// needIPv6 skips a test on a kernel without IPv6.
func needIPv6(t *testing.T) {
	t.Helper()
	if !hostconf.HasIPv6() {
		t.Skip("no IPv6")
	}
}

// A network with IPv6 has it on its bridge and in its containers, and it is gone afterwards.
func TestIPv6UpAttachDown(t *testing.T) {
	needIPv6(t)
	h := newHost(t)
	before := h.traces(t)
	subnet, gateway := netip.MustParsePrefix("2001:db8:9::/64"), netip.MustParseAddr("2001:db8:9::1")
	v, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{Subnet6: subnet}, InstanceRequest{})
	if err != nil || v.IPv6 != IPv6On || v.Subnet6 != subnet.String() || v.Gateway6 != gateway.String() {
		t.Fatalf("network %+v, %v", v, err)
	}
	target := testutil.NewNetns(t)
	res := h.attach(t, target.Path(), "c1")
	if res.IP6 != "2001:db8:9::2/64" || res.Gateway6 != gateway.String() {
		t.Errorf("attach = %+v", res)
	}
	if second := h.attach(t, testutil.NewNetns(t).Path(), "c2"); second.IP6 != "2001:db8:9::3/64" {
		t.Errorf("the second port has %s", second.IP6)
	}
	_, err = h.ctl(t).Attach(h.ctx, AttachRequest{Target: testutil.NewNetns(t).Path(), IP6: netip.MustParseAddr("2001:db8:9::2")})
	if !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("an address that is taken: %v", err)
	}
	h.wantIPv6(t, "fastbr0", "2001:db8:9::1/64", "fe80::42:acff:fe1e:1/64")
	inside, d := insideOf(t, target.Path())
	if addrs, err := inside.Addrs(link.IPv6); err != nil || !sameSet(addrs[d.Index], "2001:db8:9::2/64", "fe80::42:acff:fe1e:2/64") {
		t.Errorf("inside are the addresses %v, %v", addrs[d.Index], err)
	}
	routes, err := inside.Routes(link.IPv6)
	if devs := link.DefaultDevices(routes); err != nil || !slices.Equal(devs, []int{d.Index}) {
		t.Errorf("default route by %v, %v", devs, err)
	}
	f := h.fake(t)
	for _, n := range f.Networks {
		if n.Subnet6 != subnet || n.Gateway6 != gateway {
			t.Errorf("the datapath knows %+v", n)
		}
	}
	for _, p := range f.Ports {
		if !subnet.Contains(p.IP6) {
			t.Errorf("the datapath knows %+v", p)
		}
	}
	h.downAll(t)
	if after := h.traces(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestIPv6Endpoint: an engine's endpoint has an address and a gateway of each family. The one
// that has either address of a new one is taken for forgotten.
func TestIPv6Endpoint(t *testing.T) {
	needIPv6(t)
	h := newHost(t)
	if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{Subnet6: netip.MustParsePrefix("fd00:1::/64")}, InstanceRequest{}); err != nil {
		t.Fatal(err)
	}
	first := h.endpoint(t, "e1")
	if first.IP6.String() != "fd00:1::2/64" || first.Gateway6.String() != "fd00:1::1" {
		t.Errorf("%+v", first)
	}
	e := h.ctl(t).Engine()
	if _, err := e.EndpointCreate(h.ctx, EndpointRequest{Network: DefaultNetwork, Name: "e2", IP: netip.MustParseAddr("172.30.0.9"), IP6: netip.MustParseAddr("fd00:1::9")}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.EndpointCreate(h.ctx, EndpointRequest{Network: DefaultNetwork, Name: "e3", IP: netip.MustParseAddr("172.30.0.8"), IP6: first.IP6.Addr()}); err != nil {
		t.Fatal(err)
	}
	if got := h.portNames(t); !slices.Equal(slices.Sorted(slices.Values(got)), []string{"e2", "e3"}) {
		t.Errorf("ports %v, want e1 to make room", got)
	}
	if v, err := e.EndpointJoin(h.ctx, DefaultNetwork, "e2", "/nowhere"); err != nil || v.IP6.String() != "fd00:1::9/64" {
		t.Errorf("join: %+v, %v", v, err)
	}
}

func sameSet(got []netip.Prefix, want ...string) bool {
	return slices.Equal(slices.Sorted(slices.Values(texts(got))), slices.Sorted(slices.Values(want)))
}

// wantIPv6 wants a device of the host to have exactly these addresses.
func (h *host) wantIPv6(t *testing.T, device string, want ...string) {
	t.Helper()
	d, err := h.conn.ByName(device)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := h.conn.Addrs(link.IPv6)
	if err != nil || !sameSet(addrs[d.Index], want...) {
		t.Errorf("%s has the addresses %v (%v), want %v", device, addrs[d.Index], err, want)
	}
}

// Where IPv6 is by link-local addresses, or not at all, nothing else is there.
func TestIPv6LinkLocalAndNone(t *testing.T) {
	needIPv6(t)
	for mode, want := range map[string][]string{
		IPv6LinkLocal: {"fe80::42:acff:fe1e:2/64"},
		IPv6Off:       nil,
	} {
		t.Run(mode, func(t *testing.T) {
			h := newHost(t)
			defer h.downAll(t)
			if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{IPv6: mode}, InstanceRequest{}); err != nil {
				t.Fatal(err)
			}
			target := testutil.NewNetns(t)
			if res := h.attach(t, target.Path(), "c1"); res.IP6 != "" || res.Gateway6 != "" {
				t.Errorf("attach = %+v", res)
			}
			inside, d := insideOf(t, target.Path())
			if addrs, err := inside.Addrs(link.IPv6); err != nil || !sameSet(addrs[d.Index], want...) {
				t.Errorf("inside are the addresses %v (%v), want %v", addrs[d.Index], err, want)
			}
			_, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: testutil.NewNetns(t).Path(), IP6: netip.MustParseAddr("2001:db8::2")})
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("an IPv6 address there: %v", err)
			}
		})
	}
}

// What others change of a bridge's IPv6 is put back, the neighbours included.
func TestIPv6IsMended(t *testing.T) {
	needIPv6(t)
	for name, damage := range map[string][]string{
		"setting":    {"sysctl", "-qw", "net.ipv6.conf.fastbr0.accept_ra=2"},
		"off":        {"sysctl", "-qw", "net.ipv6.conf.fastbr0.disable_ipv6=1"},
		"address":    {"ip", "addr", "del", "2001:db8:9::1/64", "dev", "fastbr0"},
		"link-local": {"ip", "addr", "del", "fe80::42:acff:fe1e:1/64", "dev", "fastbr0"},
		"snooping":   {"ip", "link", "set", "fastbr0", "type", "bridge", "mcast_snooping", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			defer h.downAll(t)
			up := func() {
				t.Helper()
				if _, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{Subnet6: netip.MustParsePrefix("2001:db8:9::/64")}, InstanceRequest{}); err != nil {
					t.Fatal(err)
				}
			}
			up()
			h.attach(t, testutil.NewNetns(t).Path(), "c1")
			if out, err := exec.Command(damage[0], damage[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			h.messages.Reset()
			up()
			if said := h.messages.String(); !strings.Contains(said, ": mended") {
				t.Errorf("said %q", said)
			}
			h.messages.Reset()
			up()
			if said := h.messages.String(); strings.Contains(said, "mended") {
				t.Errorf("mended again: %q", said)
			}
			h.wantIPv6(t, "fastbr0", "2001:db8:9::1/64", "fe80::42:acff:fe1e:1/64")
			if lacks := hostconf.LacksIPv6("fastbr0"); lacks != "" {
				t.Error(lacks)
			}
			out, err := exec.Command("ip", "-6", "neigh", "show", "nud", "permanent").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "2001:db8:9::2 dev fastbr0 lladdr 02:42:ac:1e:00:02") {
				t.Errorf("neighbours %s, %v", out, err)
			}
		})
	}
}

// The host's own prefix is chosen once. Networks of it do not overlap each other, nor what
// the host uses.
func TestIPv6Site(t *testing.T) {
	defs := definitions{dir: filepath.Join(t.TempDir(), "networks")}
	site, err := defs.site()
	if err != nil || site.Bits() != 48 || !netip.MustParsePrefix("fd00::/8").Contains(site.Addr()) {
		t.Fatalf("%v, %v", site, err)
	}
	if again, err := defs.site(); err != nil || again != site {
		t.Errorf("%v, %v, want %v again", again, err, site)
	}
	if other, err := (definitions{dir: filepath.Join(t.TempDir(), "networks")}).site(); err != nil || other == site {
		t.Errorf("two hosts have the prefix %v, %v", other, err)
	}
	first, _ := ipam.NextOf(site, 0, nil)
	second, _ := ipam.NextOf(site, 0, []netip.Prefix{first})
	used := usedAddrs{site: defs.site, networks: map[netip.Prefix]string{first: "one"}, routes: []netip.Prefix{second}}
	def, _, err := define("two", NetworkRequest{IPv6: IPv6On}, used)
	if err != nil || !site.Overlaps(def.Subnet6) || def.Subnet6.Overlaps(first) || def.Subnet6.Overlaps(second) || def.Gateway6 != def.Subnet6.Addr().Next() {
		t.Errorf("%+v, %v", def, err)
	}
	if _, _, err := define("two", NetworkRequest{Subnet6: first}, used); !errors.Is(err, ipam.ErrOverlap) {
		t.Errorf("a subnet of another network: %v", err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(defs.dir), siteFile), []byte("2001:db8::/64\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := defs.site(); !errors.Is(err, errDamaged) {
		t.Errorf("a damaged prefix: %v", err)
	}
}

// An MTU that IPv6 cannot have is refused where it comes from the uplink, too.
func TestIPv6NeedsAnMTU(t *testing.T) {
	n := &network{Definition: Definition{Name: "lab", LinkLocal6: true}, MTU: minMTU6 - 1}
	if err := n.fitsIPv6(); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnfit) {
		t.Error(err)
	}
	n.LinkLocal6 = false
	if err := n.fitsIPv6(); err != nil {
		t.Error(err)
	}
}
