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
	return c.mutateWith(ctx, mutation{thorough: true}, func(s *session) error {
		if len(s.st.Networks) > 0 {
			s.warnOfFilter()
		}
		return nil
	})
}

// syncSlow tells the datapath which ports a redirect would do wrong by: those
// with a qdisc or filters, and those without carrier.
func (s *session) syncSlow() error {
	queues, err := s.hostQueues()
	if err != nil {
		return err
	}
	members, err := s.bridgePorts()
	if err != nil {
		return err
	}
	changed := false
	for _, name := range s.st.networkNames() {
		n := s.st.Networks[name]
		for _, p := range n.Ports {
			slow := p.Slow || queues[p.Index] || !members[p.Index].Carrier
			if slow == p.Slowed {
				continue
			}
			p.Slowed, changed = slow, true
			if err := s.portPrograms(n, p); err != nil {
				return err
			}
		}
	}
	if !changed {
		return nil
	}
	return s.save()
}

// hostQueues are the devices of the host and whether they are shaped, as when
// they were first asked for in this operation.
func (s *session) hostQueues() (map[int]bool, error) {
	var err error
	if s.queues == nil {
		s.queues, err = s.conn.Queues()
	}
	return s.queues, err
}

// hostDevices lists all devices, once in an operation.
func (s *session) hostDevices() (map[int]link.Entry, error) {
	if s.devices != nil {
		return s.devices, nil
	}
	entries, err := s.conn.List()
	if err != nil {
		return nil, err
	}
	s.devices = make(map[int]link.Entry, len(entries))
	for _, e := range entries {
		s.devices[e.Index] = e
	}
	return s.devices, nil
}

// recover brings the instance to a sound state: what a killed command left is
// undone, what has vanished from the kernel is forgotten or made again. thorough
// is to list all devices even if none seems to be missing.
func (s *session) recover(thorough bool) error {
	if err := s.finishPending(); err != nil {
		return err
	}
	if len(s.st.Networks) == 0 || s.stale != nil {
		return nil
	}
	lost := s.dp == nil
	if !lost && !thorough {
		if there, err := s.allThere(); err != nil || there {
			return err
		}
	}
	devices, err := s.hostDevices()
	if err != nil {
		return err
	}
	if lost {
		s.say("the pinned datapath is gone: loading it again")
		if err := s.createDatapath(); err != nil {
			return err
		}
	}
	for _, name := range s.st.networkNames() {
		n := s.st.Networks[name]
		if err := s.dropVanished(n, devices); err != nil {
			return err
		}
		if lost || devices[n.Index].Name != n.Bridge {
			if err := s.rebuild(n, devices[n.Index].Name == n.Bridge); err != nil {
				return err
			}
		}
	}
	if lost {
		return s.reattachUplinks()
	}
	return nil
}

// allThere says whether every bridge and every port has a device, in the
// shortest way: their indexes, which the kernel gives to no other so soon, are
// among those with a queue. An endpoint needs a closer look.
func (s *session) allThere() (bool, error) {
	queues, err := s.hostQueues()
	if err != nil {
		return false, err
	}
	for _, n := range s.st.Networks {
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
func (s *session) finishPending() error {
	var errs []error
	for _, name := range s.st.networkNames() {
		n := s.st.Networks[name]
		if n.Pending {
			errs = append(errs, s.downNetwork(n))
			continue
		}
		for _, p := range n.Ports {
			if p.Pending {
				errs = append(errs, s.detachPort(n, p))
				continue
			}
			for _, pub := range slices.Clone(p.Publications) {
				if pub.Pending {
					errs = append(errs, s.unpublish(p, pub))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// dropVanished forgets ports whose device went with the container's namespace,
// and endpoints that their engine gave back and then forgot.
func (s *session) dropVanished(n *network, devices map[int]link.Entry) error {
	var (
		vanished []*port
		names    map[string]bool
	)
	for _, p := range n.sortedPorts() {
		if p.Peer != "" && names == nil {
			names = namesOf(devices)
		}
		e, ok := devices[p.Index]
		abandoned, err := s.abandoned(p, names)
		if err != nil {
			return err
		}
		if !ok || e.Name != p.Port || e.Alias != ownerMark(n.Name) || abandoned {
			vanished = append(vanished, p)
		}
	}
	return s.detachPorts(n, vanished)
}

func namesOf(devices map[int]link.Entry) map[string]bool {
	names := make(map[string]bool, len(devices))
	for _, e := range devices {
		names[e.Name] = true
	}
	return names
}

// rebuild makes a network again whose bridge or pins somebody removed.
func (s *session) rebuild(n *network, bridgeThere bool) error {
	if !bridgeThere {
		s.say("bridge %s is gone: making it again", n.Bridge)
		if err := s.unsetNetwork(n); err != nil {
			return err
		}
	}
	for _, st := range s.networkSteps(n, nil) {
		switch st.name {
		case "record", "sysctls", "datapath", "uplinks", "xdp", "big-tcp", "forward", "done":
			continue
		case "bridge":
			if bridgeThere {
				continue
			}
		}
		if err := st.do(); err != nil {
			return fmt.Errorf("rebuilding network %s: %w", n.Name, err)
		}
	}
	for _, p := range n.sortedPorts() {
		if err := s.reattach(n, p); err != nil {
			return fmt.Errorf("rebuilding network %s: %w", n.Name, err)
		}
	}
	return nil
}

// reattach gives a port whose device still exists its bridge and programs back.
func (s *session) reattach(n *network, p *port) error {
	if err := s.portPrograms(n, p); err != nil {
		return err
	}
	if err := s.setPublications(p, p.Publications); err != nil {
		return err
	}
	if err := s.joinBridge(n, p); err != nil {
		return err
	}
	return s.conn.SetUp(p.Index, true)
}

func (s *session) reattachUplinks() error {
	for _, u := range s.st.Uplinks {
		if d, err := s.conn.ByIndex(u.Index); err != nil || d.Name != u.Name {
			continue // refresh finds what took its place
		}
		if err := s.attachUplink(u); err != nil {
			return err
		}
	}
	return nil
}
