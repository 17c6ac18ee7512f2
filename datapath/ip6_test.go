package datapath

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fastbr/fastbr/internal/testutil"
)

var (
	net6     = netip.MustParsePrefix("fd00:1::/64")
	gateway6 = mustAddr("fd00:1::1")
	extAddr6 = mustAddr("2001:db8:1::1")
	c1Addr6  = mustAddr("fd00:1::2")
	c2Addr6  = mustAddr("fd00:1::3")
	other6   = mustAddr("fd00:2::2")
	outside6 = mustAddr("2001:db8:f::11")
	allNodes = mustAddr("ff02::1")
	noAddr6  = netip.IPv6Unspecified()
)

// sixth is a harness whose networks have IPv6, with IPv6's programs and frames.
type sixth struct{ *harness }

// speaking is the same harness with the programs and frames of another family.
func (h *harness) speaking(of addresses) *harness {
	c := *h
	c.addr = of
	return &c
}

// eachFamily runs a test with the programs of IPv4 and with those of IPv6.
func eachFamily(t *testing.T, cfg Config, test func(t *testing.T, h *harness)) {
	t.Run("IPv4", func(t *testing.T) { test(t, newHarness(t, cfg, nil)) })
	t.Run("IPv6", func(t *testing.T) { test(t, withIP6(t, newHarness(t, cfg, nil)).harness) })
}

func (h *harness) networks6() (Network, Network) {
	one := Network{Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: gateway1, Bridge: h.bridge, Masquerade: true, Subnet6: net6, Gateway6: gateway6}
	two := Network{Subnet: netip.MustParsePrefix("172.31.0.0/16"), Gateway: mustAddr("172.31.0.1"), Bridge: h.bridge2, Masquerade: true,
		Subnet6: netip.MustParsePrefix("fd00:2::/64"), Gateway6: mustAddr("fd00:2::1")}
	return one, two
}

func withIP6(t testing.TB, h *harness) sixth {
	t.Helper()
	one, two := h.networks6()
	failVerbosely(t, h.SetNetwork(one))
	check(t, h.SetNetwork(two))
	for p, a := range map[*Port]netip.Addr{&h.c1: c1Addr6, &h.c2: c2Addr6, &h.other: other6} {
		p.IP6 = a
		check(t, h.AttachPort(*p))
	}
	h.ns.Enter(t)
	for key, v := range map[string]string{"up0/disable_ipv6": "0", "br1/forwarding": "1", "br2/forwarding": "1"} {
		check(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+key, []byte(v), 0))
	}
	addAddress(t, h.uplink.Ifindex, extAddr6, 64)
	check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: h.uplink.Ifindex, Gw: router6.AsSlice()}))
	h.uplink.Addr6 = extAddr6
	check(t, h.AttachUplink(h.uplink))
	return sixth{h.speaking(of6)}
}

func (h sixth) in(t *testing.T, frame []byte, p Port) result {
	t.Helper()
	return h.run(t, h.prog(tcProgFbrPortIn), frame, p.Ifindex, p.Ifindex)
}

func (h sixth) out(t *testing.T, frame []byte, p Port, iif int) result {
	t.Helper()
	return h.run(t, h.prog(tcProgFbrPortOut), frame, p.Ifindex, iif)
}

// datagram6 is a UDP datagram of c1 to c2.
func (h sixth) datagram() testutil.Frame {
	return testutil.Frame{SrcMAC: h.c1.MAC, DstMAC: h.c2.MAC, Src: c1Addr6, Dst: c2Addr6,
		UDP: &testutil.UDP{SrcPort: 40000, DstPort: 9999}, Payload: []byte("hello, neighbour")}
}

// say is an ICMPv6 message of c1 to a group or to c2.
func (h sixth) say(dst netip.Addr, m *testutil.ICMP6) testutil.Frame {
	f := testutil.Frame{SrcMAC: h.c1.MAC, DstMAC: h.c2.MAC, Src: testutil.LinkLocal(h.c1.MAC), Dst: dst, Msg: m}
	if dst.IsMulticast() {
		f.DstMAC = testutil.GroupMAC(dst)
	}
	return f
}

// ask is c1's question for the MAC address of target.
func (h sixth) ask(target netip.Addr) testutil.Frame {
	f := h.say(testutil.SolicitedNode(target), testutil.NeighborSolicitation(target, testutil.SourceLink(h.c1.MAC)))
	f.Src = c1Addr6
	return f
}

// probe is c1's question whether anybody has target (duplicate address detection).
func (h sixth) probe(target netip.Addr) testutil.Frame {
	f := h.say(testutil.SolicitedNode(target), testutil.NeighborSolicitation(target))
	f.Src = noAddr6
	return f
}

