package datapath

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/fastbr/fastbr/internal/testutil"
)

// between is a datagram from one port to another of its bridge.
func between(from, to Port) testutil.Frame {
	return testutil.Frame{SrcMAC: from.MAC, DstMAC: to.MAC, Src: from.IP, Dst: to.IP,
		UDP: &testutil.UDP{SrcPort: 40000, DstPort: 9999}, Payload: []byte("hello, neighbour")}
}

// carry delivers f to a port, as the kernel's bridge does with what it has from another.
func (h *harness) carry(t *testing.T, f testutil.Frame, from, to Port) {
	t.Helper()
	if got := h.run(t, h.prog(tcProgFbrPortOut), f.Bytes(t), to.Ifindex, from.Ifindex); got.verdict != next {
		t.Fatalf("delivery: verdict %d", got.verdict)
	}
}

// pair gives two ports a lease in both directions.
func (h *harness) pair(t *testing.T, a, b Port) {
	t.Helper()
	h.age(t, 0)
	h.carry(t, h.between(a, b), a, b)
	h.carry(t, h.between(b, a), b, a)
	if h.clock == nil {
		h.keepPairs(t)
	}
}

// between is the same in the harness's family.
func (h *harness) between(from, to Port) testutil.Frame {
	f := between(from, to)
	if h.addr.c1.Is6() {
		f.Src, f.Dst = from.IP6, to.IP6
	}
	return f
}

// keepPairs makes the leases of pairs outlast a slow machine.
func (h *harness) keepPairs(t *testing.T) {
	t.Helper()
	m := h.object().maps[tcMapFbrPair]
	for i, v := range all[uint32, tcFbrPairs](t, m, m.MaxEntries()) {
		for w := range v.Way {
			v.Way[w].LeaseLen *= 1000
		}
		check(t, m.Put(i, &v))
	}
}

func TestPortInForwardsBetweenPorts(t *testing.T) {
	h := newHarness(t, usual, nil)
	f := between(h.c1, h.c2).Bytes(t)
	is := func(when string, verdict int32) {
		t.Helper()
		if got := h.portIn(t, f); got.verdict != verdict || string(got.frame) != string(f) {
			t.Errorf("%s: verdict %d, want %d and the frame unchanged", when, got.verdict, verdict)
		}
	}
	is("before the bridge has carried any", next)
	h.carry(t, between(h.c2, h.c1), h.c2, h.c1)
	is("when it has carried one the other way", next)
	h.pair(t, h.c1, h.c2)
	before, target := h.of(t, h.c1.Ifindex), h.of(t, h.c2.Ifindex)
	is("with a lease", redirect)
	if c := h.of(t, h.c1.Ifindex); c.RX.FastPackets != before.RX.FastPackets+1 || c.RX.FastBytes != before.RX.FastBytes+uint64(len(f)) {
		t.Errorf("c1 counts %+v", c)
	}
	if c := h.of(t, h.c2.Ifindex); c.TX.FastPackets != target.TX.FastPackets+1 || c.TX.FastBytes != target.TX.FastBytes+uint64(len(f)) {
		t.Errorf("c2 counts %+v", c)
	}
	h.age(t, DefaultLease*3/4-time.Second)
	is("before the shortest lease ends", redirect)
	h.age(t, DefaultLease/2+2*time.Second)
	is("after the longest", next)
	h.pair(t, h.c1, h.c2)
	is("renewed", redirect)
	check(t, h.Revoke())
	is("revoked", next)

	for name, prepare := range map[string]func(){
		"without leases": func() { check(t, h.SetLease(0)) },
		"slow target":    func() { p := h.c2; p.Slow = true; check(t, h.AttachPort(p)) },
		"slow source":    func() { p := h.c1; p.Slow = true; check(t, h.AttachPort(p)) },
		"smaller target": func() { p := h.c2; p.MTU = 1400; check(t, h.AttachPort(p)) },
		"target gone":    func() { check(t, h.DetachPort(h.c2.Ifindex)) },
	} {
		h.pair(t, h.c1, h.c2)
		is("before: "+name, redirect)
		prepare()
		is(name, next)
		check(t, h.SetLease(DefaultLease))
		check(t, h.AttachPort(h.c1))
		check(t, h.AttachPort(h.c2))
	}
}

// Only a frame as the bridge has carried it from the one port to the other grants.
func TestWhatGrantsNoPair(t *testing.T) {
	h := newHarness(t, usual, nil)
	f := between(h.c1, h.c2)
	for name, x := range map[string]struct {
		frame testutil.Frame
		iif   int
	}{
		"from the host":            {f, 0},
		"routed":                   {f, h.bridge},
		"from an uplink":           {f.With(func(f *testutil.Frame) { f.Dst = mustAddr("239.1.2.3") }), h.uplink.Ifindex},
		"to another address":       {f.With(func(f *testutil.Frame) { f.DstMAC = h.gateway }), h.c1.Ifindex},
		"to all":                   {f.With(func(f *testutil.Frame) { f.DstMAC = mustMAC("ff:ff:ff:ff:ff:ff") }), h.c1.Ifindex},
		"back to where it is from": {f.With(func(f *testutil.Frame) { f.SrcMAC = h.c2.MAC }), h.c2.Ifindex},
	} {
		if got := h.run(t, h.progs.FbrPortOut, x.frame.Bytes(t), h.c2.Ifindex, x.iif); got.verdict != next {
			t.Errorf("%s: delivery: verdict %d", name, got.verdict)
		}
		if got := h.portIn(t, f.Bytes(t)); got.verdict != next {
			t.Errorf("%s: verdict %d, want the kernel's path", name, got.verdict)
		}
	}
}

