package ctl

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
)

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
			return tagged(ErrInvalid, fmt.Sprintf("bandwidth: a rate of %d bit/s: at least 1000 are wanted", l.Rate))
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

// shapePort puts the limits on a port that is not up yet.
func (op *operation) shapePort(n *network, p *port) error {
	if in := p.Bandwidth.In; in.Rate != 0 {
		if err := op.conn.Shape(p.Index, n.MTU, in.link()); err != nil {
			return fmt.Errorf("%s: %w", p.Port, err)
		}
	}
	if p.Bandwidth.Out.Rate == 0 {
		return nil
	}
	index, err := op.conn.CreateIFB(p.ifb(), ownerMark(n.Name), n.MTU)
	if err != nil {
		return err
	}
	if err := hostconf.QuietIPv6(p.ifb()); err != nil {
		return err
	}
	if err := op.conn.Shape(index, n.MTU, p.Bandwidth.Out.link()); err != nil {
		return fmt.Errorf("%s: %w", p.ifb(), err)
	}
	if err := op.conn.SetUp(index, true); err != nil {
		return fmt.Errorf("raising %s: %w", p.ifb(), err)
	}
	if err := op.conn.RedirectReceived(p.Index, index); err != nil {
		return fmt.Errorf("%s: %w", p.Port, err)
	}
	return nil
}

// unshapePorts removes what does not go with the pairs.
func (op *operation) unshapePorts(n *network, ports []*port) error {
	for _, p := range ports {
		if p.Bandwidth.Out.Rate == 0 {
			continue
		}
		d, err := op.conn.ByName(p.ifb())
		if errors.Is(err, link.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		if !n.owns(p, d, "ifb") {
			continue
		}
		if err := op.conn.Delete(d.Index); err != nil {
			return fmt.Errorf("deleting %s: %w", p.ifb(), err)
		}
	}
	return nil
}

// verifyShape wants the limits as shapePort made them.
func (op *operation) verifyShape(n *network, p *port) error {
	gone := func(what string, ok bool, err error) error {
		if err == nil && !ok {
			err = broken("the limit on what %s %s is gone", p.Name, what)
		}
		return err
	}
	if in := p.Bandwidth.In; in.Rate != 0 {
		ok, err := op.conn.ShapedBy(p.Index, n.MTU, in.link())
		if err := gone("receives", ok, err); err != nil {
			return err
		}
	}
	out := p.Bandwidth.Out
	if out.Rate == 0 {
		return nil
	}
	d, err := op.conn.ByName(p.ifb())
	if errors.Is(err, link.ErrNotFound) || err == nil && !d.Up {
		return gone("sends", false, nil)
	} else if err != nil {
		return err
	}
	ok, err := op.conn.ShapedBy(d.Index, n.MTU, out.link())
	if err := gone("sends", ok, err); err != nil {
		return err
	}
	ok, err = op.conn.RedirectsReceived(p.Index, d.Index)
	return gone("sends", ok, err)
}