var six = []testutil.Ext{testutil.RouterAlert(), testutil.Options(testutil.DestOptions, 1, 0), testutil.RoutingHeader(4, 0),
	testutil.Options(testutil.DestOptions, 1, 0), testutil.Options(testutil.DestOptions), testutil.Options(testutil.DestOptions, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0)}

// What a container may send by IPv6, and nothing else. Every row passes with and without
// leases, and none wants anything of the fast path.
func TestIP6PortInDropsWhatIsNotThePorts(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	ll1, ll2 := testutil.LinkLocal(h.c1.MAC), testutil.LinkLocal(h.c2.MAC)
	llGW := testutil.LinkLocal(h.gateway)
	d := h.datagram()
	f := func(change func(*testutil.Frame)) []byte { return d.With(change).Bytes(t) }
	say := func(dst netip.Addr, m *testutil.ICMP6, change ...func(*testutil.Frame)) []byte {
		return h.say(dst, m).With(change...).Bytes(t)
	}
	own := testutil.SourceLink(h.c1.MAC)
	advert := func(target netip.Addr, mac net.HardwareAddr) *testutil.ICMP6 {
		return testutil.NeighborAdvertisement(target, testutil.NAOverride, testutil.TargetLink(mac))
	}
	hidden := func(f *testutil.Frame) { f.Ext = six }
	more := func(f *testutil.Frame) { f.Ext = append(slices.Clone(six), testutil.Options(testutil.DestOptions)) }
	atomic := func(f *testutil.Frame) { f.Ext = []testutil.Ext{testutil.FragmentHeader(0, false, 7)} }
	first := func(f *testutil.Frame) { f.MF = true }
	cut := func(b []byte, n int) []byte { // the packet ends after n bytes behind the IPv6 header
		b = b[:14+40+n]
		b[18], b[19] = 0, byte(n)
		return b
	}
	rows := map[string]struct {
		frame  []byte
		reason Reason // "": passes to the kernel
	}{
		"a datagram":                {frame: d.Bytes(t)},
		"to the gateway":            {frame: f(func(f *testutil.Frame) { f.DstMAC, f.Dst = h.gateway, gateway6 })},
		"to its link-local address": {frame: f(func(f *testutil.Frame) { f.DstMAC, f.Src, f.Dst = h.gateway, ll1, llGW })},
		"to a group":                {frame: f(func(f *testutil.Frame) { f.Dst = allNodes; f.DstMAC = testutil.GroupMAC(allNodes) })},
		"to a wider group":          {frame: f(func(f *testutil.Frame) { f.Dst = mustAddr("ff05::c"); f.DstMAC = testutil.GroupMAC(f.Dst) })},
		"extension headers":         {frame: f(hidden)},
		"first fragment":            {frame: f(first)},
		"later fragment":            {frame: f(func(f *testutil.Frame) { f.FragOff = 185; f.UDP = nil; f.Proto = 17 })},
		"an echo in fragments":      {frame: f(func(f *testutil.Frame) { f.UDP = nil; f.Echo = &testutil.Echo{ID: 1}; f.MF = true })},
		"from link-local":           {frame: f(func(f *testutil.Frame) { f.Src, f.Dst = ll1, ll2 })},
		"from link-local to groups": {frame: say(allNodes, testutil.MLDReport(mustAddr("ff02::fb")))},
		"from another link-local":   {frame: f(func(f *testutil.Frame) { f.Src, f.Dst = mustAddr("fe80::abcd"), ll2 })},

		"version":                  {func() []byte { b := d.Bytes(t); b[14] = 0x45; return b }(), "l2_proto"},
		"neighbour's address":      {f(func(f *testutil.Frame) { f.Src = c2Addr6 }), "spoof_ip"},
		"nobody's address":         {f(func(f *testutil.Frame) { f.Src = mustAddr("fd00:1::99") }), "spoof_ip"},
		"gateway's address":        {f(func(f *testutil.Frame) { f.Src = gateway6 }), "spoof_ip"},
		"another network's":        {f(func(f *testutil.Frame) { f.Src = other6 }), "spoof_ip"},
		"outsider's":               {f(func(f *testutil.Frame) { f.Src = outside6 }), "spoof_ip"},
		"group as source":          {f(func(f *testutil.Frame) { f.Src = allNodes }), "spoof_ip"},
		"loopback":                 {f(func(f *testutil.Frame) { f.Src = netip.IPv6Loopback() }), "spoof_ip"},
		"IPv4-mapped":              {f(func(f *testutil.Frame) { f.Src = mustAddr("::ffff:172.30.0.2") }), "spoof_ip"},
		"neighbour's link-local":   {f(func(f *testutil.Frame) { f.Src, f.Dst = ll2, ll2 }), "spoof_ip"},
		"gateway's link-local":     {f(func(f *testutil.Frame) { f.Src, f.Dst = llGW, ll2 }), "spoof_ip"},
		"spoofed behind headers":   {f(func(f *testutil.Frame) { hidden(f); f.Src = c2Addr6 }), "spoof_ip"},
		"spoofed in fragments":     {f(func(f *testutil.Frame) { first(f); f.Src = c2Addr6 }), "spoof_ip"},
		"spoofed later fragment":   {f(func(f *testutil.Frame) { f.FragOff = 185; f.Src = c2Addr6 }), "spoof_ip"},
		"no address":               {f(func(f *testutil.Frame) { f.Src = noAddr6 }), "spoof_ip"},
		"no address, to a group":   {f(func(f *testutil.Frame) { f.Src = noAddr6; f.Dst = allNodes; f.DstMAC = testutil.GroupMAC(allNodes) }), "spoof_ip"},
		"seven headers":            {f(more), "l2_proto"},
		"no header behind options": {cut(f(hidden), 8), "l2_proto"},
		"link-local, wider":        {f(func(f *testutil.Frame) { f.Src = ll1 }), "isolated"},
		"link-local, wider group":  {f(func(f *testutil.Frame) { f.Src = ll1; f.Dst = mustAddr("ff05::c"); f.DstMAC = testutil.GroupMAC(f.Dst) }), "isolated"},
		"to the other network":     {f(func(f *testutil.Frame) { f.DstMAC, f.Dst = h.gateway, other6 }), "isolated"},
		"to a port of the other":   {f(func(f *testutil.Frame) { f.DstMAC, f.Dst = h.other.MAC, other6 }), "isolated"},
		"to its gateway":           {f(func(f *testutil.Frame) { f.DstMAC, f.Dst = h.gateway, mustAddr("fd00:2::1") }), "isolated"},
		"to outside":               {f(func(f *testutil.Frame) { f.DstMAC, f.Dst = h.gateway, outside6 }), ""},
		"outside by the host end":  {f(func(f *testutil.Frame) { f.DstMAC, f.Dst = mustMAC("02:00:00:00:00:77"), outside6 }), ""},
		"link-local by gateway":    {f(func(f *testutil.Frame) { f.DstMAC, f.Src, f.Dst = h.gateway, ll1, ll2 }), "isolated"},
		"host in a group's frame":  {f(func(f *testutil.Frame) { f.DstMAC = testutil.GroupMAC(allNodes) }), "isolated"},

		"probe for its own":             {frame: h.probe(c1Addr6).Bytes(t)},
		"probe for its own link-local":  {frame: h.probe(ll1).Bytes(t)},
		"probe for nobody's":            {frame: h.probe(mustAddr("fe80::1234")).Bytes(t)},
		"report without an address":     {frame: say(mustAddr("ff02::16"), testutil.MLDReport(mustAddr("ff02::1:ff00:2")), func(f *testutil.Frame) { f.Src = noAddr6; f.Ext = []testutil.Ext{testutil.RouterAlert()} })},
		"solicits routers":              {frame: say(mustAddr("ff02::2"), testutil.RouterSolicitation(own))},
		"solicits without an address":   {frame: say(mustAddr("ff02::2"), testutil.RouterSolicitation(), func(f *testutil.Frame) { f.Src = noAddr6 })},
		"question to a neighbour":       {frame: say(c2Addr6, testutil.NeighborSolicitation(c2Addr6, own))},
		"answer":                        {frame: say(c2Addr6, advert(c1Addr6, h.c1.MAC), func(f *testutil.Frame) { f.Src = c1Addr6 })},
		"answer from link-local":        {frame: say(c2Addr6, advert(ll1, h.c1.MAC))},
		"announcement":                  {frame: say(allNodes, advert(c1Addr6, h.c1.MAC))},
		"solicits with another's MAC":   {say(mustAddr("ff02::2"), testutil.RouterSolicitation(testutil.SourceLink(h.c2.MAC))), "spoof_ip"},
		"question with another's MAC":   {say(testutil.SolicitedNode(c2Addr6), testutil.NeighborSolicitation(c2Addr6, testutil.SourceLink(h.gateway))), "spoof_ip"},
		"another's MAC second":          {say(c2Addr6, testutil.NeighborSolicitation(c2Addr6, own, testutil.SourceLink(h.c2.MAC))), "spoof_ip"},
		"another's MAC behind a nonce":  {say(c2Addr6, testutil.NeighborSolicitation(c2Addr6, []byte{14, 1, 1, 2, 3, 4, 5, 6}, testutil.SourceLink(h.c2.MAC))), "spoof_ip"},
		"option of no length":           {say(c2Addr6, testutil.NeighborSolicitation(c2Addr6, []byte{1, 0, 2, 0, 0, 0, 0, 0})), "spoof_ip"},
		"option cut off":                {say(c2Addr6, testutil.NeighborSolicitation(c2Addr6, []byte{1, 1, 2, 0})), "spoof_ip"},
		"long option":                   {say(c2Addr6, testutil.NeighborSolicitation(c2Addr6, append([]byte{1, 2}, append(slices.Clone(h.c1.MAC), h.c2.MAC[0], 0, 0, 0, 0, 0, 0, 0)...))), "spoof_ip"},
		"many options":                  {say(c2Addr6, testutil.NeighborSolicitation(c2Addr6, slices.Concat(own, own, own, own, own, own, own, own, own))), "spoof_ip"},
		"question cut off":              {cut(say(c2Addr6, testutil.NeighborSolicitation(c2Addr6)), 20), "spoof_ip"},
		"question routed":               {say(c2Addr6, testutil.NeighborSolicitation(c2Addr6, own), func(f *testutil.Frame) { f.TTL = 254 }), "spoof_ip"},
		"answer routed":                 {say(c2Addr6, advert(c1Addr6, h.c1.MAC), func(f *testutil.Frame) { f.TTL = 64 }), "spoof_ip"},
		"answer for the gateway":        {say(c2Addr6, advert(gateway6, h.c1.MAC)), "spoof_ip"},
		"answer for its link-local":     {say(allNodes, advert(llGW, h.c1.MAC)), "spoof_ip"},
		"answer for a neighbour":        {say(allNodes, advert(c2Addr6, h.c1.MAC)), "spoof_ip"},
		"answer for its link-local too": {say(allNodes, advert(ll2, h.c1.MAC)), "spoof_ip"},
		"answer with another's MAC":     {say(c2Addr6, advert(c1Addr6, h.gateway)), "spoof_ip"},
		"answer hidden":                 {say(c2Addr6, advert(gateway6, h.c1.MAC), hidden), "spoof_ip"},
		"answer in fragments":           {say(c2Addr6, advert(c1Addr6, h.c1.MAC), first), "spoof_ip"},
		"answer in an atomic one":       {say(c2Addr6, advert(c1Addr6, h.c1.MAC), atomic), "spoof_ip"},
		"question in an atomic one":     {say(c2Addr6, testutil.NeighborSolicitation(c2Addr6, own), atomic), "spoof_ip"},
		"tiny first fragment":           {cut(say(c2Addr6, advert(c1Addr6, h.c1.MAC), first), 8), "spoof_ip"},
		"router":                        {say(allNodes, testutil.RouterAdvertisement(1800)), "spoof_ip"},
		"router, hidden":                {say(allNodes, testutil.RouterAdvertisement(1800), hidden), "spoof_ip"},
		"router, in fragments":          {say(allNodes, testutil.RouterAdvertisement(1800), first), "spoof_ip"},
		"redirect":                      {say(c2Addr6, testutil.Redirect(ll1, outside6)), "spoof_ip"},
		"redirect, hidden":              {say(c2Addr6, testutil.Redirect(ll1, outside6), hidden), "spoof_ip"},
		"MLD query":                     {say(allNodes, testutil.MLDQuery(noAddr6), func(f *testutil.Frame) { f.Ext = []testutil.Ext{testutil.RouterAlert()} }), "spoof_ip"},
		"multicast router":              {say(mustAddr("ff02::6a"), &testutil.ICMP6{Type: 151, Body: make([]byte, 4)}), "spoof_ip"},
		"DHCPv6 client": {frame: f(func(f *testutil.Frame) {
			f.UDP.SrcPort, f.UDP.DstPort, f.Src, f.Dst = 546, 547, ll1, mustAddr("ff02::1:2")
			f.DstMAC = testutil.GroupMAC(f.Dst)
		})},
		"DHCPv6 server":               {f(func(f *testutil.Frame) { f.UDP.SrcPort, f.UDP.DstPort, f.Src, f.Dst = 547, 546, ll1, ll2 }), "spoof_ip"},
		"DHCPv6 server, other port":   {f(func(f *testutil.Frame) { f.UDP.DstPort, f.Src, f.Dst = 546, ll1, ll2 }), "spoof_ip"},
		"DHCPv6 relay":                {f(func(f *testutil.Frame) { f.UDP.SrcPort = 547 }), "spoof_ip"},
		"DHCPv6 server, hidden":       {f(func(f *testutil.Frame) { hidden(f); f.UDP.SrcPort = 547 }), "spoof_ip"},
		"DHCPv6 server, in fragments": {f(func(f *testutil.Frame) { first(f); f.UDP.SrcPort = 547 }), "spoof_ip"},
		"ports cut off":               {cut(f(first), 8), "spoof_ip"},
	}
	for _, lease := range []bool{true, false} {
		if !lease {
			check(t, h.SetLease(0))
		}
		for name, tc := range rows {
			before := h.of(t, h.c1.Ifindex)
			if tc.reason != "" {
				h.wantDrop(t, h.c1.Ifindex, tc.reason, func() result { return h.in(t, tc.frame, h.c1) })
			} else if got := h.in(t, tc.frame, h.c1); got.verdict != next || string(got.frame) != string(tc.frame) {
				t.Errorf("%s: verdict %d, frame changed: %v", name, got.verdict, string(got.frame) != string(tc.frame))
			}
			after := h.of(t, h.c1.Ifindex)
			if n, b := after.RX.SlowPackets-before.RX.SlowPackets, after.RX.SlowBytes-before.RX.SlowBytes; n != 1 || b != uint64(len(tc.frame)) {
				t.Errorf("%s: %d packets and %d bytes counted as received, want 1 and %d", name, n, b, len(tc.frame))
			}
			if t.Failed() {
				t.Fatalf("%s, with leases: %v", name, lease)
			}
		}
	}
}

