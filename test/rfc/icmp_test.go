package rfc

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// errorKind is an ICMP error that a NAT must translate.
type errorKind struct{ typ, code byte }

func errorKinds() []errorKind {
	return []errorKind{{3, 0}, {3, 1}, {3, 2}, {3, 3}, {3, 4}, {3, 10}, {3, 13}, {4, 0}, {11, 0}, {11, 1}, {12, 0}}
}

func protos() []string { return []string{"udp", "tcp", "icmp"} }

// about builds the router's error about a packet, which is quoted as it left the host.
func (b *bed) about(k errorKind, quoted []byte) []byte {
	b.t.Helper()
	e := &testutil.ICMPError{Type: k.typ, Code: k.code, Inner: quoted}
	if k == (errorKind{3, 4}) {
		e.MTU = lab.FarMTU
	}
	return b.frame(b.Router, testutil.Frame{Dst: b.HostAddr(0), ICMP: e})
}

// aboutFlow recognises an error that quotes a packet of the flow as the container has
// sent it.
func aboutFlow(f *flow) func(packet) bool {
	return func(p packet) bool {
		_, _, in, ok := icmpError(p)
		return ok && p.dst == f.c.Addr && in.src == f.c.Addr && in.sport() == f.sport && in.dst == f.dst.Addr()
	}
}

// checkErrorIn sends each kind of error about flows of each protocol from the router.
func checkErrorIn(b *bed) error {
	for _, proto := range protos() {
		f, err := b.live(b.c1, proto)
		if err != nil {
			return err
		}
		sent, err := f.out("PA", b.tag())
		if err != nil {
			return err
		}
		for _, k := range errorKinds() {
			for _, cut := range []int{len(sent.ip), 28} {
				got, err := b.cross(b.Router, b.about(k, sent.ip[:cut]), f.c, aboutFlow(f))
				if err == nil {
					err = sameError(got, k, b.Router.Addr)
				}
				if err != nil {
					return fmt.Errorf("%s, type %d code %d, %d bytes quoted: %w", proto, k.typ, k.code, cut, err)
				}
			}
		}
	}
	return b.blocked(b.Router, b.about(errorKind{3, 1}, b.strange()), b.c1, func(p packet) bool { return p.src == b.Router.Addr })
}

// strange is a packet that nobody has sent. Its source is the host's address and a port
// of the range.
func (b *bed) strange() []byte {
	b.t.Helper()
	return testutil.Frame{Src: b.HostAddr(0), Dst: b.mute, UDP: &testutil.UDP{SrcPort: 29998, DstPort: 1}, Payload: b.tag()}.IP(b.t)
}

// sameError returns an error unless p is of the kind, from the sender, and has right
// checksums.
func sameError(p packet, k errorKind, src netip.Addr) error {
	typ, code, in, _ := icmpError(p)
	if typ != k.typ || code != k.code {
		return fmt.Errorf("it arrives as type %d code %d", typ, code)
	}
	if k == (errorKind{3, 4}) && p.word(6) != lab.FarMTU {
		return fmt.Errorf("the MTU it tells is %d", p.word(6))
	}
	if p.src != src {
		return fmt.Errorf("its source is %v, want %v", p.src, src)
	}
	return errors.Join(testutil.CheckSums(p.frame), quoteSound(in))
}

// errorFromInside sends the container's error about a packet that it received.
func (b *bed) errorFromInside(f *flow, typ, code byte, quoted []byte) (packet, error) {
	b.t.Helper()
	e := b.frame(f.c, testutil.Frame{Dst: f.dst.Addr(), ICMP: &testutil.ICMPError{Type: typ, Code: code, Inner: quoted}})
	return b.cross(f.c, e, f.at, func(p packet) bool {
		t, c, in, ok := icmpError(p)
		return ok && t == typ && c == code && in.src == f.dst.Addr()
	})
}

// checkErrorOut sends each kind of error about flows of each protocol from inside.
func checkErrorOut(b *bed) error {
	for _, proto := range protos() {
		f, err := b.live(b.c1, proto)
		if err != nil {
			return err
		}
		got, err := f.in("PA", b.tag())
		if err != nil {
			return err
		}
		for _, k := range errorKinds() {
			p, err := b.errorFromInside(f, k.typ, k.code, got.ip)
			if err != nil {
				return fmt.Errorf("%s, type %d code %d: %w", proto, k.typ, k.code, err)
			}
			_, _, in, _ := icmpError(p)
			if p.src != b.HostAddr(0) || in.dst != f.nat.Addr() || in.dport() != f.nat.Port() {
				return fmt.Errorf("%s, type %d code %d: %v quotes %v, want destination %v", proto, k.typ, k.code, p.src, in, f.nat)
			}
			if err := errors.Join(testutil.CheckSums(p.frame), quoteSound(in)); err != nil {
				return fmt.Errorf("%s, type %d code %d: %w", proto, k.typ, k.code, err)
			}
		}
	}
	return nil
}

