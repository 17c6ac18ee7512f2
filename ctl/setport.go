package ctl

import (
	"context"
	"errors"
	"fmt"
)

// PortSettings are what can be changed of a port while it is attached; nil: as it is.
type PortSettings struct {
	Slow *bool // always the kernel's path
}

// SetPort changes a port, named by its name or its device; networkName "" is
// whichever it is in. The error wraps ErrNoPort, ErrNotUp, ErrNoNetwork or ErrInvalid.
func (c *Controller) SetPort(ctx context.Context, networkName, name string, want PortSettings) error {
	return c.mutate(ctx, func(op *operation) error {
		p, err := op.onePort(networkName, name)
		if err != nil {
			return err
		}
		if want.Slow != nil {
			if !*want.Slow && p.Bandwidth != (Bandwidth{}) {
				return tagged(ErrInvalid, fmt.Sprintf("port %s has a bandwidth limit, which only the kernel's path keeps", name))
			}
			p.Slow = *want.Slow
		}
		if err := op.save(); err != nil {
			return err
		}
		return op.repair.syncSlow() // which tells the datapath
	})
}

// onePort finds the only port of that name, or with that device.
func (op *operation) onePort(networkName, name string) (p *port, err error) {
	if err := op.needNetwork(); err != nil {
		return nil, err
	}
	if networkName != "" {
		if _, err := op.upNetwork(networkName); err != nil {
			return nil, err
		}
	}
	for _, in := range op.st.Networks {
		for _, q := range in.Ports {
			if networkName != "" && in.Name != networkName || q.Name != name && q.Port != name {
				continue
			}
			if p != nil {
				return nil, tagged(ErrInvalid, fmt.Sprintf("several networks have a port %s: say which with --network", name))
			}
			p = q
		}
	}
	if p == nil {
		return nil, tagged(ErrNoPort, fmt.Sprintf("no port %s", name))
	}
	return p, nil
}

// whySlow says for each reason why a port takes the kernel's path; empty: it does not.
func (op *operation) whySlow(p *port) ([]string, error) {
	why := []string{}
	switch {
	case p.Bandwidth != Bandwidth{}:
		why = append(why, "bandwidth")
	case p.Slow:
		why = append(why, "asked")
	}
	queues, err := op.host.shaped()
	if err != nil {
		return nil, err
	}
	if queues[p.Index] && p.Bandwidth == (Bandwidth{}) {
		kinds, err := op.conn.Queueing(p.Index)
		if err != nil {
			return nil, err
		}
		why = append(why, kinds...)
	}
	devices, err := op.host.listing()
	if err != nil {
		return nil, err
	}
	if d, ok := devices[p.Index]; ok && !d.Carrier {
		why = append(why, "no carrier")
	}
	return why, nil
}

// explain adds to views of ports why they are slow.
func (r *reading) explain(views []PortView) error {
	ports := map[string]*port{}
	for _, n := range r.st.Networks {
		for _, p := range n.Ports {
			ports[p.Port] = p
		}
	}
	var errs []error
	for i := range views {
		views[i].Slow = []string{}
		if p := ports[views[i].Port]; p != nil {
			why, err := r.whySlow(p)
			views[i].Slow = why
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
