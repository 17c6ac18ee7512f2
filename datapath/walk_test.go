package datapath

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
)

// walk sends the same random packets through the programs and through the model.
type walk struct {
	*injected
	sights
	t       *testing.T
	model   *nm.NAT
	rnd     *rand.Rand
	step    int
	random  lcg // what fbr_random() gives next
	devs    []*nm.Device
	nets    []*nm.Network
	exts    []nm.Addr // addresses of the uplink
	sources []uint16  // source ports of containers
	hot     int       // first slot of the sessions that talk now
	frame   []byte
	want    []byte
	seen    map[sight]int
	bits    nm.Bits // of all sessions compared
}

// sight is what a program did. It shows whether a walk has met every case.
type sight struct {
	prog   *ebpf.Program
	action nm.Action
	reason nm.Reason
}

var walkPorts = []uint16{53, 80, 9999}

// sights are what a walk meets in a family.
type sights struct {
	of      addresses
	second  nm.Addr // the uplink's second address
	prefix  int     // bits of the subnets
	remotes []nm.Addr
	errors  []uint8 // types of ICMP errors
}

var (
	walk4 = sights{of: of4, second: secondAddr, prefix: 16,
		remotes: []nm.Addr{server, mustAddr("192.0.2.12"), mustAddr("203.0.113.5")}, errors: []uint8{3, 3, 3, 11, 12}}
	walk6 = sights{of: of6, second: mustAddr("2001:db8:1::3"), prefix: 64,
		remotes: []nm.Addr{outside6, mustAddr("2001:db8:f::12"), mustAddr("2001:db8:e::5")}, errors: []uint8{1, 1, 1, 2, 3, 4}}
)

var secondAddr = mustAddr("198.51.100.3")

// The host listens on the first ports of the range, which nobody else may get.
const (
	busyTCP = 1
	busyUDP = 2
)

func newWalk(t *testing.T, what sights, cfg Config, rnd *rand.Rand) *walk {
	t.Helper()
	w := &walk{t: t, injected: newInjected(t, cfg, nil), sights: what, rnd: rnd, seen: map[sight]int{},
		exts: []nm.Addr{what.of.ext, what.second}}
	if w.of.ext.Is6() {
		w.harness = withIP6(t, w.harness).harness
	}
	if w.prog(tcProgFbrUplinkXdp) != nil {
		check(t, w.AttachXDP(w.uplink.Ifindex))
		for _, p := range []*Port{&w.c1, &w.c2, &w.other} {
			p.XDP = true
			check(t, w.AttachPort(*p))
		}
	}
	w.model = nm.New(w.modelConfig())
	m := w.model
	m.Now = 1 << 30
	m.Random = w.random.next
	m.Uplink, m.Route = w.exts[0], w.exts[0]
	m.Lease = uint64(jiffies(DefaultLease, w.meta.Hz))
	if w.of.ext.Is6() {
		m.RevokedAt = m.Now - 1 // withIP6 has told the programs of the uplink's address
	}
	m.Busy = func(in nm.Tuple) bool {
		return in.Proto == nm.TCP && in.DPort == m.First+busyTCP || in.Proto == nm.UDP && in.DPort == m.First+busyUDP
	}
	m.Place = func(in nm.Tuple) int {
		return passedPlace(w.object().maps[tcMapFbrPassed].MaxEntries(), w.meta.Mark, in)
	}
	w.listen(m.First)
	addAddress(t, w.uplink.Ifindex, w.second, w.prefix)
	w.route()
	one, two := w.networks()
	for _, n := range []Network{one, two} {
		gw := n.Gateway
		if w.of.ext.Is6() {
			gw = n.Gateway6
		}
		w.nets = append(w.nets, &nm.Network{Bridge: n.Bridge, Subnet: netip.PrefixFrom(gw, w.prefix).Masked(), Gateway: gw})
	}
	m.Networks = w.nets
	for i, p := range w.ports() {
		w.devs = append(w.devs, w.tellModel(p, w.nets[i/2]))
	}
	for i := range uint16(24) {
		w.sources = append(w.sources, 40000+i, m.First+i%uint16(m.Count))
	}
	return w
}

