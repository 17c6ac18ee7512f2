package natmodel

// Bits are what is known of a session: enum fbr_sess_bits.
type Bits uint32

// The bits.
const (
	Replied   Bits = 2
	Acked     Bits = 4
	FinOut    Bits = 8
	FinIn     Bits = 16
	Reset     Bits = 32
	Shared    Bits = 128 // on a port that it does not own
	OfHost    Bits = 256
	Inbound   Bits = 512  // made by a packet from outside
	OutOnly   Bits = 1024 // only outbound packets keep it alive
	Contacted Bits = 2048 // counted in peers
	HalfOpen  Bits = 4096 // counted in its port's quota
)

func (b Bits) closed() bool { return b&Reset != 0 || b&(FinOut|FinIn) == FinOut|FinIn }

const (
	grace      = 2   // seconds between expiry and reclaim by the sweep
	sweepSlots = 256 // slots of one pass
	probes     = 64  // slots looked at when none is free
	roomTries  = 64  // closed sessions looked at to make room for one
)

// entry is one direction of a session.
type entry struct {
	s              *session
	out            bool
	seen           uint64
	granted, lease uint64
	macs           [12]byte
}

type session struct {
	slot  int
	fwd   Tuple
	ext   Addr
	eport uint16
	bits  Bits
	dev   *Device // nil: the host's
	entry [2]entry
}

const (
	outbound = iota
	inward
)

// slot is a place in the table. Its place in the queue of closed sessions
// outlives its session.
type slot struct {
	s      *session
	queued bool
}

func reverse(fwd Tuple, ext Addr, eport uint16) Tuple {
	return Tuple{fwd.Dst, ext, fwd.DPort, eport, fwd.Proto}
}

func (n *NAT) timeout(s *session) uint64 {
	switch s.fwd.Proto {
	case TCP:
		switch {
		case s.bits.closed():
			return n.TCPClosing
		case s.bits&(Replied|Acked) != Replied|Acked:
			return n.TCPOpen
		case s.bits&(FinOut|FinIn) != 0:
			return n.TCPHalf
		}
		return n.TCPEstablished
	case UDP:
		switch {
		case s.bits&Replied == 0:
			return n.UDPOneway
		case s.fwd.DPort < 1024:
			return n.UDPWellKnown
		}
		return n.UDPTwoway
	}
	return n.ICMPQuery
}

// end is when the session ends unless a packet comes.
func (n *NAT) end(s *session) uint64 {
	seen := s.entry[outbound].seen
	if s.bits&OutOnly == 0 {
		seen = max(seen, s.entry[inward].seen)
	}
	return seen + n.timeout(s)*n.HZ
}

func (n *NAT) expired(s *session) bool { return n.end(s) <= n.Now }

// gone says whether the session's container has left.
func (n *NAT) gone(s *session) bool { return s.dev != nil && n.Devices[s.dev.Ifindex] != s.dev }

func (n *NAT) freeSession(s *session) {
	delete(n.flows, reverse(s.fwd, s.ext, s.eport))
	delete(n.flows, s.fwd)
	off := n.offset(s.eport)
	if s.bits&Contacted != 0 {
		k := peer{s.fwd.Proto.class(), off, s.fwd.Dst}
		if n.peers[k]--; n.peers[k] == 0 {
			delete(n.peers, k)
		}
	}
	if s.bits&Shared == 0 {
		n.putPort(s.fwd.Proto, off)
	}
	if s.dev != nil {
		s.dev.Sessions--
		if s.bits&HalfOpen != 0 {
			s.dev.Half--
		}
	}
	n.Live--
	n.slots[s.slot].s = nil
	n.free.push(s.slot)
}

// reap frees a slot's session if it has been dead for so long.
func (n *NAT) reap(i int, grace uint64) bool {
	s := n.slots[i].s
	if s == nil || !n.gone(s) && n.end(s)+grace > n.Now {
		return false
	}
	n.freeSession(s)
	return true
}

