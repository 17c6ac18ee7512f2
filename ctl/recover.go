package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fastbr/fastbr/ctl/firewall"
	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// Reconcile makes the state sound and mends what other programs have changed
// since: accept rules, uplinks, sysctls, and which ports must take the kernel's
// path. It does nothing when nothing is up.
func (c *Controller) Reconcile(ctx context.Context) error {
	if _, err := os.Stat(c.instance.statePath()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return c.instance.mutateWith(ctx, mutation{thorough: true}, func(op *operation) error {
		if len(op.st.Networks) > 0 {
			op.firewall.warn()
		}
		return nil
	})
}

// repair finds what is not as it was made, and mends it.
type repair struct{ op *operation }

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
		if err := rep.op.programs.create(); err != nil {
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

// allThere reports whether every bridge and every port has a device, by the shortest
// listing: that of queues. It compares ifindexes alone, since the kernel does not soon
// give one to another device. An endpoint needs a closer look.
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
				errs = append(errs, rep.op.ports.detach(n, p))
				continue
			}
			for _, pub := range slices.Clone(p.Publications) {
				if pub.Pending {
					errs = append(errs, rep.op.publications.remove(p, pub))
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
		abandoned, err := rep.op.endpoints.abandoned(p, names)
		if err != nil {
			return err
		}
		if !ok || e.Name != p.Port || e.Alias != ownerMark(n.Name) || abandoned {
			vanished = append(vanished, p)
		}
	}
	return rep.op.ports.detachAll(n, vanished)
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
func (rep repair) reattach(n *network, p *port) error { return rebuild(rep.op.ports.steps(n, nil, p)) }

// settle looks at what a salvaged state calls unfinished. It may have been finished
// since: what the kernel and the datapath have in full counts as done.
func (rep repair) settle() {
	if rep.op.dp == nil {
		return
	}
	for _, n := range rep.op.st.Networks {
		if d, err := rep.op.conn.ByName(n.Bridge); n.Pending && err == nil && d.Alias == ownerMark(n.Name) && d.Up {
			n.Index, n.Pending, n.Defining = d.Index, false, false
		}
		for _, p := range n.Ports {
			d, err := rep.op.conn.ByName(p.Port)
			if at, errAt := rep.op.dp.PortAt(p.IP); p.Pending && errors.Join(err, errAt) == nil && at == d.Index && d.Master == n.Index && d.Up {
				p.Index, p.Pending = d.Index, false
			}
			for _, pub := range p.Publications {
				if pub.Pending && !slices.ContainsFunc(p.toDatapath([]*publication{pub}), func(to datapath.Publication) bool { return rep.op.dp.VerifyPublication(to) != nil }) {
					pub.Pending = false
				}
			}
		}
	}
}

// removeStray removes pins without a state: what is left when somebody deleted
// the state directory while things were up. The devices are known by their
// marks, and only by the pins we know that the marks are this instance's.
func (rep repair) removeStray() error {
	if _, err := os.Stat(rep.op.pins); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	entries, err := rep.op.conn.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Alias, ownerMark("")) || e.Kind != "veth" && e.Kind != "bridge" && e.Kind != "ifb" {
			continue
		}
		rep.op.say("removing %s, left from a network whose state is lost", e.Name)
		errs = append(errs, link.RemovePathsFrom(rep.op.conn, e.Name), rep.op.conn.Delete(e.Index), firewall.Remove(firewall.Network{Mark: e.Alias, Bridge: firewall.Device{Name: e.Name}}))
	}
	return errors.Join(append(errs, rep.op.others.removeTables(), rep.restoreUnrecorded(), rep.op.programs.remove())...)
}

// restoreUnrecorded takes back what can be told of the host's settings without a
// record of what they were, and says what stays.
func (rep repair) restoreUnrecorded() error {
	if rep.op.dp != nil {
		cfg, err := rep.op.dp.Config()
		if err != nil {
			return fmt.Errorf("reading the datapath's configuration: %w", err)
		}
		have, err := hostconf.ReservedNow()
		if err != nil {
			return err
		}
		if list := have.Minus(hostconf.PortRange(cfg.NATFirst, cfg.NATLast)); list != have {
			if err := hostconf.Write(hostconf.Reserved, list.String()); err != nil {
				return err
			}
		}
	}
	var stay []string
	paths := []string{hostconf.IPForward, hostconf.Liberal}
	if router, err := hostconf.Read(hostconf.IPForward); err == nil && router != "1" {
		devices, _ := filepath.Glob(hostconf.IPv4.Forwarding("*"))
		paths = append(devices, hostconf.Liberal)
	}
	for _, path := range paths {
		if v, err := hostconf.Read(path); err == nil && v == "1" {
			stay = append(stay, hostconf.Name(path)+"=1")
		}
	}
	if v, err := hostconf.ReservedNow(); err == nil && v != (hostconf.PortSet{}) {
		stay = append(stay, hostconf.Name(hostconf.Reserved)+"="+v.String())
	}
	if len(stay) > 0 {
		rep.op.say("what these were before 'fastbr up' is not known, so they stay: %s", strings.Join(stay, ", "))
	}
	return nil
}