// The programs know whose address is asked for, so no other port needs to hear the question.
func TestIP6PortInAnswersQuestions(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	answer := func(target netip.Addr, mac net.HardwareAddr, flags uint8) testutil.Frame {
		return testutil.Frame{SrcMAC: mac, DstMAC: h.c1.MAC, Src: target, Dst: c1Addr6,
			Msg: testutil.NeighborAdvertisement(target, flags|testutil.NAOverride, testutil.TargetLink(mac))}
	}
	const router, solicited = testutil.NARouter, testutil.NASolicited
	bare := h.ask(c2Addr6)
	bare.Msg = testutil.NeighborSolicitation(c2Addr6)
	nonce := h.ask(c2Addr6)
	nonce.Msg = testutil.NeighborSolicitation(c2Addr6, []byte{14, 1, 1, 2, 3, 4, 5, 6}, testutil.SourceLink(h.c1.MAC))
	linkLocal := h.ask(c2Addr6)
	linkLocal.Src = testutil.LinkLocal(h.c1.MAC)
	toLinkLocal := answer(c2Addr6, h.c2.MAC, solicited)
	toLinkLocal.Dst = linkLocal.Src
	toAll := func(target netip.Addr, mac net.HardwareAddr, flags uint8) testutil.Frame {
		f := answer(target, mac, flags)
		f.Dst = allNodes
		return f
	}
	ll2, llGW := testutil.LinkLocal(h.c2.MAC), testutil.LinkLocal(h.gateway)
	for name, x := range map[string]struct {
		ask, want testutil.Frame
		always    bool // also without leases
	}{
		"for a neighbour":           {h.ask(c2Addr6), answer(c2Addr6, h.c2.MAC, solicited), false},
		"without an option":         {bare, answer(c2Addr6, h.c2.MAC, solicited), false},
		"with a nonce":              {nonce, answer(c2Addr6, h.c2.MAC, solicited), false},
		"from link-local":           {linkLocal, toLinkLocal, false},
		"for the gateway":           {h.ask(gateway6), answer(gateway6, h.gateway, solicited|router), false},
		"for a link-local address":  {h.ask(ll2), answer(ll2, h.c2.MAC, solicited), false},
		"for the gateway's":         {h.ask(llGW), answer(llGW, h.gateway, solicited|router), false},
		"probe for a neighbour's":   {h.probe(c2Addr6), toAll(c2Addr6, h.c2.MAC, 0), true},
		"probe for its link-local":  {h.probe(ll2), toAll(ll2, h.c2.MAC, 0), true},
		"probe for the gateway's":   {h.probe(gateway6), toAll(gateway6, h.gateway, router), true},
		"probe for its other one's": {h.probe(llGW), toAll(llGW, h.gateway, router), true},
	} {
		ask, want := x.ask.Bytes(t), x.want.Bytes(t)
		before := h.of(t, h.c1.Ifindex)
		got := h.in(t, ask, h.c1)
		if got.verdict != redirect || string(got.frame) != string(want) {
			t.Errorf("%s: verdict %d\n got %x\nwant %x", name, got.verdict, got.frame, want)
		}
		if err := testutil.CheckSums(got.frame); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		after := h.of(t, h.c1.Ifindex)
		if after.RX.FastPackets != before.RX.FastPackets+1 || after.TX.FastPackets != before.TX.FastPackets+1 {
			t.Errorf("%s: c1 counts %+v", name, after)
		}
		check(t, h.SetLease(0))
		verdict := int32(next)
		if x.always {
			verdict = redirect
		}
		if got := h.in(t, ask, h.c1); got.verdict != verdict {
			t.Errorf("%s: without leases: verdict %d", name, got.verdict)
		}
		check(t, h.SetLease(DefaultLease))
	}
	reachable := h.ask(c2Addr6)
	reachable.DstMAC, reachable.Dst = h.c2.MAC, c2Addr6
	for name, f := range map[string]testutil.Frame{
		"for another network's": h.ask(other6),
		"for its own":           h.ask(c1Addr6),
		"for nobody's":          h.ask(mustAddr("fd00:1::99")),
		"to the neighbour":      reachable,
		"probe for its own":     h.probe(c1Addr6),
		"probe for nobody's":    h.probe(mustAddr("fe80::99")),
	} {
		if got := h.in(t, f.Bytes(t), h.c1); got.verdict != next || string(got.frame) != string(f.Bytes(t)) {
			t.Errorf("%s: verdict %d, want it left to the bridge", name, got.verdict)
		}
	}
	slow := h.c2
	slow.Slow = true
	check(t, h.AttachPort(slow))
	if got := h.in(t, h.ask(c2Addr6).Bytes(t), h.c1); got.verdict != next {
		t.Errorf("for a port on the kernel's path: verdict %d", got.verdict)
	}
	if got := h.in(t, h.probe(c2Addr6).Bytes(t), h.c1); got.verdict != redirect {
		t.Errorf("a probe for the address of a port on the kernel's path: verdict %d", got.verdict)
	}
}

