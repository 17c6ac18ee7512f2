package ctl

import (
	"errors"
	"fmt"
	"slices"
	"strings"

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
		step{"via", on(nets.op.vias.ensure), on(nets.op.vias.remove), on(nets.op.vias.ensure)},
		step{"speed", nets.op.programs.setSpeed, nil, nets.op.programs.setSpeed},
		step{"forward", nets.op.firewall.open, func() error { return nets.op.firewall.leave(n) }, nil},
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
	// A bridge that listened to reports (MLD) would cut off the IPv6 neighbours of a port
	// that sends none.
	if err := nets.op.conn.ShapeBridge(n.Index, !n.hasIPv6()); err != nil {
		return fmt.Errorf("setting up %s: %w", n.Bridge, err)
	}
	errs := []error{n.setIPv6()}
	for _, f := range n.forwards() {
		errs = append(errs, f.Open(n.Bridge))
	}
	return errors.Join(errs...)
}

// forwards are the settings of the bridge by which what comes in there is forwarded.
func (n *network) forwards() []hostconf.Family {
	if n.leads6() {
		return []hostconf.Family{hostconf.IPv4, hostconf.IPv6, hostconf.Lookup6}
	}
	return []hostconf.Family{hostconf.IPv4}
}

// setIPv6 gives the bridge IPv6, or none.
func (n *network) setIPv6() error {
	if n.hasIPv6() {
		return hostconf.HostIPv6(n.Bridge)
	}
	return hostconf.QuietIPv6(n.Bridge)
}

// configureIPv6 makes the bridge's IPv6 again: turned off, it has lost its addresses.
func (nets networks) configureIPv6(n *network) error {
	return errors.Join(n.setIPv6(), nets.addGateway(n))
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
	for _, a := range n.addresses() {
		if err := nets.op.conn.AddAddr(n.Index, a); err != nil {
			return err
		}
	}
	return nil
}

func (nets networks) setUp(n *network) error { return nets.op.conn.SetUp(n.Index, true) }

func (nets networks) tell(n *network) error { return nets.describe(n, n.sortedPorts()) }

