package rfc

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// Checks of what every router must do, a NAT included.

// checkTTL checks the TTL of routed packets, by the kernel's path and the fast path,
// and of bridged ones.
func checkTTL(b *bed) error {
	f, err := b.open(b.c1, "udp")
	if err != nil {
		return err
	}
	g, err := b.openTo(b.c1, "udp", b.rawPort(), on(b.Far.Addr, 7001))
	if err != nil {
		return err
	}
	for range 4 {
		near, err := f.out("", nil)
		if err != nil {
			return err
		}
		back, err := f.in("", nil)
		if err != nil {
			return err
		}
		far, err := g.out("", nil)
		if err != nil {
			return err
		}
		if near.ttl != 63 || back.ttl != 63 || far.ttl != 62 {
			return fmt.Errorf("64 becomes %d at the server, %d on the way back, %d beyond one more router", near.ttl, back.ttl, far.ttl)
		}
	}
	mac, err := b.c2.MAC("eth0")
	b.ok(err)
	for range 2 {
		fr := b.frame(b.c1, testutil.Frame{Dst: b.c2.Addr, UDP: &testutil.UDP{SrcPort: b.rawPort(), DstPort: b.rawPort()}, Payload: b.tag()})
		copy(fr, mac)
		p, err := b.cross(b.c1, fr, b.c2, nil)
		if err != nil {
			return err
		}
		if p.ttl != 64 {
			return fmt.Errorf("a bridged packet's TTL becomes %d", p.ttl)
		}
	}
	return nil
}

// checkTTLExceeded sends packets whose TTL ends at the host, on a warm flow.
func checkTTLExceeded(b *bed) error {
	for _, proto := range protos() {
		f, err := b.live(b.c1, proto)
		if err != nil {
			return err
		}
		probe := f.outFrame("PA", b.tag(), func(fr *testutil.Frame) { fr.TTL = 1 })
		got, err := b.cross(f.c, probe, f.c, aboutFlow(f))
		if err == nil {
			err = sameError(got, errorKind{11, 0}, b.routerOf(f.c))
		}
		if err == nil {
			err = b.blocked(f.c, probe, f.at, nil)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", proto, err)
		}
	}
	return nil
}

// checkSums sends payloads that give the checksum every 64th value, and one that makes
// it zero.
func checkSums(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	w := b.tap(f.at)
	defer w.close()
	tag := b.tag()
	const n = 1024
	for i := range n {
		p := append(append([]byte(nil), tag...), byte(i>>2), byte(i<<6))
		b.send(f.c, f.outFrame("", p))
	}
	for i := range n {
		p, ok := w.next(scorePatience, func(p packet) bool { return p.proto == protoUDP && strings.HasPrefix(string(p.body()), string(tag)) })
		if !ok {
			return fmt.Errorf("%d of %d packets arrive", i, n)
		}
		if err := testutil.CheckSums(p.frame); err != nil {
			return fmt.Errorf("packet %d: %w", i, err)
		}
	}
	return f.sumsToZero()
}

// sumsToZero sends a packet whose translated UDP checksum computes to zero. On the wire
// it must be 0xffff.
func (f *flow) sumsToZero() error {
	b := f.b
	b.t.Helper()
	payload := append(b.tag(), 0, 0)
	probe, err := f.out("", payload)
	if err != nil {
		return err
	}
	// Adding the checksum to a zero word of the payload makes the sum 0xffff.
	payload = append(payload[:len(payload)-2], byte(probe.word(6)>>8), byte(probe.word(6)))
	p, err := f.out("", payload)
	if err != nil {
		return err
	}
	if p.word(6) != 0xffff {
		return fmt.Errorf("a checksum that computes to zero is sent as %#x", p.word(6))
	}
	return testutil.CheckSums(p.frame)
}

