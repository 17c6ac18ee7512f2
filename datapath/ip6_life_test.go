package datapath

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/fastbr/fastbr/internal/testutil"
)

// hooked are the programs on a hook of a device, in their order.
func hooked(t *testing.T, ifindex int, at ebpf.AttachType) (ids []uint32) {
	t.Helper()
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at})
	check(t, err)
	for _, p := range r.Programs {
		ids = append(ids, uint32(p.ID))
	}
	return ids
}

// wantHooked asserts that a port has the programs of both families, IPv4's first.
func (h sixth) wantHooked(t *testing.T, p Port) {
	t.Helper()
	for at, name := range map[ebpf.AttachType]string{ebpf.AttachTCXIngress: tcProgFbrPortIn, ebpf.AttachTCXEgress: tcProgFbrPortOut} {
		want := []uint32{idOf(t, h.four.progs[name]), idOf(t, h.six.progs[name])}
		if got := hooked(t, p.Ifindex, at); !slices.Equal(got, want) {
			t.Errorf("%s: programs %v, want %v", name, got, want)
		}
	}
}

func (h *harness) flagged(t *testing.T, p Port) bool {
	t.Helper()
	dev, ok, err := h.devs.device(p.Ifindex)
	check(t, err)
	return ok && dev.Flags&inet6.flag != 0
}

// A host without a network that has IPv6 has no map and no program for it.
func TestIP6IsLoadedWithTheFirstNetworkAndGoesWithTheLast(t *testing.T) {
	h := newHarness(t, usual, nil)
	pins := func() (names []string) {
		t.Helper()
		for _, dir := range []string{inet6.root(h.dir), building(inet6.root(h.dir)), previous(inet6.root(h.dir))} {
			if _, err := os.Stat(dir); err == nil {
				names = append(names, filepath.Base(dir))
			}
		}
		links, err := filepath.Glob(filepath.Join(h.dir, linksDir, "*6"))
		check(t, err)
		return append(names, links...)
	}
	h.ns.Enter(t)
	before := len(hooked(t, h.c1.Ifindex, ebpf.AttachTCXIngress))
	if got := pins(); h.six != nil || got != nil || before != 1 {
		t.Errorf("without IPv6: %v, %v, %d programs on a port", h.six, got, before)
	}
	const beside = 2 + 3 // links of the uplink, and of netfilter
	// A killed load, and a killed unload, have left something.
	check(t, os.MkdirAll(building(inet6.root(h.dir)), 0o700))
	check(t, os.MkdirAll(previous(inet6.root(h.dir)), 0o700))

	x := withIP6(t, h)
	for _, p := range []Port{h.c1, h.c2, h.other} {
		x.wantHooked(t, p)
		check(t, h.VerifyPort(p))
	}
	if got := pins(); len(got) != 1+2*3+beside || got[0] != "ip6" {
		t.Errorf("with IPv6: %v", got)
	}
	// Another process opens the same.
	d, err := Open(h.dir)
	check(t, err)
	if d.six == nil || len(d.six.maps) != len(h.six.maps) || len(d.six.progs) != len(h.six.progs) {
		t.Errorf("opened: %+v", d.six)
	}
	check(t, d.VerifyPort(h.c1))
	if at, err := d.PortAt(c2Addr6); at != h.c2.Ifindex || err != nil {
		t.Errorf("PortAt(%s) = %d, %v", c2Addr6, at, err)
	}
	check(t, d.Close())

	// One port goes, and comes again.
	check(t, h.DetachPort(h.c1.Ifindex))
	if got := pins(); len(got) != 1+2*2+beside || len(hooked(t, h.c1.Ifindex, ebpf.AttachTCXIngress)) != 0 {
		t.Errorf("with a port less: %v", got)
	}
	if at, err := h.PortAt(c1Addr6); at != 0 || err != nil {
		t.Errorf("PortAt(%s) = %d, %v", c1Addr6, at, err)
	}
	check(t, h.AttachPort(h.c1))
	x.wantHooked(t, h.c1)

	one, two := h.networks6()
	for _, p := range []Port{h.c1, h.c2} {
		check(t, h.DetachPort(p.Ifindex))
	}
	check(t, h.DeleteNetwork(one.Bridge))
	if h.six == nil {
		t.Fatal("unloaded while a network has IPv6")
	}
	// The second one gives up IPv6.
	two.Subnet6, two.Gateway6 = netip.Prefix{}, netip.Addr{}
	check(t, h.SetNetwork(two))
	h.other.IP6 = netip.Addr{}
	check(t, h.AttachPort(h.other))
	if got := pins(); h.six != nil || got != nil {
		t.Errorf("afterwards: %v", got)
	}
	check(t, h.VerifyPort(h.other))
	if got := hooked(t, h.other.Ifindex, ebpf.AttachTCXIngress); len(got) != 1 {
		t.Errorf("programs %v on a port", got)
	}
	check(t, h.SetNetwork(one))
	check(t, h.AttachPort(h.c1))
	x.wantHooked(t, h.c1)
	check(t, Remove(h.dir))
	if got := hooked(t, h.c1.Ifindex, ebpf.AttachTCXIngress); len(got) != 0 {
		t.Errorf("after Remove, programs %v on a port", got)
	}
}