func (w *walk) ports() []Port { return []Port{w.c1, w.c2, w.other} }

// networks are both networks as they are attached.
func (w *walk) networks() (one, two Network) {
	one, two = w.networks6()
	if w.of.ext.Is4() {
		one.Subnet6, one.Gateway6, two.Subnet6, two.Gateway6 = netip.Prefix{}, netip.Addr{}, netip.Prefix{}, netip.Addr{}
	}
	return one, two
}

// tellModel adds a port to the model.
func (w *walk) tellModel(p Port, n *nm.Network) *nm.Device {
	d := &nm.Device{Ifindex: p.Ifindex, IP: p.IP, Net: n}
	if w.of.ext.Is6() {
		d.IP = p.IP6
	}
	copy(d.MACs[:], append(append([]byte(nil), p.MAC...), p.BridgeMAC...))
	w.model.Devices[p.Ifindex] = d
	return d
}

func (w *walk) modelConfig() nm.Config {
	flows, ports := int(w.meta.FlowsMax), int(w.meta.NatCount)
	return nm.Config{
		HZ: uint64(w.meta.Hz), FlowsMax: flows, FlowsQuota: flows - flows/5, HalfQuota: max(1, (flows-flows/5)/4),
		WaitingMax: max(1, flows/8), TCPWaiting: 60, UDPWaiting: 30,
		PortsQuota: ports - ports/5, First: uint16(w.meta.NatFirst), Count: ports,
		UDPOneway: 120, UDPTwoway: 300, UDPDNS: 20, ICMPQuery: 60,
		TCPOpen: 240, TCPEstablished: 432000, TCPHalf: 7440, TCPClosing: 240, Hold: 120,
	}
}

func (w *walk) listen(first uint16) {
	w.t.Helper()
	family := "4"
	if w.of.ext.Is6() {
		family = "6"
	}
	l, err := net.ListenTCP("tcp"+family, &net.TCPAddr{Port: int(first + busyTCP)})
	check(w.t, err)
	u, err := net.ListenUDP("udp"+family, &net.UDPAddr{Port: int(first + busyUDP)})
	check(w.t, err)
	w.t.Cleanup(func() { _, _ = l.Close(), u.Close() })
}

// chance is true once in n times.
func (w *walk) chance(n int) bool { return w.rnd.IntN(n) == 0 }

func pick[T any](w *walk, from []T) T { return from[w.rnd.IntN(len(from))] }

// exec runs a program on p and compares the result with the model's verdict. It returns
// whether the packet goes on.
func (w *walk) exec(prog *ebpf.Program, p nm.Packet, ifindex, iif int, mark uint32, v nm.Verdict) bool {
	w.frame = render(w.frame[:0], &p)
	got, err := w.injected.exec(prog, w.frame, ifindex, iif, mark)
	if err != nil {
		w.fail("%s: %v", prog, err)
	}
	w.seen[sight{prog, v.Action, v.Reason}]++
	if got.verdict != int32(v.Action) {
		w.fail("%s: verdict %d, want %d (%s)\npacket %+v %+v\ncounted: %v", prog, got.verdict, v.Action, v.Reason, p, p.Quote, w.counted())
	}
	if v.Action == nm.Drop {
		return false
	}
	w.want = render(w.want[:0], &v.Packet)
	if !bytes.Equal(got.frame, w.want) {
		w.fail("%s:\nsent %x\n got %x\nwant %x\nwant %+v %+v", prog, w.frame, got.frame, w.want, v.Packet, v.Packet.Quote)
	}
	return true
}

// counted are the drops of all devices.
func (w *walk) counted() map[Reason]uint64 {
	w.t.Helper()
	all, err := w.Stats()
	check(w.t, err)
	out := map[Reason]uint64{}
	for _, c := range all {
		for r, n := range c.Drops {
			out[r] += n
		}
	}
	return out
}

func (w *walk) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("step %d: "+format, append([]any{w.step}, args...)...)
}

