package datapath

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
	"github.com/fastbr/fastbr/internal/testutil"
)

// otherLayout are the programs with another layout of every kind of map whose contents
// are carried over. The programs themselves do the same.
func otherLayout() (*ebpf.CollectionSpec, error) {
	spec, err := loadInjected()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{tcMapFbrHair, tcMapFbrDevs, tcMapFbrDrops, tcMapFbrStats, tcMapFbrNets, tcMapFbrHosts, tcMapFbrFdb, tcMapFbrPub, tcMapFbrPubOf, tcMapFbrLocal} {
		spec.Maps[name].MaxEntries += 8
	}
	return spec, nil
}

func newOtherLayout(t *testing.T, cfg Config) *harness {
	t.Helper()
	testutil.RequireRoot(t)
	h := newHarnessFrom(t, cfg, loading(otherLayout, nil), nil)
	h.inject(t)
	return h
}

// bySource are sessions by their outbound tuple. Their slots may change.
func bySource(t nm.Table) map[nm.Tuple]nm.Session {
	out := map[nm.Tuple]nm.Session{}
	for _, s := range t.Sessions {
		out[s.Fwd] = s
	}
	return out
}

// wantSameTable compares what two datapaths remember, except slots.
func wantSameTable(t *testing.T, got, want nm.Table) {
	t.Helper()
	for _, x := range []struct {
		what      string
		got, want any
	}{
		{"sessions", bySource(got), bySource(want)},
		{"bindings", got.Binds, want.Binds},
		{"contacted addresses", got.Peers, want.Peers},
		{"usage", got.Usage, want.Usage},
		{"counters", got.Counters, want.Counters},
	} {
		if !reflect.DeepEqual(x.got, x.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", x.what, x.got, x.want)
		}
	}
	for class := range want.Ports {
		for i, p := range want.Ports[class] {
			if got.Ports[class][i] != p {
				t.Errorf("port %d of class %d:\n got %+v\nwant %+v", i, class, got.Ports[class][i], p)
			}
		}
	}
}

// populate makes a session of every kind.
func (h *harness) populate(t *testing.T) {
	t.Helper()
	h.open(t, h.fromC1())
	h.sentFrom(t, h.fromC1().With(func(f *testutil.Frame) { f.Dst = mustAddr("192.0.2.12") }))
	h.open(t, testutil.Frame{SrcMAC: h.c1.MAC, DstMAC: h.gateway, Src: c1Addr, Dst: server, UDP: &testutil.UDP{SrcPort: 40001, DstPort: 53}})
	h.open(t, testutil.Frame{SrcMAC: h.c1.MAC, DstMAC: h.gateway, Src: c1Addr, Dst: server, Echo: &testutil.Echo{ID: 7}})
	// One side of the first connection closes. The second is half-open.
	h.open(t, h.fromC1().With(func(f *testutil.Frame) { f.TCP.SrcPort = 40002 }))
	for _, change := range []func(*testutil.Frame){
		func(f *testutil.Frame) { f.TCP.SrcPort, f.TCP.FIN = 40002, true },
		func(f *testutil.Frame) { f.TCP.SrcPort, f.TCP.SYN, f.TCP.ACK = 40003, true, false },
	} {
		if got := h.uplinkOut(t, h.routed(h.fromC1().With(change)).Bytes(t), h.bridge); got.verdict != next {
			t.Fatalf("verdict %d", got.verdict)
		}
	}
	check(t, h.Publish(h.publication(false)))
	if got := h.uplinkIn(t, h.client("tcp", 8081).Bytes(t)); got.verdict != next {
		t.Fatalf("a client: verdict %d", got.verdict)
	}
	// A port that was released, and is on hold.
	gone := h.udpFrom(c2Addr, 41000)
	if got := h.uplinkOut(t, h.routed(gone).Bytes(t), h.bridge); got.verdict != next {
		t.Fatalf("verdict %d", got.verdict)
	}
	if n, err := h.Datapath.nat.flush(h.c2.Ifindex); n != 1 || err != nil {
		t.Fatalf("flush = %d, %v", n, err)
	}
}

