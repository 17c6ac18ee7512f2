package datapath

import (
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

// called makes br_netfilter show frames to iptables.
func (h *harness) called(t *testing.T) {
	t.Helper()
	h.ns.Enter(t)
	if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0); os.IsNotExist(err) {
		t.Skip("no br_netfilter here")
	} else {
		check(t, err)
	}
	h.age(t, 0)
}

// Between two ports, what netfilter has let through is fast; TCP's first and last packets,
// fragments and errors are not, and grant nothing.
func TestWaysBetweenPorts(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.called(t)
	tcp := between(h.c1, h.c2).With(func(f *testutil.Frame) { f.UDP, f.TCP = nil, &testutil.TCP{SrcPort: 40000, DstPort: 80, ACK: true} })
	samples := map[string]testutil.Frame{
		"tcp":  tcp,
		"udp":  between(h.c1, h.c2),
		"echo": between(h.c1, h.c2).With(func(f *testutil.Frame) { f.UDP, f.Echo = nil, &testutil.Echo{ID: 7} }),
	}
	is := func(t *testing.T, when string, f testutil.Frame, verdict int32) {
		t.Helper()
		sent := f.Bytes(t)
		if got := h.portIn(t, sent); got.verdict != verdict || string(got.frame) != string(sent) {
			t.Errorf("%s: verdict %d, want %d and the frame unchanged", when, got.verdict, verdict)
		}
	}
	for name, f := range samples {
		t.Run(name, func(t *testing.T) {
			is(t, "first", f, next)
			h.carry(t, f, h.c1, h.c2)
			is(t, "with a lease", f, redirect)
			is(t, "in another frame", f.With(func(f *testutil.Frame) { f.DstMAC = h.gateway }), next)
			check(t, h.Revoke())
			is(t, "revoked", f, next)
			h.age(t, 0)
			h.carry(t, f, h.c1, h.c2)
			is(t, "renewed", f, redirect)
			h.age(t, 2*DefaultLease)
			is(t, "ended", f, next)
		})
	}
	for name, change := range map[string]func(*testutil.Frame){
		"SYN": func(f *testutil.Frame) { f.TCP.SYN, f.TCP.ACK = true, false },
		"FIN": func(f *testutil.Frame) { f.TCP.FIN = true },
		"RST": func(f *testutil.Frame) { f.TCP.RST = true },
	} {
		t.Run(name, func(t *testing.T) {
			back := tcp.With(func(f *testutil.Frame) {
				f.SrcMAC, f.DstMAC, f.Src, f.Dst = h.c2.MAC, h.c1.MAC, c2Addr, c1Addr
				f.TCP.SrcPort, f.TCP.DstPort = 80, 40000
			})
			last := tcp.With(change)
			h.carry(t, last, h.c1, h.c2)
			is(t, "when only it has passed", tcp, next)
			h.carry(t, tcp, h.c1, h.c2)
			h.carry(t, back, h.c2, h.c1)
			is(t, "it", last, next)
			is(t, "before it", tcp, redirect)
			h.carry(t, last, h.c1, h.c2)
			is(t, "after it", tcp, next)
			if got := h.run(t, h.progs.FbrPortIn, back.Bytes(t), h.c2.Ifindex, h.c2.Ifindex); got.verdict != next {
				t.Errorf("after it, the other way: verdict %d", got.verdict)
			}
		})
	}
	slow := h.c2
	slow.Slow = true
	h.carry(t, tcp, h.c1, h.c2)
	check(t, h.AttachPort(slow))
	is(t, "to a slow port", tcp, next)
	check(t, h.AttachPort(h.c2))
	check(t, h.SetLease(0))
	h.age(t, 0)
	h.carry(t, tcp, h.c1, h.c2)
	is(t, "without leases", tcp, next)
}

// toRouted makes the first network one that is not translated.
func (h *harness) toRouted(t *testing.T) {
	t.Helper()
	check(t, h.SetNetwork(Network{Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: gateway1, Bridge: h.bridge}))
	for _, p := range []Port{h.c1, h.c2} {
		check(t, h.AttachPort(p))
	}
	h.age(t, 0)
}