// one makes one random step.
func (w *walk) one() {
	w.step++
	w.model.Now += w.later()
	w.random = lcg(w.rnd.Uint64())
	w.set(w.t, w.model.Now, uint64(w.random))
	switch x := w.rnd.IntN(1000); {
	case x < 420:
		w.containerSends()
	case x < 860:
		w.outsideSends()
	case x < 900:
		w.hostSends()
	case x < 925:
		w.errorArrives()
	case x < 950:
		w.errorLeaves()
	case x < 990:
		w.model.Sweep()
		blank := nm.Packet{Src: w.of.server, Dst: w.of.server}
		w.exec(w.prog(sweepName), blank, 0, 0, 0, nm.Verdict{Action: 0, Packet: blank})
	default:
		w.operator()
	}
}

// later is how many jiffies pass before the next step. Mostly there are none. Rarely
// there are so many that a timeout is just reached, or just not.
func (w *walk) later() uint64 {
	hz := w.model.HZ
	switch x := w.rnd.IntN(10000); {
	case x < 8000:
		return 0
	case x < 9900:
		return uint64(w.rnd.IntN(int(hz / 10)))
	case x < 9994:
		return uint64(w.rnd.IntN(int(5 * hz)))
	case x < 9999:
		return pick(w, []uint64{20, 60, 120, 240, 300})*hz - 1 + uint64(w.rnd.IntN(3))
	default:
		return pick(w, []uint64{7440, 432000}) * hz
	}
}

func (w *walk) body() nm.Body {
	b := nm.Body{TOS: uint8(w.rnd.Uint32()), ID: uint16(w.rnd.Uint32()), Payload: w.rnd.IntN(12), NoSum: w.chance(4), Cut: 8 + w.rnd.IntN(16)}
	if b.Cut == 17 { // half a TCP checksum cannot be updated
		b.Cut++
	}
	return b
}

func (w *walk) flags() nm.Flags {
	return pick(w, []nm.Flags{nm.SYN, nm.SYN, nm.SYN | nm.ACK, nm.ACK, nm.ACK, nm.ACK, nm.ACK, nm.ACK, nm.ACK, nm.ACK, nm.ACK, nm.FIN | nm.ACK, nm.FIN | nm.ACK, nm.RST, nm.RST | nm.ACK, 0})
}

// proto fills in the fields of a protocol.
func (w *walk) proto(p nm.Packet, proto nm.Proto, out bool) nm.Packet {
	p.Proto, p.Kind = proto, nm.Ports
	switch {
	case proto == nm.TCP:
		p.Flags = w.flags()
	case proto == nm.ICMP && out:
		p.Kind, p.DPort = nm.EchoRequest, 0
	case proto == nm.ICMP:
		p.Kind, p.SPort = nm.EchoReply, 0
	}
	return p
}

func (w *walk) ttl() uint8 {
	if w.chance(50) {
		return 1
	}
	return uint8(2 + w.rnd.IntN(250))
}

func (w *walk) anyProto() nm.Proto {
	return pick(w, []nm.Proto{nm.TCP, nm.TCP, nm.TCP, nm.UDP, nm.UDP, nm.ICMP})
}

// known is a live session, if one is found. Mostly it is one of a few that talk now:
// otherwise leases would end before they are used.
func (w *walk) known() (nm.Session, bool) {
	if w.chance(200) {
		w.hot = w.rnd.IntN(1 << 20)
	}
	for range 4 {
		i := w.hot + w.rnd.IntN(8)
		if w.chance(4) {
			i = w.rnd.IntN(1 << 20)
		}
		if s, ok := w.model.Slot(i); ok {
			return s, true
		}
	}
	return nm.Session{}, false
}

// fromContainer is a packet of a container, on one of its sessions or on a new one.
func (w *walk) fromContainer() (nm.Packet, *nm.Device) {
	s, ok := w.known()
	ok = ok && s.Ifindex != 0 && !w.chance(3)
	d := pick(w, w.devs)
	if ok {
		d = w.model.Devices[s.Ifindex]
	}
	p := nm.Packet{Src: d.IP, Dst: pick(w, w.remotes), SPort: pick(w, w.sources), DPort: pick(w, walkPorts), TTL: w.ttl(), Body: w.body()}
	proto := w.anyProto()
	if ok {
		p.Dst, p.SPort, p.DPort, proto = s.Fwd.Dst, s.Fwd.SPort, s.Fwd.DPort, s.Fwd.Proto
	}
	return w.proto(p, proto, true), d
}