// Three pairs of one hash: two are fast, and the third when one of their leases is over.
func TestPairsOfOneHash(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.pair(t, h.c1, h.c2)
	occupied := all[uint32, tcFbrPairs](t, h.maps.FbrPair, h.maps.FbrPair.MaxEntries())
	for i, v := range occupied {
		taken := 0
		for w := range v.Way {
			if v.Way[w].Granted != 0 {
				taken++
				v.Way[w].From, v.Way[w].LeaseLen = uint32(h.other.Ifindex), 1
			}
		}
		if taken == 1 {
			v.Way[1] = v.Way[0]
			v.Way[1].LeaseLen = 2
			check(t, h.maps.FbrPair.Put(i, &v))
		}
	}
	f := between(h.c1, h.c2)
	h.carry(t, f, h.c1, h.c2)
	if got := h.portIn(t, f.Bytes(t)); got.verdict != next {
		t.Errorf("beside two others: verdict %d", got.verdict)
	}
	h.age(t, 0)
	h.carry(t, f, h.c1, h.c2)
	if got := h.portIn(t, f.Bytes(t)); got.verdict != redirect {
		t.Errorf("when a lease has ended: verdict %d", got.verdict)
	}
}

func TestPortInKeepsNetworksApart(t *testing.T) {
	h := newHarness(t, usual, nil)
	f := h.fromC1().With(func(f *testutil.Frame) { f.DstMAC, f.Dst = h.other.MAC, other }).Bytes(t)
	apart := func() {
		t.Helper()
		h.wantDrop(t, h.c1.Ifindex, "isolated", func() result { return h.portIn(t, f) })
	}
	apart()
	// Whatever stands in the table of leases.
	for i := range h.maps.FbrPair.MaxEntries() {
		p := tcFbrPairs{}
		for w := range p.Way {
			p.Way[w].From, p.Way[w].To, p.Way[w].Granted, p.Way[w].LeaseLen = uint32(h.c1.Ifindex), uint32(h.other.Ifindex), 1<<62, 1<<31
			p.Way[w].End = uint32(h.other.MAC[2]) | uint32(h.other.MAC[3])<<8 | uint32(h.other.MAC[4])<<16 | uint32(h.other.MAC[5])<<24
		}
		check(t, h.maps.FbrPair.Put(i, &p))
	}
	apart()
}

// Where netfilter looks at what the bridge carries, MAC addresses are not all that decides:
// each flow has a lease of its own. Where it looks at a port, none has.
func TestNoPairBesideBridgeRules(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.ns.Enter(t)
	nft := &nftables.Conn{}
	f := between(h.c1, h.c2)
	another := f.With(func(f *testutil.Frame) { f.UDP.DstPort++ })
	is := func(t *testing.T, when string, verdict, ofAnother int32) {
		t.Helper()
		check(t, h.Revoke())
		h.age(t, 0)
		h.portIn(t, f.Bytes(t)) // both ends look at their device
		h.carry(t, f, h.c1, h.c2)
		h.carry(t, f, h.c1, h.c2)
		if got := h.portIn(t, f.Bytes(t)); got.verdict != verdict {
			t.Errorf("%s: verdict %d, want %d", when, got.verdict, verdict)
		}
		if got := h.portIn(t, another.Bytes(t)); got.verdict != ofAnother {
			t.Errorf("%s: another flow: verdict %d, want %d", when, got.verdict, ofAnother)
		}
	}
	chain := func(hook *nftables.ChainHook, priority int) func() error {
		return func() error {
			table := nft.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: "seen"})
			nft.AddChain(&nftables.Chain{Name: "seen", Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority))})
			return nft.Flush()
		}
	}
	netdev := func(p Port, hook *nftables.ChainHook) func() error {
		return func() error {
			l, err := net.InterfaceByIndex(p.Ifindex)
			if err != nil {
				return err
			}
			table := nft.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: "seen"})
			nft.AddChain(&nftables.Chain{Name: "seen", Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Device: l.Name})
			return nft.Flush()
		}
	}
	dropNetdev := func() error {
		nft.DelTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: "seen"})
		return nft.Flush()
	}
	dropTable := func() error {
		nft.DelTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: "seen"})
		return nft.Flush()
	}
	sysctl := func(v string) func() error {
		return func() error {
			err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(v), 0)
			if os.IsNotExist(err) {
				t.Skip("no br_netfilter here")
			}
			return err
		}
	}
	is(t, "with nothing", redirect, redirect)
	for name, x := range map[string]struct {
		put, take func() error
		verdict   int32
	}{
		"iptables":           {sysctl("1"), sysctl("0"), redirect},
		"nft forward":        {chain(nftables.ChainHookForward, 0), dropTable, redirect},
		"nft prerouting":     {chain(nftables.ChainHookPrerouting, -300), dropTable, redirect},
		"nft postrouting":    {chain(nftables.ChainHookPostrouting, 300), dropTable, redirect},
		"nft netdev, source": {netdev(h.c1, nftables.ChainHookIngress), dropNetdev, next},
		"nft netdev, target": {netdev(h.c2, nftables.ChainHookEgress), dropNetdev, next},
		"nft, at the last":   {chain(nftables.ChainHookPostrouting, 0x7fffffff), dropTable, redirect},
	} {
		t.Run(name, func(t *testing.T) {
			h.ns.Enter(t)
			if err := x.put(); err != nil {
				t.Skipf("not on this kernel: %v", err)
			}
			is(t, "with it", x.verdict, next)
			check(t, x.take())
			is(t, "without it", redirect, redirect)
		})
	}
}
