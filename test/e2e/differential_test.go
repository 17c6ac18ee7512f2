package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// TestE2ESameAsPlainBridge checks the central claim of the project. It sends the same
// packets through a plain kernel bridge with masquerade and through fastbr. They must
// arrive the same and be answered the same. Only the translated port may differ.
func TestE2ESameAsPlainBridge(t *testing.T) {
	t.Parallel()
	type view struct{ mode, out, in string }
	views := map[string][]view{}
	for _, m := range e2eModes() {
		t.Run(m.Name, func(t *testing.T) {
			h := upE2E(t, m, lab.Options{Containers: 2})
			h.unlimitErrors(t)
			// A server outside and one in c2, so that some probes are answered. All
			// probes share them: see lab.ListenUDP on opening a port again.
			for _, n := range []*lab.Namespace{h.Outside, h.Containers[1]} {
				h.ServeUDP(t, n, on(n.Addr, 7))
			}
			for _, p := range h.probes(t) {
				out, in := h.observe(t, p)
				p.assertComplete(t, out, in)
				views[p.name] = append(views[p.name], view{m.Name, out, in})
			}
			if !m.Plain {
				t.Logf("dropped: %v", h.allDrops(t))
			}
		})
	}
	for name, vs := range views {
		plain := vs[len(vs)-1]
		if plain.mode != "plain" {
			t.Errorf("%s: the last view is that of mode %s, not of the plain bridge", name, plain.mode)
			continue
		}
		if plain.out == "" && plain.in == "" {
			t.Errorf("%s: nothing was seen at all: the probe is broken", name)
		}
		for _, v := range vs[:len(vs)-1] {
			if v.out != plain.out {
				t.Errorf("%s, %s: outside and c2 saw\n%s\nwith the plain bridge\n%s", name, v.mode, v.out, plain.out)
			}
			if v.in != plain.in {
				t.Errorf("%s, %s: c1 saw\n%s\nwith the plain bridge\n%s", name, v.mode, v.in, plain.in)
			}
		}
	}
}

// unlimitErrors allows an ICMP error for every packet. The mask lifts both limits of
// the kernel: the one per destination and the global one.
func (h *e2e) unlimitErrors(t *testing.T) {
	t.Helper()
	for _, n := range append([]*lab.Namespace{h.Host, h.Outside}, h.Containers...) {
		if err := n.SetSysctl("net.ipv4.icmp_ratemask", "0"); err != nil {
			t.Fatal(err)
		}
	}
}

// probe is a frame that c1 sends several times, so that the later copies may take the
// fast path. Each copy gets one answer, from far or from the host.
type probe struct {
	name  string
	frame testutil.Frame
	// byHost: the host answers, and nothing arrives at far.
	byHost bool
	// noNeighbour: nobody has the address. All copies are sent before the first answer
	// is awaited, since each wait would last until ARP gives up. The host may answer
	// with any of its addresses. For all other probes each copy waits for the answer to
	// the one before. Two packets of a new flow at the same time race for its conntrack
	// entry, and where one is translated, the kernel may drop the loser.
	noNeighbour bool
}

// answeredByHost marks a probe that the host answers and does not forward.
func answeredByHost(p probe) probe { p.byHost = true; return p }

const (
	probeCopies = 4
	// probeDeadline is for packets that never arrive. ARP alone takes 3 s to give up.
	probeDeadline = 30 * time.Second
)