func (w *walk) containerSends() {
	p, d := w.fromContainer()
	copy(p.MACs[:], append(append([]byte(nil), w.gateway...), d.MACs[:6]...))
	if w.chance(100) {
		p.Src = p.Src.Next()
	}
	if w.chance(200) {
		p.Dst = pick(w, w.devs).IP
	}
	if w.chance(200) {
		p.Kind, p.Proto = nm.Other, 47
	}
	v := w.model.PortIn(d, p)
	if !w.exec(w.prog(tcProgFbrPortIn), p, d.Ifindex, d.Ifindex, 0, v) {
		return
	}
	if v.Action == nm.Redirect {
		w.exec(w.prog(tcProgFbrUplinkOut), v.Packet, w.uplink.Ifindex, d.Ifindex, w.meta.Mark, w.model.UplinkOut(d.Ifindex, v.Packet, true))
		return
	}
	if p.TTL > 1 && w.model.IsOutside(p.Dst) {
		w.routed(p, d)
	}
}

// routed sends p out by the uplink, as the kernel hands it over.
func (w *walk) routed(p nm.Packet, d *nm.Device) {
	p.TTL--
	w.atUplink(&p)
	iif := d.Net.Bridge
	if w.chance(100) {
		iif = pick(w, []int{0, w.bridge, w.bridge2, w.foreign})
	}
	w.exec(w.prog(tcProgFbrUplinkOut), p, w.uplink.Ifindex, iif, 0, w.model.UplinkOut(iif, p, false))
}

// atUplink gives p, which leaves, the MAC addresses of the uplink's link. The gateway's changes
// now and then.
func (w *walk) atUplink(p *nm.Packet) {
	p.MACs = [12]byte{2, 0, 0, 0, 0, 0x99, 2, 0, 0, 0, 0, 1}
	if w.model.Now/(20*w.model.HZ)%2 == 1 {
		p.MACs[5] = 0x98
	}
}

// reversed are the MAC addresses of an answer.
func reversed(m [12]byte) [12]byte { return [12]byte(append(slices.Clone(m[6:]), m[:6]...)) }

func (w *walk) outsideSends() {
	p := nm.Packet{Src: pick(w, w.remotes), Dst: pick(w, w.exts), SPort: pick(w, walkPorts), TTL: w.ttl(), Body: w.body(),
		DPort: w.model.First + uint16(w.rnd.IntN(w.model.Count+1))}
	proto := w.anyProto()
	if s, ok := w.known(); ok && !w.chance(8) {
		p.Src, p.Dst, p.SPort, p.DPort, proto = s.Fwd.Dst, s.Ext, s.Fwd.DPort, s.EPort, s.Fwd.Proto
		// What the container has sent first, the end of its first window, or what
		// nobody has sent.
		p.Body.Ack = pick(w, []uint32{s.ISN + 1, s.ISN + 1, s.ISN + 1, s.ISN + 65536, s.ISN + 65537, 0})
		switch w.rnd.IntN(12) { // from somebody else
		case 0:
			p.SPort = 4242
		case 1:
			p.Src, p.SPort = pick(w, w.remotes), 4242
		}
	}
	switch w.rnd.IntN(300) {
	case 0:
		p.Dst = pick(w, w.devs).IP
	case 1:
		p.Src = pick(w, w.devs).IP
	}
	w.arrive(w.proto(p, proto, false))
}

// arrive runs p at the uplink and, if the kernel delivers it, at its container.
func (w *walk) arrive(p nm.Packet) {
	w.atUplink(&p)
	p.MACs = reversed(p.MACs)
	xdp := w.chance(2) && w.prog(tcProgFbrUplinkXdp) != nil
	var got result
	if xdp {
		got = w.execXDP(p)
	}
	v := w.model.UplinkIn(p)
	if xdp && w.endsInXDP(p, got, v) {
		return
	}
	if !w.exec(w.prog(tcProgFbrUplinkIn), p, w.uplink.Ifindex, w.uplink.Ifindex, 0, v) || v.Action != nm.Next || p.TTL <= 1 {
		return
	}
	if w.chance(2) {
		w.hostReceives(v.Packet)
	}
	for _, d := range w.devs {
		if v.Packet.Dst == d.IP {
			in := v.Packet
			in.TTL--
			in.MACs = d.MACs
			w.model.PortOut(d, in)
			w.exec(w.prog(tcProgFbrPortOut), in, d.Ifindex, w.uplink.Ifindex, 0, nm.Verdict{Action: nm.Next, Packet: in})
		}
	}
}

