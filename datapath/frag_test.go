package datapath

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fastbr/fastbr/internal/testutil"
)

// fragment is the IP payload of every fragment here but the last, in bytes.
const fragment = 1480

var fragmentPeer = mustMAC("02:00:00:00:00:f1")

// big are datagrams of c1 that need fragments.
func (h *harness) big() map[string]testutil.Frame {
	f := h.fromC1()
	f.TCP, f.Payload = nil, make([]byte, 4000)
	fill(f.Payload)
	big := map[string]testutil.Frame{
		"udp": f.With(func(f *testutil.Frame) { f.UDP = &testutil.UDP{SrcPort: 40000, DstPort: 4000} }),
		"udp without checksum": f.With(func(f *testutil.Frame) {
			f.UDP, f.UncheckedUDP = &testutil.UDP{SrcPort: 40001, DstPort: 4000}, true
		}),
		"echo": f.With(func(f *testutil.Frame) { f.Echo = &testutil.Echo{ID: 7, Seq: 1} }),
		"tcp":  f.With(func(f *testutil.Frame) { f.TCP = &testutil.TCP{SrcPort: 40002, DstPort: 80, ACK: true} }),
	}
	if f.Src.Is6() {
		delete(big, "udp without checksum") // IPv6 has none (RFC 8200 section 8.1)
	}
	return big
}

func fill(b []byte) {
	for i := range b {
		b[i] = byte(i * 7)
	}
}

// sendOut runs fbr_uplink_out on fragments, as the kernel hands them over, and returns
// what leaves.
func (h *harness) sendOut(t *testing.T, frags [][]byte) (out [][]byte) {
	t.Helper()
	for i, f := range frags {
		got := h.uplinkOut(t, f, h.bridge)
		if got.verdict != next {
			t.Fatalf("fragment %d: verdict %d", i, got.verdict)
		}
		out = append(out, got.frame)
	}
	return out
}

// tracked counts the datagrams in fbr_frag. With expire it also ages them.
func (h *harness) tracked(t *testing.T, expire bool) (n int) {
	t.Helper()
	m := h.object().maps[tcMapFbrFrag]
	var keys, values [][]byte
	check(t, eachEntry(m, 0, func(k, v []byte) error {
		keys, values = append(keys, slices.Clone(k)), append(values, slices.Clone(v))
		return nil
	}))
	for i := range keys {
		if !expire {
			break
		}
		binary.NativeEndian.PutUint64(values[i], 1) // fbr_frag.until
		check(t, m.Put(keys[i], values[i]))
	}
	return len(keys)
}

func TestFragmentsLeaveTranslated(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, testFragmentsLeave)
}

func testFragmentsLeave(t *testing.T, h *harness) {
	for name, f := range h.big() {
		t.Run(name, func(t *testing.T) {
			sent := h.routed(f)
			out := h.sendOut(t, testutil.Fragments(t, sent.Bytes(t), fragment, 77))
			whole, err := testutil.Join(out...)
			check(t, err)
			eport := h.eport(t, f)
			want := sent.With(func(f *testutil.Frame) {
				f.Src, f.ID = h.addr.ext, testutil.FragmentID(whole)
				switch {
				case f.UDP != nil:
					f.UDP.SrcPort = eport
				case f.TCP != nil:
					f.TCP.SrcPort = eport
				default:
					f.Echo.ID = eport
				}
			}).Bytes(t)
			if string(whole) != string(want) {
				t.Errorf("sent\n%x\nwant\n%x", whole[:60], want[:60])
			}
			if n := h.tracked(t, false); n != 0 {
				t.Errorf("%d datagrams are tracked after the last fragment", n)
			}
			// A fragment does not show what the kernel does with a whole packet.
			if got := h.portIn(t, f.With(func(f *testutil.Frame) { f.Payload = f.Payload[:8] }).Bytes(t)); got.verdict != next {
				t.Errorf("a fragment granted a lease: verdict %d", got.verdict)
			}
		})
	}
}

