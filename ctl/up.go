package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
)

// networks brings networks up, takes them down, and finds them.
type networks struct{ op *operation }

// Up brings a network up, the instance with the first one. Up of what is up
// already changes only what can be changed live, and reports created false.
// The error wraps ErrInvalid, ErrUnfit, ErrExists or ErrNoNetwork.
func (c *Controller) Up(ctx context.Context, name string, nr NetworkRequest, ir InstanceRequest) (view NetworkView, created bool, err error) {
	return c.raise(ctx, name, nr, ir, false)
}

// NetworkCreate defines a network and brings it up. The error wraps ErrExists
// if there is one of that name.
func (c *Controller) NetworkCreate(ctx context.Context, name string, nr NetworkRequest) (NetworkView, error) {
	view, _, err := c.raise(ctx, name, nr, InstanceRequest{}, true)
	return view, err
}

func (c *Controller) raise(ctx context.Context, name string, nr NetworkRequest, ir InstanceRequest, durable bool) (view NetworkView, created bool, err error) {
	if err := errors.Join(checkNetworkName(name), nr.check(), ir.check()); err != nil {
		return view, false, firstLine(err)
	}
	err = c.instance.mutateWith(ctx, mutation{thorough: true, looks: looksItself}, func(op *operation) error {
		n := op.st.Networks[name]
		def, err := op.networks.definition(name)
		if durable && n == nil && errors.Is(err, errDamaged) {
			err = op.networks.discardDefinition(name, err)
		}
		if err != nil {
			return err
		}
		switch {
		case durable && (n != nil || def != nil):
			return tagged(ErrExists, fmt.Sprintf("network %s exists already", name))
		case n != nil:
			err = op.networks.upAgain(n, nr, ir)
		default:
			created = true
			n, err = op.networks.raise(name, def, nr, ir, durable)
		}
		if err != nil {
			return err
		}
		op.firewall.warn()
		view, err = op.networks.view(n)
		return err
	})
	return view, created, err
}

// upAgain applies what an `up` of a network that is up may change.
func (nets networks) upAgain(n *network, nr NetworkRequest, ir InstanceRequest) error {
	if d := n.differences(nr); len(d) > 0 {
		return tagged(ErrExists, fmt.Sprintf("network %s is up with other settings: %s: run 'fastbr down %s' first",
			n.Name, strings.Join(d, ", "), n.Name))
	}
	if err := nets.op.applyInstance(ir); err != nil {
		return err
	}
	if err := nets.op.programs.upgrade(); err != nil {
		return err
	}
	return nets.op.refresh(false)
}

func (nets networks) raise(name string, def *Definition, nr NetworkRequest, ir InstanceRequest, durable bool) (*network, error) {
	first := len(nets.op.st.Networks) == 0
	if first {
		if err := nets.op.checks.fit(); err != nil {
			return nil, err
		}
		nets.op.st.Settings = firstSettings(nets.op.st.Settings, ir)
	} else if err := errors.Join(nets.op.applyInstance(ir), nets.op.refresh(true)); err != nil {
		return nil, err
	}
	n, err := nets.resolve(name, def, nr)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(nets.op.vias.check(n.Via, nets.op.st.Settings.Uplinks), nets.op.vias.choose(n)); err != nil {
		return nil, err
	}
	uplinks, notes, err := nets.op.uplinks.wanted(nets.op.st.Settings.Uplinks, n)
	if err != nil {
		return nil, err
	}
	if def == nil {
		if err := nets.op.stands.fits(n, uplinks); err != nil {
			return nil, err
		}
	}
	if !n.Internal {
		for _, note := range notes {
			nets.op.say("%s", note)
		}
	}
	nets.op.checks.warnBridgeCalls(n.hasIPv6())
	n.Defining = durable
	if n.MTU = n.Definition.MTU; n.MTU == 0 {
		n.MTU = nets.op.uplinks.mtu(uplinks, n.Via)
	}
	if err := n.fitsIPv6(); err != nil {
		return nil, err
	}
	if err := nets.op.runner.run(nets.op.ctx, nets.steps(n, uplinks)); err != nil {
		return n, err
	}
	for _, note := range nets.op.vias.notes(n) {
		nets.op.say("%s", note)
	}
	return n, nil
}

