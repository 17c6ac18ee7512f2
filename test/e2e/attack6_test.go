package e2e

import (
	"net"
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// attacks6 are what c1 may not send by IPv6, each with the drop that it is counted as.
// Those without are answered.
func (v victims) attacks6(t *testing.T, gateway, a1, a2 netip.Addr) []attack {
	t.Helper()
	ll1, ll2, llGW := testutil.LinkLocal(v.mac1), testutil.LinkLocal(v.mac2), testutil.LinkLocal(v.gwMAC)
	all := netip.MustParseAddr("ff02::1")
	mark := append(append([]byte{253, 3}, forgedMark...), make([]byte, 4)...) // an option of ND
	udp := testutil.Frame{SrcMAC: v.mac1, DstMAC: v.mac2, Src: a1, Dst: a2, UDP: &testutil.UDP{SrcPort: 1111, DstPort: 2222}, Payload: forgedMark}
	with := func(change func(*testutil.Frame)) []byte { return udp.With(change).Bytes(t) }
	say := func(mac net.HardwareAddr, src, dst netip.Addr, m *testutil.ICMP6, ext ...testutil.Ext) []byte {
		return testutil.Frame{SrcMAC: v.mac1, DstMAC: mac, Src: src, Dst: dst, Msg: m, Ext: ext}.Bytes(t)
	}
	long := testutil.Options(testutil.DestOptions, append([]byte{1, 200}, make([]byte, 200)...)...)
	probe := func(mac net.HardwareAddr, target netip.Addr, ext ...testutil.Ext) []byte {
		return say(mac, netip.IPv6Unspecified(), testutil.SolicitedNode(target), testutil.NeighborSolicitation(target, mark), ext...)
	}
	// The header that counts comes with the next fragment: here it is padding.
	hidden := with(func(f *testutil.Frame) {
		f.Ext = []testutil.Ext{testutil.FragmentHeader(0, true, 7), testutil.Options(testutil.DestOptions)}
	})
	hidden[18], hidden[19] = 0, 16
	nobody := a2.As16()
	nobody[15] = 0xee
	return []attack{
		{"c2's address", with(func(f *testutil.Frame) { f.Src, f.Dst, f.DstMAC = a2, gateway, v.gwMAC }), "spoof_ip"},
		{"the gateway's", with(func(f *testutil.Frame) { f.Src = gateway }), "spoof_ip"},
		{"an outsider's", with(func(f *testutil.Frame) { f.Src = v.outside }), "spoof_ip"},
		{"c2's link-local address", with(func(f *testutil.Frame) { f.Src, f.Dst, f.DstMAC = ll2, llGW, v.gwMAC }), "spoof_ip"},
		{"to nobody, for whom the host would ask", with(func(f *testutil.Frame) { f.Dst, f.DstMAC = netip.AddrFrom16(nobody), v.gwMAC }), "isolated"},
		{"to outside, in a group's frame", with(func(f *testutil.Frame) { f.Dst, f.DstMAC = v.outside, testutil.GroupMAC(all) }), "isolated"},
		{"to c2 in a group's frame", with(func(f *testutil.Frame) { f.DstMAC = testutil.GroupMAC(all) }), "isolated"},
		{"ports behind the packet's end", hidden, "spoof_ip"},
		{"a router", say(testutil.GroupMAC(all), ll1, all, testutil.RouterAdvertisement(1800, mark)), "spoof_ip"},
		{"a router behind options", say(testutil.GroupMAC(all), ll1, all, testutil.RouterAdvertisement(1800, mark), long), "spoof_ip"},
		{"a redirect to the host", say(v.gwMAC, ll1, gateway, testutil.Redirect(ll1, v.outside, mark)), "spoof_ip"},
		{"c2's address at c1", say(v.gwMAC, ll1, gateway, testutil.NeighborAdvertisement(a2, testutil.NAOverride|testutil.NASolicited, testutil.TargetLink(v.mac1), mark)), "spoof_ip"},
		{"an uplink's neighbour at c1", say(v.gwMAC, ll1, gateway, testutil.NeighborAdvertisement(v.outside, testutil.NAOverride|testutil.NASolicited, testutil.TargetLink(v.mac1), mark)), "spoof_ip"},
		{"c2's MAC in a question", say(v.gwMAC, a1, gateway, testutil.NeighborSolicitation(gateway, testutil.SourceLink(v.mac2), mark)), "spoof_ip"},
		{"a probe that nobody may make", probe(testutil.GroupMAC(all), v.outside), "spoof_ip"},
		{"a probe for c2's address", probe(testutil.GroupMAC(testutil.SolicitedNode(ll2)), ll2), ""},
		{"a probe to c2 alone", probe(v.mac2, ll2), ""},
		{"a probe to c2 alone behind options", probe(v.mac2, ll2, long), "spoof_ip"},
		{"a probe to the gateway alone", probe(v.gwMAC, llGW), ""},
	}
}

// TestE2EIPv6Spoofing: what a container forges reaches neither its neighbour, nor the host,
// nor the outside, and nobody believes it.
func TestE2EIPv6Spoofing(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := newE2E(t, m, lab.Options{Containers: 2, IPv6: lab.Static})
		h.onHost(t, "sysctl -qw net.ipv6.conf.all.forwarding=1") // the host is a router
		h.Must(t, append([]string{"up", "--ipv6"}, m.Up...)...)
		c1, c2 := h.Containers[0], h.Containers[1]
		gateway := netip.MustParseAddr(h.Attach(t, c1, "c1").Gateway6)
		h.Attach(t, c2, "c2")
		v := h.victims(t, netip.Addr{})
		v.outside = h.Outside.Addr6
		h.mustPing(t, c1, c2.Addr6, lab.PingOptions{})
		h.mustPing(t, c1, gateway, lab.PingOptions{})
		seen := []*witness{
			newWitness(t, c2, "eth0", hasMark), newWitness(t, h.Host, "fastbr0", hasMark), newWitness(t, h.Outside, "eth0", hasMark),
		}
		for _, a := range v.attacks6(t, gateway, c1.Addr6, c2.Addr6) {
			before := h.drops(t, a.reason)
			if err := c1.Inject("eth0", a.frame, a.frame); err != nil {
				t.Fatal(err)
			}
			if a.reason != "" {
				h.waitDrops(t, a.reason, before, 2)
			}
			if t.Failed() {
				t.Fatal(a.name)
			}
		}
		for i, to := range []*lab.Namespace{c2, h.Host, h.Outside} {
			from := c1
			if to == h.Host {
				to, from = c1, h.Host
			}
			h.sendClosing(t, from, to)
			seen[i].assertClean(t, h.Ctx, isClosing)
		}
		h.assertNeighbour(t, h.Host, c2.Addr6, v.mac2)
		h.mustPing(t, h.Host, c2.Addr6, lab.PingOptions{})
		h.mustPing(t, c2, c1.Addr6, lab.PingOptions{})
	})
}
