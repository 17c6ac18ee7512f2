package natmodel

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// machine lets rapid do anything in any order, and checks the invariants after
// each step.
type machine struct {
	*NAT
	family family
	devs   []*Device
	last   Packet // the answer to the last packet that left
	to     *Device
}

func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := Policy{Strict: rapid.Bool().Draw(t, "strict")}
		switch rapid.IntRange(0, 3).Draw(t, "policy") {
		case 1:
			policy.EDM = true
		case 2:
			policy.ADF = true
		case 3:
			policy.EIF = true
		}
		m := &machine{family: rapid.SampledFrom([]family{ip4, ip6}).Draw(t, "family")}
		m.NAT, m.devs = m.family.small(policy)
		t.Repeat(map[string]func(*rapid.T){
			"container": m.container,
			"outside":   m.outside,
			"host":      m.host,
			"time": func(t *rapid.T) {
				m.Now += uint64(rapid.SampledFrom([]int{0, 1, 5, 100, 2000, 12000, 30000, 744000}).Draw(t, "jiffies"))
			},
			"sweep":   func(*rapid.T) { m.Sweep() },
			"flush":   func(t *rapid.T) { m.Flush(rapid.SampledFrom(m.devs).Draw(t, "device")) },
			"address": func(t *rapid.T) { m.Route = nth(m.family.public, rapid.IntRange(0, 1).Draw(t, "address")) },
			"":        m.check,
		})
	})
}

func (m *machine) packet(t *rapid.T) Packet {
	p := Packet{
		Kind: Ports, Proto: UDP, TTL: 64, Dst: nth(m.family.outside, rapid.IntRange(0, 2).Draw(t, "remote")),
		SPort: rapid.SampledFrom([]uint16{40000, 40001, 40002, 40003, 10001, 10005}).Draw(t, "sport"),
		DPort: rapid.SampledFrom([]uint16{53, 9999}).Draw(t, "dport"),
	}
	switch rapid.IntRange(0, 3).Draw(t, "proto") {
	case 0:
		p.Kind, p.Proto, p.DPort = EchoRequest, ICMP, 0
	case 1, 2:
		p.Proto = TCP
		p.Flags = rapid.SampledFrom([]Flags{SYN, ACK, FIN | ACK, RST}).Draw(t, "flags")
	}
	return p
}

// container sends a packet. What leaves has a public address and a port of the
// range, and its answer finds the way back.
func (m *machine) container(t *rapid.T) {
	d := rapid.SampledFrom(m.devs).Draw(t, "device")
	p := m.packet(t)
	p.Src = d.IP
	if v := m.PortIn(d, p); v.Action == Redirect && (m.network(v.Packet.Src) != nil || !m.NAT.external.inRange(v.Packet.SPort)) {
		t.Fatalf("the fast path lets %+v out", v.Packet)
	}
	v := m.UplinkOut(d.Net.Bridge, p, false)
	if v.Action != Next {
		return
	}
	public := []Addr{m.Route}
	if m.Route.Is6() { // a mapping keeps its address
		public = []Addr{m.family.public, nth(m.family.public, 1)}
	}
	if !slices.Contains(public, v.Packet.Src) || !m.NAT.external.inRange(v.Packet.SPort) {
		t.Fatalf("%+v left as %+v", p, v.Packet)
	}
	back := answer(v.Packet)
	back.Flags = ACK
	if in := m.UplinkIn(back); in.Packet.Dst != d.IP || in.Packet.Kind == Ports && in.Packet.DPort != p.SPort {
		t.Fatalf("the answer to %+v arrives as %+v", p, in)
	}
	m.last, m.to = back, d
}

// outside sends to a mapping, as its remote or as somebody else.
func (m *machine) outside(t *rapid.T) {
	p := m.last
	if p.Kind == Other {
		return
	}
	p.Flags = rapid.SampledFrom([]Flags{SYN, ACK, FIN | ACK, RST}).Draw(t, "flags")
	if rapid.Bool().Draw(t, "stranger") {
		p.SPort++
		if v := m.UplinkIn(p); v.Packet.Dst != p.Dst && !m.devs[0].Net.EIF && !m.devs[0].Net.ADF {
			t.Fatalf("a stranger got in: %+v", v)
		}
		return
	}
	if v := m.UplinkIn(p); v.Action == Next && v.Packet.Dst == m.to.IP {
		m.PortOut(m.to, v.Packet)
	}
}