// fitsIPv6 says why a network cannot have the IPv6 that it should.
func (n *network) fitsIPv6() error {
	switch {
	case !n.hasIPv6():
		return nil
	case !hostconf.HasIPv6():
		return tagged(ErrUnfit, fmt.Sprintf("network %s is to have IPv6, which this kernel does not have: give --ipv6=false", n.Name))
	case n.MTU < minMTU6:
		return tagged(ErrInvalid, fmt.Sprintf("network %s has MTU %d, the uplink's, and IPv6 needs at least %d: give --mtu", n.Name, n.MTU, minMTU6))
	}
	return nil
}

// resolve makes the network to bring up from its definition or the request,
// checked against the host as it is.
func (nets networks) resolve(name string, def *Definition, nr NetworkRequest) (*network, error) {
	if def != nil {
		if d := def.differences(nr); len(d) > 0 {
			return nil, tagged(ErrExists, fmt.Sprintf("network %s is defined with other settings: %s: run 'fastbr network rm %s' first",
				name, strings.Join(d, ", "), name))
		}
		nr.Bridge = def.Bridge
	}
	// Before the addresses: a bridge that is there mostly has the same.
	if nr.Bridge != "" {
		if err := nets.bridgeFree(name, nr.Bridge); err != nil {
			return nil, err
		}
	}
	used, err := nets.usedAddrs(name)
	if err != nil {
		return nil, err
	}
	if def != nil {
		for _, subnet := range def.subnets() {
			if err := def.conflict(subnet, used); err != nil {
				return nil, fmt.Errorf("subnet %s of network %s %w", subnet, name, err)
			}
		}
	} else {
		made, note, err := define(name, nr, used)
		if err != nil {
			return nil, err
		}
		if note != "" {
			nets.op.say("%s", note)
		}
		def = &made
	}
	if err := nets.bridgeFree(name, def.Bridge); err != nil {
		return nil, err
	}
	if missing, err := nets.op.missesAddress(*def); err != nil {
		return nil, err
	} else if missing != "" {
		return nil, tagged(ErrInvalid, missing)
	}
	return &network{Definition: *def, Ports: map[string]*port{}}, nil
}

// missesAddress says that a network's source address is none of the host's, "" if it is.
func (op *operation) missesAddress(d Definition) (string, error) {
	for _, a := range []netip.Addr{d.SNATAddress, d.SNATAddress6} {
		if !a.IsValid() {
			continue
		}
		addrs, err := op.host.allAddrs(link.FamilyOf(a))
		if err != nil {
			return "", err
		}
		if !slices.Contains(addrs, a) {
			return fmt.Sprintf("the source address %s of network %s is no address of this host: add it to a device", a, d.Name), nil
		}
	}
	return "", nil
}

// bridgeFree says whether a new network may have a device of that name.
func (nets networks) bridgeFree(network, bridge string) error {
	d, err := nets.op.conn.ByName(bridge)
	switch {
	case errors.Is(err, link.ErrNotFound):
		return nil
	case err != nil:
		return err
	case d.Alias == ownerMark(network):
		return tagged(ErrExists, fmt.Sprintf("device %s is left from a network whose state is lost: run 'fastbr down --all' first", d.Name))
	}
	if other, ours := strings.CutPrefix(d.Alias, ownerMark("")); ours {
		return tagged(ErrExists, fmt.Sprintf("device %s is the bridge of network %s: choose another name with --bridge", d.Name, other))
	}
	return tagged(ErrExists, fmt.Sprintf("device %s exists and is not fastbr's network %s: choose another name with --bridge, or remove it",
		d.Name, network))
}

