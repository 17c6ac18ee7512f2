package datapath

import (
	"net/netip"
	"testing"
)

// TestOneWay: what a network with an only way out sends leaves by that device only, and what
// comes in by another one reaches nobody, also in a session that had a lease until then.
func TestOneWay(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	via := func(ifindex int) {
		t.Helper()
		check(t, h.SetNetwork(Network{Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: gateway1, Bridge: h.bridge,
			Masquerade: true, OneWay: true, Via: ifindex}))
		check(t, h.AttachPort(h.c1))
		check(t, h.Revoke())
	}
	via(h.uplink.Ifindex)
	f := h.samples()["udp"]
	eport := h.open(t, f)
	in := h.reply(f, eport).Bytes(t)
	if got := h.uplinkIn(t, in); got.verdict != redirect {
		t.Fatalf("by the only way: verdict %d", got.verdict)
	}
	delivered := h.asSeenByC1(f, eport).Bytes(t)
	for _, elsewhere := range []int{h.foreign, 0} {
		via(elsewhere)
		h.wantDrop(t, h.uplink.Ifindex, "direct", func() result { return h.uplinkIn(t, in) })
		h.wantDrop(t, h.c1.Ifindex, "direct", func() result { return h.portOut(t, delivered, h.uplink.Ifindex) })
		h.wantDrop(t, h.c1.Ifindex, "no_uplink", func() result { return h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge) })
	}
	via(h.uplink.Ifindex)
	h.open(t, f)
	if got := h.uplinkIn(t, in); got.verdict != redirect {
		t.Errorf("by the only way again: verdict %d", got.verdict)
	}
}
