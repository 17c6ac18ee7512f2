package ctl

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
)

// PortSettings are what can be changed of a port while it is attached; nil: as it is.
type PortSettings struct {
	Slow *bool // always the kernel's path
	// What it may send with besides its container's own addresses: Forget what it may now,
	// then Allow more.
	ForgetAddrs, ForgetMACs bool
	Allow                   Allowed
}

// SetPort changes a port, named by its name or its device; networkName "" is
// whichever it is in. The error wraps ErrNoPort, ErrNotUp, ErrNoNetwork,
// ErrInvalid, ErrExists or ipam.ErrOverlap.
func (c *Controller) SetPort(ctx context.Context, networkName, name string, want PortSettings) error {
	if err := want.Allow.check(); err != nil {
		return err
	}
	return c.instance.mutate(ctx, func(op *operation) error {
		n, p, err := op.ports.named(networkName, name)
		if err != nil {
			return err
		}
		allowed := p.allowed()
		if want.ForgetAddrs {
			allowed.Addrs = nil
		}
		if want.ForgetMACs {
			allowed.MACs = nil
		}
		allowed = allowed.plus(want.Allow)
		if err := allowed.check(); err != nil {
			return err
		}
		if want.Slow != nil {
			if !*want.Slow && p.Bandwidth != (Bandwidth{}) {
				return tagged(ErrInvalid, fmt.Sprintf("port %s has a bandwidth limit, which only the kernel's path keeps", name))
			}
			p.Slow = *want.Slow
		}
		if !reflect.DeepEqual(allowed, p.allowed()) {
			if err := op.ports.setAllowed(n, p, allowed); err != nil {
				return err
			}
		}
		if err := op.save(); err != nil {
			return err
		}
		return op.slow.sync() // which tells the datapath
	})
}

// slowPorts decides which ports take the kernel's path, whatever the programs could do.
type slowPorts struct{ op *operation }

// sync tells the datapath which ports are slow: those that asked for it, those with a
// queueing discipline or filters, which a redirect would bypass, and those without
// carrier.
func (sp slowPorts) sync() error {
	queues, err := sp.op.host.shaped()
	if err != nil {
		return err
	}
	members, err := sp.op.host.bridgePorts()
	if err != nil {
		return err
	}
	changed := false
	for _, name := range sp.op.st.networkNames() {
		n := sp.op.st.Networks[name]
		for _, p := range n.Ports {
			slow := p.Slow || queues[p.Index] || !members[p.Index].Carrier
			if slow == p.Slowed {
				continue
			}
			p.Slowed, changed = slow, true
			if err := sp.op.ports.tell(n, p); err != nil {
				return err
			}
		}
	}
	if !changed {
		return nil
	}
	return sp.op.save()
}

// why lists the reasons for which a port takes the kernel's path; empty: it does not.
func (sp slowPorts) why(p *port) ([]string, error) {
	why := []string{}
	switch {
	case p.Bandwidth != Bandwidth{}:
		why = append(why, "bandwidth")
	case p.Slow:
		why = append(why, "asked")
	}
	queues, err := sp.op.host.shaped()
	if err != nil {
		return nil, err
	}
	if queues[p.Index] && p.Bandwidth == (Bandwidth{}) {
		kinds, err := sp.op.conn.Queueing(p.Index)
		if err != nil {
			return nil, err
		}
		why = append(why, kinds...)
	}
	devices, err := sp.op.host.listing()
	if err != nil {
		return nil, err
	}
	if d, ok := devices[p.Index]; ok && !d.Carrier {
		why = append(why, "no carrier")
	}
	return why, nil
}

// notes name the devices beside the ports whose shapers or filters keep containers'
// packets on the kernel's path.
func (sp slowPorts) notes() (out []string) {
	queues, err := sp.op.host.shaped()
	if err != nil {
		return []string{err.Error()}
	}
	note := func(device, what string, kinds []string, err error) {
		if err != nil {
			out = append(out, fmt.Sprintf("%s: %v", device, err))
		} else if len(kinds) > 0 {
			out = append(out, fmt.Sprintf("%s has %s: %s take the kernel's path", device, strings.Join(kinds, ", "), what))
		}
	}
	for _, name := range sp.op.st.networkNames() {
		if n := sp.op.st.Networks[name]; queues[n.Index] {
			kinds, err := sp.op.conn.Queueing(n.Index)
			note("bridge "+n.Bridge, "packets of network "+name+" to and from elsewhere", kinds, err)
		}
	}
	for _, u := range sp.op.st.Uplinks {
		if queues[u.Index] {
			kinds, err := sp.op.conn.Sorting(u.Index)
			note("uplink "+u.Name, "containers' packets there", kinds, err)
		}
	}
	return out
}

