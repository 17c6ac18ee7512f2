package ctl

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
)

// AttachRequest is what the user asks of a port. Zero fields are chosen.
type AttachRequest struct {
	Target  string           // netns path, netns:NAME or pid:N
	Network string           // "": DefaultNetwork
	Name    string           // "": the name of the host end
	IP      netip.Addr       // invalid: the lowest free one
	IP6     netip.Addr       // invalid: the lowest free one, if the network has an IPv6 subnet
	MAC     net.HardwareAddr // nil: 02:42 and the IPv4 address
	Ifname  string           // "": eth0
	Allowed Allowed          // besides IP and MAC
	Slow    bool             // always take the kernel path
	Hairpin bool             // the bridge may send a frame back to this port
	DAD     bool             // the container asks whether anybody has its IPv6 addresses (RFC 4862 section 5.4)

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
	// dadLimit bounds the wait for the detection of duplicates, which takes about two
	// seconds. It is the reference bridge plugin's.
	dadLimit = 10 * time.Second
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
	if err := r.Allowed.check(); err != nil {
		return err
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
	return c.attach(ctx, r, networks.asExpected)
}

// attach plugs a container into the network that find returns. One that find has made
// for it goes down again if the port cannot be.
func (c *Controller) attach(ctx context.Context, r AttachRequest, find func(networks, AttachRequest) (n *network, made bool, err error)) (res AttachResult, err error) {
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
	if ns.ID() == c.instance.netns {
		return res, tagged(ErrInvalid, fmt.Sprintf("%s is the namespace that the bridge is in", r.Target))
	}
	alone := false // the network is there for this port only
	leave := func(op *operation, n *network) error {
		if alone && len(n.Ports) == 0 {
			return op.networks.downUndefined(n)
		}
		return nil
	}
	err = c.instance.mutate(ctx, func(op *operation) error {
		n, made, err := find(op.networks, r)
		if err != nil {
			return err
		}
		alone = made
		if res, err = op.ports.plugIn(n, r, ns); err != nil {
			err = errors.Join(err, leave(op, n))
		}
		return err
	})
	if err != nil || !r.DAD {
		return res, err
	}
	if err = waitUnique(ns, res.Ifname); err != nil { // others need not wait for this
		err = errors.Join(err, c.instance.mutate(context.WithoutCancel(ctx), func(op *operation) error {
			n, p, err := op.ports.named(res.Network, res.Port)
			if err != nil {
				return err
			}
			return errors.Join(op.ports.detach(n, p), leave(op, n))
		}))
	}
	return res, err
}

// waitUnique waits until a container may use the IPv6 addresses of a device.
func waitUnique(ns *link.Netns, device string) error {
	inside, err := link.OpenIn(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	d, err := inside.ByName(device)
	if err == nil {
		err = link.Tentative{Conn: inside, Index: d.Index}.Wait(dadLimit)
	}
	if err != nil {
		return fmt.Errorf("in %s: %w", ns, err)
	}
	return nil
}

// plugIn makes the port and publishes what comes with it.
func (ps ports) plugIn(n *network, r AttachRequest, ns *link.Netns) (res AttachResult, err error) {
	p, err := ps.create(n, r, ns.ID())
	if err != nil {
		return res, err
	}
	publish, err := ps.op.publications.create(n, p, r.Owner, ps.op.publications.notYet(r.Owner, r.Publish))
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
	steps := ps.steps(n, &plug{ns: ns, conn: inside, routes: r.Routes, publish: publish, dad: r.DAD}, p)
	if err := ps.op.runner.run(ps.op.ctx, steps); err != nil {
		return res, err
	}
	return ps.result(n, p)
}

func (ps ports) result(n *network, p *port) (AttachResult, error) {
	d, err := ps.op.conn.ByIndex(p.Index)
	if err != nil {
		return AttachResult{}, err
	}
	return AttachResult{Name: p.Name, Port: p.Port, Network: n.Name, Ifname: p.Ifname, MAC: p.MAC.String(),
		IP: netip.PrefixFrom(p.IP, n.Subnet.Bits()).String(), Gateway: n.Gateway.String(), MTU: n.MTU, DNS: n.nameServer(),
		IP6: prefixText(p.IP6, n.Subnet6), Gateway6: addrText(n.Gateway6),
		AllowedAddresses: texts(p.AllowedAddrs), AllowedMACs: texts(p.AllowedMACs),
		PortMAC: d.MAC.String(), Bridge: n.Bridge, BridgeMAC: ipam.MAC(n.Gateway).String(), Internal: n.Internal}, nil
}

// Detach unplugs a port, named by the container's name, its host end or its
// target; from one network, or with network "" from whichever it is. A port
// that is gone already is no error. Returns what was detached.
func (c *Controller) Detach(ctx context.Context, what, networkName string) (detached []string, err error) {
	match := func(n *network, p *port) bool { return p.Name == what || p.Port == what }
	if isTarget(what) {
		ns, err := link.OpenTarget(what)
		if err == nil {
			defer ns.Close()
			match = func(_ *network, p *port) bool { return p.Netns == ns.ID() }
		} else if errors.Is(err, link.ErrGone) || errors.Is(err, link.ErrNotNetns) {
			// Ports of a vanished namespace are forgotten by any command.
			match = func(*network, *port) bool { return false }
		} else {
			return nil, tagged(ErrInvalid, err.Error())
		}
	}
	err = c.instance.mutate(ctx, func(op *operation) error {
		if networkName != "" {
			if _, err := op.networks.find(networkName); err != nil && !errors.Is(err, ErrNotUp) {
				return err
			}
		}
		found := map[*port]*network{}
		for _, n := range op.st.Networks {
			for _, p := range n.Ports {
				if match(n, p) && (networkName == "" || n.Name == networkName) {
					found[p] = n
				}
			}
		}
		if len(found) > 1 && !isTarget(what) {
			return fmt.Errorf("several networks have a port %s: say which with --network", what)
		}
		for p, n := range found {
			if err := op.ports.detach(n, p); err != nil {
				return err
			}
			detached = append(detached, p.Name)
		}
		return nil
	})
	return detached, err
}

func isTarget(s string) bool {
	return strings.ContainsRune(s, '/') || strings.HasPrefix(s, "netns:") || strings.HasPrefix(s, "pid:")
}

// create makes the record of a port: names and addresses, from the state alone. A zero
// netns is not known yet.
func (ps ports) create(n *network, r AttachRequest, netns link.NetnsID) (*port, error) {
	if len(n.Ports) >= maxPorts {
		return nil, fmt.Errorf("network %s has %d ports, the most a bridge can have", n.Name, len(n.Ports))
	}
	slow := r.Slow || r.Bandwidth != Bandwidth{}
	p := &port{Name: r.Name, Ifname: r.Ifname, IP: r.IP, Netns: netns, Slow: slow, Slowed: slow, Hairpin: r.Hairpin,
		Bandwidth: r.Bandwidth, Owner: r.Owner, Pending: true}
	if r.Owner != nil {
		if _, lost := ps.owned(*r.Owner); lost != nil {
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
	if r.MAC != nil && bytes.Equal(r.MAC, ipam.MAC(n.Gateway)) {
		return nil, tagged(ErrExists, fmt.Sprintf("MAC address %s is the bridge's", r.MAC))
	}
	if err := ps.choose(n, p, r); err != nil {
		return nil, err
	}
	if err := ps.checkAllowed(n, p, r.Allowed); err != nil {
		return nil, err
	}
	p.allow(r.Allowed)
	return p, nil
}

// Allowed is what a port may send with besides its container's own addresses: it forwards
// for others, has an address that moves between containers, or devices of its own inside.
// Ports of a network may have some in common.
type Allowed struct {
	Addrs []netip.Prefix
	MACs  []net.HardwareAddr
}

// ParseAllowed reads addresses or prefixes, and MAC addresses. The error wraps ErrInvalid.
func ParseAllowed(addrs, macs []string) (a Allowed, err error) {
	for _, text := range addrs {
		p, err := netip.ParsePrefix(text)
		if addr, errAddr := netip.ParseAddr(text); errAddr == nil {
			p, err = addr.Prefix(addr.BitLen())
		}
		if err != nil {
			return a, tagged(ErrInvalid, fmt.Sprintf("allowed address %q: want an IPv4 address or prefix such as 10.8.0.0/24", text))
		}
		a.Addrs = append(a.Addrs, p)
	}
	for _, text := range macs {
		mac, err := net.ParseMAC(text)
		if err != nil {
			return a, tagged(ErrInvalid, fmt.Sprintf("allowed MAC address %q: want six bytes such as 00:00:5e:00:01:33", text))
		}
		a.MACs = append(a.MACs, mac)
	}
	return a, nil
}

// ParseAllowedText is ParseAllowed for lists as one text each, separated by commas or
// blanks: what an engine's option can hold.
func ParseAllowedText(addrs, macs string) (Allowed, error) {
	words := func(list string) []string {
		return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
	}
	return ParseAllowed(words(addrs), words(macs))
}

// maxAllowed is how many prefixes, and how many MAC addresses, one port may be allowed.
const maxAllowed = 64

func (a Allowed) check() error {
	if len(a.Addrs) > maxAllowed || len(a.MACs) > maxAllowed {
		return tagged(ErrInvalid, fmt.Sprintf("%d allowed addresses and %d allowed MAC addresses: at most %d each", len(a.Addrs), len(a.MACs), maxAllowed))
	}
	for _, p := range a.Addrs {
		if err := ipam.CheckAllowed(p); err != nil {
			return tagged(ErrInvalid, "allowed address "+err.Error())
		}
	}
	for _, mac := range a.MACs {
		if err := checkMAC(mac); err != nil {
			return tagged(ErrInvalid, "allowed "+err.Error())
		}
	}
	return nil
}

// plus is a with what b has besides.
func (a Allowed) plus(b Allowed) Allowed {
	out := Allowed{slices.Clone(a.Addrs), slices.Clone(a.MACs)}
	for _, p := range b.Addrs {
		if !slices.Contains(out.Addrs, p) {
			out.Addrs = append(out.Addrs, p)
		}
	}
	for _, mac := range b.MACs {
		if !slices.ContainsFunc(out.MACs, func(m net.HardwareAddr) bool { return bytes.Equal(m, mac) }) {
			out.MACs = append(out.MACs, mac)
		}
	}
	return out
}

// allow records what the port may use, each once.
func (p *port) allow(a Allowed) {
	a = Allowed{}.plus(a)
	p.AllowedAddrs, p.AllowedMACs = a.Addrs, nil
	for _, mac := range a.MACs {
		p.AllowedMACs = append(p.AllowedMACs, macAddr{mac})
	}
}

func (p *port) allowed() (a Allowed) {
	a.Addrs = p.AllowedAddrs
	for _, mac := range p.AllowedMACs {
		a.MACs = append(a.MACs, mac.HardwareAddr)
	}
	return a
}

// checkAllowed refuses what belongs to somebody else. An address of the network's subnet
// may not be the host's, nor a container's. A prefix outside it becomes part of the network,
// and may not be anybody's as a subnet may not.
func (ps ports) checkAllowed(n *network, p *port, want Allowed) error {
	if n.PublishedOnly && len(want.Addrs) > 0 {
		return tagged(ErrInvalid, fmt.Sprintf("allowed address %s: network %s is made with --published-only, where containers use their own addresses only", want.Addrs[0], n.Name))
	}
	for _, a := range want.Addrs {
		if err := ps.checkAllowedAddr(n, p, a); err != nil {
			return fmt.Errorf("allowed address %s %w", a, err)
		}
	}
	for _, mac := range want.MACs {
		if bytes.Equal(mac, ipam.MAC(n.Gateway)) {
			return tagged(ErrExists, fmt.Sprintf("allowed MAC address %s is the bridge's", mac))
		}
		for _, other := range n.Ports {
			if other.Port != p.Port && bytes.Equal(other.MAC.HardwareAddr, mac) {
				return tagged(ErrExists, fmt.Sprintf("allowed MAC address %s is %s's", mac, other.Name))
			}
		}
	}
	return nil
}

func (ps ports) checkAllowedAddr(n *network, p *port, a netip.Prefix) error {
	taken := func(by string) error { return tagged(ErrExists, "contains "+by) }
	if a.Overlaps(n.Subnet) && a.Bits() < n.Subnet.Bits() {
		return taken(fmt.Sprintf("the subnet %s of network %s", n.Subnet, n.Name))
	}
	own, err := ps.op.host.allAddrs(link.IPv4)
	if err != nil {
		return err
	}
	if n.Subnet.Overlaps(a) {
		for _, x := range []struct {
			what string
			addr netip.Addr
		}{{"the gateway's address", n.Gateway}, {"the network's address", n.Subnet.Masked().Addr()}, {"the broadcast address", ipam.Broadcast(n.Subnet)}} {
			if a.Contains(x.addr) {
				return taken(fmt.Sprintf("%s %s", x.what, x.addr))
			}
		}
		for _, other := range n.sortedPorts() {
			if other.Port != p.Port && a.Contains(other.IP) {
				return taken(fmt.Sprintf("%s, the address of %s", other.IP, other.Name))
			}
		}
	} else {
		used, err := ps.op.networks.usedAddrs(n.Name)
		if err != nil {
			return err
		}
		if err := used.conflict(a); err != nil {
			return err
		}
	}
	if at := slices.IndexFunc(own, a.Contains); at >= 0 {
		return taken(fmt.Sprintf("%s, an address of this host", own[at]))
	}
	return nil
}

// beyond are the allowed prefixes of ports outside the subnet, which are part of the network.
func (n *network) beyond(ports ...*port) (out []netip.Prefix) {
	for _, p := range ports {
		for _, a := range p.AllowedAddrs {
			if !n.Subnet.Overlaps(a) {
				out = append(out, a)
			}
		}
	}
	return ipam.Minimal(out)
}

func (ps ports) choose(n *network, p *port, r AttachRequest) (err error) {
	taken, err := ps.takenAddrs(n)
	if err != nil {
		return err
	}
	if r.IP.IsValid() {
		if err := ipam.Check(n.Subnet, n.Gateway, r.IP, taken); err != nil {
			return fmt.Errorf("address %w", err)
		}
	} else if p.IP, err = ps.freeAddr(n, taken); err != nil {
		return err
	}
	if p.IP6, err = n.chooseIPv6(r.IP6, taken); err != nil {
		return err
	}
	if p.MAC.HardwareAddr = r.MAC; r.MAC == nil {
		p.MAC.HardwareAddr = ipam.MAC(p.IP)
	}
	if p.Port, err = ps.freeName(); err != nil {
		return err
	}
	if p.Name == "" {
		p.Name = p.Port
	}
	return nil
}

// chooseIPv6 is the IPv6 address of a new port: the one that was asked for, or the lowest
// free one. It is invalid in a network without an IPv6 subnet.
func (n *network) chooseIPv6(asked netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	switch {
	case n.Subnet6.IsValid() && !asked.IsValid():
		ip, err := ipam.Allocate(n.Subnet6, n.Gateway6, taken)
		if err != nil {
			return ip, fmt.Errorf("network %s: %w", n.Name, err)
		}
		return ip, nil
	case n.Subnet6.IsValid():
		if err := ipam.Check(n.Subnet6, n.Gateway6, asked, taken); err != nil {
			return asked, fmt.Errorf("address %w", err)
		}
	case asked.IsValid():
		return asked, tagged(ErrInvalid, fmt.Sprintf("address %s: network %s has no IPv6 subnet", asked, n.Name))
	}
	return asked, nil
}

// takenAddrs are those that no new port of the network can have: another's, those that
// others are allowed, and the host's own, which a subnet that the user has chosen may contain.
func (ps ports) takenAddrs(n *network) (func(netip.Addr) bool, error) {
	own, err := ps.op.host.allAddrs(link.IPv4)
	if err != nil {
		return nil, err
	}
	if n.Subnet6.IsValid() {
		own6, err := ps.op.host.allAddrs(link.IPv6)
		if err != nil {
			return nil, err
		}
		own = append(own, own6...)
	}
	set := make(map[netip.Addr]bool, 2*len(n.Ports)+len(own))
	for _, a := range own {
		set[a] = true
	}
	var allowed []netip.Prefix
	for _, p := range n.Ports {
		set[p.IP], set[p.IP6] = true, true
		allowed = append(allowed, p.AllowedAddrs...)
	}
	return func(a netip.Addr) bool {
		return set[a] || slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return p.Contains(a) })
	}, nil
}

// freeAddr is the lowest free address whose MAC address nobody asked for.
func (ps ports) freeAddr(n *network, taken func(netip.Addr) bool) (netip.Addr, error) {
	ip, err := ipam.Allocate(n.Subnet, n.Gateway, func(a netip.Addr) bool { return taken(a) || n.hasMAC(ipam.MAC(a)) })
	if err != nil {
		return ip, fmt.Errorf("network %s: %w", n.Name, err)
	}
	return ip, nil
}

func (ps ports) roomFor(n *network) error {
	if len(n.Ports) >= maxPorts {
		return fmt.Errorf("network %s has %d ports, the most a bridge can have", n.Name, len(n.Ports))
	}
	taken, err := ps.takenAddrs(n)
	if err == nil {
		_, err = ps.freeAddr(n, taken)
	}
	if err == nil {
		_, err = n.chooseIPv6(netip.Addr{}, taken)
	}
	return err
}

func (n *network) hasMAC(mac net.HardwareAddr) bool {
	for _, p := range n.Ports {
		if bytes.Equal(p.MAC.HardwareAddr, mac) || slices.ContainsFunc(p.AllowedMACs, func(m macAddr) bool { return bytes.Equal(m.HardwareAddr, mac) }) {
			return true
		}
	}
	return false
}

// freeName is a random name as docker's that no device has.
func (ps ports) freeName() (string, error) {
	for range nameTries {
		var b [4]byte
		rand.Read(b[:]) // never fails
		name := "veth" + hex.EncodeToString(b[:])[:7]
		_, err := ps.op.conn.ByName(name)
		if errors.Is(err, link.ErrNotFound) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", errors.New("no free device name")
}
