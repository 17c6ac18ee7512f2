package datapath

import (
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// router6 is where packets come from and go to by the uplink.
var router6 = mustAddr("2001:db8:1::2")

// toRouted makes the first network one whose IPv6 is not translated.
func (h sixth) toRouted(t *testing.T) {
	t.Helper()
	one, _ := h.networks6()
	one.Routed6 = true
	check(t, h.SetNetwork(one))
	check(t, h.AttachPort(h.c1))
	check(t, h.AttachPort(h.c2))
	h.age(t, 0)
}

// answer is what comes back for f by the uplink.
func (h sixth) answer(f testutil.Frame) testutil.Frame {
	return f.With(func(r *testutil.Frame) {
		r.SrcMAC, r.DstMAC, r.Src, r.Dst = h.outsideHW, mustMAC("02:00:00:00:00:01"), f.Dst, f.Src
		switch {
		case r.TCP != nil:
			r.TCP.SrcPort, r.TCP.DstPort = f.TCP.DstPort, f.TCP.SrcPort
		case r.UDP != nil:
			r.UDP.SrcPort, r.UDP.DstPort = f.UDP.DstPort, f.UDP.SrcPort
		case r.Echo != nil:
			r.Echo.Reply = true
		}
	})
}

// Flows of a network that is routed by IPv6 are fast in both directions, each with a lease of
// its own: one hop further, with the MAC addresses of the kernel's frame, untouched otherwise.
func TestIP6Ways(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	h.toRouted(t)
	second := Uplink{Ifindex: h.foreign, MTU: 1500}
	check(t, h.AttachUplink(second))
	h.age(t, 0)
	tcp := h.fromC1().With(func(f *testutil.Frame) { f.TOS, f.Label = 0x28, 0xabcde })
	for name, f := range map[string]testutil.Frame{
		"tcp":  tcp,
		"udp":  tcp.With(func(f *testutil.Frame) { f.TCP, f.UDP = nil, &testutil.UDP{SrcPort: 40000, DstPort: 53} }),
		"echo": tcp.With(func(f *testutil.Frame) { f.TCP, f.Echo = nil, &testutil.Echo{ID: 7} }),
	} {
		t.Run(name, func(t *testing.T) {
			sent, routed := f.Bytes(t), h.routed(f).Bytes(t)
			answer := h.answer(f)
			delivered := answer.With(func(f *testutil.Frame) { f.SrcMAC, f.DstMAC, f.TTL = h.gateway, h.c1.MAC, 63 }).Bytes(t)
			marked := func(s *skb) { s.Mark = h.meta.Mark }

			if got := h.in(t, sent, h.c1); got.verdict != next {
				t.Fatalf("first packet: verdict %d", got.verdict)
			}
			if got := h.uplinkOut(t, routed, h.bridge); got.verdict != next || string(got.frame) != string(routed) {
				t.Fatalf("first packet at the uplink: verdict %d\n got %x\nwant %x", got.verdict, got.frame, routed)
			}
			fast := h.in(t, sent, h.c1)
			if fast.verdict != redirect || string(fast.frame) != string(routed) || fast.mark != h.meta.Mark {
				t.Fatalf("with a lease: verdict %d, mark %x\n got %x\nwant %x", fast.verdict, fast.mark, fast.frame, routed)
			}
			before := h.of(t, h.uplink.Ifindex)
			if got := h.uplinkOut(t, fast.frame, h.c1.Ifindex, marked); got.verdict != next || got.mark != 0 || string(got.frame) != string(routed) {
				t.Errorf("at the uplink: verdict %d, mark %x", got.verdict, got.mark)
			}
			if now := h.of(t, h.uplink.Ifindex); now.TX.FastPackets != before.TX.FastPackets+1 {
				t.Errorf("the uplink counts %+v", now)
			}
			forged := h.routed(f.With(func(f *testutil.Frame) { f.Src = c2Addr6 })).Bytes(t)
			h.wantDrop(t, h.uplink.Ifindex, "spoof_ip", func() result { return h.uplinkOut(t, forged, h.c1.Ifindex, marked) })

			if got := h.uplinkIn(t, answer.Bytes(t)); got.verdict != next {
				t.Fatalf("first answer: verdict %d", got.verdict)
			}
			if got := h.out(t, delivered, h.c1, h.uplink.Ifindex); got.verdict != next {
				t.Fatalf("first answer at the port: verdict %d", got.verdict)
			}
			if got := h.uplinkIn(t, answer.Bytes(t)); got.verdict != redirect || string(got.frame) != string(delivered) {
				t.Errorf("answer with a lease: verdict %d\n got %x\nwant %x", got.verdict, got.frame, delivered)
			}
			if got := h.run(t, h.six.progs[tcProgFbrUplinkIn], answer.Bytes(t), second.Ifindex, second.Ifindex); got.verdict != next {
				t.Errorf("answer by another uplink: verdict %d", got.verdict)
			}
			for when, f := range map[string]testutil.Frame{
				"at its last hop":   f.With(func(f *testutil.Frame) { f.TTL = 1 }),
				"too big":           f.With(func(f *testutil.Frame) { f.Payload = make([]byte, 1600) }),
				"in fragments":      f.With(func(f *testutil.Frame) { f.MF = true }),
				"extension headers": f.With(func(f *testutil.Frame) { f.Ext = []testutil.Ext{testutil.Options(testutil.DestOptions, 1, 0)} }),
			} {
				if got := h.in(t, f.Bytes(t), h.c1); got.verdict != next {
					t.Errorf("%s: verdict %d", when, got.verdict)
				}
			}
			check(t, h.Revoke())
			if out, in := h.in(t, sent, h.c1), h.uplinkIn(t, answer.Bytes(t)); out.verdict != next || in.verdict != next {
				t.Errorf("revoked: verdicts %d, %d", out.verdict, in.verdict)
			}
			h.age(t, 0)
		})
	}
}

// What may leave by an uplink and come in by it. None of it depends on leases.
func TestIP6AtTheUplink(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	h.toRouted(t)
	f := h.fromC1()
	ll := testutil.LinkLocal(h.outsideHW)
	out := func(change func(*testutil.Frame)) []byte { return h.routed(f.With(change)).Bytes(t) }
	in := func(change func(*testutil.Frame)) []byte { return h.answer(f).With(change).Bytes(t) }
	host := func(f *testutil.Frame) { f.Src = mustAddr("2001:db8:1::1") }
	// A router's error about c1's packet.
	tooBig := func(inner netip.Addr) func(*testutil.Frame) {
		return func(r *testutil.Frame) {
			q := h.routed(f.With(func(f *testutil.Frame) { f.Src = inner })).IP(t)
			r.TCP, r.Payload, r.Src = nil, nil, router6
			r.ICMP = &testutil.ICMPError{Type: 2, MTU: 1280, Inner: q}
		}
	}
	for name, tc := range map[string]struct {
		frame  []byte
		iif    int // 0 and out: the host's own
		reason Reason
	}{
		"routed":                 {out(func(*testutil.Frame) {}), h.bridge, ""},
		"routed, in fragments":   {out(func(f *testutil.Frame) { f.MF = true }), h.bridge, ""},
		"routed, later fragment": {out(func(f *testutil.Frame) { f.FragOff = 185 }), h.bridge, ""},
		"from another bridge":    {out(func(*testutil.Frame) {}), h.bridge2, "spoof_ip"},
		"to be translated":       {out(func(f *testutil.Frame) { f.Src, f.TCP.SYN = other6, true }), h.bridge2, "unsupported"},
		"a later fragment of it": {out(func(f *testutil.Frame) { f.Src = other6; f.FragOff = 185 }), h.bridge2, "fragment"},
		"nobody's, to be":        {out(func(f *testutil.Frame) { f.Src = mustAddr("fd00:2::99") }), h.bridge2, "spoof_ip"},
		"the host's":             {out(host), 0, ""},
		"the host's question": {out(func(f *testutil.Frame) {
			f.TCP, f.Payload = nil, nil
			f.Msg, f.Src, f.Dst = testutil.NeighborSolicitation(router6), testutil.LinkLocal(h.gateway), testutil.SolicitedNode(router6)
		}), 0, ""},
		"the host solicits": {out(func(f *testutil.Frame) {
			f.TCP, f.Payload = nil, nil
			f.Msg, f.Src, f.Dst = testutil.RouterSolicitation(), noAddr6, mustAddr("ff02::2")
		}), 0, ""},
	} {
		t.Run("out/"+name, func(t *testing.T) {
			do := func() result { return h.uplinkOut(t, tc.frame, tc.iif) }
			if tc.reason != "" {
				device := h.uplink.Ifindex
				if name == "to be translated" || name == "a later fragment of it" {
					device = h.other.Ifindex
				}
				h.wantDrop(t, device, tc.reason, do)
			} else if got := do(); got.verdict != next || string(got.frame) != string(tc.frame) {
				t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, tc.frame)
			}
		})
	}
	for name, tc := range map[string]struct {
		frame  []byte
		reason Reason
	}{
		"to a routed container": {in(func(*testutil.Frame) {}), ""},
		"to one that is not":    {in(func(f *testutil.Frame) { f.Dst = other6 }), "direct"},
		"later fragment to it":  {in(func(f *testutil.Frame) { f.Dst = other6; f.FragOff = 185 }), "direct"},
		"redirect to it": {in(func(f *testutil.Frame) {
			f.TCP, f.Payload = nil, nil
			f.Dst, f.Msg = other6, testutil.Redirect(ll, outside6)
		}), "direct"},
		"to the host":         {in(func(f *testutil.Frame) { f.Dst = mustAddr("2001:db8:1::1") }), ""},
		"from a container":    {in(func(f *testutil.Frame) { f.Src = c2Addr6 }), "martian"},
		"from a group":        {in(func(f *testutil.Frame) { f.Src = allNodes }), "martian"},
		"from loopback":       {in(func(f *testutil.Frame) { f.Src = netip.IPv6Loopback() }), "martian"},
		"from nobody":         {in(func(f *testutil.Frame) { f.Src = noAddr6 }), "martian"},
		"from an IPv4-mapped": {in(func(f *testutil.Frame) { f.Src = mustAddr("::ffff:192.0.2.1") }), "martian"},
		"to loopback":         {in(func(f *testutil.Frame) { f.Dst = netip.IPv6Loopback() }), "martian"},
		"from itself":         {in(func(f *testutil.Frame) { f.Src = f.Dst }), "martian"},
		"about c1's packet":   {in(tooBig(c1Addr6)), ""},
		"a router advertises": {in(func(f *testutil.Frame) {
			f.TCP, f.Src, f.Dst, f.Msg = nil, ll, allNodes, testutil.RouterAdvertisement(1800)
		}), ""},
		"a neighbour probes": {in(func(f *testutil.Frame) {
			f.TCP, f.Src, f.Dst, f.Msg = nil, noAddr6, testutil.SolicitedNode(router6), testutil.NeighborSolicitation(router6)
		}), ""},
		"a query": {in(func(f *testutil.Frame) {
			f.TCP, f.Payload = nil, nil
			f.Src, f.Dst, f.Msg = ll, allNodes, testutil.MLDQuery(noAddr6)
		}), ""},
		"a DHCPv6 server": {in(func(f *testutil.Frame) {
			f.TCP, f.UDP, f.Src, f.Dst = nil, &testutil.UDP{SrcPort: 547, DstPort: 546}, ll, testutil.LinkLocal(h.gateway)
		}), ""},
	} {
		t.Run("in/"+name, func(t *testing.T) {
			do := func() result { return h.uplinkIn(t, tc.frame) }
			if tc.reason != "" {
				h.wantDrop(t, h.uplink.Ifindex, tc.reason, do)
			} else if got := do(); got.verdict != next || string(got.frame) != string(tc.frame) {
				t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, tc.frame)
			}
		})
	}
}