// explain adds to views of ports why they are slow.
func (r *reading) explain(views []PortView) error {
	ports := map[string]*port{}
	for _, n := range r.op.st.Networks {
		for _, p := range n.Ports {
			ports[p.Port] = p
		}
	}
	var errs []error
	for i := range views {
		views[i].Slow = []string{}
		if p := ports[views[i].Port]; p != nil {
			why, err := r.op.slow.why(p)
			views[i].Slow = why
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Bandwidth limits what a port carries. Both limits are the kernel's queues on
// the host's side, out of the container's reach, which is why such a port takes
// the kernel's path: what is sent to the container waits on the host end of its
// pair; what the container sends waits, after the checks of the programs, on a
// device of its own (ifb), and comes back to the host end from there.
type Bandwidth struct {
	In  Limit `json:"in,omitzero"`  // to the container
	Out Limit `json:"out,omitzero"` // from the container
}

// Limit is a token bucket. The zero value is no limit.
type Limit struct {
	Rate  uint64 `json:"rate"`  // bit/s
	Burst uint64 `json:"burst"` // bits that may pass at once, above the rate
}

// defaultBurst is what passes at once if nobody says: so many milliseconds' worth.
const defaultBurst = 10

func (b Bandwidth) check() error {
	for _, l := range []Limit{b.In, b.Out} {
		switch {
		case l.Rate == 0 && l.Burst != 0:
			return tagged(ErrInvalid, fmt.Sprintf("bandwidth: a burst of %d bits needs a rate, too", l.Burst))
		case l.Rate > 0 && l.Rate < 1000:
			return tagged(ErrInvalid, fmt.Sprintf("bandwidth: a rate of %d bit/s: want at least 1000", l.Rate))
		}
	}
	return nil
}

// link is the limit in bytes.
func (l Limit) link() link.Limit {
	if l.Burst == 0 {
		l.Burst = l.Rate / 1000 * defaultBurst
	}
	return link.Limit{Rate: l.Rate / 8, Burst: l.Burst / 8}
}

// ifb is the name of the device where the container's packets wait.
func (p *port) ifb() string { return "ifb" + strings.TrimPrefix(p.Port, "veth") }

// bandwidths sets the limits of ports.
type bandwidths struct{ op *operation }

// set puts the limits on a port that is not up yet.
func (bw bandwidths) set(n *network, p *port) error {
	if in := p.Bandwidth.In; in.Rate != 0 {
		if err := bw.op.conn.Shape(p.Index, n.MTU, in.link()); err != nil {
			return fmt.Errorf("%s: %w", p.Port, err)
		}
	}
	if p.Bandwidth.Out.Rate == 0 {
		return nil
	}
	index, err := bw.op.conn.CreateIFB(p.ifb(), ownerMark(n.Name), n.MTU)
	if err != nil {
		return err
	}
	if err := hostconf.QuietIPv6(p.ifb()); err != nil {
		return err
	}
	if err := bw.op.conn.Shape(index, n.MTU, p.Bandwidth.Out.link()); err != nil {
		return fmt.Errorf("%s: %w", p.ifb(), err)
	}
	if err := bw.op.conn.SetUp(index, true); err != nil {
		return fmt.Errorf("raising %s: %w", p.ifb(), err)
	}
	if err := bw.op.conn.RedirectReceived(p.Index, index); err != nil {
		return fmt.Errorf("%s: %w", p.Port, err)
	}
	return nil
}

// remove removes the devices that do not go with the pairs.
func (bw bandwidths) remove(n *network, ports []*port) error {
	for _, p := range ports {
		if p.Bandwidth.Out.Rate == 0 {
			continue
		}
		d, err := bw.op.conn.ByName(p.ifb())
		if errors.Is(err, link.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		if !n.owns(p, d, "ifb") {
			continue
		}
		if err := bw.op.conn.Delete(d.Index); err != nil {
			return fmt.Errorf("deleting %s: %w", p.ifb(), err)
		}
	}
	return nil
}

// verify wants the limits as set made them.
func (bw bandwidths) verify(n *network, p *port) error {
	gone := func(what string, ok bool, err error) error {
		if err == nil && !ok {
			err = broken("the limit on what %s %s is gone", p.Name, what)
		}
		return err
	}
	if in := p.Bandwidth.In; in.Rate != 0 {
		ok, err := bw.op.conn.ShapedBy(p.Index, n.MTU, in.link())
		if err := gone("receives", ok, err); err != nil {
			return err
		}
	}
	out := p.Bandwidth.Out
	if out.Rate == 0 {
		return nil
	}
	d, err := bw.op.conn.ByName(p.ifb())
	if errors.Is(err, link.ErrNotFound) || err == nil && !d.Up {
		return gone("sends", false, nil)
	} else if err != nil {
		return err
	}
	ok, err := bw.op.conn.ShapedBy(d.Index, n.MTU, out.link())
	if err := gone("sends", ok, err); err != nil {
		return err
	}
	ok, err = bw.op.conn.RedirectsReceived(p.Index, d.Index)
	return gone("sends", ok, err)
}
