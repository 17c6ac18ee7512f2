package rfc

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// Checks of mappings: which external port they have, for how long, and who may use it.
// A check returns nil if the requirement is met, else an error that says why not.

// checkEIM sends from one port of c1 to four destinations. Meanwhile c2 uses the same
// port to the same destinations, and 200 other flows are open.
func checkEIM(proto string) func(*bed) error {
	return func(b *bed) error {
		far := on(b.Far.Addr, 7001)
		to := []netip.AddrPort{on(b.mute, 7001), on(b.mute, 7002), on(b.mute2, 7001), far}
		if proto == "icmp" {
			to = []netip.AddrPort{on(b.mute, 0), on(b.a, 0), on(b.b, 0), on(b.Far.Addr, 0)}
		}
		for range 200 {
			f := b.frameOnly(b.c1, proto, b.rawPort(), to[0])
			b.send(b.c1, f)
		}
		sport := b.rawPort()
		seen := map[*lab.Namespace]map[netip.AddrPort]bool{b.c1: {}, b.c2: {}}
		for i, c := range []*lab.Namespace{b.c1, b.c2, b.c1, b.c2, b.c1, b.c2, b.c1, b.c2} {
			// First each container uses its own destination, then the other's.
			f, err := b.openTo(c, proto, sport, to[[]int{0, 1, 1, 0, 2, 2, 3, 3}[i]])
			if err != nil {
				return err
			}
			seen[c][f.nat] = true
		}
		for c, ext := range seen {
			if len(ext) != 1 {
				return fmt.Errorf("one source port of %s has %d external ports", role(b, c), len(ext))
			}
		}
		return nil
	}
}

// frameOnly builds the first frame of a flow without sending it.
func (b *bed) frameOnly(c *lab.Namespace, proto string, sport uint16, dst netip.AddrPort) []byte {
	f := &flow{b: b, c: c, proto: proto, sport: sport, dst: dst, at: b.sv, cseq: uint32(sport) << 8}
	return f.outFrame("S", nil)
}

func checkPooling(b *bed) error {
	addrs := map[netip.Addr]bool{}
	for range 100 {
		f, err := b.open(b.c1, "udp")
		if err != nil {
			return err
		}
		addrs[f.nat.Addr()] = true
	}
	if len(addrs) != 1 {
		return fmt.Errorf("100 flows have %d external addresses", len(addrs))
	}
	return nil
}

func checkPortClass(b *bed) error {
	for _, sport := range []uint16{500, 40000} {
		f, err := b.openTo(b.c1, "udp", sport, on(b.mute, b.rawPort()))
		if err != nil {
			return err
		}
		if (f.nat.Port() < 1024) != (sport < 1024) {
			return fmt.Errorf("port %d is mapped to the other class", sport)
		}
	}
	return nil
}

// externalPorts opens n flows of c2 and returns their source and external ports. c1
// uses the same source ports to the same remote, so no port can be kept.
func (b *bed) externalPorts(n int) (src, ext []uint16, err error) {
	dst := on(b.mute, b.rawPort())
	for range n {
		sport := b.rawPort()
		if _, err := b.openTo(b.c1, "udp", sport, dst); err != nil {
			return nil, nil, err
		}
		f, err := b.openTo(b.c2, "udp", sport, dst)
		if err != nil {
			return nil, nil, err
		}
		src, ext = append(src, sport), append(ext, f.nat.Port())
	}
	return src, ext, nil
}

func checkParity(b *bed) error {
	src, ext, err := b.externalPorts(40)
	if err != nil {
		return err
	}
	for i := range src {
		if src[i]%2 != ext[i]%2 {
			return errors.New("odd ports are mapped to even ones")
		}
	}
	return nil
}

func checkParityOff(b *bed) error {
	if checkParity(b) == nil {
		return errors.New("parity is kept")
	}
	return nil
}

// checkRandomPorts looks for an order in the external ports of 60 flows.
func checkRandomPorts(b *bed) error {
	_, ext, err := b.externalPorts(60)
	if err != nil {
		return err
	}
	steps := map[int]int{}
	rising := 0
	for i := 1; i < len(ext); i++ {
		d := int(ext[i]) - int(ext[i-1])
		steps[d]++
		if d > 0 {
			rising++
		}
	}
	for d, n := range steps {
		if n > 6 { // a tenth; by chance 0.003 of the 59 are equal
			return fmt.Errorf("the next port is %+d in %d of %d cases", d, n, len(ext)-1)
		}
	}
	if rising < 12 || rising > 47 { // four and a half standard deviations
		return fmt.Errorf("%d of %d ports are above the one before", rising, len(ext)-1)
	}
	return nil
}