// carry delivers f to a port, as the kernel's bridge does with what it has from another. A
// slow machine does not outlast the lease.
func (h sixth) carry(t *testing.T, f testutil.Frame, from, to Port) {
	t.Helper()
	h.age(t, 0)
	h.harness.carry(t, f, from, to)
	h.keepPairs(t)
}

// A link-local address belongs to the port that has used it first.
func TestIP6LinkLocalIsFirstComeFirstServed(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	from := func(p Port, src netip.Addr) []byte {
		f := h.datagram()
		f.SrcMAC, f.Src, f.Dst, f.DstMAC = p.MAC, src, allNodes, testutil.GroupMAC(allNodes)
		return f.Bytes(t)
	}
	may := func(p Port, src netip.Addr, reason Reason) {
		t.Helper()
		if reason != "" {
			h.wantDrop(t, p.Ifindex, reason, func() result { return h.in(t, from(p, src), p) })
		} else if got := h.in(t, from(p, src), p); got.verdict != next {
			t.Errorf("from %s: verdict %d", src, got.verdict)
		}
	}
	a, b := mustAddr("fe80::a"), mustAddr("fe80:1::b")
	may(h.c1, a, "")
	may(h.c2, a, "spoof_ip")
	may(h.other, a, "") // another bridge
	// A probe claims the address, too.
	if got := h.in(t, h.probe(b).Bytes(t), h.c1); got.verdict != next {
		t.Errorf("probe: verdict %d", got.verdict)
	}
	may(h.c2, b, "spoof_ip")
	may(h.c1, b, "")
	steal := h.say(allNodes, testutil.NeighborAdvertisement(a, testutil.NAOverride, testutil.TargetLink(h.c2.MAC)))
	steal.SrcMAC, steal.Src = h.c2.MAC, testutil.LinkLocal(h.c2.MAC)
	h.wantDrop(t, h.c2.Ifindex, "spoof_ip", func() result { return h.in(t, steal.Bytes(t), h.c2) })
	for i := range 14 {
		addr := mustAddr("fe80::200").As16()
		addr[15] = byte(i)
		may(h.c1, netip.AddrFrom16(addr), "")
	}
	may(h.c1, mustAddr("fe80::999"), "quota")
	may(h.c1, testutil.LinkLocal(h.c1.MAC), "") // always its own
	check(t, h.VerifyPort(h.c1))
	check(t, h.AttachPort(h.c1)) // changes nothing
	may(h.c1, mustAddr("fe80::999"), "quota")
	may(h.c2, a, "spoof_ip")
	check(t, h.DetachPort(h.c1.Ifindex))
	may(h.c2, a, "")
	if n, err := countIf(h.six.maps[tc6MapFbrClaims], func(*tc6FbrClaimKey, *uint32) bool { return true }); n != 2 || err != nil {
		t.Errorf("%d addresses are claimed, %v", n, err)
	}
	check(t, h.AttachPort(h.c1))
	may(h.c1, a, "spoof_ip")
}

