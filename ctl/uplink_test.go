package ctl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/fastbr/fastbr/datapath"
	"github.com/fastbr/fastbr/internal/testutil"
)

// TestUplinksHaveAnEnd: so many devices are uplinks and no more, and those of the default
// route come first. What cannot be attached is left out.
func TestUplinksHaveAnEnd(t *testing.T) {
	h := newHost(t)
	const devices = maxUplinks + 3
	var indexes []int
	for i := range devices {
		index, err := h.conn.CreateBridge(fmt.Sprint("other", i), net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}, 1500)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(h.conn.AddAddr(index, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 1}), 24)), h.conn.SetUp(index, true)); err != nil {
			t.Fatal(err)
		}
		indexes = append(indexes, index)
	}
	last := indexes[devices-1]
	h.up(t)
	if n := len(h.fake(t).Uplinks); n != maxUplinks {
		t.Errorf("%d uplinks, want %d", n, maxUplinks)
	}
	if err := h.conn.AddDefault(last, netip.AddrFrom4([4]byte{10, 1, devices - 1, 2})); err != nil {
		t.Fatal(err)
	}
	h.attach(t, testutil.NewNetns(t).Path(), "c1")
	f := h.fake(t)
	if u, ok := f.Uplinks[last]; len(f.Uplinks) != maxUplinks || !ok || u.Side {
		t.Errorf("%d uplinks, the default route's is %+v", len(f.Uplinks), u)
	}
	if err := h.conn.Delete(indexes[0]); err != nil {
		t.Fatal(err)
	}
	h.attach(t, testutil.NewNetns(t).Path(), "c2")
	f = h.fake(t)
	for index := range f.Uplinks {
		if !slices.Contains(indexes[1:], index) {
			t.Errorf("%d is an uplink", index)
		}
	}
	if len(f.Uplinks) != maxUplinks {
		t.Errorf("%d uplinks after one has gone", len(f.Uplinks))
	}
	h.planes.takenSlots = map[int]bool{indexes[1] % datapath.MaxDevices: true}
	h.downAll(t)
	h.up(t)
	if _, ok := h.fake(t).Uplinks[indexes[1]]; ok || len(h.fake(t).Uplinks) != maxUplinks-1 {
		t.Errorf("%d uplinks with one that cannot be: %v", len(h.fake(t).Uplinks), ok)
	}
	h.downAll(t)
}
