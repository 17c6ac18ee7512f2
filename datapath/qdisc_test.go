package datapath

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

// The programs themselves notice a queueing discipline or filters on a port's device,
// from packets off the fast path. They also notice when it is gone.
func TestQueueOnAPortIsSeen(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	frame := testutil.Frame{SrcMAC: h.c1.MAC, DstMAC: h.c2.MAC, Src: c1Addr, Dst: c2Addr, UDP: &testutil.UDP{SrcPort: 1, DstPort: 2}}
	out := frame.Bytes(t)
	in := frame.With(func(f *testutil.Frame) { f.SrcMAC, f.DstMAC, f.Src, f.Dst = h.c2.MAC, h.c1.MAC, c2Addr, c1Addr }).Bytes(t)
	arp := testutil.ARP{SrcMAC: h.c1.MAC, DstMAC: mustMAC("ff:ff:ff:ff:ff:ff"), SenderMAC: h.c1.MAC, SenderIP: c1Addr, TargetIP: c2Addr}.Bytes(t)
	want := func(t *testing.T, when string, verdict int32) {
		t.Helper()
		if got := h.portIn(t, out).verdict; got != verdict {
			t.Errorf("%s: from the port: verdict %d, want %d", when, got, verdict)
		}
		if got := h.run(t, h.progs.FbrPortIn, in, h.c2.Ifindex, h.c2.Ifindex).verdict; got != verdict {
			t.Errorf("%s: to the port: verdict %d, want %d", when, got, verdict)
		}
	}

	root := &netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: h.c1.Ifindex, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate: 1000, Limit: 10000, Buffer: 1e9}
	clsact := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: h.c1.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	ingress := &netlink.Ingress{QdiscAttrs: clsact.QdiscAttrs}
	filter := func(parent uint32) netlink.Filter {
		return &netlink.U32{FilterAttrs: netlink.FilterAttrs{LinkIndex: h.c1.Ifindex, Parent: parent, Priority: 1, Protocol: unix.ETH_P_ALL},
			ClassId: netlink.MakeHandle(1, 1)}
	}
	for name, x := range map[string]struct {
		qdisc  netlink.Qdisc
		filter netlink.Filter
		during int32
	}{
		"tbf":                        {root, nil, next},
		"ingress filter":             {ingress, filter(clsact.Handle), next},
		"ingress filter of clsact":   {clsact, filter(netlink.HANDLE_MIN_INGRESS), next},
		"egress filter of clsact":    {clsact, filter(netlink.HANDLE_MIN_EGRESS), next},
		"clsact that filters naught": {clsact, nil, redirect},
	} {
		t.Run(name, func(t *testing.T) {
			h.ns.Enter(t)
			h.pair(t, h.c1, h.c2)
			want(t, "before", redirect)
			check(t, netlink.QdiscAdd(x.qdisc))
			if x.filter != nil {
				check(t, netlink.FilterAdd(x.filter))
			}
			if got := h.portIn(t, arp).verdict; got != x.during {
				t.Errorf("its question: verdict %d, want %d", got, x.during)
			}
			want(t, "with it", x.during)
			check(t, netlink.QdiscDel(x.qdisc))
			if got := h.portOut(t, in, 0).verdict; got != next {
				t.Errorf("from the host: verdict %d", got)
			}
			h.pair(t, h.c1, h.c2)
			want(t, "after", redirect)
		})
	}
}