// TestUpgradeAcrossLayouts: on maps that were made anew, everything that the NAT
// remembers is as before, and so are counters, devices and publications. Afterwards
// nothing is lost or counted twice: when the sessions end, everything is free.
func TestUpgradeAcrossLayouts(t *testing.T) {
	for name, policy := range map[string]NATPolicy{
		"default":              {},
		"endpoint-dependent":   {Mapping: EndpointDependent},
		"address-dependent":    {Filtering: ADF},
		"endpoint-independent": {Filtering: EIF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const ports = 50
			h := newOtherLayout(t, Config{FlowsMax: 64, NATFirst: 20000, NATLast: 20000 + ports - 1})
			h.setPolicy(t, policy)
			h.populate(t)
			h.otherBuild(t)
			if _, err := Open(h.dir); !errors.Is(err, ErrSchemaOlder) {
				t.Fatalf("Open: %v, want ErrSchemaOlder", err)
			}
			before, stats := h.table(t), h.of(t, h.c1.Ifindex)
			n := h.upgraded(t)
			wantSameTable(t, n.table(t), before)
			if got := n.of(t, h.c1.Ifindex); !reflect.DeepEqual(got, stats) {
				t.Errorf("counters\n got %+v\nwant %+v", got, stats)
			}
			check(t, n.VerifyPort(h.c1))
			check(t, n.VerifyUplink(h.uplink))
			check(t, n.VerifyPublication(h.publication(false)))
			// Both directions go on, on the fast path, and a new flow can begin.
			if got := n.portIn(t, h.fromC1().Bytes(t)); got.verdict != redirect {
				t.Errorf("outbound: verdict %d", got.verdict)
			}
			if got := n.uplinkIn(t, h.reply(h.fromC1(), n.eport(t, h.fromC1())).Bytes(t)); got.verdict != redirect {
				t.Errorf("inbound: verdict %d", got.verdict)
			}
			n.open(t, h.udpFrom(c1Addr, 42000))
			_, err := n.FlushFlows()
			check(t, err)
			n.assertEmpty(t, ports)
		})
	}
}