// track notes what a packet tells about its session.
//
// A session that closes lives for the closing time from then on, however long it
// was idle, but no longer than it would have.
func (n *NAT) track(s *session, p *Packet, out bool) {
	var set Bits
	if out == (s.bits&Inbound != 0) {
		set = Replied
	}
	if p.Proto == TCP {
		switch {
		case p.Flags&RST != 0:
			set = Reset
		case p.Flags&SYN != 0:
			if out && p.Flags&ACK == 0 && s.bits.closed() { // the tuple is used again
				s.bits &^= Reset | FinOut | FinIn | Replied | Acked
			}
		default:
			if out {
				set |= Acked
			}
			if p.Flags&FIN != 0 && out {
				set |= FinOut
			} else if p.Flags&FIN != 0 {
				set |= FinIn
			}
			if out || s.bits&OutOnly == 0 {
				s.bits &^= Reset // the RST may have been forged
			}
		}
	}
	if !s.bits.closed() && (s.bits | set).closed() {
		e, closing := &s.entry[outbound], n.TCPClosing*n.HZ
		e.seen = max(e.seen, min(n.end(s), n.Now+closing)-closing)
	}
	s.bits |= set
	if s.bits&HalfOpen != 0 && (s.bits&(Replied|Acked) == Replied|Acked || s.bits.closed()) {
		s.bits &^= HalfOpen
		s.dev.Half--
	}
	closed := p.Proto == TCP && s.bits.closed()
	if closed || set&(FinOut|FinIn) != 0 { // a FIN shortens the timeout, and no lease outlives its session
		s.entry[outbound].granted, s.entry[inward].granted = 0, 0
	}
	if closed {
		n.pushClosed(s.slot)
	}
}

func (n *NAT) pushClosed(i int) {
	if !n.slots[i].queued {
		n.slots[i].queued = true
		n.closed.push(i)
	}
}

// makeRoom gives up closed sessions of a device (nil: anybody's) until one more
// session fits, or one more port. One that closed less than 20 ms ago rests.
func (n *NAT) makeRoom(dev *Device, wantPort bool) bool {
	made := false
	for range roomTries {
		i, ok := n.closed.pop()
		if !ok {
			break
		}
		n.slots[i].queued = false
		s := n.slots[i].s
		if s == nil || !s.bits.closed() {
			continue
		}
		last := n.end(s) - n.TCPClosing*n.HZ
		if dev != nil && s.dev != dev || n.Now-last < n.HZ/50 {
			n.pushClosed(i)
			continue
		}
		n.freeSession(s)
		n.Reclaimed++
		if made = !wantPort || dev == nil || dev.Ports < n.PortsQuota; made {
			break
		}
	}
	return made
}

// sweep looks at so many slots from the hand on; says whether one came free.
func (n *NAT) sweep(slots int) bool {
	found := false
	for range min(slots, n.fresh) {
		if n.hand >= n.fresh {
			n.hand = 0
		}
		if n.reap(n.hand, grace*n.HZ) {
			found = true
		}
		n.hand++
	}
	return found
}

// Sweep is one tick of the sweep timer.
func (n *NAT) Sweep() {
	n.sweep(sweepSlots)
	for range sweepSlots {
		i, ok := n.closed.peek()
		if !ok || n.slots[i].s != nil && n.slots[i].s.bits.closed() {
			return
		}
		n.closed.pop()
		n.slots[i].queued = false
	}
}

// takeSlot is a free slot, or false.
func (n *NAT) takeSlot() (int, bool) {
	for range 2 {
		if i, ok := n.free.pop(); ok {
			return i, true
		}
		if n.fresh < n.FlowsMax {
			n.fresh++
			return n.fresh - 1, true
		}
		if !n.makeRoom(nil, false) && !n.sweep(probes) {
			break
		}
	}
	return n.free.pop()
}

// Flush ends the sessions of a device, or all (nil).
func (n *NAT) Flush(dev *Device) {
	for i := range n.slots {
		if s := n.slots[i].s; s != nil && (dev == nil || s.dev == dev) {
			n.freeSession(s)
		}
	}
}
