package natmodel

const (
	maxTries   = 8   // ports looked at by one allocation that are told apart
	maxLooks   = 512 // free ports looked at by one allocation
	preferred  = 6   // of those, as long as a neighbour's are passed over
	shareTries = 16  // ports looked at for sharing
)

// port is an external port.
type port struct {
	taken, queued bool
	refs          int
	owner         bind // whose it is, if taken
	dev           *Device
	bound         bool // its owner has it for every destination
	notedAt       uint64
	usedAt        uint64 // its owner last sent something (EIF and ADF), or gave it back
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

// held says whether the port was another container's less than the hold time ago.
func (n *NAT) held(p *port, ip Addr) bool {
	return p.usedAt != 0 && p.owner.ip != ip && n.Now-p.usedAt < n.Hold*n.HZ
}

// takePort takes a free port for w: its own if it lies in the range, is free and
// not on hold, else the longest released, a neighbour's last.
func (n *NAT) takePort(w *wish) (int, bool) {
	fwd, ext := w.fwd, w.ext
	class := fwd.Proto.class()
	if n.inRange(fwd.SPort) {
		off := n.offset(fwd.SPort)
		p := n.portOf(fwd.Proto, off)
		if !p.taken && !n.held(p, fwd.Src) {
			if !n.noted(p) && n.clear(fwd, ext, off) {
				p.taken = true
				n.Tries[1]++
				return off, true
			}
			n.queuePort(class, off)
			w.moved = true
		}
	}
	for pops, looked := n.Count+preferred, 0; pops > 0 && looked < maxLooks; pops-- {
		off, ok := n.unused[class].pop()
		if !ok {
			break
		}
		p := &n.ports[class][off]
		p.queued = false
		if p.taken { // out of turn
			continue
		}
		looked++
		if looked <= preferred && n.noted(p) || !n.clear(fwd, ext, off) {
			n.queuePort(class, off)
			continue
		}
		p.taken = true
		if looked > maxTries {
			looked = 0
		}
		n.Tries[looked]++
		return off, true
	}
	n.Tries[0]++
	return 0, false
}

func (n *NAT) queuePort(class, off int) {
	if p := &n.ports[class][off]; !p.queued {
		p.queued = true
		n.unused[class].push(off)
	}
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
	n.InUse[proto.class()]--
	p.taken = false
	p.usedAt = n.Now
	n.queuePort(proto.class(), off)
}
