package rfc

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// Checks of what happens when ports or sessions run out. They run in beds with a NAT
// range of 64 ports; masquerade has the same range. Each check begins with no flow.

const smallRange = smallLast - smallFirst + 1

// clear ends all flows.
func (b *bed) clear() {
	b.t.Helper()
	if b.plain() {
		_, err := b.Host.Run(b.Ctx, "conntrack", "-F")
		b.ok(err)
		return
	}
	b.Must(b.t, "flows", "flush")
}

// masqueradeInRange restricts masquerade on the kernel's bridge to the small range.
func (b *bed) masqueradeInRange() {
	b.t.Helper()
	b.ok(b.Host.NFT(b.Ctx, fmt.Sprintf(`
		table ip lab-br0 {
			chain small {
				type nat hook postrouting priority srcnat - 1; policy accept;
				ip saddr 172.30.0.0/16 oifname "eth0" meta l4proto { tcp, udp } masquerade to :%d-%d
			}
		}
		`, smallFirst, smallLast)))
}

// fill opens flows of the containers, in turn, to one destination. It ends when n flows
// are open, or when a flow is refused or shares an external port. It returns the flows
// before that one.
func (b *bed) fill(proto string, n int, dst netip.AddrPort, cs ...*lab.Namespace) (opened []*flow) {
	b.t.Helper()
	used := map[netip.AddrPort]bool{}
	for i := range n {
		f, err := b.openTo(cs[i%len(cs)], proto, b.rawPort(), dst)
		if err != nil || used[f.nat] {
			break // refused, or shared
		}
		used[f.nat] = true
		opened = append(opened, f)
	}
	return opened
}

// checkOverload checks whether two mappings ever share an external port: first with
// ports to spare, then with none.
func checkOverload(proto string) func(*bed) error {
	return func(b *bed) error {
		b.clear()
		sport := b.rawPort()
		f, err := b.openTo(b.c1, proto, sport, on(b.mute, 5001))
		if err != nil {
			return err
		}
		g, err := b.openTo(b.c2, proto, sport, on(b.mute2, 5001))
		if err != nil {
			return err
		}
		if f.nat == g.nat {
			return errors.New("two containers share a port although others are free")
		}
		b.fill(proto, smallRange, on(b.mute, 5001), b.Containers...)
		old := []*flow{f, g}
		owner := map[netip.AddrPort]*flow{f.nat: f, g.nat: g}
		for i := range 2 * smallRange {
			h, err := b.openQuick(b.Containers[i%len(b.Containers)], proto, b.rawPort(), on(b.mute2, 5002))
			if err != nil {
				break // refused
			}
			if owner[h.nat] != nil {
				return errors.New("with no port free, mappings share one")
			}
			owner[h.nat] = h
		}
		return errors.Join(old[0].exchangeTags(), old[1].exchangeTags())
	}
}

// openQuick is openTo for flows that are likely to be refused.
func (b *bed) openQuick(c *lab.Namespace, proto string, sport uint16, dst netip.AddrPort) (*flow, error) {
	b.t.Helper()
	f := &flow{b: b, c: c, proto: proto, sport: sport, dst: dst, at: b.sv, cseq: 1000000 * uint32(sport), sseq: 7000000}
	p, err := b.crossIn(scoreQuiet, c, f.outFrame("S", nil), f.at, nil)
	f.nat = p.from()
	return f, err
}

// checkSameClass checks whether an existing mapping and a new one are
// endpoint-independent: when idle; after a command was killed and another build has
// replaced the programs; with the fast path off; at 90 %; and when no port is left.
func checkSameClass(b *bed) error {
	b.clear()
	f, err := b.openTo(b.c1, "udp", b.rawPort(), on(b.mute, 5001))
	if err != nil {
		return err
	}
	same := func(when string, dst netip.AddrPort) error {
		g, err := b.openTo(f.c, "udp", f.sport, dst)
		if err != nil {
			return fmt.Errorf("%s: %w", when, err)
		}
		if g.nat != f.nat {
			return fmt.Errorf("%s: another destination, another port", when)
		}
		return nil
	}
	b.ok2(b.openTo(b.c2, "udp", f.sport, on(b.mute, 5002))) // another container with the same source port
	if err := same("idle", on(b.mute, 5002)); err != nil {
		return err
	}
	if !b.plain() {
		b.Upgrade(b.t)
		if err := same("after an upgrade", on(b.mute, 5005)); err != nil {
			return err
		}
		b.Must(b.t, "up", "--lease", "0")
		if err := same("with the fast path off", on(b.mute, 5006)); err != nil {
			return err
		}
		if b.column != "slow" {
			b.Must(b.t, "up", "--lease", "10")
		}
	}
	b.fill("udp", smallRange*9/10, on(b.mute, 5001), b.Containers...)
	if err := same("90 % full", on(b.mute, 5003)); err != nil {
		return err
	}
	b.pour(4*smallRange, on(b.mute, 5004), b.c2, b.Containers[2])
	if err := same("exhausted", on(b.mute, 5004)); err != nil {
		return err
	}
	return b.newMappingsEIM()
}

