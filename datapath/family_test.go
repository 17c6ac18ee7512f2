package datapath

import (
	"errors"
	"maps"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/fastbr/fastbr/internal/testutil"
)

// bothFamilies is a host with IPv6: what speaks IPv4 there, and what speaks IPv6.
func bothFamilies(t *testing.T, h *harness) [2]*harness {
	t.Helper()
	six := withIP6(t, h).harness
	return [2]*harness{six.speaking(of4), six}
}

// flowsOf are the flows of c1 and c2 by family, from as many as are wanted.
func (h *harness) flowsOf(t *testing.T, four, six int) (of [2][]Flow) {
	t.Helper()
	all, err := h.Flows()
	check(t, err)
	for _, f := range all {
		i := 0
		if f.Src.Addr().Is6() {
			i = 1
		}
		of[i] = append(of[i], f)
	}
	st, err := h.NATStats()
	check(t, err)
	if len(of[0]) != four || len(of[1]) != six || st.Flows != uint32(four+six) || st.FlowsOf["ipv4"] != uint32(four) || st.FlowsOf["ipv6"] != uint32(six) {
		t.Errorf("%d flows by IPv4, %d by IPv6, want %d and %d: %+v, %+v", len(of[0]), len(of[1]), four, six, of, st)
	}
	return of
}

// usage is what a port holds of both families together.
func (h *harness) usage(t *testing.T, p Port) (q tcFbrQuota) {
	t.Helper()
	dev, _, err := h.Datapath.devs.device(p.Ifindex)
	check(t, err)
	check(t, h.maps.FbrQuota.Lookup(uint32(dev.Stats), &q))
	return q
}

// The sessions of both families are listed, ended and counted in the same way, and a
// container's in one quota.
func TestBothFamiliesHaveSessions(t *testing.T) {
	h := newHarness(t, usual, nil)
	both := bothFamilies(t, h)
	begin := func() {
		t.Helper()
		for _, x := range both {
			x.open(t, x.fromC1())
			x.open(t, x.samples()["echo"])
			x.sentFrom(t, x.udpFrom(x.addr.c2, 41000))
		}
	}
	begin()
	of := h.flowsOf(t, 3, 3)
	seen := map[string]bool{}
	for i, ext := range []netip.Addr{extAddr, extAddr6} {
		for _, f := range of[i] {
			seen[f.Proto] = true
			if f.NAT.Addr() != ext || f.Dst.Addr() != both[i].addr.server || f.Expires <= 0 || f.Proto == "tcp" && f.Lease <= 0 {
				t.Errorf("%+v", f)
			}
		}
	}
	if want := map[string]bool{"tcp": true, "udp": true, "icmp": true, "icmpv6": true}; !maps.Equal(seen, want) {
		t.Errorf("protocols %v", seen)
	}
	if q := h.usage(t, h.c1); q.Sessions != 4 || q.Ports != 4 {
		t.Errorf("c1 holds %+v, want 4 sessions and ports", q)
	}
	// c1 goes, then everything.
	check(t, h.DetachPort(h.c1.Ifindex))
	h.flowsOf(t, 1, 1)
	if n, err := h.FlushFlows(); n != 2 || err != nil {
		t.Errorf("FlushFlows = %d, %v", n, err)
	}
	h.flowsOf(t, 0, 0)
	check(t, h.AttachPort(h.c1))

	// An address that c1 may not use any more takes its sessions along, of its family only.
	p := h.mayUse(t, h.c1, "fd00:1::60/124")
	begin()
	allowed := both[1].fromC1().With(func(f *testutil.Frame) { f.Src, f.TCP.SrcPort = mustAddr("fd00:1::65"), 40009 })
	both[1].portIn(t, allowed.Bytes(t)) // from now on c1 holds the address
	if got := both[1].uplinkOut(t, both[1].routed(allowed).Bytes(t), h.bridge); got.verdict != next {
		t.Fatalf("an allowed address: verdict %d", got.verdict)
	}
	h.flowsOf(t, 3, 4)
	p.AllowedAddrs = nil
	check(t, h.AttachPort(p))
	h.flowsOf(t, 3, 3)

	// Its network gives IPv6 up: IPv4's sessions stay, the quota has IPv6's back.
	one, _ := h.networks6()
	one.Subnet6, one.Gateway6 = netip.Prefix{}, netip.Addr{}
	check(t, h.SetNetwork(one))
	p.IP6 = netip.Addr{}
	check(t, h.AttachPort(p))
	h.flowsOf(t, 3, 1)
	if q := h.usage(t, h.c1); q.Sessions != 2 || q.Ports != 2 {
		t.Errorf("c1 holds %+v, want 2 sessions and ports", q)
	}
}

