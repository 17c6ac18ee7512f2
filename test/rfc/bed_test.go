package rfc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

const (
	// scorePatience is how long a check waits for a packet that should arrive.
	scorePatience = 2 * time.Second
	// scoreQuiet is how long a check waits for a packet that must not arrive.
	scoreQuiet = 300 * time.Millisecond
	// rawFirst and rawLast are the source ports of frames that a check builds itself.
	// The containers' own kernels do not answer to them, see quiet.
	rawFirst, rawLast = 3000, 9999
	// smallFirst and smallLast are the NAT range of the small bed.
	smallFirst, smallLast = 20000, 20063
)

var on = netip.AddrPortFrom

// excepted is the destination to which a check has nothing translated.
var excepted = netip.MustParsePrefix("192.0.2.15/32")

// scoreMode is the configuration of a column of the scoreboard.
type scoreMode struct {
	name string
	harness.Mode
}

func scoreModes() map[string]scoreMode {
	return map[string]scoreMode{
		"default": {name: "default"},
		"slow":    {name: "slow", Mode: harness.Mode{Up: []string{"--lease", "0"}}},
		"strict":  {name: "strict", Mode: harness.Mode{Up: []string{"--nat-on-exhaustion", "refuse"}}},
		"kernel":  {name: "kernel", Mode: harness.Mode{Plain: true, Leaky: true}},
	}
}

// bed is a lab in which requirements are checked. Its containers are behind fastbr or
// behind a kernel bridge with masquerade. Outside are a server (with the addresses A
// and B and a silent address), a router with another server beyond it, and a neighbour
// of the host.
type bed struct {
	*harness.Rig
	t      *testing.T // of the running check
	column string
	c1, c2 *lab.Namespace
	sv     *lab.Namespace
	a, b   netip.Addr // of sv
	mute   netip.Addr // of sv; nothing answers there
	mute2  netip.Addr // another one
	// Containers in networks with address-dependent filtering, endpoint-independent
	// filtering, and endpoint-dependent mapping; nil where the bed has none.
	filters [2]*lab.Namespace
	edm     *lab.Namespace
	shared  *bedState
}

// bedState is what all checks of a bed share.
type bedState struct {
	port   uint16
	tag    uint64
	macs   map[*lab.Namespace][2]net.HardwareAddr // own, next hop's
	bridge map[*lab.Namespace]string              // by container
	inject map[*lab.Namespace]*lab.Injector
	taps   sync.WaitGroup // taps that are being closed, which takes the kernel a while
}

func newBed(t *testing.T, column string, containers int, upArgs ...string) *bed {
	t.Helper()
	m := scoreModes()[column]
	h := harness.Up(t, m.Mode, lab.Options{Containers: containers, Router: true, Excepted: []netip.Prefix{excepted}}, upArgs...)
	s := h.Servers()
	b := &bed{
		Rig: h, t: t, column: column, c1: h.Containers[0], c2: h.Containers[1],
		sv: h.Outside, a: s[0], b: s[1], mute: netip.MustParseAddr("192.0.2.13"), mute2: netip.MustParseAddr("192.0.2.14"),
		shared: &bedState{port: rawFirst, macs: map[*lab.Namespace][2]net.HardwareAddr{}, bridge: map[*lab.Namespace]string{}, inject: map[*lab.Namespace]*lab.Injector{}},
	}
	t.Cleanup(b.shared.close)
	for _, a := range []netip.Addr{b.mute, b.mute2} {
		b.ok(b.sv.AddAddr("eth0", netip.PrefixFrom(a, 32)))
	}
	b.ok(b.sv.NFT(h.Ctx, fmt.Sprintf("table ip quiet {\nchain in {\ntype filter hook input priority filter;\nip daddr { %v, %v } drop\n}\n}\n", b.mute, b.mute2)))
	for _, n := range []*lab.Namespace{h.Host, h.Router, h.Far, b.sv} { // several checks share the rate limit of one address
		b.ok(n.SetSysctl("net.ipv4.icmp_ratelimit", "0"))
	}
	for _, c := range h.Containers {
		b.quiet(c)
	}
	return b
}

func (s *bedState) close() {
	for _, i := range s.inject {
		i.Close()
	}
	s.taps.Wait()
}

// send sends frames on a namespace's eth0.
func (b *bed) send(from *lab.Namespace, frames ...[]byte) {
	b.t.Helper()
	i := b.shared.inject[from]
	if i == nil {
		var err error
		i, err = from.NewInjector("eth0")
		b.ok(err)
		b.shared.inject[from] = i
	}
	for _, f := range frames {
		b.ok(i.Send(f))
	}
}