// pour sends the first packets of n flows and ignores what becomes of them.
func (b *bed) pour(n int, dst netip.AddrPort, cs ...*lab.Namespace) {
	b.t.Helper()
	for i := range n {
		c := cs[i%len(cs)]
		f := b.frameOnly(c, "udp", b.rawPort(), dst)
		b.send(c, f)
	}
	time.Sleep(scoreQuiet)
}

// newMappingsEIM opens mappings while no port is free. They must be refused, or be
// endpoint-independent as usual.
func (b *bed) newMappingsEIM() error {
	b.t.Helper()
	for range 4 {
		sport := b.rawPort()
		f, err := b.openQuick(b.c1, "udp", sport, on(b.mute, 5001))
		if err != nil {
			continue
		}
		g, err := b.openQuick(b.c1, "udp", sport, on(b.mute, 5002))
		if err == nil && f.nat != g.nat {
			return errors.New("with no port free, new mappings depend on the destination")
		}
	}
	return nil
}

func (b *bed) ok2(_ *flow, err error) { b.t.Helper(); b.ok(err) }

// checkRefusal lets one container ask for more than there is.
func checkRefusal(b *bed) error {
	b.clear()
	dst := on(b.mute, 5001)
	b.fill("udp", 2*smallRange, dst, b.c1)
	for range 3 { // the last of them is refused for certain
		g := &flow{b: b, c: b.c1, proto: "udp", sport: b.rawPort(), dst: dst, at: b.sv}
		p, err := b.crossIn(scoreQuiet, g.c, g.outFrame("", nil), g.c, aboutFlow(g))
		if err != nil {
			continue
		}
		if err := sameError(p, errorKind{3, 13}, b.routerOf(g.c)); err != nil {
			return err
		}
		return b.refusalsLimited(dst)
	}
	return errors.New("the sender is not told")
}

func (b *bed) refusalsLimited(dst netip.AddrPort) error {
	b.t.Helper()
	const n = 200
	w := b.tap(b.c1)
	defer w.close()
	for range n {
		g := &flow{b: b, c: b.c1, proto: "udp", sport: b.rawPort(), dst: dst, at: b.sv}
		b.send(b.c1, g.outFrame("", nil))
	}
	answers := 0
	for {
		_, ok := w.next(scoreQuiet, func(p packet) bool { _, code, _, ok := icmpError(p); return ok && code == 13 })
		if !ok {
			break
		}
		answers++
	}
	if answers > n/2 {
		return fmt.Errorf("%d of %d refusals are answered: there is no limit", answers, n)
	}
	return nil
}

// checkShare lets one container take all it can get. Another container must still get
// some.
func checkShare(b *bed) error {
	b.clear()
	dst := on(b.mute, 5001)
	got := len(b.fill("udp", 2*smallRange, dst, b.c1))
	if got >= smallRange {
		return fmt.Errorf("one container takes all %d ports", got)
	}
	if n := len(b.fill("udp", smallRange/10, dst, b.c2)); n < smallRange/10 {
		return fmt.Errorf("the other gets %d ports", n)
	}
	return nil
}

// checkStateShare opens sessions from one port to many destinations, up to the number
// of sessions (512 in the small bed).
func checkStateShare(b *bed) error {
	b.clear()
	sport := b.rawPort()
	const asked = 600
	for i := range asked {
		f := b.frameOnly(b.c1, "udp", sport, on(b.mute, uint16(10000+i)))
		b.send(b.c1, f)
	}
	for range 20 {
		if _, err := b.open(b.c2, "udp"); err != nil {
			return fmt.Errorf("the other container: %w", err)
		}
	}
	if n := b.sessions(b.c1); n >= asked {
		return fmt.Errorf("one container has all the %d sessions it asked for", n)
	}
	return nil
}

// sessions is the number of a container's sessions.
func (b *bed) sessions(c *lab.Namespace) (n int) {
	b.t.Helper()
	if b.plain() {
		out, err := b.Host.Run(b.Ctx, "conntrack", "-L", "-s", c.Addr.String())
		b.ok(err)
		return strings.Count(out, "\n")
	}
	for _, f := range b.Flows(b.t) {
		if strings.HasPrefix(f.Src, c.Addr.String()+":") {
			n++
		}
	}
	return n
}