// attackWithErrors sends each kind of ICMP error about the flow, and redirects, from
// outsiders. The flow must go on with the same mapping.
func (f *flow) attackWithErrors() error {
	b := f.b
	b.t.Helper()
	sent, err := f.out("PA", b.tag())
	if err != nil {
		return err
	}
	for _, k := range append(errorKinds(), errorKind{5, 1}) {
		b.send(b.Router, b.about(k, sent.ip))
	}
	if err := errors.Join(f.exchangeTags(), f.exchangeTags()); err != nil {
		return fmt.Errorf("after ICMP errors: %w", err)
	}
	return nil
}

func checkErrorsEndNothing(b *bed) error {
	for _, proto := range protos() {
		f, err := b.live(b.c1, proto)
		if err != nil {
			return err
		}
		if err := f.attackWithErrors(); err != nil {
			return fmt.Errorf("%s: %w", proto, err)
		}
	}
	return nil
}

// checkErrorsRefreshNothing sends errors in both directions about an ageing flow.
func checkErrorsRefreshNothing(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	sent, err := f.out("", nil)
	if err != nil {
		return err
	}
	got, err := f.in("", nil)
	if err != nil {
		return err
	}
	if err := b.age(f); err != nil {
		return err
	}
	for range 3 {
		if _, err := b.cross(b.Router, b.about(errorKind{3, 1}, sent.ip), f.c, aboutFlow(f)); err != nil {
			return err
		}
		if _, err := b.errorFromInside(f, 3, 3, got.ip); err != nil {
			return err
		}
	}
	return f.notRefreshed()
}