// The NAT range is that of both families, whenever IPv6 comes.
func TestBothFamiliesHaveTheRange(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64, NATFirst: 20000, NATLast: 20049}, nil)
	check(t, h.SetNATRange(30000, 30019))
	both := bothFamilies(t, h)
	ports := func(first, last uint16) {
		t.Helper()
		for _, x := range both {
			for _, class := range allClasses() {
				var pool tcFbrPool
				check(t, x.object().maps[tcMapFbrPool].Lookup(uint32(class), &pool))
				for port, state := range pool.State {
					if in := port >= int(first) && port <= int(last); in != (state&tcFbrPortStateFBR_PORT_OPEN != 0) {
						t.Fatalf("%s, class %d: port %d: state %d", x.object().name, class, port, state)
					}
				}
			}
			if got := x.sentFrom(t, x.udpFrom(x.addr.c1, 41000)); got < first || got > last {
				t.Errorf("%s: port %d", x.object().name, got)
			}
		}
		_, err := h.FlushFlows()
		check(t, err)
	}
	ports(30000, 30019)
	check(t, h.SetNATRange(25000, 25009))
	ports(25000, 25009)
}

// otherwise are the programs of a source with another layout of one session map.
func otherwise(from source) source {
	return func() (*ebpf.CollectionSpec, error) {
		spec, err := from()
		if err == nil {
			spec.Maps[tcMapFbrHair].MaxEntries += 8
		}
		return spec, err
	}
}

// Sessions of both families outlive an upgrade, whichever family's layout it changes: what
// is carried of one is carried of the other, whose sessions count in the same quotas. The
// sessions that begin while it is broken off are carried, too.
func TestUpgradeCarriesSessionsOfBothFamilies(t *testing.T) {
	testutil.RequireRoot(t)
	for name, changed := range map[string][2]bool{"IPv4 changes": {true, false}, "IPv6 changes": {false, true}, "nothing changes": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := [2]source{loadTc, loadTc6}
			for i := range from {
				if changed[i] {
					from[i] = otherwise(from[i])
				}
			}
			const first, count = 20000, 50
			h := newHarnessFrom(t, Config{FlowsMax: 64, NATFirst: first, NATLast: first + count - 1}, loading(from[0], nil), nil)
			f := inet6
			f.from = from[1]
			h.families.load6 = f.loading(tuning(nil))
			both := bothFamilies(t, h)
			for _, x := range both {
				x.open(t, x.fromC1())
				x.open(t, x.samples()["udp"])
				x.open(t, x.samples()["echo"])
				x.sentFrom(t, x.udpFrom(x.addr.c2, 41000))
			}
			// Ports that were released are on hold.
			if n, err := h.nat.flush(h.c2.Ifindex); n != 2 || err != nil {
				t.Fatalf("flush = %d, %v", n, err)
			}
			h.otherBuild(t)
			broken := errors.New("broken")
			_, err := upgradeTo(h.dir, loadTc, Hooks{Passed: func(step string) error {
				if step == "upgrade-publish" {
					return broken
				}
				return nil
			}})
			if !errors.Is(err, broken) {
				t.Fatal(err)
			}
			if changed == [2]bool{} { // else none may begin
				for _, x := range both {
					x.sentFrom(t, x.udpFrom(x.addr.c1, 43000))
				}
			}
			quota := h.usage(t, h.c1)
			n := h.upgraded(t)
			for i, of := range []addresses{of4, of6} {
				was, x := both[i], n.speaking(of)
				wantSameTable(t, x.table(t), was.table(t))
				for _, f := range []testutil.Frame{x.fromC1(), x.samples()["udp"], x.samples()["echo"]} {
					if got, want := x.sentFrom(t, f), was.eport(t, f); got != want {
						t.Errorf("%s: goes on from port %d, was %d", x.object().name, got, want)
					}
				}
				if got := x.uplinkIn(t, x.reply(x.fromC1(), was.eport(t, x.fromC1())).Bytes(t)); got.verdict != redirect {
					t.Errorf("%s: inbound: verdict %d", x.object().name, got.verdict)
				}
			}
			if q := n.usage(t, h.c1); q.Sessions != quota.Sessions || q.Ports != quota.Ports || q.Sessions < 6 {
				t.Errorf("c1 holds %+v, held %+v", q, quota)
			}
			_, err = n.FlushFlows()
			check(t, err)
			if q := n.usage(t, h.c1); q.Sessions != 0 || q.Ports != 0 {
				t.Errorf("afterwards c1 holds %+v", q)
			}
			for _, of := range []addresses{of4, of6} {
				x := n.speaking(of)
				for _, class := range allClasses() {
					var pool tcFbrPool
					check(t, x.object().maps[tcMapFbrPool].Lookup(uint32(class), &pool))
					if pool.Tail-pool.Head != count {
						t.Errorf("%s, class %d: %d ports are free, want %d", x.object().name, class, pool.Tail-pool.Head, count)
					}
				}
			}
		})
	}
}