// checkNoErrorsAboutErrors sends packets with TTL 1 that must not be answered with an
// error. Then it counts the answers to many packets that may be answered.
func checkNoErrorsAboutErrors(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	got, err := f.in("", nil)
	if err != nil {
		return err
	}
	last := testutil.Frame{Dst: b.mute, TTL: 1}
	for what, fr := range map[string]testutil.Frame{
		"an ICMP error":        last.With(func(fr *testutil.Frame) { fr.ICMP = &testutil.ICMPError{Type: 3, Code: 3, Inner: got.ip} }),
		"a non-first fragment": last.With(func(fr *testutil.Frame) { fr.Proto, fr.FragOff, fr.Payload = protoUDP, 100, b.tag() }),
		"a multicast packet": last.With(func(fr *testutil.Frame) {
			fr.Dst, fr.UDP, fr.Payload = netip.MustParseAddr("239.1.2.3"), &testutil.UDP{SrcPort: b.rawPort(), DstPort: 1}, b.tag()
		}),
	} {
		err := b.blocked(b.c1, b.frame(b.c1, fr), b.c1, func(p packet) bool { _, _, _, ok := icmpError(p); return ok })
		if err != nil {
			return fmt.Errorf("an answer to %s %w", what, err)
		}
	}
	return f.answersLimited()
}

// answersLimited restores the kernel's own rate limit of ICMP errors and exceeds it.
func (f *flow) answersLimited() error {
	b := f.b
	b.t.Helper()
	const n = 60
	b.ok(b.Host.SetSysctl("net.ipv4.icmp_ratelimit", "1000"))
	defer func() { b.ok(b.Host.SetSysctl("net.ipv4.icmp_ratelimit", "0")) }()
	w := b.tap(f.c)
	defer w.close()
	for range n {
		b.send(f.c, f.outFrame("", nil, func(fr *testutil.Frame) { fr.TTL = 1 }))
	}
	answers := 0
	for {
		if _, ok := w.next(scoreQuiet, aboutFlow(f)); !ok {
			break
		}
		answers++
	}
	if answers == 0 || answers >= n {
		return fmt.Errorf("%d of %d packets are answered", answers, n)
	}
	return nil
}

// checkMartians sends packets from the neighbour that cannot come from there.
func checkMartians(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	var frames [][]byte
	tag := b.tag()
	for _, src := range []string{"127.0.0.1", "0.0.0.1", "224.0.0.1", "255.255.255.255", b.c2.Addr.String()} {
		fr := testutil.Frame{Src: netip.MustParseAddr(src), Dst: f.nat.Addr(), Payload: tag}
		frames = append(frames,
			b.frame(b.LAN, fr.With(func(fr *testutil.Frame) { fr.UDP = &testutil.UDP{SrcPort: f.dst.Port(), DstPort: f.nat.Port()} })),
			b.frame(b.LAN, fr.With(func(fr *testutil.Frame) { fr.Echo = &testutil.Echo{ID: b.rawPort()} })),
		)
	}
	// Neither the frames may arrive, nor the host's answers to those with c2's address
	// as source.
	return b.noneArrive(b.LAN, frames, func(p packet) bool { return len(p.l4) > 8 && string(p.l4[8:]) == string(tag) }, b.c1, b.c2)
}

// checkIPOptions sends a packet with harmless options, and a source-routed packet.
func checkIPOptions(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	nops := func(fr *testutil.Frame) { fr.Options = make([]byte, 8) }
	for range 2 {
		out := f.outFrame("", nil, nops)
		copy(out[etherLen+20:], []byte{1, 1, 1, 1, 1, 1, 1, 1})
		fixIPSum(out)
		p, err := b.cross(f.c, out, f.at, nil)
		if err != nil {
			return fmt.Errorf("with options: %w", err)
		}
		if p.from() != f.nat {
			return fmt.Errorf("with options it comes from %v, want %v", p.from(), f.nat)
		}
		if err := testutil.CheckSums(p.frame); err != nil {
			return err
		}
	}
	lsrr := f.outFrame("", nil, nops)
	via := b.Router.Addr.As4()
	copy(lsrr[etherLen+20:], append([]byte{131, 7, 4}, append(via[:], 1)...))
	fixIPSum(lsrr)
	if err := b.blocked(f.c, lsrr, f.at, nil); err != nil {
		return fmt.Errorf("a source-routed packet %w", err)
	}
	return nil
}

// checkTOS sends every value of the TOS byte both ways.
func checkTOS(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	for _, tos := range []uint8{0, 1, 2, 3, 0x28, 0xb8, 0xbb, 0xff} {
		set := func(fr *testutil.Frame) { fr.TOS = tos }
		out, err := f.out("", nil, set)
		if err != nil {
			return err
		}
		in, err := f.in("", nil, set)
		if err != nil {
			return err
		}
		if out.tos != tos || in.tos != tos {
			return fmt.Errorf("%#x becomes %#x on the way out, %#x on the way in", tos, out.tos, in.tos)
		}
	}
	return nil
}