// An uplink answers for the containers of a network with NDProxy, and for nobody else.
func TestIP6UplinkAnswersForContainers(t *testing.T) {
	h := withIP6(t, newReal(t, usual, nil))
	one, _ := h.networks6()
	one.Routed6, one.NDProxy = true, true
	check(t, h.SetNetwork(one))
	check(t, h.AttachPort(h.c1))
	ask := func(target, src netip.Addr) testutil.Frame {
		group := testutil.SolicitedNode(target)
		f := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: testutil.GroupMAC(group), Src: src, Dst: group}
		if src == noAddr6 {
			f.Msg = testutil.NeighborSolicitation(target)
		} else {
			f.Msg = testutil.NeighborSolicitation(target, testutil.SourceLink(h.outsideHW))
		}
		return f
	}
	mac := h.uplinkMAC(t)
	tell := func(dst netip.Addr, flags uint8) []byte {
		return testutil.Frame{SrcMAC: mac, DstMAC: h.outsideHW, Src: c1Addr6, Dst: dst,
			Msg: testutil.NeighborAdvertisement(c1Addr6, flags, testutil.TargetLink(mac))}.Bytes(t)
	}
	for name, tc := range map[string]struct {
		ask  testutil.Frame
		want []byte // nil: the kernel's affair
	}{
		"a neighbour":         {ask(c1Addr6, router6), tell(router6, testutil.NASolicited)},
		"a stranger's probe":  {ask(c1Addr6, noAddr6), tell(allNodes, 0)},
		"unicast":             {ask(c1Addr6, router6).With(func(f *testutil.Frame) { f.DstMAC, f.Dst = mac, c1Addr6 }), tell(router6, testutil.NASolicited)},
		"at another MAC":      {ask(c1Addr6, router6).With(func(f *testutil.Frame) { f.DstMAC, f.Dst = strangersMAC, c1Addr6 }), nil},
		"for nobody":          {ask(mustAddr("fd00:1::99"), router6), nil},
		"for another network": {ask(other6, router6), nil},
		"for the host":        {ask(mustAddr("2001:db8:1::1"), router6), nil},
		"routed here":         {ask(c1Addr6, router6).With(func(f *testutil.Frame) { f.TTL = 254 }), nil},
	} {
		t.Run(name, func(t *testing.T) {
			sent := tc.ask.Bytes(t)
			got := h.uplinkIn(t, sent)
			if tc.want == nil {
				if got.verdict != next || string(got.frame) != string(sent) {
					t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, sent)
				}
				return
			}
			if got.verdict != redirect || string(got.frame) != string(tc.want) {
				t.Fatalf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, tc.want)
			}
			marked := func(s *skb) { s.Mark = got.mark }
			if got := h.uplinkOut(t, got.frame, h.uplink.Ifindex, marked); got.verdict != next || got.mark != 0 {
				t.Errorf("on its way back: verdict %d, mark %x", got.verdict, got.mark)
			}
		})
	}
}
