package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf/link"
)

// otherBuild makes the pins look as if another build with the same maps had made them.
func (h *harness) otherBuild(t *testing.T) {
	t.Helper()
	h.meta.Build++
	check(t, h.maps.FbrMeta.Put(uint32(0), &h.meta))
}

// upgraded upgrades the pins and opens them.
func (h *harness) upgraded(t *testing.T) *harness {
	t.Helper()
	return h.upgradedWith(t, Hooks{})
}

func (h *harness) upgradedWith(t *testing.T, hooks Hooks) *harness {
	t.Helper()
	from := loadTc
	if h.clock != nil {
		from = loadInjected
	}
	if changed, err := upgradeTo(h.dir, from, hooks); !changed || err != nil {
		t.Fatalf("Upgrade = %v, %v", changed, err)
	}
	if changed, err := upgradeTo(h.dir, from, Hooks{}); changed || err != nil {
		t.Errorf("second Upgrade = %v, %v", changed, err)
	}
	d, err := Open(h.dir)
	check(t, err)
	t.Cleanup(func() { _ = d.Close() })
	for _, left := range []string{building(h.dir), following(h.dir), previous(h.dir)} {
		if _, err := os.Stat(left); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", left, err)
		}
	}
	n := *h
	n.Datapath = d
	return &n
}

func TestUpgradeKeepsFlowsAndAttachments(t *testing.T) {
	h := newReal(t, Config{FlowsMax: 64}, nil)
	f := h.fromC1()
	eport := h.open(t, f)
	before := h.of(t, h.c1.Ifindex)

	h.otherBuild(t)
	// A killed upgrade has left new pins behind.
	check(t, os.Mkdir(building(h.dir), 0o700))
	n := h.upgraded(t)
	for _, hook := range []string{"in", "out"} {
		l, err := link.LoadPinnedLink(linkPath(h.dir, deviceLink(h.c1.Ifindex, hook)), nil)
		check(t, err)
		info, err := l.Info()
		check(t, err)
		want := n.progs.FbrPortIn
		if hook == "out" {
			want = n.progs.FbrPortOut
		}
		pi, err := want.Info()
		check(t, err)
		if id, _ := pi.ID(); id != info.Program {
			t.Errorf("%s runs program %d, want the new one, %d", hook, info.Program, id)
		}
		check(t, l.Close())
	}
	if got := n.portIn(t, f.Bytes(t)); got.verdict != redirect {
		t.Errorf("the flow lost its lease: verdict %d", got.verdict)
	}
	if got := n.flow(t); got.NAT.Port() != eport {
		t.Errorf("the flow moved to port %d", got.NAT.Port())
	}
	if after := n.of(t, h.c1.Ifindex); after.RX.FastPackets != before.RX.FastPackets+1 {
		t.Errorf("counters were lost: %+v, then %+v", before, after)
	}
	// The links of a detached port go with it, on the new programs, too.
	check(t, n.DetachPort(h.c1.Ifindex))
	if _, err := os.Stat(linkPath(h.dir, deviceLink(h.c1.Ifindex, "in"))); !os.IsNotExist(err) {
		t.Errorf("link left: %v", err)
	}
}

func TestGuardIsAttachedOnceAndSurvivesReattaching(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	check(t, h.AttachGuard())
	for range 3 { // each upgrade replaces the links
		check(t, h.Datapath.links.attachGuard(true))
	}
	entries, err := os.ReadDir(h.dir + "/links")
	check(t, err)
	guards := 0
	for _, e := range entries {
		if e.Name() == guardLink || e.Name() == defragLink {
			guards++
		}
	}
	if guards != 2 {
		t.Errorf("%d netfilter links, want 2: %v", guards, entries)
	}
}

// Pins of a build that had fewer maps or programs count as older, whichever is missing.
func TestPinsOfLessAreOlder(t *testing.T) {
	for _, missing := range []string{tcMapFbrHair, progsDir + "/" + tcProgFbrFragIn} {
		h := newHarness(t, Config{FlowsMax: 64}, nil)
		h.otherBuild(t)
		check(t, os.Remove(filepath.Join(h.dir, missing)))
		if d, err := Open(h.dir); !errors.Is(err, ErrSchemaOlder) {
			t.Errorf("without %s: %v, want ErrSchemaOlder", missing, err)
			_ = d.Close()
		}
	}
}