func TestFragmentsOfTwoContainersDiffer(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f1 := h.routed(h.big()["udp"])
	f2 := f1.With(func(f *testutil.Frame) { f.Src = c2Addr })
	one, two := testutil.Fragments(t, f1.Bytes(t), fragment, 5), testutil.Fragments(t, f2.Bytes(t), fragment, 5)
	var out1, out2 [][]byte
	for i := range one {
		out1 = append(out1, h.sendOut(t, one[i:i+1])...)
		out2 = append(out2, h.sendOut(t, two[i:i+1])...)
	}
	for _, out := range [][][]byte{out1, out2} {
		if _, err := testutil.Join(out...); err != nil {
			t.Error(err)
		}
	}
	if testutil.FragmentID(out1[0]) == testutil.FragmentID(out2[0]) {
		t.Errorf("both datagrams have the id %d", testutil.FragmentID(out1[0]))
	}
}

func TestFragmentWithoutFirstStays(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	frags := testutil.Fragments(t, h.routed(h.big()["udp"]).Bytes(t), fragment, 9)
	dropped := func(name string, f []byte) {
		t.Run(name, func(t *testing.T) {
			h.wantDrop(t, h.c1.Ifindex, "fragment", func() result { return h.uplinkOut(t, f, h.bridge) })
		})
	}
	dropped("middle", frags[1])
	dropped("last", frags[2])
	h.sendOut(t, frags)
	dropped("after the last", frags[1])
	h.sendOut(t, frags[:1])
	h.tracked(t, true)
	dropped("too late", frags[1])
}

func TestFragmentsHaveAQuota(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	f := h.routed(h.big()["udp"])
	const quota = 512
	first := func(id uint32) []byte { return testutil.Fragments(t, f.Bytes(t), fragment, id)[0] }
	for id := range uint32(quota) {
		h.sendOut(t, [][]byte{first(id)})
	}
	h.wantDrop(t, h.c1.Ifindex, "fragment", func() result { return h.uplinkOut(t, first(quota), h.bridge) })
	// Other containers are not affected.
	h.sendOut(t, testutil.Fragments(t, f.With(func(f *testutil.Frame) { f.Src = c2Addr }).Bytes(t), fragment, 1))
	// Lost datagrams are forgotten without the help of any process.
	if n := h.tracked(t, true); n != quota {
		t.Errorf("%d datagrams are tracked, want %d", n, quota)
	}
	for id := range uint32(quota) { // each packet looks at 64 of 4096 slots
		if h.uplinkOut(t, first(quota+id), h.bridge).verdict == next {
			h.sendOut(t, testutil.Fragments(t, f.Bytes(t), fragment, 2*quota+id))
			return
		}
	}
	t.Error("the quota is still used up by datagrams that are long gone")
}

// attachFragments gives the harness the device to the namespace that reassembles
// fragments.
func (h *harness) attachFragments(t *testing.T) int {
	t.Helper()
	index := addVeth(t, "frags")
	h.ns.Do(t, func() {
		check(t, h.AttachDefrag())
		// By IPv6 the kernel finds routes only for what comes in by a device with forwarding.
		check(t, os.WriteFile("/proc/sys/net/ipv6/conf/frags/forwarding", []byte("1"), 0))
	})
	check(t, h.AttachFragments(index, fragmentPeer))
	return index
}

func (h *harness) fragIn(t *testing.T, frame []byte, ifindex int) result {
	t.Helper()
	return h.run(t, h.prog(tcProgFbrFragIn), frame, ifindex, ifindex)
}

// uplinkMAC is the destination MAC address of frames to the host.
func (h *harness) uplinkMAC(t *testing.T) (mac net.HardwareAddr) {
	t.Helper()
	h.ns.Do(t, func() {
		if l, err := netlink.LinkByIndex(h.uplink.Ifindex); err == nil {
			mac = l.Attrs().HardwareAddr
		}
	})
	return mac
}

// bounced is a fragment as the other namespace hands it back.
func bounced(t *testing.T, frame []byte) []byte {
	t.Helper()
	f := append([]byte(nil), frame...)
	copy(f, fragmentPeer)
	if f[14]>>4 == 6 {
		f[21]--
		return f
	}
	f[22]--
	return refreshed(f)
}

