package datapath

import (
	"errors"
	"testing"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
	"github.com/fastbr/fastbr/internal/testutil"
)

const startOfTime = 1 << 30 // jiffies

// after sets the clock to secs seconds after the start, less one jiffy if early.
func (in *injected) after(t *testing.T, secs uint64, early bool) {
	t.Helper()
	now := startOfTime + secs*uint64(in.meta.Hz)
	if early {
		now--
	}
	in.set(t, now, 1)
}

// How long a session of each kind lives after its last packet, to the jiffy.
func TestSessionsEndOnTime(t *testing.T) {
	in := newInjected(t, Config{FlowsMax: 64}, nil)
	s := in.samples()
	udp, tcp := s["udp"], s["tcp"]
	dns := udp.With(func(f *testutil.Frame) { f.UDP.DstPort = 53 })
	back := func(f testutil.Frame, change func(*testutil.TCP)) testutil.Frame {
		return f.With(func(f *testutil.Frame) { change(f.TCP) })
	}
	plain := func(*testutil.TCP) {}
	for name, tc := range map[string]struct {
		f       testutil.Frame
		replies []testutil.Frame
		secs    uint64
	}{
		"udp":             {udp, nil, 120},
		"udp answered":    {udp, []testutil.Frame{udp}, 300},
		"dns answered":    {dns, []testutil.Frame{dns}, 20},
		"echo":            {s["echo"], []testutil.Frame{s["echo"]}, 60},
		"tcp opening":     {back(tcp, syn), []testutil.Frame{back(tcp, synAck)}, 240},
		"tcp established": {tcp, []testutil.Frame{back(tcp, plain)}, 432000},
		"tcp half closed": {tcp, []testutil.Frame{back(tcp, fin)}, 7440},
		"tcp reset":       {tcp, []testutil.Frame{back(tcp, plain), back(tcp, func(s *testutil.TCP) { s.RST = true })}, 240},
	} {
		t.Run(name, func(t *testing.T) {
			in.after(t, 0, false)
			eport := in.sentFrom(t, tc.f)
			for _, r := range tc.replies {
				in.uplinkIn(t, in.reply(r, eport).Bytes(t))
			}
			live := func() bool {
				fs, err := in.Flows()
				check(t, err)
				return len(fs) == 1
			}
			if in.after(t, tc.secs, true); !live() {
				t.Errorf("has ended before %d s", tc.secs)
			}
			if in.after(t, tc.secs, false); live() {
				t.Errorf("is there after %d s", tc.secs)
			}
			_, err := in.FlushFlows()
			check(t, err)
		})
	}
}

// A forged RST must not end a connection that was only idle. The connection lives 240 s
// from the RST, and a segment in that time cancels it (RFC 7857 section 2.2).
func TestResetLeavesAnIdleConnectionItsTime(t *testing.T) {
	for _, policy := range []NATPolicy{{}, {Filtering: EIF}} {
		t.Run(string(policy.Filtering), func(t *testing.T) {
			in := newInjected(t, Config{FlowsMax: 64}, nil)
			in.setPolicy(t, policy)
			in.after(t, 0, false)
			f := in.fromC1()
			eport := in.open(t, f)
			in.after(t, 3600, false)
			in.uplinkIn(t, in.reply(f.With(func(f *testutil.Frame) { f.TCP.RST = true }), eport).Bytes(t))
			in.after(t, 3600+239, false)
			if got := in.flow(t).State; got != "closed" {
				t.Error(got)
			}
			if got := in.sentFrom(t, f); got != eport {
				t.Errorf("goes on from port %d, was %d", got, eport)
			}
			in.after(t, 7200, false)
			if got := in.flow(t).State; got != "established" {
				t.Errorf("%s after a segment of the container's", got)
			}
		})
	}
}

// Nobody outside keeps a session alive that only its container may keep, not even by
// the lease that is granted in the session's last minute (RFC 7857 section 7).
func TestNoLeaseOutlivesItsSession(t *testing.T) {
	in := newInjected(t, Config{FlowsMax: 64}, nil)
	in.setPolicy(t, NATPolicy{Filtering: EIF})
	in.after(t, 0, false)
	f := in.samples()["udp"].With(func(f *testutil.Frame) { f.UDP.DstPort = 53 })
	in.open(t, f)
	in.after(t, 15, false)
	eport := in.eport(t, f)
	inside := in.uplinkIn(t, in.reply(f, eport).Bytes(t))
	in.portOut(t, append(append(append([]byte(nil), in.c1.MAC...), in.gateway...), inside.frame[12:]...), in.uplink.Ifindex)
	if got := in.uplinkIn(t, in.reply(f, eport).Bytes(t)); got.verdict != redirect {
		t.Fatalf("verdict %d, want the fast path", got.verdict)
	}
	in.after(t, 20, false)
	in.age(t, 0) // open took a jiffy
	if got := in.uplinkIn(t, in.reply(f, eport).Bytes(t)); got.verdict == redirect {
		t.Error("a session that has ended is still fast")
	}
}