// What the IPv4 programs do with IPv6: nothing where the other programs stand behind them, and
// let none pass where not.
func TestIP6OfAPortWithoutIsDropped(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	f := h.datagram()
	four := h.speaking(of4)
	in := func() result { return four.portIn(t, f.Bytes(t)) }
	out := func() result { return four.portOut(t, f.Bytes(t), 0) }
	before := h.of(t, h.c1.Ifindex)
	for name, do := range map[string]func() result{"in": in, "out": out} {
		if got := do(); got.verdict != next {
			t.Errorf("%s: verdict %d", name, got.verdict)
		}
	}
	if after := h.of(t, h.c1.Ifindex); after.RX != before.RX || after.TX != before.TX {
		t.Errorf("counted: %+v, then %+v", before, after)
	}
	for name, b := range map[string][]byte{
		"spoof_mac": f.With(func(f *testutil.Frame) { f.SrcMAC = h.c2.MAC }).Bytes(t),
		"l2_proto":  f.With(func(f *testutil.Frame) { f.VLAN = []uint16{5} }).Bytes(t),
	} {
		h.wantDrop(t, h.c1.Ifindex, Reason(name), func() result { return four.portIn(t, b) })
	}
	// IPv4 is not the other programs'.
	ipv4 := between(h.c1, h.c2).Bytes(t)
	before = h.of(t, h.c1.Ifindex)
	if got, out := h.in(t, ipv4, h.c1), h.out(t, ipv4, h.c1, h.c2.Ifindex); got.verdict != next || out.verdict != next {
		t.Errorf("IPv4: verdicts %d, %d", got.verdict, out.verdict)
	}
	if after := h.of(t, h.c1.Ifindex); after.RX != before.RX || after.TX != before.TX {
		t.Errorf("IPv4: counted: %+v, then %+v", before, after)
	}
	dev, _, err := h.devs.device(h.c1.Ifindex)
	check(t, err)
	dev.Flags &^= inet6.flag
	check(t, h.devs.putDevice(dev))
	h.wantDrop(t, h.c1.Ifindex, "l2_proto", in)
	h.wantDrop(t, h.c1.Ifindex, "l2_proto", out)
}