// Flows of a network that is not translated are fast in both directions, each with a lease
// of its own, as the kernel would have forwarded them: one hop further, with its MAC addresses.
func TestWaysOfARoutedNetwork(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.toRouted(t)
	second := Uplink{Ifindex: h.foreign, Addr: mustAddr("198.51.100.9"), MTU: 1500}
	check(t, h.AttachUplink(second))
	h.age(t, 0)
	for name, f := range h.samples() {
		t.Run(name, func(t *testing.T) {
			sent, routed := f.Bytes(t), h.routed(f).Bytes(t)
			answer := f.With(func(r *testutil.Frame) {
				r.SrcMAC, r.DstMAC, r.Src, r.Dst = h.outsideHW, mustMAC("02:00:00:00:00:01"), f.Dst, f.Src
				switch {
				case r.TCP != nil:
					r.TCP.SrcPort, r.TCP.DstPort = f.TCP.DstPort, f.TCP.SrcPort
				case r.UDP != nil:
					r.UDP.SrcPort, r.UDP.DstPort = f.UDP.DstPort, f.UDP.SrcPort
				default:
					r.Echo.Reply = true
				}
			})
			delivered := answer.With(func(f *testutil.Frame) { f.SrcMAC, f.DstMAC, f.TTL = h.gateway, h.c1.MAC, 63 })

			if got := h.portIn(t, sent); got.verdict != next {
				t.Fatalf("first packet: verdict %d", got.verdict)
			}
			if got := h.uplinkOut(t, routed, h.bridge); got.verdict != next || string(got.frame) != string(routed) {
				t.Fatalf("first packet at the uplink: verdict %d\n got %x\nwant %x", got.verdict, got.frame, routed)
			}
			fast := h.portIn(t, sent)
			if fast.verdict != redirect || string(fast.frame) != string(routed) || fast.mark != h.meta.Mark {
				t.Fatalf("with a lease: verdict %d, mark %x\n got %x\nwant %x", fast.verdict, fast.mark, fast.frame, routed)
			}
			marked := func(s *skb) { s.Mark = h.meta.Mark }
			before := h.of(t, h.uplink.Ifindex)
			if got := h.uplinkOut(t, fast.frame, h.c1.Ifindex, marked); got.verdict != next || got.mark != 0 || string(got.frame) != string(routed) {
				t.Errorf("at the uplink: verdict %d, mark %x", got.verdict, got.mark)
			}
			if now := h.of(t, h.uplink.Ifindex); now.TX.FastPackets != before.TX.FastPackets+1 {
				t.Errorf("the uplink counts %+v", now)
			}
			forged := f.With(func(f *testutil.Frame) { f.Src = other })
			h.wantDrop(t, h.uplink.Ifindex, "spoof_ip", func() result { return h.uplinkOut(t, h.routed(forged).Bytes(t), h.c1.Ifindex, marked) })

			if got := h.uplinkIn(t, answer.Bytes(t)); got.verdict != next {
				t.Fatalf("first answer: verdict %d", got.verdict)
			}
			if got := h.portOut(t, delivered.Bytes(t), h.uplink.Ifindex); got.verdict != next {
				t.Fatalf("first answer at the port: verdict %d", got.verdict)
			}
			if got := h.uplinkIn(t, answer.Bytes(t)); got.verdict != redirect || string(got.frame) != string(delivered.Bytes(t)) {
				t.Errorf("answer with a lease: verdict %d\n got %x\nwant %x", got.verdict, got.frame, delivered.Bytes(t))
			}
			if got := h.run(t, h.progs.FbrUplinkIn, answer.Bytes(t), second.Ifindex, second.Ifindex); got.verdict != next {
				t.Errorf("answer by another uplink: verdict %d", got.verdict)
			}
			check(t, h.Revoke())
			if out, in := h.portIn(t, sent), h.uplinkIn(t, answer.Bytes(t)); out.verdict != next || in.verdict != next {
				t.Errorf("revoked: verdicts %d, %d", out.verdict, in.verdict)
			}
			h.age(t, 0)
		})
	}
}

