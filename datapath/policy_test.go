package datapath

import (
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// setPolicy changes the policy of c1's and c2's network.
func (h *harness) setPolicy(t *testing.T, p NATPolicy) {
	t.Helper()
	check(t, p.Check())
	check(t, h.SetNetwork(Network{Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: gateway1, Bridge: h.bridge,
		Masquerade: true, NAT: p}))
}

// from changes the remote address and port of a frame from outside.
func from(f testutil.Frame, addr string, port uint16) testutil.Frame {
	return f.With(func(f *testutil.Frame) {
		f.Src = mustAddr(addr)
		if f.TCP != nil {
			f.TCP.SrcPort = port
		} else {
			f.UDP.SrcPort = port
		}
	})
}

// Who else may send to a mapping. An answer leaves from the same port.
func TestFilterDecidesWhoElseMaySend(t *testing.T) {
	for _, tc := range []struct {
		filtering            Filtering
		otherPort, otherHost bool
	}{{APDF, false, false}, {ADF, true, false}, {EIF, true, true}} {
		for _, proto := range []string{"udp", "tcp"} {
			t.Run(string(tc.filtering)+"/"+proto, func(t *testing.T) {
				h := newHarness(t, Config{FlowsMax: 64}, nil)
				h.setPolicy(t, NATPolicy{Filtering: tc.filtering})
				f := h.samples()[proto]
				eport := h.open(t, f)
				in := h.reply(f, eport)
				if in.TCP != nil {
					in.TCP.ACK, in.TCP.SYN = false, true
				}
				for who, want := range map[netip.AddrPort]bool{
					netip.AddrPortFrom(server, 4242):                 tc.otherPort,
					netip.AddrPortFrom(mustAddr("192.0.2.77"), 4242): tc.otherHost,
				} {
					sent := from(in, who.Addr().String(), who.Port())
					got := h.uplinkIn(t, sent.Bytes(t))
					inside := from(h.asSeenByC1(f, eport), who.Addr().String(), who.Port())
					if inside.TCP != nil {
						inside.TCP.ACK, inside.TCP.SYN = false, true
					}
					if want != (string(got.frame) == string(inside.Bytes(t))) || !want && string(got.frame) != string(sent.Bytes(t)) {
						t.Errorf("from %s: let in: want %v, got frame %x", who, want, got.frame)
					}
					if !want {
						continue
					}
					answer := f.With(func(f *testutil.Frame) { f.Dst = who.Addr() })
					if answer.TCP != nil {
						answer.TCP.DstPort, answer.TCP.SYN = who.Port(), true
					} else {
						answer.UDP.DstPort = who.Port()
					}
					out := h.uplinkOut(t, h.routed(answer).Bytes(t), h.bridge)
					if string(out.frame) != string(translated(h.routed(answer), eport).Bytes(t)) {
						t.Errorf("the answer to %s leaves as %x", who, out.frame)
					}
				}
			})
		}
	}
}

// Only the first packet of a connection opens a filter. No packet from outside opens a
// port without a mapping.
func TestFilterOpensForFirstPacketsOnly(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	h.setPolicy(t, NATPolicy{Filtering: EIF})
	f := h.samples()["tcp"]
	eport := h.open(t, f)
	stranger := from(h.reply(f, eport), "192.0.2.77", 4242)
	free := eport + 1
	if eport == DefaultNATLast {
		free = eport - 1
	}
	for what, b := range map[string][]byte{
		"ACK":     stranger.Bytes(t),
		"SYN-ACK": stranger.With(func(f *testutil.Frame) { f.TCP.SYN = true }).Bytes(t),
		"RST":     stranger.With(func(f *testutil.Frame) { f.TCP.RST = true }).Bytes(t),
		"other protocol": stranger.With(func(f *testutil.Frame) {
			f.TCP, f.UDP = nil, &testutil.UDP{SrcPort: 4242, DstPort: eport}
		}).Bytes(t),
		"free port": stranger.With(func(f *testutil.Frame) { f.TCP.ACK, f.TCP.SYN, f.TCP.DstPort = false, true, free }).Bytes(t),
		"another address of the host": stranger.With(func(f *testutil.Frame) {
			f.TCP.ACK, f.TCP.SYN, f.Dst = false, true, mustAddr("198.51.100.9")
		}).Bytes(t),
	} {
		if got := h.uplinkIn(t, b); got.verdict != next || string(got.frame) != string(b) {
			t.Errorf("%s: verdict %d, changed: %v; want the host to have it untouched", what, got.verdict, string(got.frame) != string(b))
		}
	}
	if n := h.live(t); n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
}

// An outsider must not keep a mapping alive that the container no longer uses, where he
// could have opened the session himself (RFC 7857 section 7).
func TestOutsidersDoNotRefreshWhatTheyMayOpen(t *testing.T) {
	for filtering, survives := range map[Filtering]bool{APDF: true, ADF: false, EIF: false} {
		t.Run(string(filtering), func(t *testing.T) {
			h := newInjected(t, Config{FlowsMax: 64, NATFirst: 10000, NATLast: 10063}, nil)
			h.setPolicy(t, NATPolicy{Filtering: filtering})
			h.after(t, 0, false)
			f := h.samples()["udp"]
			eport := h.open(t, f)
			h.after(t, 299, false) // answered UDP lives 300 s
			h.uplinkIn(t, h.reply(f, eport).Bytes(t))
			h.after(t, 301, false)
			got := h.uplinkIn(t, h.reply(f, eport).Bytes(t))
			if (string(got.frame) != string(h.reply(f, eport).Bytes(t))) != survives {
				t.Errorf("still translated: want %v", survives)
			}
		})
	}
}

// A contacted address is let in as long as a session leads there.
func TestAddressFilterFollowsItsSessions(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	h.setPolicy(t, NATPolicy{Filtering: ADF})
	f := h.samples()["udp"]
	elsewhere := f.With(func(f *testutil.Frame) { f.Dst = mustAddr("192.0.2.12") })
	eport := h.open(t, f)
	h.sentFrom(t, elsewhere)
	h.uplinkIn(t, h.reply(f, eport).With(func(f *testutil.Frame) { f.UDP.SrcPort = 53 }).Bytes(t))
	if n := h.peers(t); n != 2 {
		t.Errorf("%d contacted addresses, want 2", n)
	}
	check(t, h.DetachPort(h.c1.Ifindex))
	if n := h.peers(t); n != 0 {
		t.Errorf("%d contacted addresses without a session", n)
	}
}

func TestEndpointDependentMapping(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64, NATFirst: 10000, NATLast: 10007}, func(v *tcVariableSpecs) error {
		return v.CfgPortsQuota.Set(uint32(1000))
	})
	h.setPolicy(t, NATPolicy{Mapping: EndpointDependent})
	f := h.samples()["udp"]
	seen := map[uint16]bool{}
	for i := range uint16(8) {
		to := f.With(func(f *testutil.Frame) { f.UDP.DstPort = 1000 + i })
		out := h.uplinkOut(t, h.routed(to).Bytes(t), h.bridge)
		if out.verdict != next {
			t.Fatalf("verdict %d", out.verdict)
		}
		eport := uint16(out.frame[34])<<8 | uint16(out.frame[35])
		seen[eport] = true
		if got := h.uplinkIn(t, h.reply(to, eport).Bytes(t)); string(got.frame) == string(h.reply(to, eport).Bytes(t)) {
			t.Error("the answer is not translated")
		}
	}
	if len(seen) != 8 {
		t.Errorf("8 destinations, %d external ports", len(seen))
	}
}

