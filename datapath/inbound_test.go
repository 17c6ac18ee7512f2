package datapath

import "testing"

// TestInboundLeaseIsForOneDevice: what comes in by another device than a lease was granted for
// takes the kernel's path, where rp_filter and the rules see it. It may be what somebody
// beyond a side uplink forges, or the route has changed: then the lease follows.
func TestInboundLeaseIsForOneDevice(t *testing.T) {
	h := newXDPHarness(t)
	second := Uplink{Ifindex: h.foreign, Addr: mustAddr("198.51.100.9"), MTU: 1500}
	check(t, h.AttachUplink(second))
	check(t, h.AttachXDP(second.Ifindex))
	for name, f := range h.samples() {
		t.Run(name, func(t *testing.T) {
			eport := h.open(t, f)
			answer := h.reply(f, eport).Bytes(t)
			verdicts := func(when string, ifindex int, tc, xdp int32) {
				t.Helper()
				if got := h.run(t, h.progs.FbrUplinkIn, answer, ifindex, ifindex); got.verdict != tc {
					t.Errorf("%s: verdict %d, want %d", when, got.verdict, tc)
				}
				if f.TCP != nil {
					return
				}
				if got := h.runXDP(t, h.progs.FbrUplinkXdp, answer, ifindex); got.verdict != xdp {
					t.Errorf("%s: verdict %d of XDP, want %d", when, got.verdict, xdp)
				}
			}
			verdicts("by the lease's device", h.uplink.Ifindex, redirect, xdpRedirect)
			verdicts("by another one", second.Ifindex, next, xdpPass)
			verdicts("by the lease's device again", h.uplink.Ifindex, redirect, xdpRedirect)
			if got := h.portOut(t, h.asSeenByC1(f, eport).Bytes(t), second.Ifindex); got.verdict != next {
				t.Fatalf("delivered by the kernel: verdict %d", got.verdict)
			}
			verdicts("after the kernel has let it in there", second.Ifindex, redirect, xdpRedirect)
			verdicts("by the device before", h.uplink.Ifindex, next, xdpPass)
		})
	}
}