// checkTooBig reduces the uplink's MTU to 1280 bytes.
func checkTooBig(b *bed) error {
	b.setMTU(1280)
	defer b.setMTU(1500)
	f, err := b.open(b.c1, "icmp")
	if err != nil {
		return err
	}
	big := f.outFrame("", append(b.tag(), make([]byte, 1356)...), func(fr *testutil.Frame) { fr.DF = true })
	p, err := b.cross(f.c, big, f.c, aboutFlow(f))
	if err != nil {
		return fmt.Errorf("with DF: no error: %w", err)
	}
	if typ, code, _, _ := icmpError(p); typ != 3 || code != 4 || p.word(6) != 1280 || p.src != b.routerOf(f.c) {
		return fmt.Errorf("with DF: type %d code %d MTU %d from %v", typ, code, p.word(6), p.src)
	}
	ctx, cancel := b.within(20 * time.Second)
	defer cancel()
	if err := lab.Bulk(ctx, b.c1, b.sv, b.a, 4<<20, false); err != nil {
		return fmt.Errorf("TCP upload: %w", err)
	}
	return b.datagram(b.c1, b.sv, b.a, 1400)
}

func (b *bed) setMTU(mtu int) {
	b.t.Helper()
	_, err := b.Host.Run(b.Ctx, "ip", "link", "set", "eth0", "mtu", strconv.Itoa(mtu))
	b.ok(err)
}

// datagram sends a datagram without DF that is larger than the path's MTU. It must
// arrive.
func (b *bed) datagram(c, at *lab.Namespace, to netip.Addr, size int) error {
	b.t.Helper()
	s := udpSocket(b, at, on(to, 0))
	u := udpSocket(b, c, on(netip.IPv4Unspecified(), 0))
	b.ok(allowFragments(u))
	want := string(append(b.tag(), make([]byte, size)...))
	_, err := u.WriteToUDPAddrPort([]byte(want), s.LocalAddr().(*net.UDPAddr).AddrPort())
	b.ok(err)
	if got, _ := b.receive(s, scorePatience); got != want {
		return fmt.Errorf("a datagram of %d bytes without DF does not arrive", size)
	}
	return nil
}