// quiet keeps the container's own kernel from answering to raw ports.
func (b *bed) quiet(c *lab.Namespace) {
	b.t.Helper()
	b.ok(c.NFT(b.Ctx, fmt.Sprintf("table ip quiet {\nchain in {\ntype filter hook input priority filter;\ntcp dport %[1]d-%[2]d drop\nudp dport %[1]d-%[2]d drop\n}\n}\n", rawFirst, rawLast)))
}

// network makes another network with one container. On the kernel's bridge, which has
// no such networks, it makes only the container.
func (b *bed) network(name string, flags ...string) *lab.Namespace {
	b.t.Helper()
	c, err := b.Add(name)
	b.ok(err)
	bridge := "br-" + name
	b.Must(b.t, append([]string{"network", "create", name, "--bridge", bridge}, flags...)...)
	b.Attach(b.t, c, name, "--network", name)
	b.shared.bridge[c] = bridge
	b.quiet(c)
	return c
}

func (b *bed) plain() bool { return b.column == "kernel" }

// ok ends the check if the bed itself fails. Such a failure says nothing about the NAT.
func (b *bed) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.Ctx, d)
}

func (b *bed) rawPort() uint16 {
	b.shared.port++
	if b.shared.port > rawLast {
		b.t.Fatal("no raw port left")
	}
	return b.shared.port
}

// tag is a payload of 16 bytes that no other frame has.
func (b *bed) tag() []byte {
	b.shared.tag++
	return binary.BigEndian.AppendUint64([]byte("scored: "), b.shared.tag)
}

// hops are the MAC addresses of n's eth0 and of its next hop towards the host. Outside,
// the next hop is the host's eth0.
func (b *bed) hops(n *lab.Namespace) [2]net.HardwareAddr {
	b.t.Helper()
	if m, ok := b.shared.macs[n]; ok {
		return m
	}
	own, err := n.MAC("eth0")
	b.ok(err)
	dev := "eth0"
	if n == b.Far { // the router forwards
		next, err := b.Router.MAC("eth1")
		b.ok(err)
		b.shared.macs[n] = [2]net.HardwareAddr{own, next}
		return b.shared.macs[n]
	}
	if b.inside(n) {
		dev = b.shared.bridge[n]
		if dev == "" {
			dev = map[bool]string{true: "br0", false: "fastbr0"}[b.plain()]
		}
	}
	next, err := b.Host.MAC(dev)
	b.ok(err)
	b.shared.macs[n] = [2]net.HardwareAddr{own, next}
	return b.shared.macs[n]
}

func (b *bed) inside(n *lab.Namespace) bool {
	if _, ok := b.shared.bridge[n]; ok {
		return true
	}
	for _, c := range b.Containers {
		if c == n {
			return true
		}
	}
	return false
}

// frame fills in the MAC addresses of f and, for a container, the source address.
func (b *bed) frame(from *lab.Namespace, f testutil.Frame) []byte {
	b.t.Helper()
	m := b.hops(from)
	f.SrcMAC, f.DstMAC = m[0], m[1]
	if !f.Src.IsValid() {
		f.Src = from.Addr
	}
	return f.Bytes(b.t)
}

// tap records every packet of a namespace's eth0.
type tap struct {
	b     *bed
	sniff *lab.Sniffer
}

func (b *bed) tap(n *lab.Namespace) *tap {
	b.t.Helper()
	s, err := n.NewSniffer("eth0")
	b.ok(err)
	return &tap{b, s}
}

func (w *tap) close() { w.b.shared.taps.Go(w.sniff.Close) }

