package ctl

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// ports plugs containers into bridges, unplugs them, and finds who is plugged in.
type ports struct{ op *operation }

// plug is the container's side of an attachment.
type plug struct {
	ns      *link.Netns // nil: an endpoint's, which its engine configures
	conn    *link.Conn  // into ns
	routes  []Route     // nil: a default route
	publish []*publication
	index   int  // of the host end, 0: the kernel's choice
	dad     bool // AttachRequest.DAD
}

// steps is what `attach` does for a port, in order. The programs are on the
// device before it joins the bridge: no frame ever passes unchecked. Undone in
// reverse it is what `detach` does, for all of the ports at once.
func (ps ports) steps(n *network, at *plug, ports ...*port) []step {
	p := ports[0]
	on := func(f func(*network, *port) error) func() error { return func() error { return f(n, p) } }
	with := func(f func(*network, *port, *plug) error) func() error { return func() error { return f(n, p, at) } }
	all := func(f func(*network, []*port) error) func() error { return func() error { return f(n, ports) } }
	return []step{
		{"port-record", on(ps.record), all(ps.forget), nil},
		{"port-veth", with(ps.createVeth), all(ps.deleteVeths), nil},
		{"port-prefixes", on(ps.widen), all(ps.narrow), on(ps.widen)},
		{"port-programs", with(ps.attachPrograms), all(ps.detachPrograms), on(ps.tell)},
		{"port-shape", on(ps.op.bandwidths.set), all(ps.op.bandwidths.remove), nil},
		{"port-join", on(ps.join), all(ps.leave), on(ps.join)},
		{"port-proxy", on(ps.op.stands.join), all(ps.op.stands.part), on(ps.op.stands.join)},
		{"port-up", on(ps.setUp), nil, on(ps.setUp)},
		{"port-accelerate", on(ps.op.accelerators.ready), nil, on(ps.op.accelerators.ready)},
		{"port-inside", with(ps.configureInside), nil, nil},
		{"port-publish", func() error { return ps.op.publications.publish(p, at.publish) }, nil, // port-programs takes it back
			func() error { return ps.op.publications.set(p, p.Publications) }},
		{"port-done", on(ps.finish), nil, nil},
	}
}

func (ps ports) record(n *network, p *port) error {
	n.Ports[p.Port] = p
	return ps.op.save()
}

func (ps ports) setUp(_ *network, p *port) error { return ps.op.conn.SetUp(p.Index, true) }

func (ps ports) finish(_ *network, p *port) error {
	p.Pending = false
	return ps.op.save()
}

// forget ends the records, and the reservation of what the ports published.
func (ps ports) forget(n *network, ports []*port) error {
	published := false
	for _, p := range ports {
		delete(n.Ports, p.Port)
		published = published || len(p.Publications) > 0
	}
	if published {
		if err := ps.op.hostconf.Reserve(ps.op.st.reserved()); err != nil {
			return err
		}
	}
	return ps.op.save()
}

// createVeth makes the pair.
func (ps ports) createVeth(n *network, p *port, at *plug) (err error) {
	inside := end{ns: at.ns, conn: cmp.Or(at.conn, ps.op.conn), name: cmp.Or(p.Peer, p.Ifname)}
	p.Index, inside.index, err = ps.op.conn.CreateVeth(link.Veth{Name: p.Port, Alias: ownerMark(n.Name), Index: at.index,
		PeerName: inside.name, PeerMAC: p.MAC.HardwareAddr, PeerNS: at.ns, MTU: n.MTU})
	if err != nil {
		p.Index = 0 // as before: see untell
		return err
	}
	ps.op.accelerators.prepare(n, p, inside)
	return hostconf.QuietIPv6(p.Port)
}

