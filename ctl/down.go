package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fastbr/fastbr/ctl/firewall"
	"github.com/fastbr/fastbr/ctl/hostconf"
)

// Down undoes `up` of one network and detaches its ports. A network that is not
// up is no error. Reports whether it was.
func (c *Controller) Down(ctx context.Context, name string) (was bool, err error) {
	if err := checkNetworkName(name); err != nil {
		return false, err
	}
	err = c.mutateWith(ctx, mutation{looks: looksLast}, func(op *operation) error {
		n := op.st.Networks[name]
		if n == nil {
			return nil
		}
		was = true
		return op.networks.down(n)
	})
	return was, err
}

// DownAll undoes every network, and the datapath whatever build pinned it.
// Returns the names of those that were up.
func (c *Controller) DownAll(ctx context.Context) (names []string, err error) {
	err = c.mutateWith(ctx, mutation{evenStale: true, looks: looksLast}, func(op *operation) error {
		names = op.st.networkNames()
		op.st.Settings.Kept = false
		var errs []error
		for _, name := range names {
			errs = append(errs, op.networks.down(op.st.Networks[name]))
		}
		if len(names) == 0 {
			errs = append(errs, op.removeStray())
		}
		return errors.Join(errs...)
	})
	return names, err
}

// NetworkRemove takes a network down and deletes its definition. The error
// wraps ErrInUse while it has ports, ErrNoNetwork if there is none.
func (c *Controller) NetworkRemove(ctx context.Context, name string) error {
	if err := checkNetworkName(name); err != nil {
		return err
	}
	return c.mutateWith(ctx, mutation{evenLost: true, looks: looksLast}, func(op *operation) error { return op.networks.remove(name) })
}

func (nets networks) remove(name string) error {
	n := nets.op.st.Networks[name]
	def, err := nets.op.defs.get(name)
	damaged := errors.Is(err, errDamaged)
	if err != nil && !damaged {
		return err
	}
	switch {
	case n == nil && def == nil && !damaged:
		return tagged(ErrNoNetwork, "no network "+name)
	case n != nil && len(n.Ports) > 0:
		return tagged(ErrInUse, fmt.Sprintf("network %s has %d port(s): detach them first", name, len(n.Ports)))
	case n != nil:
		if err := nets.down(n); err != nil {
			return err
		}
	}
	return nets.op.defs.remove(name)
}

// down undoes the steps of `up`. Killed in between, the next command
// finds the network pending and goes on.
func (nets networks) down(n *network) error {
	n.Pending = true
	if err := nets.op.save(); err != nil {
		return err
	}
	if err := nets.op.detachPorts(n, n.sortedPorts()); err != nil {
		return err
	}
	return nets.op.runner.undo(nets.steps(n, nil))
}

// removeStray removes pins without a state: what is left when somebody deleted
// the state directory while things were up. The devices are known by their
// marks, and only by the pins we know that the marks are this instance's.
func (op *operation) removeStray() error {
	if _, err := os.Stat(op.pins); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	entries, err := op.conn.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Alias, ownerMark("")) || e.Kind != "veth" && e.Kind != "bridge" && e.Kind != "ifb" {
			continue
		}
		op.say("removing %s, left from a network whose state is lost", e.Name)
		errs = append(errs, op.conn.Delete(e.Index), firewall.Remove(firewall.Network{Mark: e.Alias, Bridge: firewall.Device{Name: e.Name}}))
	}
	return errors.Join(append(errs, op.restoreUnrecorded(), op.removeDatapath())...)
}

// restoreUnrecorded takes back what can be told of the host's settings without a
// record of what they were, and says what stays.
func (op *operation) restoreUnrecorded() error {
	if op.dp != nil {
		cfg, err := op.dp.Config()
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
		devices, _ := filepath.Glob(hostconf.Forwarding("*"))
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
		op.say("what these were before 'fastbr up' is not known, so they stay: %s", strings.Join(stay, ", "))
	}
	return nil
}