func (m *machine) host(t *rapid.T) {
	p := m.packet(t)
	p.Src, p.SPort = m.family.public, m.First+uint16(rapid.IntRange(0, m.Count-1).Draw(t, "port"))
	for _, s := range m.slots {
		if s.s != nil && s.s.ext == p.Src && s.s.dev != nil {
			p.Dst, p.SPort, p.DPort, p.Proto = s.s.fwd.Dst, s.s.eport, s.s.fwd.DPort, s.s.fwd.Proto
		}
	}
	if p.Kind == EchoRequest && p.Proto == ICMP || p.Kind == Ports && p.Proto != ICMP {
		m.UplinkOut(0, p, false)
	}
}

func (m *machine) check(t *rapid.T) {
	for _, err := range []error{m.sessions(), m.portsAdd(), m.queues()} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// sessions checks that each session stands under both its tuples, and that the
// counts are right.
func (m *machine) sessions() error {
	live, waiting, usage := 0, 0, map[*Device]Usage{}
	for i, slot := range m.slots {
		s := slot.s
		if s == nil {
			continue
		}
		live++
		if s.slot != i || m.flows[s.fwd] != &s.entry[outbound] || m.flows[reverse(s.fwd, s.ext, s.eport)] != &s.entry[inward] {
			return fmt.Errorf("slot %d: %+v is not where it belongs", i, s)
		}
		if s.dev == nil {
			continue
		}
		u := usage[s.dev]
		if s.bits&Waiting != 0 {
			waiting++
		} else {
			u.Sessions++
		}
		if s.bits&HalfOpen != 0 {
			u.Half++
		}
		usage[s.dev] = u
	}
	if waiting != m.Waiting || waiting > m.WaitingMax {
		return fmt.Errorf("%d sessions wait, counted %d of at most %d", waiting, m.Waiting, m.WaitingMax)
	}
	if live != m.Live || len(m.flows) != 2*live {
		return fmt.Errorf("%d sessions, counted %d, %d entries", live, m.Live, len(m.flows))
	}
	for _, d := range m.devs {
		if u := usage[d]; d.Sessions != u.Sessions || d.Half != u.Half {
			return fmt.Errorf("port %d has %+v, counted %+v", d.Ifindex, u, d.Usage)
		}
		if d.Half > m.HalfQuota || d.Sessions > m.FlowsQuota+1 || d.Ports > m.PortsQuota+1 {
			return fmt.Errorf("port %d is beyond its quota: %+v", d.Ifindex, d.Usage)
		}
	}
	return nil
}

// portsAdd checks that the ports' references equal their sessions, and that
// mappings lead to their own ports.
func (m *machine) portsAdd() error {
	var refs [3]map[int]int
	for class := range refs {
		refs[class] = map[int]int{}
	}
	for _, slot := range m.slots {
		if s := slot.s; s != nil && s.bits&Shared == 0 {
			refs[s.fwd.Proto.class()][m.NAT.external.offset(s.eport)]++
		}
	}
	for class := range m.ports {
		for off, p := range m.ports[class] {
			if p.refs != refs[class][off] || p.taken != (p.refs > 0) {
				return fmt.Errorf("port %d of class %d has %d sessions: %+v", off, class, refs[class][off], p)
			}
			if p.bound && m.binds[p.owner] != off {
				return fmt.Errorf("port %d of class %d is not its owner's: %+v", off, class, p)
			}
		}
	}
	for b, off := range m.binds {
		if p := m.ports[b.proto.class()][off]; !p.bound || p.owner != b {
			return fmt.Errorf("mapping %+v leads to %+v", b, p)
		}
	}
	return nil
}

// queues checks that each free port and slot is queued exactly once.
func (m *machine) queues() error {
	for class := range m.ports {
		seen := map[int]bool{}
		for _, off := range m.unused[class].free {
			if seen[off] {
				return fmt.Errorf("port %d of class %d is free twice", off, class)
			}
			seen[off] = true
		}
		for off, p := range m.ports[class] {
			if p.free != seen[off] || p.taken == p.free {
				return fmt.Errorf("port %d of class %d: in the pool: %v, %+v", off, class, seen[off], p)
			}
		}
	}
	free := map[int]bool{}
	for _, i := range m.free.items[m.free.head:] {
		if free[i] || m.slots[i].s != nil {
			return fmt.Errorf("slot %d is free and not", i)
		}
		free[i] = true
	}
	if m.Live+len(free) != m.fresh {
		return fmt.Errorf("%d slots used so far, %d live, %d free", m.fresh, m.Live, len(free))
	}
	return nil
}
