package ctl

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// AttachRequest is what the user asks of a port. Zero fields are chosen.
type AttachRequest struct {
	Target  string           // netns path, netns:NAME or pid:N
	Network string           // "": DefaultNetwork
	Name    string           // "": the name of the host end
	IP      netip.Addr       // invalid: the lowest free one
	MAC     net.HardwareAddr // nil: 02:42 and the address
	Ifname  string           // "": eth0
	Slow    bool             // always take the kernel path
	Hairpin bool             // the bridge may send a frame back to this port

	Bandwidth Bandwidth // such a port takes the kernel's path

	// Owner is the engine's name for this port; nil: a user's. An owned port
	// yields a Name that is taken, and may share a namespace with others.
	Owner *Owner
	// Expect is what the network must be, for an engine that describes it each
	// time. Zero fields match anything.
	Expect NetworkRequest
	// Routes replace the default route inside, if not nil.
	Routes []Route
	// Publish are ports to publish with it; Name and Network are not looked at.
	Publish []PublishRequest
}

const (
	// carrierLimit bounds the wait for a new pair to come up; the kernel needs
	// a few milliseconds.
	carrierLimit = 5 * time.Second
	// nameTries bounds the search for a free random device name (one of 2^28).
	nameTries = 8
)

func (r *AttachRequest) check() error {
	if r.Network == "" {
		r.Network = DefaultNetwork
	}
	if r.Ifname == "" {
		r.Ifname = "eth0"
	}
	if err := errors.Join(checkNetworkName(r.Network), r.Expect.check()); err != nil {
		return firstLine(err)
	}
	if r.Name != "" {
		if err := checkName("port", r.Name); err != nil {
			return err
		}
	}
	if r.MAC != nil {
		if err := checkMAC(r.MAC); err != nil {
			return err
		}
	}
	if err := checkAll(r.Publish); err != nil {
		return err
	}
	if err := r.Bandwidth.check(); err != nil {
		return err
	}
	return checkIfname(r.Ifname)
}

// Attach plugs a container's namespace into a network. The error wraps
// ErrInvalid, ErrNotUp, ErrNoNetwork, ErrDiffers, ErrExists, link.ErrGone,
// link.ErrNotNetns, or a sentinel of ipam.
func (c *Controller) Attach(ctx context.Context, r AttachRequest) (AttachResult, error) {
	return c.attach(ctx, r, (*operation).asExpected)
}

// attach plugs a container into the network that find returns. One that find has made
// for it goes down again if the port cannot be.
func (c *Controller) attach(ctx context.Context, r AttachRequest, find func(*operation, AttachRequest) (n *network, made bool, err error)) (res AttachResult, err error) {
	if err := r.check(); err != nil {
		return res, err
	}
	ns, err := link.OpenTarget(r.Target)
	if errors.Is(err, link.ErrTarget) {
		return res, tagged(ErrInvalid, err.Error())
	} else if err != nil {
		return res, err
	}
	defer ns.Close()
	if ns.ID() == c.netns {
		return res, tagged(ErrInvalid, fmt.Sprintf("%s is the namespace that the bridge is in", r.Target))
	}
	err = c.mutate(ctx, func(op *operation) error {
		n, made, err := find(op, r)
		if err != nil {
			return err
		}
		res, err = op.plugIn(n, r, ns)
		if err != nil && made && len(n.Ports) == 0 {
			err = errors.Join(err, op.downUndefined(n))
		}
		return err
	})
	return res, err
}

// asExpected is the request's network if it is up and as the request expects; with
// ErrDiffers it is not. made is false.
func (op *operation) asExpected(r AttachRequest) (n *network, made bool, err error) {
	if n, err = op.upNetwork(r.Network); err != nil {
		return nil, false, err
	}
	if d := n.differences(r.Expect); len(d) > 0 {
		err = tagged(ErrDiffers, fmt.Sprintf("network %s is up with other settings: %s: run 'fastbr down %s' first",
			n.Name, strings.Join(d, ", "), n.Name))
	}
	return n, false, err
}