// A lease is of one family. What decides about it is asked for that family.
func TestIP6FastPathBetweenPorts(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	d := h.datagram()
	four := between(h.c1, h.c2)
	is := func(when string, verdict int32) {
		t.Helper()
		b := d.Bytes(t)
		if got := h.in(t, b, h.c1); got.verdict != verdict || string(got.frame) != string(b) {
			t.Errorf("%s: verdict %d, want %d and the frame unchanged", when, got.verdict, verdict)
		}
	}
	carry := func() { t.Helper(); h.carry(t, d, h.c1, h.c2) }
	is("before the bridge has carried any", next)
	h.age(t, 0)
	h.speaking(of4).carry(t, four, h.c1, h.c2)
	is("when it has carried IPv4", next)
	carry()
	before, target := h.of(t, h.c1.Ifindex), h.of(t, h.c2.Ifindex)
	is("with a lease", redirect)
	if c := h.of(t, h.c1.Ifindex); c.RX.FastPackets != before.RX.FastPackets+1 {
		t.Errorf("c1 counts %+v", c)
	}
	if c := h.of(t, h.c2.Ifindex); c.TX.FastPackets != target.TX.FastPackets+1 {
		t.Errorf("c2 counts %+v", c)
	}
	check(t, h.Revoke())
	is("revoked", next)
	carry()
	is("again", redirect)
	if got := h.speaking(of4).portIn(t, four.Bytes(t)); got.verdict != next {
		t.Errorf("IPv4 by the lease of IPv6: verdict %d", got.verdict)
	}
	spoofed := d.With(func(f *testutil.Frame) { f.Src = gateway6 })
	h.wantDrop(t, h.c1.Ifindex, "spoof_ip", func() result { return h.in(t, spoofed.Bytes(t), h.c1) })
	for name, change := range map[string]func(*testutil.Frame){
		"fragment":      func(f *testutil.Frame) { f.MF = true },
		"options":       func(f *testutil.Frame) { f.Ext = six },
		"link-local":    func(f *testutil.Frame) { f.Src, f.Dst = testutil.LinkLocal(h.c1.MAC), testutil.LinkLocal(h.c2.MAC) },
		"echo":          func(f *testutil.Frame) { f.UDP = nil; f.Echo = &testutil.Echo{ID: 3} },
		"to nobody's":   func(f *testutil.Frame) { f.Dst = outside6 },
		"a routed host": func(f *testutil.Frame) { f.Dst = mustAddr("fd00:1::99") },
	} {
		b := d.With(change).Bytes(t)
		if got := h.in(t, b, h.c1); got.verdict != redirect {
			t.Errorf("%s: verdict %d", name, got.verdict)
		}
	}
	for name, x := range map[string]struct {
		prepare func()
		verdict int32
	}{
		"without leases": {func() { check(t, h.SetLease(0)) }, next},
		"slow target":    {func() { p := h.c2; p.Slow = true; check(t, h.AttachPort(p)) }, next},
		"smaller target": {func() { p := h.c2; p.MTU = 1400; check(t, h.AttachPort(p)) }, next},
		"target gone":    {func() { check(t, h.DetachPort(h.c2.Ifindex)) }, shot}, // the host would ask for it
	} {
		carry()
		is("before: "+name, redirect)
		x.prepare()
		is(name, x.verdict)
		check(t, h.SetLease(DefaultLease))
		check(t, h.AttachPort(h.c2))
	}
	h.ns.Enter(t)
	if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-ip6tables", []byte("1"), 0); err != nil {
		t.Skipf("no br_netfilter here: %v", err)
	}
	check(t, h.Revoke())
	h.age(t, 0)
	carry()
	carry()
	is("beside ip6tables, the same flow", redirect)
	another := d.With(func(f *testutil.Frame) { f.UDP.DstPort++ })
	if got := h.in(t, another.Bytes(t), h.c1); got.verdict != next {
		t.Errorf("beside ip6tables, another flow: verdict %d", got.verdict)
	}
}