// deleteVeths removes the pairs.
func (ps ports) deleteVeths(n *network, ports []*port) error {
	var ours []int
	for _, p := range ports {
		d, err := ps.op.conn.ByName(p.Port)
		if errors.Is(err, link.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		if n.owns(p, d, "veth") {
			ours = append(ours, d.Index)
		}
	}
	if err := ps.op.conn.DeleteAll(ours); err != nil {
		return fmt.Errorf("deleting ports of %s: %w", n.Bridge, err)
	}
	return nil
}

// owns tells of the device with a name that we recorded for a port whether it is
// that: of its kind, and marked or, where a kill came before the mark, of nobody's.
func (n *network) owns(p *port, d link.Device, kind string) bool {
	return d.Kind == kind && (d.Alias == ownerMark(n.Name) || d.Alias == "" && p.Pending)
}

// attachPrograms puts the programs on the host end. If its ifindex falls on a
// slot that another device has, the pair is made again with one that is free.
func (ps ports) attachPrograms(n *network, p *port, at *plug) error {
	err := ps.tell(n, p)
	if !errors.Is(err, datapath.ErrSlotTaken) {
		return err
	}
	if at.index, err = ps.freeIndex(); err != nil {
		return err
	}
	if err := ps.op.conn.Delete(p.Index); err != nil {
		return fmt.Errorf("deleting %s: %w", p.Port, err)
	}
	if err := ps.createVeth(n, p, at); err != nil {
		return err
	}
	return ps.tell(n, p)
}

// freeIndex is an ifindex that no device has and whose slot is free.
func (ps ports) freeIndex() (int, error) {
	known, err := ps.op.dp.Devices()
	if err != nil {
		return 0, fmt.Errorf("listing the datapath's devices: %w", err)
	}
	entries, err := ps.op.conn.List()
	if err != nil {
		return 0, err
	}
	used, slots := map[int]bool{}, map[int]bool{}
	for _, e := range entries {
		used[e.Index] = true
	}
	for _, d := range known {
		slots[d%datapath.MaxDevices] = true
	}
	for i := 2; i < 2*datapath.MaxDevices; i++ {
		if !used[i] && !slots[i%datapath.MaxDevices] {
			return i, nil
		}
	}
	return 0, fmt.Errorf("no free device slot: %w", datapath.ErrTooMany)
}

func (ps ports) tell(n *network, p *port) error {
	if err := ps.op.dp.AttachPort(p.datapath(n)); err != nil {
		return fmt.Errorf("attaching the programs to %s: %w", p.Port, err)
	}
	return nil
}

// datapath is what the datapath knows of the port.
func (p *port) datapath(n *network) datapath.Port {
	return datapath.Port{Ifindex: p.Index, Bridge: n.Index, BridgeMAC: ipam.MAC(n.Gateway),
		MAC: p.MAC.HardwareAddr, IP: p.IP, IP6: p.IP6, MTU: n.MTU, Slow: p.Slowed, XDP: p.XDP,
		AllowedAddrs: p.AllowedAddrs, AllowedMACs: p.allowed().MACs}
}

// widen makes what a port is allowed outside the subnet part of the network.
func (ps ports) widen(n *network, p *port) error {
	if len(n.beyond(p)) == 0 {
		return nil
	}
	return ps.spread(n)
}

// spread tells the datapath and the kernel's NAT which prefixes the network has now.
func (ps ports) spread(n *network) error {
	return errors.Join(ps.op.networks.tell(n), ps.op.others.ensure())
}

// narrow takes it out again, as far as no other port has it.
func (ps ports) narrow(n *network, ports []*port) error {
	if len(n.beyond(ports...)) == 0 || ps.op.dp == nil || n.Index == 0 {
		return nil
	}
	return ps.op.networks.describe(n, slices.DeleteFunc(n.sortedPorts(), func(p *port) bool { return slices.Contains(ports, p) }))
}

// routes are the host's to what a port is allowed outside the subnet: the container is the
// next hop. Of ports that share a prefix, the first in order of their addresses is. A
// route of the user's without a metric goes first.
func (n *network) routes(p *port) (out []link.Route) {
	for _, a := range p.AllowedAddrs {
		if !n.Subnet.Overlaps(a) {
			out = append(out, link.Route{Dst: a, Index: n.Index, Gateway: p.IP, Metric: ipam.Offset(n.Subnet, p.IP)})
		}
	}
	return out
}

func (ps ports) addRoutes(n *network, p *port) error {
	routes := n.routes(p)
	for _, r := range routes {
		if err := ps.op.conn.AddRoute(r); err != nil {
			return err
		}
	}
	if len(routes) == 0 {
		return nil
	}
	return ps.op.vias.follow()
}

// setAllowed changes what a port may use while it is attached. Until it is done, the
// record has the old and the new.
func (ps ports) setAllowed(n *network, p *port, want Allowed) error {
	if err := ps.checkAllowed(n, p, want); err != nil {
		return err
	}
	before := n.routes(p)
	p.allow(p.allowed().plus(want))
	if err := errors.Join(ps.op.save(), ps.widen(n, p)); err != nil {
		return err
	}
	wide := len(n.beyond(p)) > 0
	p.allow(want)
	if err := errors.Join(ps.tell(n, p), ps.addRoutes(n, p)); err != nil {
		return err
	}
	after := n.routes(p)
	for _, r := range before {
		if !slices.ContainsFunc(after, r.Same) {
			if err := r.Delete(ps.op.conn); err != nil {
				return err
			}
		}
	}
	if wide {
		if err := errors.Join(ps.spread(n), ps.op.vias.follow()); err != nil {
			return err
		}
	}
	return ps.op.save()
}

// detachPrograms makes the datapath forget ports. The devices go first, and the
// programs with them: there is no moment without them, and the kernel waits for
// its readers less often.
func (ps ports) detachPrograms(n *network, ports []*port) error {
	if err := ps.deleteVeths(n, ports); err != nil || ps.op.dp == nil {
		return err
	}
	var pubs []datapath.Publication
	for _, p := range ports {
		pubs = append(pubs, p.toDatapath(p.Publications)...)
	}
	if err := ps.op.dp.Unpublish(pubs...); err != nil {
		return fmt.Errorf("unpublishing ports: %w", err)
	}
	for _, p := range ports {
		if err := ps.untell(p); err != nil {
			return fmt.Errorf("detaching %s from the datapath: %w", p.Port, err)
		}
	}
	return nil
}

// untell makes the datapath forget a port. A kill may have come before
// the port's index was written down; then the datapath finds it by its address.
func (ps ports) untell(p *port) error {
	index := p.Index
	if index == 0 {
		var err error
		if index, err = ps.op.dp.PortAt(p.IP); err != nil || index == 0 {
			return err
		}
	}
	return ps.op.dp.DetachPort(index)
}

// join makes the host end a port whose address is known before the first
// frame, to the bridge and to the host.
func (ps ports) join(n *network, p *port) error {
	if err := ps.op.conn.SetMaster(p.Index, n.Index); err != nil {
		return fmt.Errorf("adding %s to %s: %w", p.Port, n.Bridge, err)
	}
	if p.Hairpin {
		if err := ps.op.conn.SetHairpin(p.Index); err != nil {
			return fmt.Errorf("setting hairpin mode of %s: %w", p.Port, err)
		}
	}
	if err := ps.op.conn.AddFDB(p.Index, p.MAC.HardwareAddr); err != nil {
		return fmt.Errorf("%s: %w", p.Port, err)
	}
	if err := ps.addNeighbours(n, p); err != nil {
		return err
	}
	return ps.addRoutes(n, p)
}

// addNeighbours tells the kernel of a port's addresses: it never asks.
func (ps ports) addNeighbours(n *network, p *port) error {
	for _, ip := range p.ips() {
		if err := ps.op.conn.AddNeighbour(n.Index, ip, p.MAC.HardwareAddr); err != nil {
			return err
		}
	}
	return nil
}

// ips are the addresses that the port was given, IPv4's first.
func (p *port) ips() []netip.Addr {
	if p.IP6.IsValid() {
		return []netip.Addr{p.IP, p.IP6}
	}
	return []netip.Addr{p.IP}
}

// addresses are those of the container's end, with their subnets' lengths. The last is
// the one that belongs to its MAC address, if the network has IPv6.
func (p *port) addresses(n *network) []netip.Prefix {
	out := []netip.Prefix{netip.PrefixFrom(p.IP, n.Subnet.Bits())}
	if p.IP6.IsValid() {
		out = append(out, netip.PrefixFrom(p.IP6, n.Subnet6.Bits()))
	}
	if n.hasIPv6() {
		out = append(out, linkLocal(p.MAC.HardwareAddr))
	}
	return out
}

// leave takes the neighbours and routes away. The forwarding entries go with the devices.
func (ps ports) leave(n *network, ports []*port) error {
	if n.Index == 0 {
		return nil
	}
	for _, p := range ports {
		for _, r := range n.routes(p) {
			if err := r.Delete(ps.op.conn); err != nil {
				return err
			}
		}
		for _, ip := range p.ips() {
			if err := ps.op.conn.DeleteNeighbour(n.Index, ip); err != nil {
				return err
			}
		}
	}
	return nil
}

// configureInside gives the container's end its address and routes, as a
// container expects them, and announces the address.
func (ps ports) configureInside(n *network, p *port, at *plug) error {
	ns, inside := at.ns, at.conn
	if ns == nil {
		return nil
	}
	d, err := inside.ByName(p.Ifname)
	if err != nil {
		return fmt.Errorf("in %s: %w", ns, err)
	}
	if lo, err := inside.ByName("lo"); err == nil && !lo.Up {
		if err := inside.SetUp(lo.Index, true); err != nil {
			return fmt.Errorf("raising lo in %s: %w", ns, err)
		}
	}
	// A network without IPv6 lets none through: the container need not try.
	ipv6, add := hostconf.QuietIPv6, func(a netip.Prefix) error { return inside.AddAddr(d.Index, a) }
	if n.hasIPv6() {
		ipv6 = hostconf.GiveIPv6
	}
	if at.dad && n.hasIPv6() {
		ipv6 = func(device string) error {
			return errors.Join(hostconf.AskForDuplicates(device), hostconf.GiveIPv6(device))
		}
		add = link.Tentative{Conn: inside, Index: d.Index}.AddAddr
	}
	if err := ns.Do(func() error { return ipv6(p.Ifname) }); err != nil {
		return fmt.Errorf("in %s: %w", ns, err)
	}
	addrs := p.addresses(n)
	for _, a := range addrs {
		if err := add(a); err != nil {
			return fmt.Errorf("in %s: %w", ns, err)
		}
	}
	if err := inside.SetUp(d.Index, true); err != nil {
		return fmt.Errorf("raising %s in %s: %w", p.Ifname, ns, err)
	}
	if err := ps.routeInside(n, at, d.Index); err != nil {
		return fmt.Errorf("in %s: %w", ns, err)
	}
	// The bridge comes up with its first port; until then it swallows what the host answers.
	if !ps.op.conn.WaitCarrier(p.Index, carrierLimit) || !ps.op.conn.WaitCarrier(n.Index, carrierLimit) {
		ps.op.say("%s has no carrier yet", p.Port)
	}
	return ns.Do(func() error {
		var errs []error
		for _, a := range addrs {
			errs = append(errs, link.Announce(d.Index, a.Addr(), d.MAC))
		}
		return errors.Join(errs...)
	})
}

func (ps ports) routeInside(n *network, at *plug, index int) error {
	if at.routes != nil {
		return addRoutes(at.conn, index, n, at.routes)
	}
	if n.Internal {
		return nil
	}
	for _, gateway := range []netip.Addr{n.Gateway, n.Gateway6} {
		if !gateway.IsValid() {
			continue
		}
		routes, err := at.conn.Routes(link.FamilyOf(gateway))
		if err != nil {
			return err
		}
		if len(link.DefaultDevices(routes)) > 0 {
			ps.op.say("%s has a default route already: kept", at.ns)
			continue
		}
		if err := at.conn.AddDefault(index, gateway); err != nil {
			return err
		}
	}
	return nil
}

func addRoutes(inside *link.Conn, index int, n *network, routes []Route) error {
	for _, r := range routes {
		if !r.Gateway.IsValid() {
			r.Gateway = n.Gateway
			if r.Dst.Addr().Is6() {
				r.Gateway = n.Gateway6
			}
		}
		err := inside.AddRoute(link.Route{Dst: r.Dst, Index: index, Gateway: r.Gateway, Metric: r.Metric,
			MTU: r.MTU, AdvMSS: r.AdvMSS, Table: r.Table, Scope: r.Scope})
		if err != nil {
			return err
		}
	}
	return nil
}

// detachBatch is how many ports are removed at a time: some, since the kernel
// waits for its readers once for all of them, and not too many, since it keeps
// others from changing devices meanwhile.
const detachBatch = 32

// detach undoes the steps of attach, wherever they stopped.
func (ps ports) detach(n *network, p *port) error {
	return ps.detachAll(n, []*port{p})
}

// detachAll is detach for any number of ports. An error does not keep the
// other batches from being removed.
func (ps ports) detachAll(n *network, ports []*port) error {
	begun := false
	for _, p := range ports {
		if !p.Pending {
			p.Pending, begun = true, true
		}
	}
	// Whoever finds the network pending detaches all of its ports anyway.
	if begun && !n.Pending {
		if err := ps.op.save(); err != nil {
			return err
		}
	}
	var errs []error
	for batch := range slices.Chunk(ports, detachBatch) {
		errs = append(errs, ps.op.runner.undo(ps.steps(n, nil, batch...)))
	}
	return errors.Join(errs...)
}

func (ps ports) each(f func(*network, *port) error) error {
	for _, name := range ps.op.st.networkNames() {
		n := ps.op.st.Networks[name]
		for _, p := range n.Ports {
			if p.Pending {
				continue
			}
			if err := f(n, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// named finds a port by its name or its device; in one network, or with ""
// in whichever has it. The error wraps ErrNotUp, ErrNoNetwork or ErrNoPort.
func (ps ports) named(networkName, name string) (*network, *port, error) {
	if err := ps.op.needNetwork(); err != nil {
		return nil, nil, err
	}
	if networkName != "" {
		if _, err := ps.op.networks.find(networkName); err != nil {
			return nil, nil, err
		}
	}
	var found []published
	for _, n := range ps.op.st.Networks {
		for _, p := range n.Ports {
			if (p.Name == name || p.Port == name) && (networkName == "" || n.Name == networkName) {
				found = append(found, published{net: n, port: p})
			}
		}
	}
	switch len(found) {
	case 0:
		return nil, nil, tagged(ErrNoPort, "no port "+name)
	case 1:
		return found[0].net, found[0].port, nil
	}
	return nil, nil, fmt.Errorf("several networks have a port %s: say which with --network", name)
}

// inside finds the container's end of a port, whatever it is called now.
func (ps ports) inside(p *port) (ns *link.Netns, d link.Device, err error) {
	entries, err := ps.op.host.listing()
	if err != nil {
		return nil, d, err
	}
	e, there := entries[p.Index]
	if !there {
		return nil, d, fmt.Errorf("%s: %w", p.Port, link.ErrNotFound)
	}
	if ns, err = link.FindNetns(p.Netns); err != nil {
		return nil, d, err
	}
	conn, err := link.OpenIn(ns)
	if err != nil {
		ns.Close()
		return nil, d, err
	}
	defer conn.Close()
	d, err = conn.ByIndex(e.Lower)
	if err != nil || d.Kind != "veth" || !bytes.Equal(d.MAC, p.MAC.HardwareAddr) {
		ns.Close()
		return nil, d, fmt.Errorf("the container's end of %s: %w", p.Port, link.ErrNotFound)
	}
	return ns, d, nil
}

// doIn runs f in a namespace; nil: the current one.
func doIn(ns *link.Netns, f func() error) error {
	if ns == nil {
		return f()
	}
	return ns.Do(f)
}