// checkWholeRange opens flows to one destination until ports run out.
func checkWholeRange(b *bed) error {
	b.clear()
	flows := b.fill("udp", 2*smallRange, on(b.mute, 5001), b.Containers...)
	seen := map[uint16]bool{}
	for _, f := range flows {
		p := f.nat.Port()
		if p < smallFirst || p > smallLast {
			return fmt.Errorf("port %d is outside of the range", p)
		}
		seen[p] = true
	}
	if len(seen)*100 < smallRange*95 {
		return fmt.Errorf("%d of %d ports can be used towards one destination", len(seen), smallRange)
	}
	if !seen[smallFirst] || !seen[smallLast] {
		return errors.New("an end of the range is never used")
	}
	return nil
}

// checkHold frees a port and checks whether another container soon gets it.
func checkHold(b *bed) error {
	b.clear()
	dst := on(b.mute, 5001)
	f, err := b.openTo(b.c1, "udp", b.rawPort(), dst)
	if err != nil {
		return err
	}
	b.clear()
	for i := range smallRange / 2 {
		src := b.rawPort()
		if i == 0 { // it would keep that port if the port were free
			src = f.nat.Port()
		}
		g, err := b.openTo(b.c2, "udp", src, dst)
		if err != nil {
			return err
		}
		if g.nat == f.nat {
			return fmt.Errorf("another container has the port after %d others", i)
		}
	}
	return nil
}

// checkExhaustion fills the range and opens one more flow.
func checkExhaustion(b *bed) error {
	b.clear()
	f, err := b.openTo(b.c1, "udp", b.rawPort(), on(b.mute, 5001))
	if err != nil {
		return err
	}
	b.fill("udp", smallRange, on(b.mute, 5001), b.Containers...)
	refused := 0
	for i := range 12 {
		c := b.Containers[i%len(b.Containers)]
		if _, err := b.openQuick(c, "udp", b.rawPort(), on(b.mute2, 5001)); err != nil {
			refused++
		}
	}
	if refused == 0 {
		return errors.New("nothing is refused")
	}
	if err := f.exchangeTags(); err != nil {
		return fmt.Errorf("an old flow: %w", err)
	}
	if b.plain() {
		return errors.New("nobody is told")
	}
	text := b.Must(b.t, "metrics")
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "fastbr_nat_refused") && !strings.HasSuffix(strings.TrimSpace(line), " 0") {
			return nil
		}
	}
	return errors.New("no metric tells of refused flows")
}

// checkNoDestinations looks for a server's address in what is recorded about flows that
// were opened and refused.
func checkNoDestinations(b *bed) error {
	b.clear()
	b.fill("udp", 2*smallRange, on(b.mute, 5001), b.c1)
	if b.plain() {
		return nil // masquerade logs nothing by itself
	}
	for _, args := range [][]string{{"metrics"}, {"status", "-v"}, {"stats"}} {
		r := b.Fastbr(b.t, args...)
		if strings.Contains(r.Stdout+r.Stderr, b.mute.String()) {
			return fmt.Errorf("fastbr %s tells destinations", args[0])
		}
	}
	return nil
}

// checkMappingDies ends the last session of an echo id.
func checkMappingDies(b *bed) error {
	b.clear()
	id := b.rawPort()
	f, err := b.openTo(b.c1, "icmp", id, on(b.mute, 0))
	if err != nil {
		return err
	}
	b.clear()
	if p, err := b.crossIn(scoreQuiet, f.at, f.inFrame("", nil), f.c, nil); err == nil {
		b.t.Logf("arrived: %v", p)
		return errors.New("answers still come in")
	}
	_, err = b.openTo(b.c2, "icmp", id, on(b.mute, 0))
	return err
}

// checkUntranslated sends to one destination that must not be translated.
func checkUntranslated(b *bed) error {
	b.ok(b.sv.AddAddr("eth0", excepted))
	c := b.c1
	if b.plain() {
		for _, chain := range []string{"small", "post"} {
			b.ok(b.Host.NFT(b.Ctx, "insert rule ip lab-br0 "+chain+" ip daddr "+excepted.String()+" accept"))
		}
	} else {
		c = b.network("excepts", "--no-masquerade", excepted.String())
	}
	for to, want := range map[netip.Addr]netip.Addr{excepted.Addr(): c.Addr, b.b: b.HostAddr(0)} {
		f := b.frame(c, testutil.Frame{Dst: to, UDP: &testutil.UDP{SrcPort: b.rawPort(), DstPort: 1}, Payload: b.tag()})
		if p, err := b.cross(c, f, b.sv, nil); err != nil {
			return err
		} else if p.src != want {
			return fmt.Errorf("what is sent to %v comes from %v", to, p.src)
		}
	}
	return nil
}
