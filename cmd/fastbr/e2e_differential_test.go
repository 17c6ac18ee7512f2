package main_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// TestE2ESameAsPlainBridge is the project's central claim: the same packets,
// sent through a plain kernel bridge with masquerade and through fastbr, arrive
// the same, and are answered the same. Only the translated port may differ.
func TestE2ESameAsPlainBridge(t *testing.T) {
	t.Parallel()
	type view struct{ mode, out, in string }
	views := map[string][]view{}
	for _, m := range e2eModes() {
		t.Run(m.name, func(t *testing.T) {
			h := upE2E(t, m, lab.Options{Containers: 2})
			h.unlimitErrors(t)
			for _, p := range h.probes(t) {
				out, in := h.observe(t, p)
				views[p.name] = append(views[p.name], view{m.name, out, in})
			}
			if !m.plain {
				t.Logf("dropped: %v", h.allDrops(t))
			}
		})
	}
	for name, vs := range views {
		plain := vs[len(vs)-1]
		if plain.mode != "plain" {
			t.Fatal("the plain bridge must be the last mode")
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

// unlimitErrors lets every packet have its ICMP error.
func (h *e2e) unlimitErrors(t *testing.T) {
	t.Helper()
	for _, n := range append([]*lab.Namespace{h.Host, h.Outside}, h.Containers...) {
		if err := n.SetSysctl("net.ipv4.icmp_ratelimit", "0"); err != nil {
			t.Fatal(err)
		}
	}
}

// probe is a frame that c1 sends several times, so that the later ones may take
// the fast path.
type probe struct {
	name  string
	frame testutil.Frame
}

const probeCopies = 4

func (h *e2e) probes(t *testing.T) []probe {
	t.Helper()
	c1, c2 := h.Containers[0], h.Containers[1]
	bridge := "fastbr0"
	if h.mode.plain {
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
		next++ // a source port of its own for each
		return probe{name: name, frame: udp.With(func(f *testutil.Frame) { f.UDP.SrcPort += next; f.ID = 1000 + next }, change)}
	}
	toC2 := func(f *testutil.Frame) { f.Dst, f.DstMAC = c2.Addr, mac(c2, "eth0") }
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
		of("udp with TTL 1", func(f *testutil.Frame) { f.TTL = 1 }),
		of("udp with TTL 1 to c2", func(f *testutil.Frame) { toC2(f); f.TTL = 1 }),
		of("udp with IP options", func(f *testutil.Frame) { f.Options = []byte{1, 1, 1, 0} }),
		of("udp with IP options to c2", func(f *testutil.Frame) { toC2(f); f.Options = []byte{1, 1, 1, 0} }),
		of("udp to the host", func(f *testutil.Frame) { f.Dst, f.UDP.DstPort = h.HostAddr(0), 9 }),
		of("udp to an unreachable address", func(f *testutil.Frame) { f.Dst = h.OutsideAddr(0).Next() }),
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

// observe sends a probe and describes what arrives, at outside or c2, and what
// comes back to c1.
func (h *e2e) observe(t *testing.T, p probe) (out, in string) {
	t.Helper()
	c1, c2 := h.Containers[0], h.Containers[1]
	far := h.Outside
	if p.frame.Dst == c2.Addr {
		far = c2
	}
	// A server outside and in c2, so that some probes are answered.
	for _, n := range []*lab.Namespace{h.Outside, c2} {
		s := h.serveUDP(t, n, on(n.Addr, 7))
		defer s.Close()
	}
	// And a receiver for the answers, so that c1 does not send ICMP errors.
	if p.frame.UDP != nil {
		sock, err := c1.ListenUDP(on(netip.IPv4Unspecified(), p.frame.UDP.SrcPort))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sock.Close() }()
	}
	farSniff, nearSniff := h.sniff(t, far), h.sniff(t, c1)
	frame := p.frame.Bytes(t)
	for range probeCopies {
		if err := c1.Inject("eth0", frame); err != nil {
			t.Fatal(err)
		}
	}
	if p.frame.Dst == h.OutsideAddr(0).Next() {
		return "", h.waitUnreachable(t, nearSniff)
	}
	h.sendClosing(t, c1, far)
	farMAC, err := far.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return h.describe(t, farSniff, farMAC), h.describe(t, nearSniff, p.frame.SrcMAC)
}

func (h *e2e) sniff(t *testing.T, n *lab.Namespace) *lab.Sniffer {
	t.Helper()
	s, err := n.NewSniffer("eth0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// describe lists the IPv4 frames to mac that arrived before the closing
// datagram, without what may differ: translated ports, ids and checksums.
func (h *e2e) describe(t *testing.T, s *lab.Sniffer, mac net.HardwareAddr) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.ctx, 10*time.Second)
	defer cancel()
	var lines []string
	for {
		f, err := s.Next(ctx, func(f []byte) bool {
			return len(f) >= 34 && f[12] == 8 && f[13] == 0 && slices.Equal(f[:6], mac)
		})
		if err != nil {
			t.Errorf("the closing datagram never came: %v", err)
			return ""
		}
		if isClosing(f) {
			slices.Sort(lines) // answers may overtake each other
			return strings.Join(lines, "\n")
		}
		lines = append(lines, describePacket(f[14:]))
	}
}

// waitUnreachable waits for the host's answer about an address that does not
// answer ARP, which takes the kernel's own time.
func (h *e2e) waitUnreachable(t *testing.T, s *lab.Sniffer) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.ctx, 20*time.Second)
	defer cancel()
	f, err := s.Next(ctx, func(f []byte) bool {
		return len(f) > 42 && f[12] == 8 && f[13] == 0 && f[23] == 1 && f[34] == 3
	})
	if err != nil {
		t.Errorf("no host unreachable: %v", err)
		return ""
	}
	// The host may answer under any of its addresses.
	_, rest, _ := strings.Cut(describePacket(f[14:]), ">")
	return "host>" + rest
}

// describePacket shows an IPv4 packet; inside an ICMP error, also the inner one.
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

// portClass names a port: the translated one and the container's own of the
// probes are "ephemeral"; which of the two is where shows in the addresses.
func portClass(b []byte) string {
	if p := binary.BigEndian.Uint16(b); p < 1024 {
		return fmt.Sprint(p)
	}
	return "ephemeral"
}