// TestUpgradeIsFinishedOrUndone breaks an upgrade at every step, one after the other.
// Until programs are swapped, a broken upgrade changes nothing. Afterwards the next
// upgrade goes on, with the sessions that have meanwhile begun on the old programs.
func TestUpgradeIsFinishedOrUndone(t *testing.T) {
	h := newOtherLayout(t, Config{FlowsMax: 64})
	h.populate(t)
	h.otherBuild(t)
	late := h.udpFrom(c1Addr, 43000)
	broken := errors.New("broken")
	for _, x := range []struct {
		at   string
		left []string // the directories for pins that exist afterwards
	}{
		{"upgrade-load", []string{h.dir}},
		{"upgrade-copy", []string{h.dir}},
		{"upgrade-publish", []string{h.dir, following(h.dir)}},
		{"upgrade-uplinks", []string{h.dir, following(h.dir)}},
		{"upgrade-ports", []string{h.dir, following(h.dir)}},
		{"upgrade-sessions", []string{h.dir, following(h.dir)}},
		{"upgrade-guard", []string{h.dir, following(h.dir)}},
		{"upgrade-settle", []string{h.dir, following(h.dir)}},
		{"upgrade-links", []string{h.dir, following(h.dir)}},
		{"upgrade-aside", []string{following(h.dir), previous(h.dir)}},
		{"upgrade-commit", []string{h.dir}},
	} {
		last := ""
		_, err := upgradeTo(h.dir, loadInjected, Hooks{Passed: func(step string) error {
			if last = step; step == x.at {
				return broken
			}
			return nil
		}})
		if !errors.Is(err, broken) || last != x.at {
			t.Fatalf("%v after %s, want it broken at %s", err, last, x.at)
		}
		got, err := filepath.Glob(h.dir + "*")
		check(t, err)
		if !slices.Equal(got, x.left) {
			t.Errorf("%s leaves %v, want %v", x.at, got, x.left)
		}
		if _, err := Open(h.dir); x.at != "upgrade-commit" && !errors.Is(err, ErrSchemaOlder) {
			t.Errorf("%s: Open: %v, want ErrSchemaOlder", x.at, err)
		}
		if x.at == "upgrade-publish" {
			h.open(t, late)
		}
	}
	want := h.table(t)
	if changed, err := upgradeTo(h.dir, loadInjected, Hooks{}); changed || err != nil {
		t.Fatalf("the last Upgrade = %v, %v", changed, err)
	}
	d, err := Open(h.dir)
	check(t, err)
	t.Cleanup(func() { _ = d.Close() })
	n := *h
	n.Datapath = d
	got := n.table(t)
	got.Counters = want.Counters // those of late were counted on the old maps
	wantSameTable(t, got, want)
	if got := n.portIn(t, late.Bytes(t)); got.verdict != redirect {
		t.Errorf("outbound: verdict %d", got.verdict)
	}
	if left, _ := filepath.Glob(h.dir + "-*"); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestNoSessionBeginsWhileProgramsAreSwapped: a packet waits if it may belong to a
// session that is still to be carried over. Its flow does not begin again from another
// port, and the host does not answer it.
func TestNoSessionBeginsWhileProgramsAreSwapped(t *testing.T) {
	h, ext, _ := hairpinned(t)
	check(t, h.Publish(h.publication(false)))
	h.portInOf(t, h.c2, h.udpOf(h.c2, extAddr.String(), ext)) // its own session is there
	check(t, h.Datapath.takeover.hold())
	out := h.routed(h.fromC1())
	h.wantDrop(t, h.c1.Ifindex, "unsupported", func() result { return h.uplinkOut(t, out.Bytes(t), h.bridge) })
	for name, f := range map[string]testutil.Frame{
		"to the range":               h.reply(h.fromC1(), DefaultNATFirst),
		"the first to a publication": h.client("tcp", 8081),
		"a later one": h.client("tcp", 8081).With(func(f *testutil.Frame) {
			f.TCP.SYN, f.TCP.ACK = false, true
		}),
	} {
		t.Run(name, func(t *testing.T) {
			h.wantDrop(t, h.uplink.Ifindex, "unsupported", func() result { return h.uplinkIn(t, f.Bytes(t)) })
		})
	}
	h.wantHost(t, "the host's own", h.client("tcp", 22))
	// The mapping of another container, or its session, may still be to come.
	for name, to := range map[string]uint16{"to nobody's port": DefaultNATFirst, "to one that has not asked": ext} {
		t.Run("from a container, "+name, func(t *testing.T) {
			h.wantDrop(t, h.c2.Ifindex, "unsupported", func() result { return h.portInOf(t, h.c2, h.udpOf(h.c2, extAddr.String(), to)) })
		})
	}
	own := h.udpOf(h.c2, extAddr.String(), 53)
	if got := h.portInOf(t, h.c2, own); got.verdict != next || string(got.frame) != string(own.Bytes(t)) {
		t.Errorf("a container to the host's own: verdict %d", got.verdict)
	}
	check(t, h.Datapath.takeover.release())
	h.open(t, h.fromC1())
}

// TestAnAnswerDuringAnUpgradeIsKnown: only the old programs have seen the SYN-ACK that
// the client acknowledges.
func TestAnAnswerDuringAnUpgradeIsKnown(t *testing.T) {
	const isn = 1 << 24 // the acknowledged number is not near 0
	h := newOtherLayout(t, usual)
	check(t, h.Publish(h.publication(false)))
	f := h.asks(0, false)
	h.uplinkIn(t, f.Bytes(t))
	h.otherBuild(t)
	n := h.upgradedWith(t, Hooks{Passed: func(step string) error {
		if step == "upgrade-copy" {
			h.uplinkOut(t, h.answers(f).With(func(f *testutil.Frame) { f.TCP.Seq = isn }).Bytes(t), h.bridge)
		}
		return nil
	}})
	n.uplinkIn(t, f.With(func(f *testutil.Frame) { f.TCP.SYN, f.TCP.ACK, f.TCP.Ack = false, true, isn+1 }).Bytes(t))
	if got := n.flow(t).State; got != "established" {
		t.Errorf("%s, want established", got)
	}
}

// TestSchemaOfANewerBuildIsRefused: the error says so, whatever the maps look like.
func TestSchemaOfANewerBuildIsRefused(t *testing.T) {
	h := newOtherLayout(t, Config{FlowsMax: 64})
	h.meta.Schema++
	h.otherBuild(t)
	want := fmt.Sprintf("the datapath was made by a newer fastbr (schema %d, this one knows %d)", schema+1, schema)
	if _, err := Open(h.dir); !errors.Is(err, ErrSchemaNewer) || err.Error() != want {
		t.Errorf("Open: %v, want %s", err, want)
	}
	if _, err := Upgrade(h.dir, Hooks{}); !errors.Is(err, ErrSchemaNewer) || err.Error() != want {
		t.Errorf("Upgrade: %v, want %s", err, want)
	}
	if left, _ := filepath.Glob(h.dir + "-*"); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestConversionGoesByNames: each field is copied to the field of the same name, at any
// depth. A field that is gone, or new, is left out.
func TestConversionGoesByNames(t *testing.T) {
	u8, u16, u32 := &btf.Int{Size: 1}, &btf.Int{Size: 2}, &btf.Int{Size: 4}
	field := func(name string, at uint32, typ btf.Type) btf.Member {
		return btf.Member{Name: name, Type: typ, Offset: btf.Bits(at * 8)}
	}
	key := func(size uint32, members ...btf.Member) *btf.Struct {
		return &btf.Struct{Name: "key", Size: size, Members: members}
	}
	from := &btf.Struct{Name: "v", Size: 16, Members: []btf.Member{
		field("a", 0, u32), field("gone", 4, u16), field("wider", 6, u16),
		field("key", 8, key(4, field("x", 0, u8), field("y", 1, u8), field("z", 2, u16))),
		field("list", 12, &btf.Array{Type: u8, Nelems: 4}),
	}}
	to := &btf.Struct{Name: "v", Size: 24, Members: []btf.Member{
		field("new", 0, u32), field("wider", 4, u32),
		field("key", 8, key(8, field("z", 0, u16), field("w", 2, u16), field("x", 4, u8))),
		field("list", 16, &btf.Array{Type: u16, Nelems: 2}), field("a", 20, u32),
	}}
	c, err := converting(from, to)
	check(t, err)
	got := c.apply([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
	want := []byte{0, 0, 0, 0, 7, 8, 0, 0, 11, 12, 0, 0, 9, 0, 0, 0, 13, 0, 14, 0, 1, 2, 3, 4}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if _, err := converting(to, from); err == nil {
		t.Error("a value that does not fit is cut")
	}
}