// An internal network has its host and its ports, and no router among them.
func TestIP6InternalNetwork(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	one, _ := h.networks6()
	one.Internal = true
	check(t, h.SetNetwork(one))
	check(t, h.AttachPort(h.c1))
	check(t, h.AttachPort(h.c2))
	d := h.datagram()
	h.carry(t, d, h.c1, h.c2)
	for name, x := range map[string]struct {
		change  func(*testutil.Frame)
		verdict int32
	}{
		"to its container":     {func(*testutil.Frame) {}, redirect},
		"to a group there":     {func(f *testutil.Frame) { f.Dst = allNodes }, redirect},
		"to its link-local":    {func(f *testutil.Frame) { f.Dst = testutil.LinkLocal(h.c2.MAC) }, redirect},
		"to the gateway":       {func(f *testutil.Frame) { f.DstMAC, f.Dst = h.gateway, gateway6 }, next},
		"through it":           {func(f *testutil.Frame) { f.Dst = outside6 }, shot},
		"through the gateway":  {func(f *testutil.Frame) { f.DstMAC, f.Dst = h.gateway, outside6 }, shot},
		"to the other network": {func(f *testutil.Frame) { f.Dst = other6 }, shot},
	} {
		before := h.of(t, h.c1.Ifindex).Drops["isolated"]
		got := h.in(t, d.With(x.change).Bytes(t), h.c1)
		if dropped := h.of(t, h.c1.Ifindex).Drops["isolated"] - before; got.verdict != x.verdict || (dropped == 1) != (x.verdict == shot) {
			t.Errorf("%s: verdict %d, want %d; %d dropped as isolated", name, got.verdict, x.verdict, dropped)
		}
	}
}