func checkUDPLifetime(b *bed) error {
	f, err := b.open(b.c1, "udp")
	if err != nil {
		return err
	}
	if err := f.lives(2*time.Minute, func() error { _, err := f.out("", nil); return err }); err != nil {
		return fmt.Errorf("without a reply %w", err)
	}
	if err := f.lives(5*time.Minute, f.exchangeTags); err != nil {
		return fmt.Errorf("after a reply %w", err)
	}
	return nil
}

// checkRefresh lets mappings age and checks whether a packet refreshes them.
func checkRefresh(b *bed) error {
	out, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	in, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	if err := b.age(out, in); err != nil {
		return err
	}
	for f, send := range map[*flow]func(string, []byte, ...func(*testutil.Frame)) (packet, error){out: out.out, in: in.in} {
		if _, err := send("", nil); err != nil {
			return err
		}
		if left, _ := f.expiry(); left <= f.left {
			return fmt.Errorf("a packet does not refresh the mapping (outbound: %v)", f == out)
		}
	}
	return nil
}

// age lets mappings age, by more than it takes to read their age on this machine. Then
// it notes the time that they have left.
func (b *bed) age(flows ...*flow) error {
	b.t.Helper()
	start := time.Now()
	flows[0].expiry()
	time.Sleep(2100*time.Millisecond + 2*time.Duration(len(flows))*time.Since(start))
	for _, f := range flows {
		var ok bool
		if f.left, ok = f.expiry(); !ok {
			return errors.New("there is no mapping")
		}
	}
	return nil
}

// notRefreshed returns an error if the flow has more time left than age has noted.
func (f *flow) notRefreshed() error {
	f.b.t.Helper()
	left, ok := f.expiry()
	switch {
	case !ok:
		return errors.New("the mapping is gone")
	case left > f.left:
		return errors.New("the mapping is refreshed")
	}
	return nil
}

// reachesBy says which outsiders reach a mapping that has contacted the silent address:
// other ports of that address, and other addresses or hosts.
func (b *bed) reachesBy(c *lab.Namespace, proto string) (sameAddr, others bool, err error) {
	b.t.Helper()
	f, err := b.open(c, proto)
	if err != nil {
		return false, false, err
	}
	if proto == "udp" {
		err = f.establish()
	} else { // the SYN is answered; the next one may come from anybody
		_, err = f.in("SA", nil)
	}
	if err != nil {
		return false, false, err
	}
	try := func(src netip.AddrPort, at *lab.Namespace) error {
		g := *f
		g.dst, g.at, g.sseq = src, at, f.sseq+5000
		_, err := b.crossIn(scoreQuiet, g.at, g.inFrame("S", nil), c, nil)
		return err
	}
	got := 0
	for range 3 {
		if try(on(f.dst.Addr(), b.rawPort()), b.sv) == nil {
			got++
		}
	}
	sameAddr = got == 3
	if got != 0 && got != 3 {
		return false, false, fmt.Errorf("the same question was answered differently: %d of 3 came in", got)
	}
	reached := 0
	strangers := []error{try(on(b.b, f.dst.Port()), b.sv), try(on(b.Far.Addr, f.dst.Port()), b.Far), try(on(b.b, b.rawPort()), b.sv)}
	for _, err := range strangers {
		if err == nil {
			reached++
		}
	}
	if reached != 0 && reached != len(strangers) {
		return false, false, fmt.Errorf("%d of %d strangers came in", reached, len(strangers))
	}
	if _, err := f.in("A", b.tag()); err != nil {
		return false, false, fmt.Errorf("the contacted remote: %w", err)
	}
	return sameAddr, reached > 0, nil
}

func checkDefaultFilter(proto string) func(*bed) error {
	return func(b *bed) error {
		same, others, err := b.reachesBy(b.c1, proto)
		if err == nil && !same && !others {
			err = errors.New("only the contacted address and port may answer")
		}
		return err
	}
}

// checkFilterChoice checks the networks with the other two filters.
func checkFilterChoice(proto string) func(*bed) error {
	return func(b *bed) error {
		if b.plain() {
			return errors.New("masquerade has one filter only")
		}
		for i, want := range []struct{ same, others bool }{{true, false}, {true, true}} {
			same, others, err := b.reachesBy(b.filters[i], proto)
			if err != nil {
				return err
			}
			if same != want.same || others != want.others {
				return fmt.Errorf("%s: other ports of the remote %v, strangers %v", []string{"adf", "eif"}[i], same, others)
			}
		}
		return nil
	}
}