// Strict: existing sessions stay. New ones are refused, and the container is told.
func TestStrictRefusesInsteadOfSharing(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64, NATFirst: 10000, NATLast: 10007}, func(v *tcVariableSpecs) error {
		return v.CfgPortsQuota.Set(uint32(1000))
	})
	h.setPolicy(t, NATPolicy{OnExhaustion: Refuse})
	for i := range uint16(8) {
		h.sentFrom(t, h.udpFrom(c1Addr, 40000+i))
	}
	elsewhere := h.udpFrom(c1Addr, 45000).With(func(f *testutil.Frame) { f.Dst = mustAddr("192.0.2.12") })
	h.wantRefused(t, h.c1, "nat_full", elsewhere)
	// The container is not told again for a while (RFC 1812 section 4.3.2.8).
	h.wantDrop(t, h.c1.Ifindex, "nat_full", func() result {
		return h.uplinkOut(t, h.routed(elsewhere).Bytes(t), h.bridge)
	})
	for i := range uint16(8) {
		h.sentFrom(t, h.udpFrom(c1Addr, 40000+i))
	}
	st, err := h.NATStats()
	check(t, err)
	if st.PortOverloads != 0 || st.Flows != 8 {
		t.Errorf("%+v", st)
	}
}

// A container that opens connections without end is stopped before it takes what others
// need. That holds only while its connections are half-open.
func TestHalfOpenConnectionsHaveAQuota(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 100}, nil) // 80 for one container, 20 of them half-open
	syn := func(src netip.Addr, port uint16) testutil.Frame {
		return h.fromC1().With(func(f *testutil.Frame) {
			f.Src, f.TCP.SrcPort, f.TCP.SYN, f.TCP.ACK = src, port, true, false
		})
	}
	eports := map[uint16]uint16{}
	for i := range uint16(20) {
		eports[40000+i] = h.sentFrom(t, syn(c1Addr, 40000+i))
	}
	h.wantRefused(t, h.c1, "quota", syn(c1Addr, 41000))
	h.sentFrom(t, syn(c2Addr, 41000))
	h.sentFrom(t, h.udpFrom(c1Addr, 41000))
	for port, eport := range eports { // all become established
		f := syn(c1Addr, port)
		h.uplinkIn(t, h.reply(f.With(func(f *testutil.Frame) { f.TCP.ACK = true }), eport).Bytes(t))
		h.sentFrom(t, f.With(func(f *testutil.Frame) { f.TCP.SYN, f.TCP.ACK = false, true }))
	}
	h.sentFrom(t, syn(c1Addr, 41001))
	check(t, h.DetachPort(h.c2.Ifindex))
	var q tcFbrQuota
	dev, _, err := h.Datapath.devs.device(h.c1.Ifindex)
	check(t, err)
	check(t, h.maps.FbrQuota.Lookup(uint32(dev.Stats), &q))
	if q.Half != 1 {
		t.Errorf("%d half-open connections of c1, want 1", q.Half)
	}
}

func TestPolicyIsChecked(t *testing.T) {
	for _, p := range []NATPolicy{
		{Mapping: "symmetric"}, {Filtering: "none"}, {OnExhaustion: "panic"},
		{Mapping: EndpointDependent, Filtering: EIF}, {Mapping: EndpointDependent, Filtering: ADF},
	} {
		if p.Check() == nil {
			t.Errorf("%+v is accepted", p)
		}
	}
	if err := (NATPolicy{}).WithDefaults().Check(); err != nil {
		t.Error(err)
	}
}

// peers counts the contacted addresses.
func (h *harness) peers(t *testing.T) (n int) {
	t.Helper()
	var k tcFbrPeerKey
	var v uint32
	it := h.maps.FbrPeer.Iterate()
	for it.Next(&k, &v) {
		n++
	}
	check(t, it.Err())
	return n
}