// refreshed recomputes the IPv4 header checksum.
func refreshed(f []byte) []byte {
	f[24], f[25] = 0, 0
	be.PutUint16(f[24:], ^testutil.Sum(0, f[14:34]))
	return f
}

func TestFragmentsComeInTranslated(t *testing.T) {
	eachFamily(t, Config{FlowsMax: 64}, testFragmentsComeIn)
}

func testFragmentsComeIn(t *testing.T, h *harness) {
	index := h.attachFragments(t)
	for name, f := range h.big() {
		t.Run(name, func(t *testing.T) {
			h.sendOut(t, testutil.Fragments(t, h.routed(f).Bytes(t), fragment, 77))
			answer := h.reply(f, h.eport(t, f))
			answer.DstMAC, answer.ID = h.uplinkMAC(t), 99
			var in [][]byte
			for i, frag := range testutil.Fragments(t, answer.Bytes(t), fragment, answer.ID) {
				got := h.uplinkIn(t, frag)
				if want := append(append([]byte(nil), fragmentPeer...), frag[6:]...); got.verdict != redirect || string(got.frame) != string(want) {
					t.Fatalf("fragment %d arrives: verdict %d, frame %x", i, got.verdict, got.frame[:40])
				}
				back := h.fragIn(t, bounced(t, frag), index)
				if back.verdict != redirect || back.mark != h.meta.Mark {
					t.Fatalf("fragment %d comes back: verdict %d, mark %#x", i, back.verdict, back.mark)
				}
				again := h.uplinkIn(t, back.frame, func(s *skb) { s.Mark = h.meta.Mark })
				if again.verdict != next || again.mark != 0 || string(again.frame) != string(back.frame) {
					t.Errorf("fragment %d at the uplink again: verdict %d, mark %#x", i, again.verdict, again.mark)
				}
				in = append(in, back.frame)
			}
			whole, err := testutil.Join(in...)
			check(t, err)
			want := answer.With(func(a *testutil.Frame) {
				a.DstMAC, a.Dst = fragmentPeer, h.addr.c1
				switch {
				case a.UDP != nil:
					a.UDP.DstPort = f.UDP.SrcPort
				case a.TCP != nil:
					a.TCP.DstPort = f.TCP.SrcPort
				default:
					a.Echo.ID = f.Echo.ID
				}
			}).Bytes(t)
			if string(whole) != string(want) {
				t.Errorf("arrived\n%x\nwant\n%x", whole[:60], want[:60])
			}
			if n := h.tracked(t, false); n != 0 {
				t.Errorf("%d datagrams are tracked after the last fragment", n)
			}
		})
	}
}

func TestFragmentsOfTheHost(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	mac := h.uplinkMAC(t)
	host := testutil.Frame{SrcMAC: h.outsideHW, DstMAC: mac, Src: server, Dst: extAddr, MF: true,
		UDP: &testutil.UDP{SrcPort: 4000, DstPort: 53}, Payload: make([]byte, 64)}
	untouched := func(name string, f testutil.Frame) {
		t.Run(name, func(t *testing.T) {
			frame := f.Bytes(t)
			if got := h.uplinkIn(t, frame); got.verdict != next || string(got.frame) != string(frame) {
				t.Errorf("verdict %d, frame %x, want %x", got.verdict, got.frame, frame)
			}
		})
	}
	untouched("no namespace for fragments", host)
	index := h.attachFragments(t)
	for _, f := range []testutil.Frame{host, host.With(func(f *testutil.Frame) { f.MF, f.FragOff = false, 9 })} {
		if got := h.uplinkIn(t, f.Bytes(t)); got.verdict != redirect {
			t.Errorf("verdict %d on the way to the other namespace", got.verdict)
		}
		got := h.fragIn(t, bounced(t, f.Bytes(t)), index)
		f.DstMAC = fragmentPeer
		if want := f.Bytes(t); got.verdict != redirect || got.mark != h.meta.Mark || string(got.frame) != string(want) {
			t.Errorf("verdict %d, mark %#x\n got %x\nwant %x", got.verdict, got.mark, got.frame, want)
		}
	}
	for name, change := range map[string]func(*testutil.Frame){
		"somebody else's frame": func(f *testutil.Frame) { f.DstMAC = h.outsideHW },
		"to be forwarded":       func(f *testutil.Frame) { f.Dst = server.Next() },
		"last hop":              func(f *testutil.Frame) { f.TTL = 1 },
		"other protocol":        func(f *testutil.Frame) { f.UDP = nil },
		"whole":                 func(f *testutil.Frame) { f.MF = false },
	} {
		untouched(name, host.With(change))
	}
	h.wantDrop(t, h.uplink.Ifindex, "direct", func() result {
		return h.uplinkIn(t, host.With(func(f *testutil.Frame) { f.Dst = c1Addr }).Bytes(t))
	})
	for name, f := range map[string][]byte{
		"whole packet": bounced(t, host.With(func(f *testutil.Frame) { f.MF = false }).Bytes(t)),
		"ARP":          testutil.ARP{SrcMAC: fragmentPeer, DstMAC: mac, SenderIP: server, TargetIP: extAddr}.Bytes(t),
		"unknown way":  bounced(t, host.With(func(f *testutil.Frame) { f.ID = 4242 }).Bytes(t)),
	} {
		if got := h.fragIn(t, f, index); got.verdict != shot {
			t.Errorf("%s from the other namespace: verdict %d", name, got.verdict)
		}
	}
	check(t, h.DetachFragments(index))
	untouched("namespace is gone", host)
}