// checkEDM checks the network with endpoint-dependent mapping.
func checkEDM(b *bed) error {
	c := b.c1
	if !b.plain() {
		c = b.edm
	}
	sport := b.rawPort()
	f, err := b.openTo(c, "udp", sport, on(b.mute, 7001))
	if err != nil {
		return err
	}
	g, err := b.openTo(c, "udp", sport, on(b.mute, 7002))
	if err != nil {
		return err
	}
	if !b.plain() && f.nat == g.nat {
		return errors.New("endpoint-dependent mapping gives one port for two destinations")
	}
	return errors.Join(f.exchangeTags(), g.exchangeTags())
}

// checkPerProtocol opens one port for UDP only.
func checkPerProtocol(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	g := *f
	g.proto, g.sseq = "tcp", 4242
	if err := b.blocked(g.at, g.inFrame("S", nil), b.c1, nil); err != nil {
		return fmt.Errorf("a SYN to a UDP mapping %w", err)
	}
	h, err := b.openTo(b.c1, "tcp", f.sport, f.dst)
	if err != nil {
		return err
	}
	return errors.Join(h.establish(), f.exchangeTags())
}

// checkHairpin lets two containers meet at their external addresses. Each has contacted
// the other, as in hole punching.
func checkHairpin(proto string) func(*bed) error {
	return func(b *bed) error {
		f, g, err := b.hairpinPair(proto)
		if err != nil {
			return err
		}
		for range 2 {
			for _, way := range [][2]*flow{{g, f}, {f, g}} {
				from, to := way[0], way[1]
				p, err := b.cross(from.c, from.outFrame("S", nil), to.c, nil)
				if err != nil {
					return err
				}
				if p.from() != from.nat || p.dst != to.c.Addr || p.dport() != to.sport {
					return fmt.Errorf("came as %v, want from %v to %v:%d", p, from.nat, to.c.Addr, to.sport)
				}
				if err := testutil.CheckSums(p.frame); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// hairpinPair opens a flow of each container to the other's external address. Each has
// sent its first packet.
func (b *bed) hairpinPair(proto string) (f, g *flow, err error) {
	b.t.Helper()
	if f, err = b.open(b.c1, proto); err != nil {
		return nil, nil, err
	}
	if g, err = b.open(b.c2, proto); err != nil {
		return nil, nil, err
	}
	f.dst, g.dst = g.nat, f.nat
	f.cseq, g.cseq = f.cseq+1000, g.cseq+1000
	b.send(b.c1, f.outFrame("S", nil))
	b.send(b.c2, g.outFrame("S", nil))
	time.Sleep(scoreQuiet / 3)
	return f, g, nil
}

// checkHairpinError answers a hairpinned packet with port-unreachable.
func checkHairpinError(b *bed) error {
	f, g, err := b.hairpinPair("udp")
	if err != nil {
		return err
	}
	p, err := b.cross(g.c, g.outFrame("", nil), f.c, nil)
	if err != nil {
		return err
	}
	e := b.frame(f.c, testutil.Frame{Dst: g.nat.Addr(), ICMP: &testutil.ICMPError{Type: 3, Code: 3, Inner: p.ip}})
	got, err := b.cross(f.c, e, g.c, func(p packet) bool {
		_, _, in, ok := icmpError(p)
		return ok && in.src == g.c.Addr && in.sport() == g.sport
	})
	if err != nil {
		return err
	}
	_, _, in, _ := icmpError(got)
	if in.dst != f.nat.Addr() || in.dport() != f.nat.Port() {
		return fmt.Errorf("the error quotes %v", in)
	}
	return errors.Join(testutil.CheckSums(got.frame), quoteSound(in))
}

// checkHairpinQuery pings a container's echo id at the external address.
func checkHairpinQuery(b *bed) error {
	f, g, err := b.hairpinPair("icmp")
	if err != nil {
		return err
	}
	q := b.frame(g.c, testutil.Frame{Dst: f.nat.Addr(), Echo: &testutil.Echo{ID: f.nat.Port(), Seq: 7}, Payload: b.tag()})
	want, _ := parsePacket(q)
	p, err := b.cross(g.c, q, f.c, func(p packet) bool {
		return p.proto == protoICMP && len(p.l4) >= 8 && p.l4[0] == 8 && string(p.l4[8:]) == string(want.l4[8:])
	})
	if err != nil {
		return err
	}
	if p.src != g.nat.Addr() || p.dst != f.c.Addr || p.sport() != f.sport {
		return fmt.Errorf("came as %v", p)
	}
	return testutil.CheckSums(p.frame)
}

// checkBodies sends payloads that an application-level gateway would rewrite.
func checkBodies(b *bed) error {
	addr := b.c1.Addr.String()
	comma := strings.ReplaceAll(addr, ".", ",")
	udp := map[uint16]string{
		5060: "INVITE sip:b@192.0.2.11 SIP/2.0\r\nContact: <sip:a@" + addr + ":5060>\r\nContent-Type: application/sdp\r\n\r\nc=IN IP4 " + addr + "\r\nm=audio 49170 RTP/AVP 0\r\n",
		69:   "\x00\x01file\x00octet\x00",
	}
	tcp := map[uint16]string{21: "PORT " + comma + ",19,136\r\n", 5060: udp[5060], 6667: "PRIVMSG x :\x01DCC SEND f 2886598658 5000\x01\r\n"}
	ctx, cancel := b.within(10 * time.Second)
	defer cancel()
	for p, body := range udp {
		s := b.ServeUDP(b.t, b.sv, on(b.a, p))
		err := b.c1.EchoUDP(ctx, netip.AddrPort{}, s.Addr, body)
		s.Close()
		if err != nil {
			return fmt.Errorf("UDP port %d: %w", p, err)
		}
	}
	for p, body := range tcp {
		s := b.ServeTCP(b.t, b.sv, on(b.a, p))
		err := b.c1.EchoTCP(ctx, netip.AddrPort{}, s.Addr, body)
		s.Close()
		if err != nil {
			return fmt.Errorf("TCP port %d: %w", p, err)
		}
	}
	return nil
}

// checkUDPZero sends UDP without a checksum both ways, by the kernel's path and the
// fast path.
func checkUDPZero(b *bed) error {
	f, err := b.open(b.c1, "udp")
	if err != nil {
		return err
	}
	zero := func(fr *testutil.Frame) { fr.UncheckedUDP = true }
	for range 4 {
		out, err := f.out("", nil, zero)
		if err != nil {
			return err
		}
		in, err := f.in("", nil, zero)
		if err != nil {
			return err
		}
		if out.word(6) != 0 || in.word(6) != 0 {
			return fmt.Errorf("a checksum appeared: out %#x, in %#x", out.word(6), in.word(6))
		}
	}
	return nil
}

// checkNewAddress changes the uplink's address while flows are open: to another of its
// subnet, to one of another subnet, and back.
func checkNewAddress(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	if b.column == "default" {
		b.Must(b.t, "up", "--lease", "1")
	}
	beyond := netip.MustParsePrefix("203.0.113.78/24") // of the gateway in the other subnet
	b.ok(b.sv.AddAddr("eth0", beyond))
	defer func() { b.ok(b.sv.DelAddr("eth0", beyond)) }()
	now := netip.PrefixFrom(b.HostAddr(0), 24)
	for _, step := range []struct {
		fresh netip.Prefix
		via   netip.Addr
	}{
		{netip.MustParsePrefix("198.51.100.7/24"), b.OutsideAddr(0)},
		{netip.MustParsePrefix("203.0.113.77/24"), beyond.Addr()},
		{now, b.OutsideAddr(0)},
	} {
		b.Readdress(b.t, now, step.fresh, step.via)
		now = step.fresh
		if err := b.follows(f, now.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// follows checks that a new flow has the uplink's new address at once, and that an old
// one, f, has it soon.
func (b *bed) follows(f *flow, fresh netip.Addr) error {
	b.t.Helper()
	g, err := b.open(b.c1, "udp")
	if err != nil {
		return fmt.Errorf("a new flow %w", err)
	}
	if g.nat.Addr() != fresh {
		return fmt.Errorf("a new flow leaves with %v", g.nat.Addr())
	}
	ctx, cancel := b.within(30 * time.Second)
	defer cancel()
	var last packet
	err = lab.Poll(ctx, func() (bool, error) {
		p, err := f.out("", nil)
		last = p
		return err == nil && p.src == fresh, nil
	})
	if err != nil {
		return fmt.Errorf("the old flow still leaves as %v", last)
	}
	f.nat = last.from()
	_, err = f.in("", nil)
	return err
}

func udpSocket(b *bed, n *lab.Namespace, at netip.AddrPort) *net.UDPConn {
	b.t.Helper()
	c, err := n.ListenUDP(at)
	b.ok(err)
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}