// plugIn makes the port and publishes what comes with it.
func (op *operation) plugIn(n *network, r AttachRequest, ns *link.Netns) (res AttachResult, err error) {
	p, err := op.newPort(n, r, ns.ID())
	if err != nil {
		return res, err
	}
	publish, err := op.newPublications(n, r.Owner, op.notYetPublished(r.Owner, r.Publish))
	if err != nil {
		return res, err
	}
	inside, err := link.OpenIn(ns)
	if err != nil {
		return res, err
	}
	defer inside.Close()
	if _, err := inside.ByName(p.Ifname); err == nil {
		return res, tagged(ErrExists, fmt.Sprintf("%s has a device %s already: choose another name with --ifname", r.Target, p.Ifname))
	}
	steps := op.portSteps(n, &plug{ns: ns, conn: inside, routes: r.Routes, publish: publish}, p)
	if err := op.runner.run(op.ctx, steps); err != nil {
		return res, err
	}
	return op.attachResult(n, p)
}

func (op *operation) attachResult(n *network, p *port) (AttachResult, error) {
	d, err := op.conn.ByIndex(p.Index)
	if err != nil {
		return AttachResult{}, err
	}
	return AttachResult{Name: p.Name, Port: p.Port, Network: n.Name, Ifname: p.Ifname, MAC: p.MAC,
		IP: netip.PrefixFrom(p.IP, n.Subnet.Bits()).String(), Gateway: n.Gateway.String(), MTU: n.MTU, DNS: n.nameServer(),
		PortMAC: d.MAC.String(), Bridge: n.Bridge, BridgeMAC: ipam.MAC(n.Gateway).String(), Internal: n.Internal}, nil
}