// execXDP runs fbr_uplink_xdp on p.
func (w *walk) execXDP(p nm.Packet) result {
	w.frame = render(w.frame[:0], &p)
	got, err := w.injected.execXDP(w.prog(tcProgFbrUplinkXdp), w.frame, w.uplink.Ifindex)
	if err != nil {
		w.fail("%s: %v", w.prog(tcProgFbrUplinkXdp), err)
	}
	return got
}

// endsInXDP compares what fbr_uplink_xdp did to p with the model's verdict. XDP
// forwards only what is not TCP, drops what has a wrong address, and leaves the rest to
// tc, untouched.
func (w *walk) endsInXDP(p nm.Packet, got result, v nm.Verdict) bool {
	want, bytesWanted := int32(xdpPass), p
	bulk := p.Proto == nm.TCP && p.Flags&(nm.SYN|nm.ACK) == nm.ACK && p.Dst == w.model.Uplink
	switch {
	case v.Action == nm.Redirect && p.Proto != nm.TCP:
		want, bytesWanted = xdpRedirect, v.Packet
	case v.Action == nm.Drop && (v.Reason == "martian" || v.Reason == "direct") && !bulk:
		want = xdpDrop
	}
	w.want = render(w.want[:0], &bytesWanted)
	if got.verdict != want || !bytes.Equal(got.frame, w.want) {
		w.fail("XDP: verdict %d, want %d\nsent %x\n got %x\nwant %x\n%+v", got.verdict, want, w.frame, got.frame, w.want, v)
	}
	w.seen[sight{w.prog(tcProgFbrUplinkXdp), nm.Action(want), v.Reason}]++
	return want != xdpPass
}

// hostSends sends a packet of the host itself, or of another NAT on its address.
// Sometimes it has the tuple of one of our sessions.
func (w *walk) hostSends() {
	p := nm.Packet{Src: pick(w, w.exts), Dst: pick(w, w.remotes), SPort: w.model.First + uint16(w.rnd.IntN(w.model.Count+1)), DPort: pick(w, walkPorts), TTL: 64, Body: w.body()}
	proto := w.anyProto()
	if s, ok := w.known(); ok && w.chance(3) {
		p.Src, p.Dst, p.SPort, p.DPort, proto = s.Ext, s.Fwd.Dst, s.EPort, s.Fwd.DPort, s.Fwd.Proto
		if s.Ifindex == 0 {
			p.SPort = s.Fwd.SPort
		}
	}
	w.atUplink(&p)
	p = w.proto(p, proto, true)
	if p.Flags&nm.RST != 0 && w.chance(2) {
		q := p
		q.Src, q.Dst, q.SPort, q.DPort, q.Flags = p.Dst, p.Src, p.DPort, p.SPort, nm.ACK
		w.hostReceives(q)
	}
	iif := pick(w, []int{0, w.foreign})
	w.exec(w.prog(tcProgFbrUplinkOut), p, w.uplink.Ifindex, iif, 0, w.model.UplinkOut(iif, p, false))
}

// hostReceives runs p at the end of INPUT, where no rule has stopped it. Not all
// packets get that far, and not all that do are answered.
func (w *walk) hostReceives(p nm.Packet) {
	if w.prog(tcProgFbrInput) == nil {
		return
	}
	w.frame = render(w.frame[:0], &p)
	if err := w.injected.execInput(w.prog(tcProgFbrInput), w.frame[14:]); err != nil {
		w.fail("%s: %v", w.prog(tcProgFbrInput), err)
	}
	w.model.HostIn(p)
}

