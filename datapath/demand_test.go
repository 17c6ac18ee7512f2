package datapath

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// demanded returns the programs on demand that are pinned, of both families.
func (h *harness) demanded(t *testing.T) (names []string) {
	t.Helper()
	for _, f := range []family{inet4, inet6} {
		pins, err := filepath.Glob(progPath(f.root(h.dir), "fbr_tun_*"))
		check(t, err)
		for _, pin := range pins {
			names = append(names, strings.TrimPrefix(pin, h.dir+"/"))
		}
	}
	return names
}

// wantTun asserts that an uplink without Ethernet header has its programs, of each family
// that is loaded.
func (h *harness) wantTun(t *testing.T, u Uplink) {
	t.Helper()
	check(t, h.VerifyUplink(u))
	for at, name := range map[ebpf.AttachType]string{ebpf.AttachTCXIngress: tcProgFbrTunIn, ebpf.AttachTCXEgress: tcProgFbrTunOut} {
		var want []uint32
		for _, o := range h.families.loaded() {
			want = append(want, idOf(t, o.progs[name]))
		}
		if got := hooked(t, u.Ifindex, at); !slices.Equal(got, want) {
			t.Errorf("%s: programs %v, want %v", name, got, want)
		}
	}
}

// A host has the programs for uplinks without Ethernet header from the first such uplink on,
// whichever comes first: the uplink, IPv6, or another build.
func TestLoadedWithTheFirstRawUplink(t *testing.T) {
	h := newReal(t, Config{FlowsMax: 64}, nil)
	h.ns.Enter(t)
	want := func(what string, names ...string) {
		t.Helper()
		if got := h.demanded(t); !slices.Equal(got, names) {
			t.Errorf("%s: %v are loaded, want %v", what, got, names)
		}
	}
	raw := func(name, addr string) Uplink {
		return Uplink{Ifindex: addVeth(t, name), Addr: netip.MustParseAddr(addr), MTU: 1400, RawIP: true}
	}
	four := []string{"progs/fbr_tun_in", "progs/fbr_tun_out"}
	both := append(slices.Clone(four), "ip6/progs/fbr_tun_in", "ip6/progs/fbr_tun_out")

	want("without such an uplink")
	one, two := raw("tun1", "192.0.2.1"), raw("tun2", "192.0.2.2")
	check(t, h.AttachUplink(one))
	want("with one", four...)
	h.wantTun(t, one)

	// Another process finds them, and those of another build with the same maps.
	for range 2 {
		d, err := Open(h.dir)
		check(t, err)
		if id, found := idOf(t, h.four.progs[tcProgFbrTunIn]), d.four.progs[tcProgFbrTunIn]; found == nil || idOf(t, found) != id {
			t.Errorf("opened: %v, want program %d", found, id)
		}
		check(t, d.AttachUplink(two))
		h.wantTun(t, two)
		check(t, d.Close())
		h.otherBuild(t)
	}
	withIP6(t, h)
	want("with IPv6", both...)
	h.wantTun(t, one)
	h = h.upgraded(t)
	want("upgraded", both...)
	h.wantTun(t, one)
	h.wantTun(t, two)

	// A command was killed when it had pinned one of the two.
	check(t, os.Remove(progPath(h.dir, tcProgFbrTunIn)))
	d, err := Open(h.dir)
	check(t, err)
	defer d.Close()
	check(t, d.AttachUplink(one))
	want("pinned again", both...)
	again := *h
	again.Datapath = d
	again.wantTun(t, one)
	if got := slices.Collect(maps.Keys(h.six.progs)); len(got) != len(inet6.progs)+len(onDemand) {
		t.Errorf("of IPv6, %v are loaded", got)
	}
}

// While the pins of an upgrade are not in place yet, a program on demand may meet the pin
// of the build before.
func TestDemandedDuringAnUpgrade(t *testing.T) {
	h := newReal(t, Config{FlowsMax: 64}, nil)
	h.ns.Enter(t)
	u := Uplink{Ifindex: addVeth(t, "tun1"), Addr: netip.MustParseAddr("192.0.2.1"), MTU: 1400, RawIP: true}
	check(t, h.AttachUplink(u))
	check(t, h.DetachUplink(u.Ifindex))
	h.otherBuild(t)
	n := h.upgradedWith(t, Hooks{Settle: func(d *Datapath) error { return d.AttachUplink(u) }})
	check(t, n.VerifyUplink(u))
	check(t, n.AttachUplink(u))
	n.wantTun(t, u)
}