// receive returns the next datagram and its source, or "" if none comes within d.
func (b *bed) receive(s *net.UDPConn, d time.Duration) (string, netip.AddrPort) {
	b.t.Helper()
	b.ok(s.SetReadDeadline(time.Now().Add(d)))
	buf := make([]byte, 1<<16)
	n, from, err := s.ReadFromUDPAddrPort(buf)
	if err != nil {
		return "", from
	}
	return string(buf[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// checkFragments sends datagrams in three fragments, in several orders and in both
// directions, and large pings.
func checkFragments(b *bed) error {
	s := udpSocket(b, b.sv, on(b.a, b.rawPort()))
	u := udpSocket(b, b.c1, on(netip.IPv4Unspecified(), 40123))
	server := s.LocalAddr().(*net.UDPAddr).AddrPort()
	first := b.tag()
	_, err := u.WriteToUDPAddrPort(first, server)
	b.ok(err)
	got, nat := b.receive(s, scorePatience)
	if got != string(first) {
		return errors.New("not even a whole datagram arrives")
	}
	out := testutil.Frame{Dst: b.a, UDP: &testutil.UDP{SrcPort: 40123, DstPort: server.Port()}}
	in := testutil.Frame{Src: b.a, Dst: nat.Addr(), UDP: &testutil.UDP{SrcPort: server.Port(), DstPort: nat.Port()}}
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {0, 0, 1, 1, 2}} {
		if err := b.fragmented(b.c1, out, order, s, nat); err != nil {
			return fmt.Errorf("outbound, order %v: %w", order, err)
		}
		if err := b.fragmented(b.sv, in, order, u, server); err != nil {
			return fmt.Errorf("inbound, order %v: %w", order, err)
		}
	}
	for _, n := range []*lab.Namespace{b.c1, b.sv} {
		to := map[*lab.Namespace]netip.Addr{b.c1: b.a, b.sv: b.HostAddr(0)}[n]
		r, err := n.Ping(b.Ctx, to, lab.PingOptions{Count: 3, Size: 3000, Wait: scorePatience})
		b.ok(err)
		if r.Received != r.Sent {
			return fmt.Errorf("%d of %d pings of 3000 bytes from %s", r.Received, r.Sent, role(b, n))
		}
	}
	return b.fragmentFlood()
}

// fragmented sends a datagram of 4000 bytes in three pieces, in the given order.
func (b *bed) fragmented(from *lab.Namespace, f testutil.Frame, order []int, at *net.UDPConn, want netip.AddrPort) error {
	b.t.Helper()
	f.Payload = append(b.tag(), make([]byte, 3984)...)
	b.send(from, pick(b.pieces(from, f), order)...)
	for {
		got, src := b.receive(at, scorePatience)
		switch {
		case got == "":
			return errors.New("the datagram does not arrive")
		case got != string(f.Payload): // an earlier one's duplicate
		case src != want:
			return fmt.Errorf("the datagram comes from %v, want %v", src, want)
		default:
			return nil
		}
	}
}

func pick(frames [][]byte, order []int) (out [][]byte) {
	for _, i := range order {
		out = append(out, frames[i])
	}
	return out
}

// pieces cuts a packet into three fragments. If f.ID is 0, they get an id that nobody
// else uses.
func (b *bed) pieces(from *lab.Namespace, f testutil.Frame) (out [][]byte) {
	b.t.Helper()
	if f.ID == 0 {
		b.shared.tag++
		f.ID = uint32(b.shared.tag)&0xffff | 0x8000
	}
	whole, _ := parsePacket(b.frame(from, f))
	const size = 1400 // a multiple of 8
	for off := 0; off < len(whole.l4); off += size {
		end := min(off+size, len(whole.l4))
		out = append(out, b.frame(from, testutil.Frame{
			Src: f.Src, Dst: f.Dst, ID: f.ID, Proto: protoUDP, MF: end < len(whole.l4), FragOff: uint16(off / 8), Payload: whole.l4[off:end],
		}))
	}
	return out
}

// fragmentFlood sends fragments that never make a whole datagram. A normal flow must go
// on.
func (b *bed) fragmentFlood() error {
	b.t.Helper()
	f, err := b.live(b.c2, "udp")
	if err != nil {
		return err
	}
	for from, fr := range map[*lab.Namespace]testutil.Frame{b.c1: {Dst: b.a}, b.sv: {Src: b.a, Dst: b.HostAddr(0)}} {
		fr.Proto, fr.FragOff, fr.Payload = protoUDP, 100, b.tag()
		for i := range 5000 {
			fr.ID = uint32(i + 1)
			b.send(from, b.frame(from, fr))
		}
	}
	if err := f.exchangeTags(); err != nil {
		return fmt.Errorf("during a flood of fragments: %w", err)
	}
	return nil
}

// checkFragmentIDs lets two containers use one IP id to one server at the same time.
func checkFragmentIDs(b *bed) error {
	s := udpSocket(b, b.sv, on(b.a, b.rawPort()))
	to := s.LocalAddr().(*net.UDPAddr).AddrPort()
	want := map[string]bool{}
	var frames [2][][]byte
	cs := [2]*lab.Namespace{b.c1, b.c2}
	for i, c := range cs {
		f := testutil.Frame{Dst: b.a, ID: 4711, UDP: &testutil.UDP{SrcPort: b.rawPort(), DstPort: to.Port()}, Payload: append(b.tag(), make([]byte, 3984)...)}
		frames[i] = b.pieces(c, f)
		want[string(f.Payload)] = true
	}
	for k := range frames[0] {
		for i, c := range cs {
			b.send(c, frames[i][k])
		}
	}
	for range 2 {
		got, _ := b.receive(s, scorePatience)
		if !want[got] {
			return fmt.Errorf("%d of 2 datagrams with one IP id arrive", 2-len(want))
		}
		delete(want, got)
	}
	return nil
}

// allowFragments lets a socket send datagrams that are larger than the path's MTU.
func allowFragments(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	})
	return errors.Join(err, serr)
}