func (w *walk) icmpError() nm.Packet {
	return nm.Packet{Kind: nm.Error, Proto: nm.ICMP, TTL: w.ttl(), Body: w.body(), Type: pick(w, w.errors), Code: uint8(w.rnd.IntN(5))}
}

// errorArrives sends an ICMP error about a packet that left by the uplink.
func (w *walk) errorArrives() {
	p := w.icmpError()
	q := nm.Packet{Src: pick(w, w.exts), Dst: pick(w, w.remotes), SPort: w.model.First + uint16(w.rnd.IntN(w.model.Count)), DPort: pick(w, walkPorts), TTL: 3, Body: w.body()}
	proto := w.anyProto()
	if s, ok := w.known(); ok && !w.chance(5) {
		q.Src, q.Dst, q.SPort, q.DPort, proto = s.Ext, s.Fwd.Dst, s.EPort, s.Fwd.DPort, s.Fwd.Proto
	}
	q = w.proto(q, proto, !w.chance(20))
	p.Quote, p.Src, p.Dst = &q, pick(w, w.remotes), q.Src
	if w.chance(20) { // with a container's address as source
		p.Src = pick(w, w.devs).IP
	}
	w.arrive(p)
}

// errorLeaves sends an ICMP error of a container, or of the host, about a packet that
// came in. It quotes the packet as the container or the host saw it.
func (w *walk) errorLeaves() {
	p := w.icmpError()
	d := pick(w, w.devs)
	q := nm.Packet{Src: pick(w, w.remotes), Dst: d.IP, SPort: pick(w, walkPorts), DPort: pick(w, w.sources), TTL: 3, Body: w.body()}
	proto := w.anyProto()
	if s, ok := w.known(); ok && !w.chance(5) {
		q.Src, q.Dst, q.SPort, q.DPort, proto = s.Fwd.Dst, s.Fwd.Src, s.Fwd.DPort, s.Fwd.SPort, s.Fwd.Proto
	}
	if w.chance(4) {
		q.Dst, q.DPort = pick(w, w.exts), w.model.First+uint16(w.rnd.IntN(w.model.Count))
	}
	q = w.proto(q, proto, false)
	if w.chance(2) {
		w.hostReceives(q)
	}
	iif := 0
	p.Quote, p.Src, p.Dst = &q, pick(w, []nm.Addr{q.Dst, q.Dst, w.exts[0], d.IP, w.nets[0].Gateway}), q.Src
	if dev := w.model.DeviceOf(p.Src); dev != nil {
		iif = dev.Net.Bridge
	}
	w.atUplink(&p)
	w.exec(w.prog(tcProgFbrUplinkOut), p, w.uplink.Ifindex, iif, 0, w.model.UplinkOut(iif, p, false))
}

// operator changes what may change while the programs run.
func (w *walk) operator() {
	m := w.model
	switch w.rnd.IntN(8) {
	case 0:
		check(w.t, w.Revoke())
		m.RevokedAt = m.Now
	case 1:
		d := pick(w, w.devs)
		d.Slow = !d.Slow
		dev, _, err := w.injected.harness.Datapath.devs.device(d.Ifindex)
		check(w.t, err)
		dev.Flags ^= tcFbrDevFlagsFBR_DEV_SLOW
		check(w.t, w.injected.harness.Datapath.devs.putDevice(dev))
	case 2, 3:
		w.changePolicy(w.rnd.IntN(len(w.nets)))
	case 4:
		if w.chance(4) {
			d := pick(w, w.devs)
			_, err := w.injected.harness.Datapath.nat.flush(d.Ifindex)
			check(w.t, err)
			m.Flush(d)
		}
	case 5:
		if m.Lease = 0; !w.chance(4) {
			m.Lease = uint64(jiffies(DefaultLease, w.meta.Hz))
		}
		check(w.t, w.SetLease(duration(m.Lease, w.meta.Hz)))
		m.RevokedAt = m.Now
	case 6:
		if w.chance(10) {
			w.reattach(w.rnd.IntN(len(w.devs)))
		}
	case 7:
		if w.chance(10) {
			w.changeAddress()
		}
	}
}