// next returns the next packet that match accepts, within d.
func (w *tap) next(d time.Duration, match func(packet) bool) (packet, bool) {
	w.b.t.Helper()
	ctx, cancel := context.WithTimeout(w.b.Ctx, d)
	defer cancel()
	f, err := w.sniff.Next(ctx, func(f []byte) bool {
		p, ok := parsePacket(f)
		return ok && match(p)
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return packet{}, false
	}
	w.b.ok(err)
	p, _ := parsePacket(f)
	return p, true
}

// cross sends a frame in one namespace and waits for it in another. If match is not
// nil, it waits for a packet that match accepts instead.
func (b *bed) cross(from *lab.Namespace, frame []byte, to *lab.Namespace, match func(packet) bool) (packet, error) {
	b.t.Helper()
	return b.crossIn(scorePatience, from, frame, to, match)
}

func (b *bed) crossIn(d time.Duration, from *lab.Namespace, frame []byte, to *lab.Namespace, match func(packet) bool) (packet, error) {
	b.t.Helper()
	if match == nil {
		match = sameBody(frame)
	}
	own := b.hops(from)[0]
	w := b.tap(to)
	defer w.close()
	b.send(from, frame)
	p, ok := w.next(d, func(p packet) bool {
		return match(p) && (from != to || string(p.frame[6:12]) != string(own))
	})
	if !ok {
		return p, fmt.Errorf("a packet does not reach %s", role(b, to))
	}
	return p, nil
}

// blocked returns an error if the frame, or a packet that match accepts, arrives.
func (b *bed) blocked(from *lab.Namespace, frame []byte, to *lab.Namespace, match func(packet) bool) error {
	b.t.Helper()
	if p, err := b.crossIn(scoreQuiet, from, frame, to, match); err == nil {
		b.t.Logf("arrived: %v", p)
		return fmt.Errorf("reaches %s", role(b, to))
	}
	return nil
}

// noneArrive sends frames. It returns an error if a packet that match accepts arrives
// in one of the namespaces.
func (b *bed) noneArrive(from *lab.Namespace, frames [][]byte, match func(packet) bool, at ...*lab.Namespace) error {
	b.t.Helper()
	var taps []*tap
	for _, n := range at {
		w := b.tap(n)
		defer w.close()
		taps = append(taps, w)
	}
	b.send(from, frames...)
	time.Sleep(scoreQuiet)
	for i, w := range taps {
		if p, ok := w.next(scoreQuiet/10, match); ok {
			b.t.Logf("arrived: %v", p)
			return fmt.Errorf("one reaches %s", role(b, at[i]))
		}
	}
	return nil
}

func role(b *bed, n *lab.Namespace) string {
	return map[*lab.Namespace]string{
		b.c1: "c1", b.c2: "c2", b.sv: "the server", b.Far: "the far server", b.Router: "the router", b.LAN: "the neighbour", b.Host: "the host",
	}[n]
}

// flow is a flow whose frames a check builds itself.
type flow struct {
	b     *bed
	c     *lab.Namespace
	proto string // udp, tcp, icmp
	sport uint16
	dst   netip.AddrPort
	at    *lab.Namespace // where dst is
	nat   netip.AddrPort // as seen outside
	cseq  uint32         // TCP: next sequence number of the container
	sseq  uint32         // and of the server
	left  time.Duration  // the remaining time that bed.age has noted
}

// open sends the first packet of a flow from c to the silent address.
func (b *bed) open(c *lab.Namespace, proto string) (*flow, error) {
	b.t.Helper()
	return b.openTo(c, proto, b.rawPort(), on(b.mute, b.rawPort()))
}

func (b *bed) openTo(c *lab.Namespace, proto string, sport uint16, dst netip.AddrPort) (*flow, error) {
	b.t.Helper()
	f := &flow{b: b, c: c, proto: proto, sport: sport, dst: dst, at: b.sv, cseq: 1000000 * uint32(sport), sseq: 7000000}
	if dst.Addr() == b.Far.Addr {
		f.at = b.Far
	}
	p, err := f.out("S", nil)
	f.nat = p.from()
	return f, err
}

// out sends a packet of the container and returns it as it looks outside. flags are
// TCP's.
func (f *flow) out(flags string, payload []byte, change ...func(*testutil.Frame)) (packet, error) {
	f.b.t.Helper()
	return f.b.cross(f.c, f.outFrame(flags, payload, change...), f.at, nil)
}

// outFrame builds the next packet of the container.
func (f *flow) outFrame(flags string, payload []byte, change ...func(*testutil.Frame)) []byte {
	f.b.t.Helper()
	fr := testutil.Frame{Dst: f.dst.Addr(), Payload: payload}
	f.fill(&fr, f.sport, f.dst.Port(), flags, &f.cseq, f.sseq)
	return f.b.frame(f.c, fr.With(change...))
}

// in sends a packet of the server to the flow's external address and returns it as it
// looks in the container.
func (f *flow) in(flags string, payload []byte, change ...func(*testutil.Frame)) (packet, error) {
	f.b.t.Helper()
	p, err := f.b.cross(f.at, f.inFrame(flags, payload, change...), f.c, nil)
	if err == nil && (p.dst != f.c.Addr || p.dport() != f.sport) {
		return p, fmt.Errorf("arrived in the container as %v, want port %d", p, f.sport)
	}
	return p, err
}

func (f *flow) inFrame(flags string, payload []byte, change ...func(*testutil.Frame)) []byte {
	f.b.t.Helper()
	fr := testutil.Frame{Src: f.dst.Addr(), Dst: f.nat.Addr(), Payload: payload}
	f.fill(&fr, f.dst.Port(), f.nat.Port(), flags, &f.sseq, f.cseq)
	return f.b.frame(f.at, fr.With(change...))
}

// fill sets the L4 part and advances the sequence number.
func (f *flow) fill(fr *testutil.Frame, sport, dport uint16, flags string, seq *uint32, ack uint32) {
	if fr.Payload == nil && f.proto != "tcp" {
		fr.Payload = f.b.tag()
	}
	switch f.proto {
	case "udp":
		fr.UDP = &testutil.UDP{SrcPort: sport, DstPort: dport}
	case "icmp":
		if fr.Src.IsValid() { // from the server
			fr.Echo = &testutil.Echo{Reply: true, ID: dport}
		} else {
			fr.Echo = &testutil.Echo{ID: sport}
		}
	case "tcp":
		has := func(c string) bool { return strings.Contains(flags, c) }
		fr.TCP = &testutil.TCP{
			SrcPort: sport, DstPort: dport, Seq: *seq, SYN: has("S"), FIN: has("F"), RST: has("R"), PSH: has("P"), URG: has("U"), ACK: has("A"),
		}
		if fr.TCP.ACK {
			fr.TCP.Ack = ack
		}
		*seq += uint32(len(fr.Payload))
		if has("S") || has("F") {
			*seq++
		}
	}
}

// exchangeTags sends a packet each way.
func (f *flow) exchangeTags() error {
	f.b.t.Helper()
	out, err := f.out("PA", f.b.tag())
	if err != nil {
		return err
	}
	if out.from() != f.nat {
		return fmt.Errorf("the mapping has changed from %v to %v", f.nat, out.from())
	}
	_, err = f.in("PA", f.b.tag())
	return err
}

// establish completes a TCP handshake that open has begun. Then, and for other
// protocols at once, a packet goes each way, twice, so that the fast path is warm.
func (f *flow) establish() error {
	f.b.t.Helper()
	if f.proto == "tcp" {
		if _, err := f.in("SA", nil); err != nil {
			return err
		}
		if _, err := f.out("A", nil); err != nil {
			return err
		}
	}
	return errors.Join(f.exchangeTags(), f.exchangeTags())
}

// live opens and establishes a flow.
func (b *bed) live(c *lab.Namespace, proto string) (*flow, error) {
	b.t.Helper()
	f, err := b.open(c, proto)
	if err != nil {
		return f, err
	}
	return f, f.establish()
}

// expiry is how long the mapping of (proto, container, source port) lives if no packet
// comes, as the implementation itself says. The full run of the scoreboard waits for
// that time.
func (b *bed) expiry(proto string, src netip.AddrPort) (time.Duration, bool) {
	b.t.Helper()
	if b.plain() {
		return b.conntrackExpiry(proto, src)
	}
	for _, f := range b.Flows(b.t) {
		if f.Proto == proto && f.Src == src.String() {
			return time.Duration(f.ExpiresS) * time.Second, true
		}
	}
	return 0, false
}

func (b *bed) conntrackExpiry(proto string, src netip.AddrPort) (time.Duration, bool) {
	b.t.Helper()
	out, err := b.Host.Run(b.Ctx, "conntrack", "-L", "-p", proto)
	b.ok(err)
	name := "sport"
	if proto == "icmp" {
		name = "id"
	}
	for line := range strings.Lines(out) {
		w := strings.Fields(line)
		ours := strings.Contains(line, fmt.Sprintf(" src=%v ", src.Addr())) && strings.Contains(line, fmt.Sprintf(" %s=%d ", name, src.Port()))
		if ours && len(w) > 2 {
			secs, err := strconv.Atoi(w[2])
			b.ok(err)
			return time.Duration(secs) * time.Second, true
		}
	}
	return 0, false
}

func (f *flow) expiry() (time.Duration, bool) {
	f.b.t.Helper()
	return f.b.expiry(f.proto, netip.AddrPortFrom(f.c.Addr, f.sport))
}

// lives returns an error unless the flow lives at least want after its last packet.
// touch sends that packet.
func (f *flow) lives(want time.Duration, touch func() error) error {
	f.b.t.Helper()
	sent := time.Now()
	if err := touch(); err != nil {
		return err
	}
	got, ok := f.expiry()
	if !ok {
		return fmt.Errorf("there is no mapping")
	}
	// The answer is in whole seconds, rounded down.
	if got += time.Since(sent) + time.Second; got < want {
		return fmt.Errorf("a mapping lives %v, not %v", got.Round(10*time.Second), want)
	}
	return nil
}
