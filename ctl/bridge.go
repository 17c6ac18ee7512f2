package ctl

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/fastbr/fastbr/ctl/firewall"
	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// steps is what `up` does to the host, in order. Undone in reverse, it
// is what `down` does. The instance comes with the first network and goes with
// the last.
func (nets networks) steps(n *network, uplinks []uplink) []step {
	on := func(f func(*network) error) func() error { return func() error { return f(n) } }
	last := func(f func() error) func() error { return func() error { return nets.ifLast(f) } }
	steps := []step{
		{"record", on(nets.record), on(nets.forget), nil},
		{"sysctls", nets.op.setHost, last(nets.op.hostconf.Restore), nil},
		{"datapath", nets.op.programs.create, last(nets.op.programs.remove), nil},
		{"fragments", nets.op.reassembly.ensure, last(nets.op.reassembly.remove), nets.op.reassembly.ensure},
		{"bridge", on(nets.createBridge), on(nets.deleteBridge), on(nets.createBridge)},
		{"bridge-settings", on(nets.configureBridge), nil, on(nets.configureBridge)},
		{"datapath-network", on(nets.tell), on(nets.untell), on(nets.tell)},
		{"address", on(nets.addGateway), nil, on(nets.addGateway)},
		{"uplinks", func() error { return nets.op.uplinks.add(uplinks) }, last(nets.op.uplinks.detachAll), nil},
	}
	for _, a := range nets.op.accelerators {
		steps = append(steps, step{a.name(), func() error { return a.sync(false) }, last(a.undo), nil})
	}
	steps = append(steps,
		step{"speed", nets.op.programs.setSpeed, nil, nets.op.programs.setSpeed},
		step{"forward", nets.op.firewall.open, func() error { return firewall.Remove(n.filtered()) }, nil},
		step{"others", nets.op.others.ensure, func() error { return nets.op.others.leave(n) }, nil},
		step{"bridge-up", on(nets.setUp), nil, on(nets.setUp)})
	if n.Defining {
		steps = append(steps, step{"define", func() error { return nets.op.defs.put(n.Definition) },
			func() error { return nets.op.defs.remove(n.Name) }, nil})
	}
	return append(steps, step{"done", on(nets.finish), nil, nil})
}

// ifLast runs f if no other network needs what it takes away.
func (nets networks) ifLast(f func() error) error {
	if len(nets.op.st.Networks) > 1 {
		return nil
	}
	return f()
}

func (nets networks) record(n *network) error {
	if err := nets.op.identity().Write(nets.op.dir()); err != nil {
		return err
	}
	n.Pending = true
	nets.op.st.Networks[n.Name] = n
	return nets.op.save()
}

func (nets networks) forget(n *network) error {
	delete(nets.op.st.Networks, n.Name)
	return nets.op.save()
}

func (nets networks) finish(n *network) error {
	n.Pending, n.Defining = false, false
	return nets.op.save()
}

// createBridge makes the device unless it is there. It is ours from the first
// moment: the record is on disk, and the MAC address is the gateway's.
func (nets networks) createBridge(n *network) error {
	if n.Index != 0 {
		return nil
	}
	index, err := nets.op.conn.CreateBridge(n.Bridge, ipam.MAC(n.Gateway), n.MTU)
	if err != nil {
		return err
	}
	n.Index = index
	return nets.op.save()
}

func (nets networks) configureBridge(n *network) error {
	if err := nets.op.conn.SetAlias(n.Index, ownerMark(n.Name)); err != nil {
		return fmt.Errorf("marking %s: %w", n.Bridge, err)
	}
	if err := nets.op.conn.ShapeBridge(n.Index, true); err != nil {
		return fmt.Errorf("setting up %s: %w", n.Bridge, err)
	}
	return errors.Join(hostconf.QuietIPv6(n.Bridge), hostconf.Open(n.Bridge))
}

// deleteBridge removes the device if it is ours: by its mark, or, where a kill
// came before the mark, by the address that only createBridge gives.
func (nets networks) deleteBridge(n *network) error {
	d, err := nets.op.conn.ByName(n.Bridge)
	if errors.Is(err, link.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	unmarked := n.Pending && d.Alias == "" && d.MAC.String() == ipam.MAC(n.Gateway).String()
	if d.Kind != "bridge" || d.Alias != ownerMark(n.Name) && !unmarked {
		return nil
	}
	if err := nets.op.conn.Delete(d.Index); err != nil {
		return fmt.Errorf("deleting bridge %s: %w", n.Bridge, err)
	}
	return nil
}

func (nets networks) addGateway(n *network) error {
	defer nets.op.host.forget() // publications are reached by this address, too
	return nets.op.conn.AddAddr(n.Index, netip.PrefixFrom(n.Gateway, n.Subnet.Bits()))
}

func (nets networks) setUp(n *network) error { return nets.op.conn.SetUp(n.Index, true) }

func (nets networks) tell(n *network) error { return nets.describe(n, n.sortedPorts()) }

// describe tells the datapath of a network with these ports.
func (nets networks) describe(n *network, ports []*port) error {
	err := nets.op.dp.SetNetwork(datapath.Network{Subnet: n.Subnet, Allowed: n.beyond(ports...), Gateway: n.Gateway, Bridge: n.Index,
		Masquerade: n.Masquerade, SNAT: n.SNATAddress, Plain: n.NoMasquerade, PublishedOnly: n.PublishedOnly && !n.Internal, Internal: n.Internal, NAT: n.natPolicy()})
	if err != nil {
		return fmt.Errorf("telling the datapath of network %s: %w", n.Name, err)
	}
	return nil
}

func (nets networks) untell(n *network) error {
	if nets.op.dp == nil || n.Index == 0 {
		return nil
	}
	// A packet that waits at an uplink would be nobody's, and leave as it is.
	for _, u := range nets.op.st.Uplinks {
		if err := nets.op.uplinks.dropUnresolved(u); err != nil {
			return err
		}
	}
	if err := nets.op.dp.DeleteNetwork(n.Index); err != nil {
		return fmt.Errorf("removing network %s from the datapath: %w", n.Name, err)
	}
	return nil
}