// reattach detaches a port and attaches it again.
func (w *walk) reattach(i int) {
	p, d := w.ports()[i], w.devs[i]
	check(w.t, w.DetachPort(p.Ifindex))
	w.model.Flush(d)
	check(w.t, w.AttachPort(p))
	w.devs[i] = w.tellModel(p, d.Net)
}

// changeAddress makes the kernel choose another source address. It attaches the uplink
// with an address of its own choice, which may be the kernel's or not: a command runs
// before such a change, or after it.
func (w *walk) changeAddress() {
	m := w.model
	m.Route = pick(w, w.exts)
	w.route()
	m.Uplink = pick(w, w.exts)
	u := w.uplink
	if m.Uplink.Is6() {
		u.Addr6 = m.Uplink
	} else {
		u.Addr = m.Uplink
	}
	check(w.t, w.AttachUplink(u))
	m.RevokedAt = m.Now
}

// route makes the kernel choose the model's source address.
func (w *walk) route() {
	w.t.Helper()
	check(w.t, netlink.RouteReplace(&netlink.Route{LinkIndex: w.uplink.Ifindex, Gw: w.of.router.AsSlice(), Src: w.model.Route.AsSlice()}))
}

func (w *walk) changePolicy(i int) {
	p := pick(w, []NATPolicy{
		{}, {}, {Filtering: ADF}, {Filtering: EIF}, {Mapping: EndpointDependent},
		{OnExhaustion: Refuse}, {Filtering: EIF, OnExhaustion: Refuse}, {Mapping: EndpointDependent, OnExhaustion: Refuse},
	})
	n := w.nets[i]
	n.Policy = nm.Policy{EDM: p.Mapping == EndpointDependent, ADF: p.Filtering == ADF, EIF: p.Filtering == EIF, Strict: p.OnExhaustion == Refuse}
	one, two := w.networks()
	of := []Network{one, two}[i]
	of.NAT = p
	check(w.t, w.SetNetwork(of))
}

// compare compares everything that the programs and the model remember.
func (w *walk) compare() {
	w.t.Helper()
	got, want := w.table(w.t), w.model.Table()
	for _, s := range want.Sessions {
		w.bits |= s.Bits
	}
	if reflect.DeepEqual(got, want) {
		return
	}
	w.differences("counters", got.Counters, want.Counters)
	for i := range max(len(got.Sessions), len(want.Sessions), int(w.meta.FlowsMax)) {
		w.differences("session", got.Sessions[i], want.Sessions[i])
	}
	for class := range got.Ports {
		for i := range got.Ports[class] {
			w.differences("port", got.Ports[class][i], want.Ports[class][i])
		}
	}
	w.differences("free ports", got.Free, want.Free)
	w.differences("of them ripe", got.Ripe, want.Ripe)
	w.differences("mappings", got.Binds, want.Binds)
	w.differences("contacted addresses", got.Peers, want.Peers)
	w.differences("usage", got.Usage, want.Usage)
	w.fail("the tables differ")
}

// misdirect makes the hints in fbr_near lead to other entries, used or not. That must
// make no difference.
func (w *walk) misdirect() {
	w.t.Helper()
	const index = 2*FlowsMaxLimit - 1 // FBR_NEAR_INDEX
	near := all[uint32, tcFbrNear](w.t, w.object().maps[tcMapFbrNear], nearSize(w.meta))
	var keys []uint32
	var values []tcFbrNear
	for k := range uint32(len(near)) { // in the same order each time, so that a seed repeats a walk
		v := near[k]
		if v == (tcFbrNear{}) || w.rnd.IntN(2) == 0 {
			continue
		}
		for i := range v.Entry {
			v.Entry[i] = v.Entry[i]&^index | uint32(w.rnd.IntN(2*int(w.meta.FlowsMax)))
		}
		keys, values = append(keys, k), append(values, v)
	}
	if len(keys) == 0 {
		return
	}
	_, err := w.object().maps[tcMapFbrNear].BatchUpdate(keys, values, nil)
	check(w.t, err)
}

func (w *walk) differences(what string, got, want any) {
	w.t.Helper()
	if !reflect.DeepEqual(got, want) {
		w.t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}