func (h *e2e) probes(t *testing.T) []probe {
	t.Helper()
	c1, c2 := h.Containers[0], h.Containers[1]
	bridge := "fastbr0"
	if h.Mode.Plain {
		bridge = "br0"
	}
	mac := func(n *lab.Namespace, dev string) net.HardwareAddr {
		m, err := n.MAC(dev)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	h.mustPing(t, c1, c2.Addr, lab.PingOptions{Count: 1})
	h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{Count: 1})
	udp := testutil.Frame{
		SrcMAC: mac(c1, "eth0"), DstMAC: mac(h.Host, bridge), Src: c1.Addr, Dst: h.Outside.Addr,
		UDP: &testutil.UDP{SrcPort: 40000, DstPort: 7}, Payload: forgedMark,
	}
	var next uint16
	of := func(name string, change func(*testutil.Frame)) probe {
		next++ // each has a source port of its own
		return probe{name: name, frame: udp.With(func(f *testutil.Frame) { f.UDP.SrcPort += next; f.ID = 1000 + uint32(next) }, change)}
	}
	toC2 := func(f *testutil.Frame) { f.Dst, f.DstMAC = c2.Addr, mac(c2, "eth0") }
	unreachable := answeredByHost(of("udp to an unreachable address", func(f *testutil.Frame) { f.Dst = h.OutsideAddr(0).Next() }))
	unreachable.noNeighbour = true
	return []probe{
		of("udp to a closed port", func(f *testutil.Frame) { f.UDP.DstPort = 9 }),
		of("udp", func(f *testutil.Frame) {}),
		of("udp to c2", toC2),
		of("udp with DF", func(f *testutil.Frame) { f.DF = true }),
		of("udp with TOS", func(f *testutil.Frame) { f.TOS = 0xb8 }),
		of("udp with TOS to c2", func(f *testutil.Frame) { toC2(f); f.TOS = 0xb8 }),
		of("udp without checksum", func(f *testutil.Frame) { f.UncheckedUDP = true }),
		of("udp without payload but the mark, odd", func(f *testutil.Frame) { f.Payload = append(slices.Clone(forgedMark), '!') }),
		of("udp to a closed port of c2", func(f *testutil.Frame) { toC2(f); f.UDP.DstPort = 9 }),
		of("udp with TTL 2", func(f *testutil.Frame) { f.TTL = 2 }),
		answeredByHost(of("udp with TTL 1", func(f *testutil.Frame) { f.TTL = 1 })),
		of("udp with TTL 1 to c2", func(f *testutil.Frame) { toC2(f); f.TTL = 1 }),
		of("udp with IP options", func(f *testutil.Frame) { f.Options = []byte{1, 1, 1, 0} }),
		of("udp with IP options to c2", func(f *testutil.Frame) { toC2(f); f.Options = []byte{1, 1, 1, 0} }),
		answeredByHost(of("udp to the host", func(f *testutil.Frame) { f.Dst, f.UDP.DstPort = h.HostAddr(0), 9 })),
		unreachable,
		of("echo", func(f *testutil.Frame) { f.UDP, f.Echo = nil, &testutil.Echo{ID: 40100, Seq: 1} }),
		of("echo with odd length", func(f *testutil.Frame) {
			f.UDP, f.Echo, f.Payload = nil, &testutil.Echo{ID: 40101, Seq: 1}, append(slices.Clone(forgedMark), '!')
		}),
		of("syn to a closed port", func(f *testutil.Frame) {
			f.TCP, f.UDP = &testutil.TCP{SrcPort: 40200, DstPort: 9, SYN: true, Options: make([]byte, 8)}, nil
		}),
		of("syn to a closed port of c2", func(f *testutil.Frame) {
			toC2(f)
			f.TCP, f.UDP = &testutil.TCP{SrcPort: 40201, DstPort: 9, SYN: true}, nil
		}),
	}
}

// observe sends a probe. It describes what arrives at outside or c2, and what comes
// back to c1. It waits for everything expected, and then for a closing datagram, which
// shows whether more has arrived.
func (h *e2e) observe(t *testing.T, p probe) (out, in string) {
	t.Helper()
	c1, c2 := h.Containers[0], h.Containers[1]
	farNS := h.Outside
	if p.frame.Dst == c2.Addr {
		farNS = c2
	}
	// A receiver for the answers: without it c1 would send ICMP errors.
	if p.frame.UDP != nil {
		sock, err := c1.ListenUDP(on(netip.IPv4Unspecified(), p.frame.UDP.SrcPort))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sock.Close() }()
	}
	// A closing datagram that was sent twice may arrive during a later probe.
	end := append(slices.Clone(closing), ": "+p.name...)
	far, near := h.watch(t, farNS, end), h.watch(t, c1, end)
	defer far.sniff.Close()
	defer near.sniff.Close()

	ctx, cancel := context.WithTimeout(h.Ctx, probeDeadline)
	defer cancel()
	frame := p.frame.Bytes(t)
	for sent := 1; sent <= probeCopies; sent++ {
		if err := c1.Inject("eth0", frame); err != nil {
			t.Fatal(err)
		}
		if p.noNeighbour && sent < probeCopies {
			continue
		}
		if !p.byHost {
			far.await(ctx, sent)
		}
		near.await(ctx, sent)
	}
	h.sendHonest(t, c1, farNS, end)
	out, in = far.describe(t, h.Ctx), near.describe(t, h.Ctx)
	if p.noNeighbour {
		in = anySource.ReplaceAllString(in, "host>")
	}
	return out, in
}