// checkQueries pings two servers from two containers with one id at the same time.
func checkQueries(b *bed) error {
	id := b.rawPort()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, c := range []*lab.Namespace{b.c1, b.c2} {
		for _, to := range []netip.Addr{b.a, b.b} {
			wg.Go(func() {
				r, err := c.Ping(b.Ctx, to, lab.PingOptions{Count: 5, ID: id, Wait: scorePatience})
				if err == nil && r.Received != r.Sent {
					err = fmt.Errorf("%s has %d of %d replies of %v", role(b, c), r.Received, r.Sent, to)
				}
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

func checkICMPLifetime(b *bed) error {
	f, err := b.open(b.c1, "icmp")
	if err != nil {
		return err
	}
	return f.lives(time.Minute, func() error { _, err := f.out("", nil); return err })
}

// checkBadErrors sends damaged errors about a live flow.
func checkBadErrors(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	sent, err := f.out("", nil)
	if err != nil {
		return err
	}
	const icmp = etherLen + 20
	k := errorKind{3, 1}
	whole := func() []byte { return b.about(k, bytes.Clone(sent.ip)) }
	for what, frame := range map[string][]byte{
		"a wrong ICMP checksum":        damaged(whole(), icmp+2, false),
		"a wrong inner header sum":     damaged(whole(), icmp+8+10, true),
		"a wrong sum and a short body": damaged(b.about(k, sent.ip[:28]), icmp+2, false),
	} {
		if err := b.blocked(b.Router, frame, f.c, aboutFlow(f)); err != nil {
			return fmt.Errorf("an error with %s %w", what, err)
		}
	}
	good := map[string][]byte{
		"a wrong inner UDP checksum": damaged(whole(), icmp+8+20+6, true),
		"eight bytes of inner L4":    b.about(k, sent.ip[:28]),
		"inner IP options":           b.about(k, withOptions(sent.ip)),
		"an extension (RFC 4884)":    b.about(k, append(bytes.Clone(sent.ip), make([]byte, 128)...)),
	}
	for what, frame := range good {
		p, err := b.cross(b.Router, frame, f.c, aboutFlow(f))
		if err == nil {
			err = testutil.CheckSums(p.frame)
		}
		if err != nil {
			return fmt.Errorf("an error with %s: %w", what, err)
		}
	}
	return nil
}

// damaged changes a byte of a frame. With mend it then corrects the ICMP checksum.
func damaged(frame []byte, off int, mend bool) []byte {
	frame[off] ^= 0x55
	if mend {
		fixICMPSum(frame)
	}
	return frame
}

// withOptions gives a packet the longest IPv4 header, filled with no-operation options.
func withOptions(ip []byte) []byte {
	out := append(bytes.Clone(ip[:20]), bytes.Repeat([]byte{1}, 40)...)
	out = append(out, ip[20:]...)
	out[0] = 0x4f
	out[2], out[3] = byte(len(out)>>8), byte(len(out))
	frame := append(make([]byte, etherLen), out...)
	fixIPSum(frame)
	return frame[etherLen:]
}

// checkTraceroute sends probes with a rising TTL through the host and the router. It
// repeats that when the flow is warm.
func checkTraceroute(b *bed) error {
	for _, proto := range protos() {
		f, err := b.openTo(b.c1, proto, b.rawPort(), on(b.Far.Addr, 33434))
		if err != nil {
			return err
		}
		if proto != "tcp" { // the far server answers a SYN by itself
			_, _ = f.out("", nil)
		}
		for hop, from := range []netip.Addr{b.routerOf(f.c), b.Router.Addr} {
			for range 2 {
				ttl := uint8(hop + 1)
				probe := f.outFrame("S", nil, func(fr *testutil.Frame) { fr.TTL = ttl })
				got, err := b.cross(f.c, probe, f.c, aboutFlow(f))
				if err == nil {
					err = sameError(got, errorKind{11, 0}, from)
				}
				if err != nil {
					return fmt.Errorf("%s, hop %d: %w", proto, ttl, err)
				}
			}
		}
		if err := b.lastHop(f); err != nil {
			return fmt.Errorf("%s, hop 3: %w", proto, err)
		}
	}
	return nil
}

// routerOf is a container's gateway.
func (b *bed) routerOf(c *lab.Namespace) netip.Addr {
	return netip.PrefixFrom(c.Addr, 16).Masked().Addr().Next()
}

// lastHop expects the far server's own answer to a probe with a TTL of 3.
func (b *bed) lastHop(f *flow) error {
	b.t.Helper()
	probe := f.outFrame("S", nil, func(fr *testutil.Frame) { fr.TTL = 3 })
	_, err := b.cross(f.c, probe, f.c, func(p packet) bool {
		switch f.proto {
		case "udp":
			return aboutFlow(f)(p) && p.l4[0] == 3 && p.l4[1] == 3 && p.src == b.Far.Addr
		case "tcp":
			return p.proto == protoTCP && p.src == b.Far.Addr && p.dport() == f.sport && p.l4[13]&4 != 0
		default:
			return p.proto == protoICMP && p.src == b.Far.Addr && p.l4[0] == 0 && p.sport() == f.sport
		}
	})
	return err
}

// checkPMTU uploads through the router's narrow link.
func checkPMTU(b *bed) error {
	ctx, cancel := b.within(30 * time.Second)
	defer cancel()
	return lab.Bulk(ctx, b.c1, b.Far, b.Far.Addr, 4<<20, false)
}

// checkHostPolicy: the host's firewall may keep errors from a container.
func checkHostPolicy(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	sent, err := f.out("", nil)
	if err != nil {
		return err
	}
	e := b.about(errorKind{3, 1}, sent.ip)
	if _, err := b.cross(b.Router, e, f.c, aboutFlow(f)); err != nil {
		return err
	}
	rule := []string{"FORWARD", "-d", f.c.Addr.String(), "-p", "icmp", "--icmp-type", "destination-unreachable", "-j", "DROP"}
	b.ok(b.Host.IPTables(b.Ctx, append([]string{"-I"}, rule...)...))
	err = b.blocked(b.Router, e, f.c, aboutFlow(f))
	b.ok(b.Host.IPTables(b.Ctx, append([]string{"-D"}, rule...)...))
	return err
}

// checkOtherICMP sends messages that no NAT can translate.
func checkOtherICMP(b *bed) error {
	var frames [][]byte
	for _, raw := range [][]byte{{13, 0}, {17, 0}, {40, 1}, {253, 0}} {
		body := append(append(raw, 0, 0, 0, 1, 0, 1), b.tag()...)
		f := b.frame(b.c1, testutil.Frame{Dst: b.mute, Proto: protoICMP, Payload: body})
		fixICMPSum(f)
		frames = append(frames, f)
	}
	return b.noneArrive(b.c1, frames, func(p packet) bool { return p.src == b.c1.Addr }, b.sv)
}