// Ports that containers chose themselves stay in the queue until their turn comes. They
// must not make a free port look taken.
func TestFullMeansFull(t *testing.T) {
	const ports = 400
	in := newInjected(t, Config{FlowsMax: 1024, NATFirst: 10000, NATLast: 10000 + ports - 1}, func(v *tcVariableSpecs) error {
		return errors.Join(v.CfgPortsQuota.Set(uint32(10000)), v.CfgFlowsQuota.Set(uint32(10000)))
	})
	in.setPolicy(t, NATPolicy{OnExhaustion: Refuse})
	in.after(t, 0, false)
	const kept = ports * 95 / 100
	for i := range uint16(kept) {
		if p := in.sentFrom(t, in.udpFrom(c1Addr, 10000+i)); p != 10000+i {
			t.Fatalf("port %d, want the container's own", p)
		}
	}
	for i := range uint16(ports - kept) {
		in.sentFrom(t, in.udpFrom(c2Addr, 40000+i)) // to the same server
	}
	in.wantRefused(t, in.c2, "nat_full", in.udpFrom(c2Addr, 50000))
	st, err := in.NATStats()
	check(t, err)
	if st.PortTries[0] != ports || st.PortsNotFound != 1 || st.PortOverloads != 0 {
		t.Errorf("%+v", st)
	}
}

// Every value of every checksum, on both paths, in both directions. Each checksum must
// be what a new computation gives.
func TestChecksumSweep(t *testing.T) {
	in := newInjected(t, Config{FlowsMax: 64}, nil)
	for i, name := range []string{"udp", "tcp", "echo"} {
		in.after(t, uint64(i), false) // later than the last revocation of leases
		f := in.samples()[name]
		eport := in.open(t, f)
		p := nm.Packet{Kind: nm.Ports, Proto: nm.UDP, Src: f.Src, Dst: f.Dst, SPort: sourcePort(f), DPort: 9999, TTL: 64}
		switch name {
		case "tcp":
			p.Proto, p.DPort, p.Flags = nm.TCP, 80, nm.ACK
		case "echo":
			p.Kind, p.Proto, p.DPort = nm.EchoRequest, nm.ICMP, 0
		}
		p.Body.Payload = 2
		in.sweepIDs(t, p, eport)
	}
}

// sweepIDs sends p with every id, which is also in its payload, and gets answers.
func (in *injected) sweepIDs(t *testing.T, p nm.Packet, eport uint16) {
	t.Helper()
	copy(p.MACs[:], append(append([]byte(nil), in.gateway...), in.c1.MAC...))
	out := p
	out.Src, out.SPort, out.TTL = extAddr, eport, 63
	back := nm.Packet{Kind: p.Kind, Proto: p.Proto, Src: p.Dst, Dst: out.Src, SPort: p.DPort, DPort: eport, Flags: p.Flags, TTL: 64, Body: p.Body}
	copy(back.MACs[:], append(append([]byte(nil), in.uplinkMAC(t)...), in.outsideHW...))
	if p.Kind == nm.EchoRequest {
		back.Kind = nm.EchoReply
	}
	inside := back
	inside.Dst, inside.DPort, inside.TTL = p.Src, p.SPort, 63
	copy(out.MACs[:], in.routed(in.fromC1()).Bytes(t))
	copy(inside.MACs[:], append(append([]byte(nil), in.c1.MAC...), in.gateway...))
	slowOut, slowIn := out, inside
	slowOut.TTL, slowIn.TTL, slowIn.MACs = p.TTL, back.TTL, back.MACs
	routed := p
	routed.MACs = out.MACs
	for _, path := range []struct {
		name       string
		sent, want nm.Packet
		run        func([]byte) (result, error)
		verdict    int32
	}{
		{"fast out", p, out, func(b []byte) (result, error) {
			return in.exec(in.progs.FbrPortIn, b, in.c1.Ifindex, in.c1.Ifindex, 0)
		}, redirect},
		{"fast in", back, inside, func(b []byte) (result, error) {
			return in.exec(in.progs.FbrUplinkIn, b, in.uplink.Ifindex, in.uplink.Ifindex, 0)
		}, redirect},
		{"kernel path out", routed, slowOut, func(b []byte) (result, error) {
			return in.exec(in.progs.FbrUplinkOut, b, in.uplink.Ifindex, in.bridge, 0)
		}, next},
		{"kernel path in", back, slowIn, func(b []byte) (result, error) {
			return in.exec(in.progs.FbrUplinkIn, b, in.uplink.Ifindex, in.uplink.Ifindex, 0)
		}, next},
	} {
		if path.name == "kernel path in" {
			check(t, in.SetLease(0))
		}
		var sent, want []byte
		for id := range 1 << 16 {
			path.sent.Body.ID, path.want.Body.ID = uint16(id), uint16(id)
			sent, want = render(sent[:0], &path.sent), render(want[:0], &path.want)
			got, err := path.run(sent)
			if err != nil || got.verdict != path.verdict || string(got.frame) != string(want) {
				t.Fatalf("%s, id %d: verdict %d, %v\nsent %x\n got %x\nwant %x", path.name, id, got.verdict, err, sent, got.frame, want)
			}
		}
	}
	check(t, in.SetLease(DefaultLease))
}