// upNetwork finds a network that is up. The error wraps ErrNotUp or ErrNoNetwork.
func (op *operation) upNetwork(name string) (*network, error) {
	if n := op.st.Networks[name]; n != nil && !n.Pending {
		return n, nil
	}
	def, err := op.definition(name)
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

// newPort decides names and addresses from the state alone. A zero netns is not
// known yet.
func (op *operation) newPort(n *network, r AttachRequest, netns link.NetnsID) (*port, error) {
	if len(n.Ports) >= maxPorts {
		return nil, fmt.Errorf("network %s has %d ports, the most a bridge can have", n.Name, len(n.Ports))
	}
	slow := r.Slow || r.Bandwidth != Bandwidth{}
	p := &port{Name: r.Name, Ifname: r.Ifname, IP: r.IP, Netns: netns, Slow: slow, Slowed: slow, Hairpin: r.Hairpin,
		Bandwidth: r.Bandwidth, Owner: r.Owner, Pending: true}
	if r.Owner != nil {
		if _, lost := op.owned(*r.Owner); lost != nil {
			return nil, tagged(ErrExists, fmt.Sprintf("container %s has %s on network %s already", r.Owner.Container, r.Owner.Ifname, r.Owner.Network))
		}
	}
	for _, other := range n.Ports {
		switch {
		case netns != link.NetnsID{} && other.Netns == netns && r.Owner == nil:
			return nil, tagged(ErrExists, fmt.Sprintf("%s is attached to network %s already, as %s", r.Target, n.Name, other.Name))
		case r.Name != "" && (other.Name == r.Name || other.Port == r.Name):
			if r.Owner == nil {
				return nil, tagged(ErrExists, fmt.Sprintf("network %s has a port named %s already", n.Name, r.Name))
			}
			p.Name = ""
		}
	}
	if r.MAC != nil && n.hasMAC(r.MAC) {
		return nil, tagged(ErrExists, fmt.Sprintf("network %s has a port with the MAC address %s already", n.Name, r.MAC))
	}
	if r.MAC != nil && r.MAC.String() == ipam.MAC(n.Gateway).String() {
		return nil, tagged(ErrExists, fmt.Sprintf("MAC address %s is the bridge's", r.MAC))
	}
	if err := op.choosePort(n, p, r); err != nil {
		return nil, err
	}
	return p, nil
}

func (op *operation) choosePort(n *network, p *port, r AttachRequest) (err error) {
	taken, err := op.takenAddrs(n)
	if err != nil {
		return err
	}
	if r.IP.IsValid() {
		if err := ipam.Check(n.Subnet, n.Gateway, r.IP, taken); err != nil {
			return fmt.Errorf("address %w", err)
		}
	} else if p.IP, err = op.freeAddr(n, taken); err != nil {
		return err
	}
	if p.MAC = r.MAC.String(); r.MAC == nil {
		p.MAC = ipam.MAC(p.IP).String()
	}
	if p.Port, err = op.freeName(); err != nil {
		return err
	}
	if p.Name == "" {
		p.Name = p.Port
	}
	return nil
}

// takenAddrs are those that no new port of the network can have: another's, and
// the host's own, which a subnet that the user has chosen may contain.
func (op *operation) takenAddrs(n *network) (func(netip.Addr) bool, error) {
	own, err := op.host.allAddrs()
	if err != nil {
		return nil, err
	}
	set := make(map[[4]byte]bool, len(n.Ports)+len(own))
	for _, a := range own {
		set[a.As4()] = true
	}
	for _, p := range n.Ports {
		set[p.IP.As4()] = true
	}
	return func(a netip.Addr) bool { return set[a.As4()] }, nil
}

// freeAddr is the lowest free address whose MAC address nobody asked for.
func (op *operation) freeAddr(n *network, taken func(netip.Addr) bool) (netip.Addr, error) {
	ip, err := ipam.Allocate(n.Subnet, n.Gateway, func(a netip.Addr) bool { return taken(a) || n.hasMAC(ipam.MAC(a)) })
	if err != nil {
		return ip, fmt.Errorf("network %s: %w", n.Name, err)
	}
	return ip, nil
}

func (n *network) hasMAC(mac net.HardwareAddr) bool {
	text := mac.String()
	for _, p := range n.Ports {
		if p.MAC == text {
			return true
		}
	}
	return false
}

// freeName is a random name as docker's that no device has.
func (op *operation) freeName() (string, error) {
	for range nameTries {
		var b [4]byte
		rand.Read(b[:]) // never fails
		name := "veth" + hex.EncodeToString(b[:])[:7]
		_, err := op.conn.ByName(name)
		if errors.Is(err, link.ErrNotFound) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", errors.New("no free device name")
}

// plug is the container's side of an attachment.
type plug struct {
	ns      *link.Netns // nil: an endpoint's, which its engine configures
	conn    *link.Conn  // into ns
	routes  []Route     // nil: a default route
	publish []*publication
}

// portSteps is what `attach` does for a port, in order. The programs are on the
// device before it joins the bridge: no frame ever passes unchecked. Undone in
// reverse it is what `detach` does, for all of the ports at once.
func (op *operation) portSteps(n *network, at *plug, ports ...*port) []step {
	p := ports[0]
	on := func(f func(*network, *port) error) func() error { return func() error { return f(n, p) } }
	with := func(f func(*network, *port, *plug) error) func() error { return func() error { return f(n, p, at) } }
	all := func(f func(*network, []*port) error) func() error { return func() error { return f(n, ports) } }
	return []step{
		{"port-record", on(op.recordPort), all(op.forgetPorts), nil},
		{"port-veth", with(op.createVeth), all(op.deleteVeths), nil},
		{"port-programs", with(op.attachPrograms), all(op.detachPrograms), on(op.portPrograms)},
		{"port-shape", on(op.shapePort), all(op.unshapePorts), nil},
		{"port-join", on(op.joinBridge), all(op.leaveBridge), on(op.joinBridge)},
		{"port-up", on(op.raisePort), nil, on(op.raisePort)},
		{"port-accelerate", on(op.accelerate), nil, on(op.accelerate)},
		{"port-inside", with(op.configureInside), nil, nil},
		{"port-publish", func() error { return op.publishAll(p, at.publish) }, nil, // port-programs takes it back
			func() error { return op.setPublications(p, p.Publications) }},
		{"port-done", on(op.finishPort), nil, nil},
	}
}

func (op *operation) recordPort(n *network, p *port) error {
	n.Ports[p.Port] = p
	return op.save()
}

func (op *operation) raisePort(_ *network, p *port) error { return op.conn.SetUp(p.Index, true) }

func (op *operation) finishPort(_ *network, p *port) error {
	p.Pending = false
	return op.save()
}

// forgetPorts ends the records, and the reservation of what the ports published.
func (op *operation) forgetPorts(n *network, ports []*port) error {
	published := false
	for _, p := range ports {
		delete(n.Ports, p.Port)
		published = published || len(p.Publications) > 0
	}
	if published {
		if err := op.hostconf.Reserve(op.st.reserved()); err != nil {
			return err
		}
	}
	return op.save()
}

func (op *operation) createVeth(n *network, p *port, at *plug) error {
	return op.createVethAt(n, p, at, 0)
}

// createVethAt makes the pair, with an ifindex of its own or 0: the kernel's choice.
func (op *operation) createVethAt(n *network, p *port, at *plug, index int) error {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return fmt.Errorf("reading the state: %w", err)
	}
	inside := end{ns: at.ns, conn: cmp.Or(at.conn, op.conn), name: cmp.Or(p.Peer, p.Ifname)}
	p.Index, inside.index, err = op.conn.CreateVeth(link.Veth{Name: p.Port, Alias: ownerMark(n.Name), Index: index,
		PeerName: inside.name, PeerMAC: mac, PeerNS: at.ns, MTU: n.MTU})
	if err != nil {
		p.Index = 0 // as before: see detachFromDatapath
		return err
	}
	for _, a := range op.accelerators() {
		a.prepare(n, p, inside)
	}
	return hostconf.QuietIPv6(p.Port)
}

// deleteVeths removes the pairs.
func (op *operation) deleteVeths(n *network, ports []*port) error {
	var ours []int
	for _, p := range ports {
		d, err := op.conn.ByName(p.Port)
		if errors.Is(err, link.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		if n.owns(p, d, "veth") {
			ours = append(ours, d.Index)
		}
	}
	if err := op.conn.DeleteAll(ours); err != nil {
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
func (op *operation) attachPrograms(n *network, p *port, at *plug) error {
	err := op.portPrograms(n, p)
	if !errors.Is(err, datapath.ErrSlotTaken) {
		return err
	}
	index, err := op.freeIndex()
	if err != nil {
		return err
	}
	if err := op.conn.Delete(p.Index); err != nil {
		return fmt.Errorf("deleting %s: %w", p.Port, err)
	}
	if err := op.createVethAt(n, p, at, index); err != nil {
		return err
	}
	return op.portPrograms(n, p)
}

// freeIndex is an ifindex that no device has and whose slot is free.
func (op *operation) freeIndex() (int, error) {
	known, err := op.dp.Devices()
	if err != nil {
		return 0, fmt.Errorf("listing the datapath's devices: %w", err)
	}
	entries, err := op.conn.List()
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

func (op *operation) portPrograms(n *network, p *port) error {
	dp, err := p.datapath(n)
	if err != nil {
		return err
	}
	if err := op.dp.AttachPort(dp); err != nil {
		return fmt.Errorf("attaching the programs to %s: %w", p.Port, err)
	}
	return nil
}

// datapath is what the datapath knows of the port.
func (p *port) datapath(n *network) (datapath.Port, error) {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return datapath.Port{}, fmt.Errorf("reading the state: %w", err)
	}
	return datapath.Port{Ifindex: p.Index, Bridge: n.Index, BridgeMAC: ipam.MAC(n.Gateway),
		MAC: mac, IP: p.IP, MTU: n.MTU, Slow: p.Slowed, XDP: p.XDP}, nil
}

// detachPrograms makes the datapath forget ports. The devices go first, and the
// programs with them: there is no moment without them, and the kernel waits for
// its readers less often.
func (op *operation) detachPrograms(n *network, ports []*port) error {
	if err := op.deleteVeths(n, ports); err != nil || op.dp == nil {
		return err
	}
	var pubs []datapath.Publication
	for _, p := range ports {
		pubs = append(pubs, p.toDatapath(p.Publications)...)
	}
	if err := op.dp.Unpublish(pubs...); err != nil {
		return fmt.Errorf("unpublishing ports: %w", err)
	}
	for _, p := range ports {
		if err := op.detachFromDatapath(p); err != nil {
			return fmt.Errorf("detaching %s from the datapath: %w", p.Port, err)
		}
	}
	return nil
}

// detachFromDatapath makes the datapath forget a port. A kill may have come before
// the port's index was written down; then the datapath finds it by its address.
func (op *operation) detachFromDatapath(p *port) error {
	index := p.Index
	if index == 0 {
		var err error
		if index, err = op.dp.PortAt(p.IP); err != nil || index == 0 {
			return err
		}
	}
	return op.dp.DetachPort(index)
}

// joinBridge makes the host end a port whose address is known before the first
// frame, to the bridge and to the host.
func (op *operation) joinBridge(n *network, p *port) error {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return fmt.Errorf("reading the state: %w", err)
	}
	if err := op.conn.SetMaster(p.Index, n.Index); err != nil {
		return fmt.Errorf("adding %s to %s: %w", p.Port, n.Bridge, err)
	}
	if p.Hairpin {
		if err := op.conn.SetHairpin(p.Index); err != nil {
			return fmt.Errorf("setting hairpin mode of %s: %w", p.Port, err)
		}
	}
	if err := op.conn.AddFDB(p.Index, mac); err != nil {
		return fmt.Errorf("%s: %w", p.Port, err)
	}
	return op.joinNeighbour(n, p)
}

// joinNeighbour tells the kernel which MAC address a port's address has, so that it
// never asks.
func (op *operation) joinNeighbour(n *network, p *port) error {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return fmt.Errorf("reading the state: %w", err)
	}
	return op.conn.AddNeighbour(n.Index, p.IP, mac)
}

// leaveBridge takes the neighbours away. The forwarding entries go with the devices.
func (op *operation) leaveBridge(n *network, ports []*port) error {
	if n.Index == 0 {
		return nil
	}
	for _, p := range ports {
		if err := op.conn.DeleteNeighbour(n.Index, p.IP); err != nil {
			return err
		}
	}
	return nil
}

// configureInside gives the container's end its address and routes, as a
// container expects them, and announces the address.
func (op *operation) configureInside(n *network, p *port, at *plug) error {
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
	if err := inside.AddAddr(d.Index, netip.PrefixFrom(p.IP, n.Subnet.Bits())); err != nil {
		return fmt.Errorf("in %s: %w", ns, err)
	}
	if err := inside.SetUp(d.Index, true); err != nil {
		return fmt.Errorf("raising %s in %s: %w", p.Ifname, ns, err)
	}
	if err := op.routeInside(n, at, d.Index); err != nil {
		return fmt.Errorf("in %s: %w", ns, err)
	}
	// The bridge comes up with its first port; until then it swallows what the host answers.
	if !op.conn.WaitCarrier(p.Index, carrierLimit) || !op.conn.WaitCarrier(n.Index, carrierLimit) {
		op.say("%s has no carrier yet", p.Port)
	}
	return ns.Do(func() error { return link.AnnounceARP(d.Index, p.IP, d.MAC) })
}

func (op *operation) routeInside(n *network, at *plug, index int) error {
	if at.routes != nil {
		return addRoutes(at.conn, index, n.Gateway, at.routes)
	}
	if n.Internal {
		return nil
	}
	have, err := at.conn.DefaultDevices()
	if err != nil {
		return err
	}
	if len(have) > 0 {
		op.say("%s has a default route already: kept", at.ns)
		return nil
	}
	return at.conn.AddDefault(index, n.Gateway)
}
