package ctl

import (
	"errors"
	"fmt"

	"github.com/fastbr/fastbr/ctl/link"
)

// syncPorts makes the ports ready for what XDP sends them as long as an uplink
// has it, and puts back what that changed in them afterwards.
func (x xdp) syncPorts(quiet bool) error {
	op := x.op
	if !op.st.xdpOn() {
		return op.eachPort(x.closePort)
	}
	var indexes []int
	_ = op.eachPort(func(_ *network, p *port) error { indexes = append(indexes, p.Index); return nil })
	features, err := link.XDP(indexes...)
	if err != nil {
		op.say("no port gets packets from XDP: %v", err)
		return nil
	}
	return op.eachPort(func(n *network, p *port) error {
		ready := features[p.Index]&link.XDPTakes != 0
		if !ready && !quiet {
			ready = x.openPort(p)
		}
		if ready == p.XDP {
			return nil
		}
		p.XDP = ready
		return errors.Join(op.save(), op.portPrograms(n, p))
	})
}

func (op *operation) eachPort(f func(*network, *port) error) error {
	for _, name := range op.st.networkNames() {
		n := op.st.Networks[name]
		for _, p := range n.Ports {
			if p.Pending {
				continue
			}
			if err := f(n, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// open lets the container's end, device name of namespace ns (nil: the
// host's), take frames from XDP: GRO makes it poll for them.
func (x xdp) open(p *port, ns *link.Netns, name string) error {
	return doIn(ns, func() error {
		on, err := link.Offloads(name)
		if err != nil || on[link.GRO] {
			return err
		}
		p.GRO = true // ours to undo
		if err := x.op.save(); err != nil {
			return err
		}
		return link.SetOffload(name, link.GRO, true)
	})
}

// openPort is open for a port that was there before, whose container
// has to be found. It reports whether the host's end says that it takes frames.
func (x xdp) openPort(p *port) bool {
	ns, d, err := x.op.inside(p)
	if err != nil {
		return false
	}
	defer ns.Close()
	return x.open(p, ns, d.Name) == nil && takesXDP(p)
}

func takesXDP(p *port) bool {
	features, err := link.XDP(p.Index)
	return err == nil && features[p.Index]&link.XDPTakes != 0
}

// prepare opens a new port to XDP; ready sees whether that worked.
func (x xdp) prepare(_ *network, p *port, inside end) {
	if p.XDP, p.GRO = false, false; x.op.st.xdpOn() {
		_ = x.open(p, inside.ns, inside.name)
	}
}

// ready tells the datapath that a new port takes frames from XDP. That its end does
// shows when it is up; where it does not, tc sends them.
func (x xdp) ready(n *network, p *port) error {
	if p.XDP || !x.op.st.xdpOn() || !takesXDP(p) {
		return nil
	}
	p.XDP = true
	return x.op.portPrograms(n, p)
}

// closePort undoes open. A container that is not found keeps its GRO: it is
// about to go.
func (x xdp) closePort(n *network, p *port) error {
	if p.GRO {
		if ns, d, err := x.op.inside(p); err == nil {
			_ = doIn(ns, func() error { return link.SetOffload(d.Name, link.GRO, false) })
			ns.Close()
		}
	}
	if !p.XDP && !p.GRO {
		return nil
	}
	p.XDP, p.GRO = false, false
	return errors.Join(x.op.save(), x.op.portPrograms(n, p))
}

// inside finds the container's end of a port, whatever it is called now.
func (op *operation) inside(p *port) (ns *link.Netns, d link.Device, err error) {
	entries, err := op.host.listing()
	if err != nil {
		return nil, d, err
	}
	e, there := entries[p.Index]
	if !there {
		return nil, d, fmt.Errorf("%s: %w", p.Port, link.ErrNotFound)
	}
	if ns, err = link.FindNetns(p.Netns); err != nil {
		return nil, d, err
	}
	conn, err := link.OpenIn(ns)
	if err != nil {
		ns.Close()
		return nil, d, err
	}
	defer conn.Close()
	d, err = conn.ByIndex(e.Lower)
	if err != nil || d.Kind != "veth" || d.MAC.String() != p.MAC {
		ns.Close()
		return nil, d, fmt.Errorf("the container's end of %s: %w", p.Port, link.ErrNotFound)
	}
	return ns, d, nil
}

// doIn runs f in a namespace; nil: the current one.
func doIn(ns *link.Netns, f func() error) error {
	if ns == nil {
		return f()
	}
	return ns.Do(f)
}
