package ctl

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// departures are endpoints that an engine wants deleted. The first to ask takes
// the lock and deletes what others have asked for meanwhile, too: the kernel waits
// for its readers once for any number of devices, not once for each, and an engine
// that stops many containers asks for all of them at the same time.
type departures struct {
	mu      sync.Mutex
	waiting []*departure
}

type departure struct {
	network, name string
	done          chan error // has room for one
}

// join adds one and reports whether it is the first since take.
func (d *departures) join(x *departure) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = append(d.waiting, x)
	return len(d.waiting) == 1
}

func (d *departures) take() []*departure {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.waiting
	d.waiting = nil
	return all
}

// EndpointDelete removes an endpoint, wherever its container end is. One that is
// gone is no error.
func (c *Controller) EndpointDelete(ctx context.Context, networkName, name string) error {
	x := &departure{networkName, name, make(chan error, 1)}
	if c.departures.join(x) {
		c.seeOff(context.WithoutCancel(ctx)) // the others did not ask to be given up with this one
	}
	select {
	case err := <-x.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// seeOff deletes all that wait for it, and tells them.
func (c *Controller) seeOff(ctx context.Context) {
	var all []*departure
	err := c.mutate(ctx, func(op *operation) error {
		all = c.departures.take()
		return op.deleteEndpoints(all)
	})
	if all == nil {
		all = c.departures.take() // they, too, would have met what kept us from it
	}
	for _, x := range all {
		x.done <- err
	}
}

func (op *operation) deleteEndpoints(all []*departure) error {
	leaving := map[*network][]*port{}
	for _, x := range all {
		n, p, err := op.portNamed(x.network, x.name)
		if errors.Is(err, ErrNotUp) || errors.Is(err, ErrNoNetwork) || errors.Is(err, ErrNoPort) {
			continue // gone
		} else if err != nil {
			return err
		}
		if !slices.Contains(leaving[n], p) {
			leaving[n] = append(leaving[n], p)
		}
	}
	if len(leaving) == 0 {
		return nil
	}
	var errs []error
	for n, ports := range leaving {
		errs = append(errs, op.detachPorts(n, ports))
	}
	return errors.Join(errs...)
}
