package datapath

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// TestEveryPortIsQueued wants each port of the range in its queue once, in an
// order by chance, and nothing else noted about it.
func TestEveryPortIsQueued(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64, NATFirst: 20000, NATLast: 20000 + requestChunk}, nil)
	var all []uint32
	for off := range h.meta.NatCount {
		all = append(all, off)
	}
	for class, q := range []*ebpf.Map{h.maps.FbrPfreeTcp, h.maps.FbrPfreeUdp, h.maps.FbrPfreeIcmp} {
		var order []uint32
		for off := uint32(0); q.LookupAndDelete(nil, &off) == nil; {
			order = append(order, off)
		}
		if slices.Equal(order, all) {
			t.Errorf("class %d: the order is anybody's guess", class)
		}
		slices.Sort(order)
		if !slices.Equal(order, all) {
			t.Errorf("class %d: %d ports stand in the queue, want each of %d once", class, len(order), len(all))
		}
	}
	check(t, eachElement(h.maps.FbrNport, 1024, 1, 3*h.meta.NatCount, func(i uint32, np []tcFbrNport) {
		if np[0] != (tcFbrNport{Queued: 1}) {
			t.Errorf("entry %d: %+v", i, np[0])
		}
	}))
}