// TestInboundFragmentsHaveAQuota: the remote of a flow sends only first fragments.
func TestInboundFragmentsHaveAQuota(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	index := h.attachFragments(t)
	f := h.big()["udp"]
	h.sendOut(t, testutil.Fragments(t, h.routed(f).Bytes(t), fragment, 77))
	answer := h.reply(f, h.eport(t, f))
	answer.DstMAC = h.uplinkMAC(t)
	arrive := func(id uint32) result {
		frag := testutil.Fragments(t, answer.Bytes(t), fragment, id)[0]
		h.uplinkIn(t, frag)
		return h.fragIn(t, bounced(t, frag), index)
	}
	for id := range uint32(512) {
		if got := arrive(id); got.verdict != redirect {
			t.Fatal(fmt.Errorf("fragment %d: verdict %d", id, got.verdict))
		}
	}
	h.wantDrop(t, h.uplink.Ifindex, "fragment", func() result { return arrive(512) })
}

// TestNeighbourKeepsItsDatagrams: the host sends fragments from a port that a container
// has towards the same remote. Its fragments leave unchanged. The answer, also in
// fragments, reaches the host, and the container goes on from another port.
func TestNeighbourKeepsItsDatagrams(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	index := h.attachFragments(t)
	f := h.big()["udp"].With(func(f *testutil.Frame) { f.UDP.SrcPort = 12345 }) // in the range, so the port is kept
	h.sendOut(t, testutil.Fragments(t, h.routed(f).Bytes(t), fragment, 1))
	if p := h.eport(t, f); p != 12345 {
		t.Fatalf("external port %d, want the container's own", p)
	}
	sent := h.routed(f.With(func(f *testutil.Frame) { f.Src = extAddr }))
	for i, frag := range testutil.Fragments(t, sent.Bytes(t), fragment, 2) {
		if got := h.uplinkOut(t, frag, 0); got.verdict != next || string(got.frame) != string(frag) {
			t.Fatalf("fragment %d: verdict %d, changed: %v", i, got.verdict, string(got.frame) != string(frag))
		}
	}
	if p := h.eport(t, f); p == 12345 {
		t.Error("the container still has the host's tuple")
	}
	answer := h.reply(f, 12345)
	answer.DstMAC = h.uplinkMAC(t)
	var in [][]byte
	for _, frag := range testutil.Fragments(t, answer.Bytes(t), fragment, 3) {
		h.uplinkIn(t, frag)
		in = append(in, h.fragIn(t, bounced(t, frag), index).frame)
	}
	whole, err := testutil.Join(in...)
	check(t, err)
	if _, dst := testutil.Addresses(whole); dst != extAddr || binary.BigEndian.Uint16(whole[36:]) != 12345 {
		t.Errorf("the answer goes to %s:%d", dst, binary.BigEndian.Uint16(whole[36:]))
	}
}