func TestIP6VerifyFindsWhatIsMissing(t *testing.T) {
	h := withIP6(t, newHarness(t, usual, nil))
	h.ns.Enter(t)
	port := func() error { return h.VerifyPort(h.c1) }
	unpinned := func() error {
		if got, err := h.Unpinned([]int{h.c1.Ifindex, h.c2.Ifindex}); err != nil || len(got) > 0 {
			return errors.Join(err, ErrDetached)
		}
		return nil
	}
	detached := func(hook string) func() {
		return func() {
			l, err := link.LoadPinnedLink(linkPath(h.dir, inet6.link(h.c1.Ifindex, hook)), nil)
			check(t, err)
			check(t, l.Detach())
			check(t, l.Close())
		}
	}
	six := h.six
	for name, c := range map[string]struct {
		verify func() error
		spoil  func()
	}{
		"ingress":  {port, detached("in")},
		"egress":   {port, detached("out")},
		"unpinned": {unpinned, func() { check(t, detach(linkPath(h.dir, inet6.link(h.c1.Ifindex, "in")))) }},
		"address":  {port, func() { check(t, six.maps[tcMapFbrHosts].Delete(c1Addr6.AsSlice())) }},
		"device":   {port, func() { check(t, h.devs.putAddr6(h.c1.Ifindex, c2Addr6)) }},
		"flag": {port, func() {
			dev, _, err := h.devs.device(h.c1.Ifindex)
			check(t, err)
			dev.Flags &^= inet6.flag
			check(t, h.devs.putDevice(dev))
		}},
		"allowed": {port, func() {
			check(t, six.maps[tcMapFbrAllowed].Put(lpmKey(netip.MustParsePrefix("fd00:9::/64"), h.c1.Ifindex), uint32(1)))
			dev, _, err := h.devs.device(h.c1.Ifindex)
			check(t, err)
			dev.Flags |= tcFbrDevFlagsFBR_DEV_ALLOWED
			check(t, h.devs.putDevice(dev))
		}},
	} {
		check(t, c.verify())
		c.spoil()
		if err := c.verify(); !errors.Is(err, ErrDetached) {
			t.Errorf("%s: verify = %v, want ErrDetached", name, err)
		}
		check(t, h.AttachPort(h.c1))
		if err := c.verify(); err != nil {
			t.Errorf("%s: mended: %v", name, err)
		}
		h.wantHooked(t, h.c1)
	}
	// Somebody has removed the pins of all.
	one, two := h.networks6()
	check(t, os.RemoveAll(inet6.root(h.dir)))
	d, err := Open(h.dir)
	check(t, err)
	defer d.Close()
	if err := d.VerifyPort(h.c1); !errors.Is(err, ErrDetached) {
		t.Errorf("without pins: verify = %v, want ErrDetached", err)
	}
	check(t, d.SetNetwork(one))
	check(t, d.SetNetwork(two))
	for _, p := range []Port{h.c1, h.c2, h.other} {
		check(t, d.AttachPort(p))
		check(t, d.VerifyPort(p))
	}
	n := *h.harness
	n.Datapath = d
	sixth{&n}.wantHooked(t, h.c1)
}

// A port that a killed command has attached half, or detached half, lets in no IPv6 that
// nobody checks, and the next command goes on.
func TestIP6IsNeverUnchecked(t *testing.T) {
	h := withIP6(t, newHarness(t, usual, nil))
	h.ns.Enter(t)
	pinned := func(p Port) int {
		t.Helper()
		there, err := filepath.Glob(linkPath(h.dir, inet6.link(p.Ifindex, "*")))
		check(t, err)
		return len(there)
	}
	// The programs cannot be attached: something is in the place of the link's pin.
	check(t, h.DetachPort(h.c1.Ifindex))
	block := linkPath(h.dir, inet6.link(h.c1.Ifindex, "in"))
	check(t, os.Mkdir(block, 0o700))
	if err := h.AttachPort(h.c1); err == nil {
		t.Error("attached without its program")
	}
	if h.flagged(t, h.c1) {
		t.Error("the flag is set without the program")
	}
	check(t, os.Remove(block))
	check(t, h.AttachPort(h.c1))
	if !h.flagged(t, h.c1) {
		t.Error("no flag")
	}
	// The programs are lost and cannot be attached again.
	check(t, detach(block))
	check(t, os.Mkdir(block, 0o700))
	if err := h.AttachPort(h.c1); err == nil || h.flagged(t, h.c1) {
		t.Errorf("attached again: %v, flag %v", err, h.flagged(t, h.c1))
	}
	check(t, os.Remove(block))
	// Between the flag and the programs.
	dev, _, err := h.devs.device(h.c1.Ifindex)
	check(t, err)
	check(t, h.devs.forgetIP6(dev))
	if h.flagged(t, h.c1) || pinned(h.c1) != 0 {
		t.Errorf("forgotten: flag %v, %d links", h.flagged(t, h.c1), pinned(h.c1))
	}
	check(t, h.AttachPort(h.c1))
	h.wantHooked(t, h.c1)
	check(t, h.DetachPort(h.c1.Ifindex))
	check(t, h.DetachPort(h.c1.Ifindex))
}

