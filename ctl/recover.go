package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/fastbr/fastbr/ctl/link"
)

// Reconcile makes the state sound and mends what other programs have changed
// since: accept rules, uplinks, sysctls, and which ports must take the kernel's
// path. It does nothing when nothing is up.
func (c *Controller) Reconcile(ctx context.Context) error {
	if _, err := os.Stat(c.statePath()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return c.mutateWith(ctx, mutation{thorough: true}, func(op *operation) error {
		if len(op.st.Networks) > 0 {
			op.warnOfFilter()
		}
		return nil
	})
}

// syncSlow tells the datapath which ports a redirect would do wrong by: those
// with a qdisc or filters, and those without carrier.
func (rep repair) syncSlow() error {
	queues, err := rep.op.host.shaped()
	if err != nil {
		return err
	}
	members, err := rep.op.host.bridgePorts()
	if err != nil {
		return err
	}
	changed := false
	for _, name := range rep.op.st.networkNames() {
		n := rep.op.st.Networks[name]
		for _, p := range n.Ports {
			slow := p.Slow || queues[p.Index] || !members[p.Index].Carrier
			if slow == p.Slowed {
				continue
			}
			p.Slowed, changed = slow, true
			if err := rep.op.portPrograms(n, p); err != nil {
				return err
			}
		}
	}
	if !changed {
		return nil
	}
	return rep.op.save()
}

// recover brings the instance to a sound state: what a killed command left is
// undone, what has vanished from the kernel is forgotten or made again. thorough
// is to list all devices even if none seems to be missing.
func (rep repair) recover(thorough bool) error {
	if err := rep.finishPending(); err != nil {
		return err
	}
	if len(rep.op.st.Networks) == 0 || rep.op.stale != nil {
		return nil
	}
	lost := rep.op.dp == nil
	if !lost && !thorough {
		if there, err := rep.allThere(); err != nil || there {
			return err
		}
	}
	devices, err := rep.op.host.listing()
	if err != nil {
		return err
	}
	if lost {
		rep.op.say("the pinned datapath is gone: loading it again")
		if err := rep.op.createDatapath(); err != nil {
			return err
		}
	}
	for _, name := range rep.op.st.networkNames() {
		n := rep.op.st.Networks[name]
		if err := rep.dropVanished(n, devices); err != nil {
			return err
		}
		if lost || devices[n.Index].Name != n.Bridge {
			rep.op.host.forget()
			if err := rep.rebuildNetwork(n, devices[n.Index].Name == n.Bridge); err != nil {
				return err
			}
		}
	}
	if lost {
		return rep.op.uplinks.reattach()
	}
	return nil
}

// allThere says whether every bridge and every port has a device, in the
// shortest way: their indexes, which the kernel gives to no other so soon, are
// among those with a queue. An endpoint needs a closer look.
func (rep repair) allThere() (bool, error) {
	queues, err := rep.op.host.shaped()
	if err != nil {
		return false, err
	}
	for _, n := range rep.op.st.Networks {
		if _, ok := queues[n.Index]; !ok {
			return false, nil
		}
		for _, p := range n.Ports {
			if _, ok := queues[p.Index]; !ok || p.Peer != "" {
				return false, nil
			}
		}
	}
	return true, nil
}

// finishPending undoes networks and ports that are between two states.
func (rep repair) finishPending() error {
	var errs []error
	for _, name := range rep.op.st.networkNames() {
		n := rep.op.st.Networks[name]
		if n.Pending {
			errs = append(errs, rep.op.networks.down(n))
			continue
		}
		for _, p := range n.Ports {
			if p.Pending {
				errs = append(errs, rep.op.detachPort(n, p))
				continue
			}
			for _, pub := range slices.Clone(p.Publications) {
				if pub.Pending {
					errs = append(errs, rep.op.unpublish(p, pub))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// dropVanished forgets ports whose device went with the container's namespace,
// and endpoints that their engine gave back and then forgot.
func (rep repair) dropVanished(n *network, devices map[int]link.Entry) error {
	var (
		vanished []*port
		names    map[string]bool
	)
	for _, p := range n.sortedPorts() {
		if p.Peer != "" && names == nil {
			names = namesOf(devices)
		}
		e, ok := devices[p.Index]
		abandoned, err := rep.op.abandoned(p, names)
		if err != nil {
			return err
		}
		if !ok || e.Name != p.Port || e.Alias != ownerMark(n.Name) || abandoned {
			vanished = append(vanished, p)
		}
	}
	return rep.op.detachPorts(n, vanished)
}

func namesOf(devices map[int]link.Entry) map[string]bool {
	names := make(map[string]bool, len(devices))
	for _, e := range devices {
		names[e.Name] = true
	}
	return names
}

// rebuildNetwork makes a network again whose bridge or pins somebody removed.
func (rep repair) rebuildNetwork(n *network, bridgeThere bool) error {
	if !bridgeThere {
		rep.op.say("bridge %s is gone: making it again", n.Bridge)
		if err := rep.op.networks.untell(n); err != nil {
			return err
		}
		n.Index = 0
	}
	err := rebuild(rep.op.networks.steps(n, nil))
	for _, p := range n.sortedPorts() {
		if err == nil {
			err = rep.reattach(n, p)
		}
	}
	if err != nil {
		return fmt.Errorf("rebuilding network %s: %w", n.Name, err)
	}
	return nil
}

// reattach gives a port whose device still exists its bridge and programs back.
func (rep repair) reattach(n *network, p *port) error { return rebuild(rep.op.portSteps(n, nil, p)) }

func (us uplinks) reattach() error {
	for _, u := range us.op.st.Uplinks {
		if d, err := us.op.host.device(u.Index); err != nil || d.Name != u.Name {
			continue // refresh finds what took its place
		}
		if err := us.attach(u); err != nil {
			return err
		}
	}
	return nil
}