// find finds a network that is up. The error wraps ErrNotUp or ErrNoNetwork.
func (nets networks) find(name string) (*network, error) {
	if n := nets.op.st.Networks[name]; n != nil && !n.Pending {
		return n, nil
	}
	def, err := nets.definition(name)
	if err != nil {
		return nil, err
	}
	if def != nil || name == DefaultNetwork {
		command := "fastbr up"
		if name != DefaultNetwork {
			command += " " + name
		}
		return nil, tagged(ErrNotUp, fmt.Sprintf("network %s is not up: run '%s' first", name, command))
	}
	return nil, tagged(ErrNoNetwork, "no network "+name)
}

// asExpected is the request's network if it is up and as the request expects; with
// ErrDiffers it is not. made is false.
func (nets networks) asExpected(r AttachRequest) (n *network, made bool, err error) {
	if n, err = nets.find(r.Network); err != nil {
		return nil, false, err
	}
	if d := n.differences(r.Expect); len(d) > 0 {
		err = tagged(ErrDiffers, fmt.Sprintf("network %s is up with other settings: %s: run 'fastbr down %s' first",
			n.Name, strings.Join(d, ", "), n.Name))
	}
	return n, false, err
}

// raiseDescribed brings a network up that is not, from its definition or as nr describes it.
func (nets networks) raiseDescribed(name string, nr NetworkRequest) (*network, error) {
	def, err := nets.definition(name)
	if err != nil {
		return nil, err
	}
	n, err := nets.raise(name, def, nr, InstanceRequest{}, false)
	if err == nil {
		nets.op.firewall.warn()
	}
	return n, err
}

// raiseDefined is a network that is up, brought up if it is only defined.
func (nets networks) raiseDefined(name string) (*network, error) {
	n, err := nets.find(name)
	if !errors.Is(err, ErrNotUp) {
		return n, err
	}
	if def, defErr := nets.definition(name); defErr != nil || def == nil {
		return nil, cmp.Or(defErr, err)
	}
	return nets.raiseDescribed(name, NetworkRequest{})
}

// Down undoes `up` of one network and detaches its ports. A network that is not
// up is no error. Reports whether it was.
func (c *Controller) Down(ctx context.Context, name string) (was bool, err error) {
	if err := checkNetworkName(name); err != nil {
		return false, err
	}
	err = c.instance.mutateWith(ctx, mutation{looks: looksLast}, func(op *operation) error {
		if n := op.st.Networks[name]; n != nil {
			was = true
			if err := op.networks.down(n); err != nil {
				return err
			}
		}
		if kept := op.st.kept(); kept != "" {
			op.say("%s", kept)
		}
		return nil
	})
	return was, err
}

// DownAll undoes every network, and the datapath whatever build pinned it.
// Returns the names of those that were up.
func (c *Controller) DownAll(ctx context.Context) (names []string, err error) {
	err = c.instance.mutateWith(ctx, mutation{evenStale: true, looks: looksLast}, func(op *operation) error {
		names = op.st.networkNames()
		kept := op.st.Settings.Kept
		op.st.Settings.Kept = false
		var errs []error
		for _, name := range names {
			errs = append(errs, op.networks.down(op.st.Networks[name]))
		}
		if len(names) == 0 {
			errs = append(errs, op.repair.removeStray())
		}
		err := errors.Join(errs...)
		if err == nil && kept {
			op.say("the kept settings are removed (%s)", op.st.Settings.flags())
		}
		return err
	})
	return names, err
}

// NetworkRemove takes a network down and deletes its definition. The error
// wraps ErrInUse while it has ports, ErrNoNetwork if there is none.
func (c *Controller) NetworkRemove(ctx context.Context, name string) error {
	if err := checkNetworkName(name); err != nil {
		return err
	}
	return c.instance.mutateWith(ctx, mutation{evenLost: true, looks: looksLast}, func(op *operation) error { return op.networks.remove(name) })
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
	if err := nets.op.ports.detachAll(n, n.sortedPorts()); err != nil {
		return err
	}
	return nets.op.runner.undo(nets.steps(n, nil))
}

// downUndefined takes a network down that nobody has defined to stay.
func (nets networks) downUndefined(n *network) error {
	def, err := nets.definition(n.Name)
	if err != nil || def != nil || n.Name == DefaultNetwork {
		return err
	}
	return nets.down(n)
}
