package natmodel

import "slices"

const (
	maxTries   = 8   // ports looked at by one allocation that are told apart
	maxLooks   = 512 // free ports looked at by one allocation
	preferred  = 6   // of those, as long as a neighbour's are passed over
	shareTries = 16  // ports looked at for sharing
)

// port is an external port.
type port struct {
	taken, free bool
	refs        int
	owner       bind // whose it is, if taken
	dev         *Device
	bound       bool   // its owner has it for every destination
	notedAt     uint64 // used beside any mapping, since a mapping took it
	usedAt      uint64 // its owner last sent something (EIF and ADF), or gave it back
}

// bind is a mapping's inside: (protocol, address, source port).
type bind struct {
	proto Proto
	ip    Addr
	port  uint16
}

// peer is a remote address that the mapping on a port has contacted.
type peer struct {
	class, off int
	addr       Addr
}

func (n *NAT) inRange(port uint16) bool {
	return int(port) >= int(n.First) && int(port) < int(n.First)+n.Count
}

func (n *NAT) offset(port uint16) int { return int(port) - int(n.First) }

func (n *NAT) portOf(p Proto, off int) *port { return &n.ports[p.class()][off] }

func (n *NAT) noted(p *port) bool { return p.notedAt != 0 && n.Now-p.notedAt < n.Hold*n.HZ }

// clear says whether nobody else on the host uses ext:port towards the remote of fwd.
func (n *NAT) clear(fwd Tuple, ext Addr, off int) bool {
	return !n.Busy(reverse(fwd, ext, n.First+uint16(off)))
}

// rests says whether the port was given back less than the hold time ago.
func (n *NAT) rests(p *port) bool { return p.usedAt != 0 && n.Now-p.usedAt < n.Hold*n.HZ }

// pool are the free ports of a class: first ripe ones, whose hold is over, then
// the others in the order of their release.
type pool struct {
	free []int
	ripe int
}

// remove takes out what stands at a place, which the first one gets.
func (q *pool) remove(place int) (off int) {
	off, q.free[place] = q.free[place], q.free[0]
	q.free = q.free[1:]
	q.ripe = max(0, q.ripe-1)
	return off
}

func (q *pool) first(off int) {
	q.free = append([]int{off}, q.free...)
	q.ripe++
}

func (q *pool) last(off int) { q.free = append(q.free, off) }

// draw takes a port at random from those that are ripe, or, if these are fewer
// than half of all, from the half released first; never from the last keep.
func (q *pool) draw(chance uint32, keep int) (int, bool) {
	window := min(max(q.ripe, (len(q.free)+1)/2), len(q.free)-keep)
	if window <= 0 {
		return 0, false
	}
	return q.remove(int(uint64(chance) * uint64(window) >> 32)), true
}

// takePort takes a free port for w: its own if it lies in the range, is free and
// not on hold after another container's use, else one at random, a neighbour's last.
func (n *NAT) takePort(w *wish) (int, bool) {
	fwd, ext := w.fwd, w.ext
	class := fwd.Proto.class()
	q, ports := &n.unused[class], n.ports[class]
	for range 2 {
		if q.ripe < len(q.free) && !n.rests(&ports[q.free[q.ripe]]) {
			q.ripe++
		}
	}
	if n.inRange(fwd.SPort) {
		off := n.offset(fwd.SPort)
		p := &ports[off]
		if p.free && (p.owner.ip == fwd.Src || !n.rests(p)) {
			q.remove(slices.Index(q.free, off))
			if p.free = false; !n.noted(p) && n.clear(fwd, ext, off) {
				p.taken = true
				n.Tries[1]++
				return off, true
			}
			q.first(off)
			p.free, w.moved = true, true
		}
	}
	for looked, keep := 0, 0; looked < maxLooks; {
		off, ok := q.draw(n.Random(), keep)
		if !ok {
			break
		}
		p := &ports[off]
		looked++
		if looked <= preferred && n.noted(p) {
			q.first(off)
			continue
		}
		if !n.clear(fwd, ext, off) {
			q.last(off)
			keep++
			continue
		}
		p.free, p.taken = false, true
		if looked > maxTries {
			looked = 0
		}
		n.Tries[looked]++
		return off, true
	}
	n.Tries[0]++
	return 0, false
}

// putPort takes one session off a port; the last one releases it.
func (n *NAT) putPort(proto Proto, off int) {
	p := n.portOf(proto, off)
	p.refs--
	if p.refs > 0 {
		return
	}
	if p.bound {
		delete(n.binds, p.owner)
		p.bound = false
	}
	if p.dev != nil {
		p.dev.Ports--
	}
	p.taken, p.free = false, true
	p.usedAt = n.Now
	n.unused[proto.class()].last(off)
}
