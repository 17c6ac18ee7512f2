package natmodel

import "slices"

const (
	maxTries   = 8   // most looks of one allocation that are counted separately
	maxLooks   = 512 // free ports looked at by one allocation
	preferred  = 6   // the first of these, in which a neighbour's ports are passed over
	shareTries = 16  // ports looked at for sharing
)

// port is an external port.
type port struct {
	taken, free bool
	refs        int
	owner       bind // owner of the port if taken
	dev         *Device
	bound       bool   // the owner uses it for every destination
	notedAt     uint64 // last use without a mapping, since a mapping took it
	usedAt      uint64 // when its owner last sent (EIF and ADF), or when it was released
	ext         Addr   // the external address of its owner's last session
	stays       bool   // IPv6: the owner's next sessions have that address, too
}

// had reports whether a container that is still there has or had the port. Only then the
// programs can ask the kernel, by its bridge, whether an IPv6 address is the host's.
func (p *port) had(n *NAT) bool { return p.dev != nil && n.Devices[p.dev.Ifindex] != nil }

// bind is the inside of a mapping: protocol, address and source port.
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

// external decides who has which external port.
type external struct{ n *NAT }

func (ps external) inRange(port uint16) bool {
	return int(port) >= int(ps.n.First) && int(port) < int(ps.n.First)+ps.n.Count
}

func (ps external) offset(port uint16) int { return int(port) - int(ps.n.First) }

func (ps external) portOf(p Proto, off int) *port { return &ps.n.ports[p.class()][off] }

func (ps external) noted(p *port) bool {
	return p.notedAt != 0 && ps.n.Now-p.notedAt < ps.n.Hold*ps.n.HZ
}

// clear reports whether nobody else on the host uses ext:port towards the
// remote of fwd.
func (ps external) clear(fwd Tuple, ext Addr, off int) bool {
	return !ps.n.Busy(reverse(fwd, ext, ps.n.First+uint16(off)))
}

// rests reports whether the port was released less than the hold time ago.
func (ps external) rests(p *port) bool { return p.usedAt != 0 && ps.n.Now-p.usedAt < ps.n.Hold*ps.n.HZ }

// pool holds the free ports of a class: first the ripe ones, whose hold time is
// over, then the others in order of release.
type pool struct {
	free []int
	ripe int
}

// remove takes out the port at a place. The first port moves there.
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

// draw takes a port at random. It chooses among the ripe ones or, if these are
// fewer than half of all, among the half that was released first. It never
// takes one of the last keep ports.
func (q *pool) draw(chance uint32, keep int) (int, bool) {
	window := min(max(q.ripe, (len(q.free)+1)/2), len(q.free)-keep)
	if window <= 0 {
		return 0, false
	}
	return q.remove(int(uint64(chance) * uint64(window) >> 32)), true
}

// takePort takes a free port for w. It prefers w's own source port, if that
// lies in the range, is free, and is not on hold after use by another
// container. Otherwise it takes one at random. It avoids a neighbour's ports at
// first.
func (ps external) takePort(w *wish) (int, bool) {
	fwd, ext := w.fwd, w.ext
	class := fwd.Proto.class()
	q, ports := &ps.n.unused[class], ps.n.ports[class]
	for range 2 {
		if q.ripe < len(q.free) && !ps.rests(&ports[q.free[q.ripe]]) {
			q.ripe++
		}
	}
	if ps.inRange(fwd.SPort) {
		off := ps.offset(fwd.SPort)
		p := &ports[off]
		if p.free && (p.owner.ip == fwd.Src || !ps.rests(p)) {
			q.remove(slices.Index(q.free, off))
			if p.free = false; !ps.noted(p) && ps.clear(fwd, ext, off) {
				p.taken = true
				ps.n.Tries[1]++
				return off, true
			}
			q.first(off)
			p.free, w.moved = true, true
		}
	}
	for looked, keep := 0, 0; looked < maxLooks; {
		off, ok := q.draw(ps.n.Random(), keep)
		if !ok {
			break
		}
		p := &ports[off]
		looked++
		if looked <= preferred && ps.noted(p) {
			q.first(off)
			continue
		}
		if !ps.clear(fwd, ext, off) {
			q.last(off)
			keep++
			continue
		}
		p.free, p.taken = false, true
		if looked > maxTries {
			looked = 0
		}
		ps.n.Tries[looked]++
		return off, true
	}
	ps.n.Tries[0]++
	return 0, false
}

// putPort releases a port for one session. The last session frees it.
func (ps external) putPort(proto Proto, off int) {
	p := ps.portOf(proto, off)
	p.refs--
	if p.refs > 0 {
		return
	}
	if p.bound {
		delete(ps.n.binds, p.owner)
		p.bound = false
	}
	if p.dev != nil {
		p.dev.Ports--
	}
	p.taken, p.free = false, true
	p.usedAt = ps.n.Now
	ps.n.unused[proto.class()].last(off)
}