// assertComplete fails unless each copy of a probe had exactly one arrival and one
// answer. The comparison alone would not show a loss that is the same in every mode.
func (p probe) assertComplete(t *testing.T, out, in string) {
	t.Helper()
	want := probeCopies
	if p.byHost {
		want = 0
	}
	if n := countLines(out); n != want {
		t.Errorf("%s: %d packets arrived, want %d:\n%s", p.name, n, want, out)
	}
	if n := countLines(in); n != probeCopies {
		t.Errorf("%s: %d answers, want %d:\n%s", p.name, n, probeCopies, in)
	}
}

func countLines(s string) int {
	if s == "" {
		return 0
	}
	return strings.Count(s, "\n") + 1
}

// anySource is the source at the beginning of each described packet.
var anySource = regexp.MustCompile(`(?m)^[0-9.]+>`)

// observer collects the IPv4 packets that arrive at a namespace.
type observer struct {
	sniff   *lab.Sniffer
	mac     net.HardwareAddr
	end     []byte // payload of the datagram that ends the observation
	packets []string
}

func (h *e2e) watch(t *testing.T, n *lab.Namespace, end []byte) *observer {
	t.Helper()
	mac, err := n.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := n.NewSniffer("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return &observer{sniff: s, mac: mac, end: end}
}

// next waits for one more packet and reports whether it was the last.
func (o *observer) next(ctx context.Context) (last bool, err error) {
	f, err := o.sniff.Next(ctx, func(f []byte) bool {
		return len(f) >= 34 && f[12] == 8 && f[13] == 0 && slices.Equal(f[:6], o.mac) &&
			(!isClosing(f) || bytes.HasSuffix(f, o.end))
	})
	if err != nil || isClosing(f) {
		return true, err
	}
	o.packets = append(o.packets, describePacket(f[14:]))
	return false, nil
}

// await waits until n packets have arrived since the start. If ctx ends first, that is
// no failure here: the comparison shows what is missing.
func (o *observer) await(ctx context.Context, n int) {
	for len(o.packets) < n {
		if last, _ := o.next(ctx); last {
			return
		}
	}
}

// describe lists what has arrived before the closing datagram. It leaves out what may
// differ: translated ports, ids and checksums.
func (o *observer) describe(t *testing.T, ctx context.Context) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, probeDeadline)
	defer cancel()
	for {
		last, err := o.next(ctx)
		if err != nil {
			t.Errorf("the closing datagram never came: %v", err)
		}
		if last {
			slices.Sort(o.packets)
			return strings.Join(o.packets, "\n")
		}
	}
}

// describePacket describes an IPv4 packet and, in an ICMP error, the quoted packet.
func describePacket(ip []byte) string {
	const icmp, tcp, udp = 1, 6, 17
	hlen := int(ip[0]&0xf) * 4
	if len(ip) < hlen+8 {
		return fmt.Sprintf("short % x", ip)
	}
	l4 := ip[hlen:]
	text := fmt.Sprintf("%v>%v proto %d tos %#x ttl %d df %v options % x", addr4(ip[12:]), addr4(ip[16:]),
		ip[9], ip[1], ip[8], ip[6]&0x40 != 0, ip[20:hlen])
	switch ip[9] {
	case udp:
		return text + fmt.Sprintf(" %s>%s length %d checksum %v", portClass(l4), portClass(l4[2:]), len(l4), l4[6] != 0 || l4[7] != 0)
	case tcp:
		if len(l4) < 20 { // inside an ICMP error
			return text + fmt.Sprintf(" %s>%s", portClass(l4), portClass(l4[2:]))
		}
		return text + fmt.Sprintf(" %s>%s flags %#x length %d", portClass(l4), portClass(l4[2:]), l4[13], len(l4))
	case icmp:
		text += fmt.Sprintf(" type %d code %d length %d", l4[0], l4[1], len(l4))
		if l4[0] == 3 || l4[0] == 11 {
			return text + " about " + describePacket(l4[8:])
		}
	}
	return text
}

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b[:4])) }

// portClass names a port. The translated port and the container's own port of a probe
// are both "ephemeral": the addresses show which is where.
func portClass(b []byte) string {
	if p := binary.BigEndian.Uint16(b); p < 1024 {
		return fmt.Sprint(p)
	}
	return "ephemeral"
}