// describe tells the datapath of a network with these ports.
func (nets networks) describe(n *network, ports []*port) error {
	err := nets.op.dp.SetNetwork(datapath.Network{Subnet: n.Subnet, Allowed: n.beyond(ports...), Gateway: n.Gateway, Bridge: n.Index,
		Subnet6: n.Subnet6, Gateway6: n.Gateway6, LinkLocal6: n.LinkLocal6, Routed6: n.Routed6, NDProxy: n.NDProxy,
		Masquerade: n.Masquerade, SNAT: n.SNATAddress, SNAT6: n.SNATAddress6, Plain: n.NoMasquerade, PublishedOnly: n.PublishedOnly && !n.Internal, Internal: n.Internal, NAT: n.natPolicy(),
		OneWay: n.Via != "", Via: nets.op.vias.index(n)})
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

// vias are the ways of networks that leave by one device only. The programs let their packets
// pass no other, whatever the routes are; a routing table of the network's own leads there.
type vias struct{ op *operation }

// index is the ifindex of the network's device, 0 while it is gone or no uplink.
func (v vias) index(n *network) int {
	for _, u := range v.op.st.Uplinks {
		if n.Via == "" || u.Name != n.Via {
			continue
		}
		if _, err := v.op.uplinks.device(u); err == nil {
			return u.Index
		}
	}
	return 0
}

// paths are what the network's routing table should be, in each family that leads outside.
func (v vias) paths(n *network) []link.Path {
	out := []link.Path{v.path(n, link.IPv4)}
	if n.leads6() {
		out = append(out, v.path(n, link.IPv6))
	}
	return out
}

func (v vias) path(n *network, f link.Family) link.Path {
	p := link.Path{Family: f, In: n.Bridge, Table: n.ViaTable}
	for _, o := range v.op.st.Networks {
		if o.Index != 0 {
			p.Out = append(p.Out, o.Index)
		}
		if o.ViaTable != 0 && o.ViaTable != n.ViaTable {
			p.Other = append(p.Other, o.ViaTable)
		}
	}
	index := v.index(n)
	if index == 0 {
		return p
	}
	p.Out = append(p.Out, index)
	if d, err := v.op.host.device(index); err == nil && d.RawIP {
		p.Point = index
	}
	return p
}

// ensure tells the datapath of the device, and keeps the rule and the table.
func (v vias) ensure(n *network) error {
	if n.Via == "" {
		return nil
	}
	if index := v.index(n); index != n.ViaIndex {
		if err := errors.Join(v.op.networks.tell(n), v.op.dp.Revoke()); err != nil {
			return err
		}
		n.ViaIndex = index
		if err := v.op.save(); err != nil {
			return err
		}
	}
	var errs []error
	for _, p := range v.paths(n) {
		errs = append(errs, p.Set(v.op.conn))
	}
	return errors.Join(errs...)
}

// renew is ensure where the device has gone or come.
func (v vias) renew() error { return v.each(func(n *network) bool { return v.index(n) != n.ViaIndex }) }

// follow is ensure for all, after routes by a bridge have changed.
func (v vias) follow() error { return v.each(func(*network) bool { return true }) }

func (v vias) each(is func(*network) bool) error {
	var errs []error
	for _, name := range v.op.st.networkNames() {
		if n := v.op.st.Networks[name]; !n.Pending && is(n) {
			errs = append(errs, v.ensure(n))
		}
	}
	return errors.Join(errs...)
}

func (v vias) remove(n *network) error {
	if n.ViaTable == 0 {
		return nil
	}
	return link.RemovePath(v.op.conn, n.ViaTable)
}

// choose gives a new network its routing table.
func (v vias) choose(n *network) (err error) {
	if n.Via == "" {
		return nil
	}
	var taken []int
	for _, o := range v.op.st.Networks {
		taken = append(taken, o.ViaTable)
	}
	n.ViaTable, err = link.FreeTable(v.op.conn, taken)
	return err
}

// check says why a network may not leave by a device, which may be gone at the moment. The
// error wraps ErrInvalid.
func (v vias) check(device string, uplinks []string) error {
	if device == "" {
		return nil
	}
	if !slices.Contains(uplinks, AutoUplink) && !slices.Contains(uplinks, device) {
		return tagged(ErrInvalid, fmt.Sprintf("--via %s: it is none of the uplinks that were named (%s): name it, too ('fastbr up --no-network --uplink ...')",
			device, strings.Join(uplinks, ", ")))
	}
	if d, err := v.op.conn.ByName(device); err == nil {
		if reason := v.op.uplinks.unfit(d); reason != "" {
			return tagged(ErrInvalid, fmt.Sprintf("--via %s: %s", device, reason))
		}
	}
	return nil
}

// faults are the ways that are not as they should be.
func (v vias) faults() (out []fault, err error) {
	for _, name := range v.op.st.networkNames() {
		n := v.op.st.Networks[name]
		if n.Via == "" || n.Pending {
			continue
		}
		for _, p := range v.paths(n) {
			what, err := p.Lacks(v.op.conn)
			if err != nil {
				return nil, err
			}
			if what != "" {
				out = append(out, fault{fmt.Sprintf("the way out of network %s by %s: %s", name, n.Via, what), func() error { return v.ensure(n) }})
				break
			}
		}
	}
	return out, nil
}

// notes say that nothing leaves a network, or not everything, until its device is as it was.
func (v vias) notes(n *network) []string {
	if n.Via == "" {
		return nil
	}
	note := func(why string) []string {
		return []string{fmt.Sprintf("network %s leaves by %s only, %s", n.Name, n.Via, why)}
	}
	d, err := v.op.conn.ByName(n.Via)
	switch reason := v.op.uplinks.unfit(d); {
	case errors.Is(err, link.ErrNotFound):
		return note("which is gone: nothing leaves until it is back")
	case err != nil:
		return []string{err.Error()}
	case reason != "":
		return note("which cannot be an uplink: nothing leaves (" + reason + ")")
	case v.index(n) != d.Index:
		return note("which is no uplink yet: nothing leaves until it has an address and the next command runs")
	}
	var out []string
	for _, p := range v.paths(n) {
		by, option := "", ""
		if p.Family == link.IPv6 {
			by, option = " by IPv6", "-6 "
		}
		routes, err := v.op.conn.Routes(p.Family)
		if err == nil && !d.RawIP && !slices.ContainsFunc(routes, func(r link.Route) bool {
			return r.Table == n.ViaTable && r.Leads && r.Dst.Bits() <= 1
		}) {
			out = append(out, note(fmt.Sprintf("and no default route leads there%s: give it one in any routing table ('ip %sroute add default via ADDRESS dev %s table 100')", by, option, n.Via))...)
		}
	}
	return out
}