// otherLayout6 puts maps of another layout in the place of the pinned ones, with the same
// contents.
func (h sixth) otherLayout6(t *testing.T) {
	t.Helper()
	spec, err := inet6.spec(h.meta)
	check(t, err)
	for _, name := range []string{tcMapFbrHosts, tcMapFbrNets, tc6MapFbrDev6, tc6MapFbrClaims} {
		s := spec.Maps[name].Copy()
		s.MaxEntries += 8
		m, err := ebpf.NewMap(s)
		check(t, err)
		check(t, copyMap(m, h.six.maps[name], s))
		check(t, os.Remove(mapPath(inet6.root(h.dir), name)))
		check(t, m.Pin(mapPath(inet6.root(h.dir), name)))
		check(t, m.Close())
	}
}

// The addresses and the claims outlive an upgrade, whatever it changes, and one that is
// broken at any step and finished later.
func TestIP6Upgrade(t *testing.T) {
	broken := errors.New("broken")
	for name, x := range map[string]struct {
		other bool
		steps []string
	}{
		"the same layout": {false, nil},
		"another layout":  {true, nil},
		"broken":          {true, []string{"upgrade-load", "upgrade-copy", "upgrade-publish", "upgrade-uplinks", "upgrade-ports", "upgrade-settle", "upgrade-links", "upgrade-aside"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := withIP6(t, newHarness(t, usual, nil))
			h.ns.Enter(t)
			claimed := h.datagram()
			claimed.Src, claimed.Dst, claimed.DstMAC = mustAddr("fe80::a"), allNodes, testutil.GroupMAC(allNodes)
			if got := h.in(t, claimed.Bytes(t), h.c1); got.verdict != next {
				t.Fatalf("verdict %d", got.verdict)
			}
			if x.other {
				h.otherLayout6(t)
			}
			h.otherBuild(t)
			if _, err := Open(h.dir); x.other != errors.Is(err, ErrSchemaOlder) {
				t.Errorf("Open: %v", err)
			}
			for _, at := range x.steps {
				_, err := upgradeTo(h.dir, loadInjected, Hooks{Passed: func(step string) error {
					if step == at {
						return broken
					}
					return nil
				}})
				if !errors.Is(err, broken) {
					t.Fatalf("at %s: %v", at, err)
				}
				if !h.flagged(t, h.c1) || len(hooked(t, h.c1.Ifindex, ebpf.AttachTCXIngress)) != 2 {
					t.Errorf("at %s: programs %v", at, hooked(t, h.c1.Ifindex, ebpf.AttachTCXIngress))
				}
			}
			n := sixth{h.upgraded(t)}
			n.wantHooked(t, h.c1)
			for _, p := range []Port{h.c1, h.c2, h.other} {
				check(t, n.VerifyPort(p))
			}
			stolen := claimed
			stolen.SrcMAC = h.c2.MAC
			n.wantDrop(t, h.c2.Ifindex, "spoof_ip", func() result { return n.in(t, stolen.Bytes(t), h.c2) })
			if got := n.in(t, n.ask(gateway6).Bytes(t), h.c1); got.verdict != redirect {
				t.Errorf("the gateway is unknown: verdict %d", got.verdict)
			}
			isolated := n.datagram()
			isolated.DstMAC, isolated.Dst = h.gateway, other6
			n.wantDrop(t, h.c1.Ifindex, "isolated", func() result { return n.in(t, isolated.Bytes(t), h.c1) })
			one, two := n.networks6()
			for _, p := range []Port{h.c1, h.c2, h.other} {
				check(t, n.DetachPort(p.Ifindex))
			}
			check(t, n.DeleteNetwork(one.Bridge))
			check(t, n.DeleteNetwork(two.Bridge))
			if _, err := os.Stat(inet6.root(n.dir)); !os.IsNotExist(err) {
				t.Errorf("pins are left: %v", err)
			}
		})
	}
}

