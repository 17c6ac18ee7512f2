package natmodel

// Session is a live session as others see it.
type Session struct {
	Fwd     Tuple
	Ext     Addr
	EPort   uint16
	Bits    Bits
	Ifindex int       // of its port; 0: the host's
	ISN     uint32    // begun outside: sequence number of the SYN-ACK
	Seen    [2]uint64 // outbound, inbound
	Granted [2]uint64 // 0: no lease
	Lease   [2]uint64 // of a granted one
}

// Port is an external port as others see it; the owner only if it is taken.
type Port struct {
	Taken, Free, Bound bool
	Refs               int
	Addr               Addr
	Port               uint16
	Ifindex            int
	NotedAt, UsedAt    uint64
}

// Table is everything a NAT remembers.
type Table struct {
	Sessions map[int]Session // by slot
	Ports    [3][]Port
	Free     [3][]int      // in the order in which they stand
	Ripe     [3]int        // so many of them first
	Binds    map[Tuple]int // Src, SPort, Proto: offset in the range
	Peers    map[Tuple]int // DPort: offset, Proto: class, Src: the address; sessions
	Usage    map[int]Usage
	Counters Counters
}

// Table returns a copy of everything.
func (n *NAT) Table() Table {
	t := Table{
		Sessions: map[int]Session{}, Binds: map[Tuple]int{}, Peers: map[Tuple]int{}, Usage: map[int]Usage{},
		Counters: n.Counters,
	}
	for i := range n.slots {
		if s := n.slots[i].s; s != nil {
			t.Sessions[i] = s.view()
		}
	}
	for class := range n.ports {
		for i := range n.ports[class] {
			t.Ports[class] = append(t.Ports[class], n.ports[class][i].view())
		}
		t.Free[class], t.Ripe[class] = append([]int(nil), n.unused[class].free...), n.unused[class].ripe
	}
	for b, off := range n.binds {
		t.Binds[Tuple{Src: b.ip, SPort: b.port, Proto: b.proto}] = off
	}
	for p, refs := range n.peers {
		t.Peers[Tuple{Src: p.addr, DPort: uint16(p.off), Proto: Proto(p.class)}] = refs
	}
	for i, d := range n.Devices {
		t.Usage[i] = d.Usage
		u := t.Usage[i]
		u.refusedAt = 0
		t.Usage[i] = u
	}
	return t
}

func (s *session) view() Session {
	v := Session{Fwd: s.fwd, Ext: s.ext, EPort: s.eport, Bits: s.bits, ISN: s.isn}
	if s.dev != nil {
		v.Ifindex = s.dev.Ifindex
	}
	for i, e := range s.entry {
		v.Seen[i], v.Granted[i] = e.seen, e.granted
		if e.granted != 0 {
			v.Lease[i] = e.lease
		}
	}
	return v
}

func (p *port) view() Port {
	v := Port{Taken: p.taken, Free: p.free, Bound: p.bound, Refs: p.refs, NotedAt: p.notedAt, UsedAt: p.usedAt}
	if p.taken {
		v.Addr, v.Port = p.owner.ip, p.owner.port
		if p.dev != nil {
			v.Ifindex = p.dev.Ifindex
		}
	}
	return v
}

// Slot returns the session in a slot, modulo the slots used so far; false if it is free.
func (n *NAT) Slot(i int) (Session, bool) {
	if n.fresh == 0 {
		return Session{}, false
	}
	s := n.slots[i%n.fresh].s
	if s == nil {
		return Session{}, false
	}
	return s.view(), true
}

// IsOutside says whether an address is in none of the networks.
func (n *NAT) IsOutside(a Addr) bool { return n.network(a) == nil }