func TestIP6PortOutDeliversOnlyWhatMayCome(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	f := testutil.Frame{SrcMAC: h.gateway, DstMAC: h.c1.MAC, Src: gateway6, Dst: c1Addr6, UDP: &testutil.UDP{SrcPort: 1, DstPort: 2}}
	msg := func(m *testutil.ICMP6, ext ...testutil.Ext) testutil.Frame {
		return testutil.Frame{SrcMAC: h.gateway, DstMAC: h.c1.MAC, Src: testutil.LinkLocal(h.gateway), Dst: c1Addr6, Msg: m, Ext: ext}
	}
	outsiders := f.With(func(f *testutil.Frame) { f.Src = outside6 })
	for name, x := range map[string]struct {
		frame  testutil.Frame
		iif    int
		reason Reason
	}{
		"host":                    {f, 0, ""},
		"host's question":         {msg(testutil.NeighborSolicitation(c1Addr6)), 0, ""},
		"host as a router":        {msg(testutil.RouterAdvertisement(1800)), 0, ""},
		"host's redirect":         {msg(testutil.Redirect(gateway6, outside6)), 0, "unsupported"},
		"host's redirect, hidden": {msg(testutil.Redirect(gateway6, outside6), testutil.Options(testutil.DestOptions)), 0, "unsupported"},
		"uplink":                  {outsiders, h.uplink.Ifindex, "direct"},
		"another device":          {outsiders, h.foreign, "direct"},
		"a group by a device":     {outsiders.With(func(f *testutil.Frame) { f.Dst = allNodes }), h.foreign, "direct"},
		"port":                    {f, h.c2.Ifindex, ""},
		"own bridge":              {f, h.bridge, ""},
		"other bridge":            {f, h.bridge2, "isolated"},
		"other port":              {f, h.other.Ifindex, "isolated"},
	} {
		b := x.frame.Bytes(t)
		if x.reason != "" {
			h.wantDrop(t, h.c1.Ifindex, x.reason, func() result { return h.out(t, b, h.c1, x.iif) })
			continue
		}
		before := h.of(t, h.c1.Ifindex)
		if got := h.out(t, b, h.c1, x.iif); got.verdict != next {
			t.Errorf("%s: verdict %d", name, got.verdict)
		}
		if after := h.of(t, h.c1.Ifindex); after.TX.SlowPackets != before.TX.SlowPackets+1 {
			t.Errorf("%s: not counted", name)
		}
	}
}

