package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// What stands in a frame behind the packet's end is no header: the receiver does not see it.
func TestIP6PortInReadsNothingBehindThePacket(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	d := h.datagram()
	first := []testutil.Ext{testutil.FragmentHeader(0, true, 7), testutil.Options(testutil.DestOptions)}
	echo := d.With(func(f *testutil.Frame) { f.UDP = nil; f.Echo = &testutil.Echo{ID: 1}; f.Ext = first })
	udp := d.With(func(f *testutil.Frame) { f.Ext = first })
	jumbo := d.With(func(f *testutil.Frame) { f.Ext = []testutil.Ext{testutil.RouterAlert()} })
	for name, x := range map[string]struct {
		f      testutil.Frame
		len    uint16 // of the packet behind its IPv6 header
		reason Reason
	}{
		"whole echo":            {echo, 16 + 8, ""},
		"echo behind its end":   {echo, 16, "spoof_ip"},
		"whole ports":           {udp, 16 + 8, ""},
		"ports behind its end":  {udp, 16, "spoof_ip"},
		"half of the ports":     {udp, 16 + 2, "spoof_ip"},
		"options behind it":     {udp, 8, "l2_proto"},
		"fragment without any":  {udp, 0, "l2_proto"},
		"no length but options": {jumbo, 0, ""},
	} {
		b := x.f.Bytes(t)
		b[18], b[19] = byte(x.len>>8), byte(x.len)
		if x.reason != "" {
			h.wantDrop(t, h.c1.Ifindex, x.reason, func() result { return h.in(t, b, h.c1) })
		} else if got := h.in(t, b, h.c1); got.verdict != next {
			t.Errorf("%s: verdict %d", name, got.verdict)
		}
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// A probe makes an owner that is probing at the same moment give up its address. So it
// reaches nobody, unless the port may have the address.
func TestIP6ProbeIsForOnesOwnAddress(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	ll2 := testutil.LinkLocal(h.c2.MAC)
	for name, x := range map[string]struct {
		target netip.Addr
		mac    net.HardwareAddr // nil: the group's
		answer bool
	}{
		"to the neighbour alone": {ll2, h.c2.MAC, true},
		"to the gateway alone":   {testutil.LinkLocal(h.gateway), h.gateway, true},
		"its address":            {gateway6, h.gateway, true},
		"to another":             {ll2, h.gateway, true},
		"nobody's":               {mustAddr("fd00:1::99"), nil, false},
		"nobody's, to the host":  {outside6, h.gateway, false},
		"another network's":      {other6, nil, false},
	} {
		f := h.probe(x.target)
		if x.mac != nil {
			f.DstMAC = x.mac
		}
		for _, lease := range []bool{true, false} {
			if !lease {
				check(t, h.SetLease(0))
			}
			if !x.answer {
				h.wantDrop(t, h.c1.Ifindex, "spoof_ip", func() result { return h.in(t, f.Bytes(t), h.c1) })
			} else if got := h.in(t, f.Bytes(t), h.c1); got.verdict != redirect {
				t.Errorf("%s: leases %v: verdict %d, want the answer", name, lease, got.verdict)
			}
			check(t, h.SetLease(DefaultLease))
		}
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// The link-local address of an allowed MAC address is nobody else's to claim, and moves with it.
func TestIP6LinkLocalOfAnAllowedMAC(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	shared := mustMAC("00:00:5e:00:02:07")
	addr := testutil.LinkLocal(shared)
	from := func(p Port, mac net.HardwareAddr) []byte {
		f := h.datagram()
		f.SrcMAC, f.Src, f.Dst, f.DstMAC = mac, addr, allNodes, testutil.GroupMAC(allNodes)
		return f.Bytes(t)
	}
	may := func(p Port, mac net.HardwareAddr) {
		t.Helper()
		if got := h.in(t, from(p, mac), p); got.verdict != next {
			t.Errorf("port %d: verdict %d", p.Ifindex, got.verdict)
		}
	}
	may(h.c1, h.c1.MAC) // claims it before anybody may use the MAC address
	h.c1.AllowedMACs, h.c2.AllowedMACs = []net.HardwareAddr{shared}, []net.HardwareAddr{shared}
	check(t, h.AttachPort(h.c2))
	may(h.c2, shared)
	h.wantDrop(t, h.c1.Ifindex, "spoof_ip", func() result { return h.in(t, from(h.c1, h.c1.MAC), h.c1) })
	check(t, h.AttachPort(h.c1)) // a second one that may use it takes over
	may(h.c1, shared)
	may(h.c2, shared)
}