// Allowed addresses are of either family.
func TestIP6AllowedAddresses(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	p := h.c1
	p.AllowedAddrs = []netip.Prefix{netip.MustParsePrefix("fd00:9::/64"), netip.MustParsePrefix("10.9.0.0/24")}
	p.AllowedMACs = []net.HardwareAddr{mustMAC("02:00:00:00:00:55")}
	check(t, h.AttachPort(p))
	check(t, h.VerifyPort(p))
	d := h.datagram()
	for src, reason := range map[string]Reason{
		"fd00:9::5": "", "fd00:1::2": "", "fd00:9:0:1::5": "spoof_ip", "fd00:1::1": "spoof_ip", "fd00:1::3": "spoof_ip",
	} {
		b := d.With(func(f *testutil.Frame) { f.Src = mustAddr(src) }).Bytes(t)
		if reason != "" {
			h.wantDrop(t, p.Ifindex, reason, func() result { return h.in(t, b, p) })
		} else if got := h.in(t, b, p); got.verdict != next {
			t.Errorf("%s: verdict %d", src, got.verdict)
		}
	}
	announce := h.say(allNodes, testutil.NeighborAdvertisement(mustAddr("fd00:9::5"), testutil.NAOverride, testutil.TargetLink(p.AllowedMACs[0])))
	if got := h.in(t, announce.Bytes(t), p); got.verdict != next {
		t.Errorf("announcement: verdict %d", got.verdict)
	}
	// Whatever it may use: never what no host has, nor a neighbour's link-local address.
	p.AllowedAddrs = []netip.Prefix{netip.MustParsePrefix("::/0")}
	check(t, h.AttachPort(p))
	check(t, h.VerifyPort(p))
	for _, src := range []netip.Addr{noAddr6, netip.IPv6Loopback(), allNodes, mustAddr("::ffff:1.2.3.4"), testutil.LinkLocal(h.c2.MAC), testutil.LinkLocal(h.gateway)} {
		b := d.With(func(f *testutil.Frame) { f.Src, f.Dst = src, testutil.LinkLocal(h.c2.MAC) }).Bytes(t)
		h.wantDrop(t, p.Ifindex, "spoof_ip", func() result { return h.in(t, b, p) })
	}
	check(t, h.AttachPort(h.c1))
	h.wantDrop(t, p.Ifindex, "spoof_ip", func() result {
		return h.in(t, d.With(func(f *testutil.Frame) { f.Src = mustAddr("fd00:9::5") }).Bytes(t), p)
	})
}

// TestLoadIPv6 loads all programs compiled for IPv6, also those that no hook has yet.
func TestLoadIPv6(t *testing.T) {
	testutil.RequireRoot(t)
	spec, err := loadTc6()
	check(t, err)
	c, err := ebpf.NewCollection(spec)
	failVerbosely(t, err)
	c.Close()
}