// In a network with nothing but link-local addresses, the host has no part.
func TestIP6LinkLocalOnly(t *testing.T) {
	h := newReal(t, usual, nil)
	one, _ := h.networks6()
	one.Subnet6, one.Gateway6, one.LinkLocal6 = netip.Prefix{}, netip.Addr{}, true
	check(t, h.SetNetwork(one))
	check(t, h.AttachPort(h.c1))
	check(t, h.AttachPort(h.c2))
	x := sixth{h.speaking(of6)}
	ll1, ll2 := testutil.LinkLocal(h.c1.MAC), testutil.LinkLocal(h.c2.MAC)
	d := x.datagram()
	for name, c := range map[string]struct {
		change func(*testutil.Frame)
		reason Reason
	}{
		"between ports":    {func(f *testutil.Frame) { f.Src, f.Dst = ll1, ll2 }, ""},
		"a global address": {func(f *testutil.Frame) {}, "spoof_ip"},
		"no address":       {func(f *testutil.Frame) { f.Src, f.Dst = noAddr6, ll2 }, "spoof_ip"},
		"to a global one":  {func(f *testutil.Frame) { f.Src = ll1 }, "isolated"},
		"to outside":       {func(f *testutil.Frame) { f.Src, f.Dst, f.DstMAC = ll1, outside6, h.gateway }, "isolated"},
		"neighbour's":      {func(f *testutil.Frame) { f.Src, f.Dst = ll2, ll2 }, "spoof_ip"},
	} {
		b := d.With(c.change).Bytes(t)
		if c.reason != "" {
			h.wantDrop(t, h.c1.Ifindex, c.reason, func() result { return x.in(t, b, h.c1) })
		} else if got := x.in(t, b, h.c1); got.verdict != next {
			t.Errorf("%s: verdict %d", name, got.verdict)
		}
	}
	// The other network has none.
	if err := h.VerifyPort(h.other); err != nil {
		t.Error(err)
	}
	if dev, _, err := h.devs.device(h.other.Ifindex); err != nil || dev.Flags&inet6.flag != 0 {
		t.Errorf("a port of an IPv4 network has the flag: %#x, %v", dev.Flags, err)
	}
}