// What no lease comes of, and what ends one.
func TestRoutedPacketsWithoutAWay(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.toRouted(t)
	f := h.fromC1()
	fast := func(t *testing.T, when string, want int32) {
		t.Helper()
		if got := h.portIn(t, f.Bytes(t)); got.verdict != want {
			t.Errorf("%s: verdict %d, want %d", when, got.verdict, want)
		}
	}
	pass := func(t *testing.T, f testutil.Frame, iif int) {
		t.Helper()
		if got := h.uplinkOut(t, h.routed(f).Bytes(t), iif); got.verdict != next {
			t.Errorf("at the uplink: verdict %d", got.verdict)
		}
	}
	for name, change := range map[string]func(*testutil.Frame){
		"SYN": func(f *testutil.Frame) { f.TCP.SYN, f.TCP.ACK = true, false },
		"FIN": func(f *testutil.Frame) { f.TCP.FIN = true },
		"RST": func(f *testutil.Frame) { f.TCP.RST = true },
	} {
		t.Run(name, func(t *testing.T) {
			last := f.With(change)
			pass(t, last, h.bridge)
			fast(t, "when only it has passed", next)
			pass(t, f, h.bridge)
			fast(t, "before it", redirect)
			pass(t, last, h.bridge)
			fast(t, "after it", next)
		})
	}
	pass(t, f, 0)
	fast(t, "when the host has sent it", next)
	slow := h.c1
	slow.Slow = true
	check(t, h.AttachPort(slow))
	pass(t, f, h.bridge)
	check(t, h.AttachPort(h.c1))
	fast(t, "when it has passed from a slow port", next)
	pass(t, f, h.bridge)
	check(t, h.AttachPort(slow))
	fast(t, "from a slow port", next)
	check(t, h.AttachPort(h.c1))
	fast(t, "from the port again", redirect)
	if got := h.portIn(t, f.With(func(f *testutil.Frame) { f.TTL = 1 }).Bytes(t)); got.verdict != next {
		t.Errorf("at its last hop: verdict %d", got.verdict)
	}
	if got := h.portIn(t, f.With(func(f *testutil.Frame) { f.Payload = make([]byte, 1600) }).Bytes(t)); got.verdict != next {
		t.Errorf("too big for the way: verdict %d", got.verdict)
	}
}

// A packet of a port's that a session translates has no way.
func TestPublishedPortBeforeWays(t *testing.T) {
	h := newHarness(t, usual, nil)
	h.toRouted(t)
	answer := h.fromC1().With(func(f *testutil.Frame) { f.TCP.SrcPort, f.TCP.DstPort = 80, 40000 })
	if got := h.uplinkOut(t, h.routed(answer).Bytes(t), h.bridge); got.verdict != next {
		t.Fatalf("verdict %d", got.verdict)
	}
	if got := h.portIn(t, answer.Bytes(t)); got.verdict != redirect {
		t.Fatalf("before the port is published: verdict %d", got.verdict)
	}
	check(t, h.Publish(Publication{Proto: unix.IPPROTO_TCP, First: 8080, Last: 8080, Container: c1Addr, Port: 80, Ifindex: h.c1.Ifindex}))
	syn := answer.With(func(f *testutil.Frame) {
		f.SrcMAC, f.DstMAC, f.Src, f.Dst = h.outsideHW, mustMAC("02:00:00:00:00:01"), server, extAddr
		f.TCP = &testutil.TCP{SrcPort: 40000, DstPort: 8080, SYN: true}
	})
	if got := h.uplinkIn(t, syn.Bytes(t)); got.verdict != next {
		t.Fatalf("by the published port: verdict %d", got.verdict)
	}
	if got := h.portIn(t, answer.Bytes(t)); got.verdict != next {
		t.Errorf("the answer, which is to be translated: verdict %d", got.verdict)
	}
}
