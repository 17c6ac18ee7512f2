package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// buildUplink connects the host's eth<i> to eth0 of a new outside, and adds
// routes.
func (l *Lab) buildUplink(ctx context.Context, i int) error {
	o, err := l.Add(fmt.Sprintf("o%d", i+1))
	if err != nil {
		return err
	}
	l.Outsides = append(l.Outsides, o)
	dev := fmt.Sprintf("eth%d", i)
	end, endDev, err := l.connect(dev, o)
	if err != nil {
		return err
	}
	for _, p := range l.opts.plans() {
		if err := l.addressUplink(ctx, p, i, dev); err != nil {
			return err
		}
	}
	if len(l.opts.Private) == 0 {
		return nil
	}
	return l.Watch(dev, end, endDev)
}

// addressUplink gives both ends of an uplink addresses of a plan, and the host
// routes: the default one by eth0, and one to each server by eth1.
func (l *Lab) addressUplink(ctx context.Context, p *plan, i int, dev string) error {
	o := l.Outsides[i]
	for _, a := range append(p.servers[i][:], p.outside[i]) {
		if err := o.AddAddr("eth0", a); err != nil {
			return err
		}
	}
	o.SetAddr(p.servers[i][0].Addr())
	host := p.host[i].Addr()
	if p == &plan6 && l.opts.IPv6 == Automatic {
		var err error
		if host, err = l.autoconfigure(ctx, i, dev); err != nil {
			return err
		}
	} else if err := l.Host.AddAddr(dev, p.host[i]); err != nil {
		return err
	}
	if p == &plan6 {
		l.host6[i] = host
	}
	if i == 0 {
		l.Host.SetAddr(host)
		if p == &plan6 && l.opts.IPv6 == Automatic {
			return nil // the router has advertised itself
		}
		return l.Host.AddRoute(netip.Prefix{}, p.outside[0].Addr())
	}
	for _, s := range p.servers[i] {
		if err := l.Host.AddRoute(s, p.outside[i].Addr()); err != nil {
			return err
		}
	}
	return nil
}

// connect joins an uplink of the host to the eth0 of an outside, by a cable or
// the switch. It returns where the host's end can be watched.
func (l *Lab) connect(dev string, o *Namespace) (*Namespace, string, error) {
	if l.sw == nil {
		if err := Veth(l.Host, dev, o, "eth0", l.opts.MTU); err != nil {
			return nil, "", err
		}
		return o, "eth0", l.Host.SetGSO(dev, CableGSO)
	}
	if _, err := l.toSwitch(o, "eth0", "s1"); err != nil {
		return nil, "", err
	}
	port, err := l.toSwitch(l.Host, dev, "h")
	return l.sw, port, err
}

// Veth connects devices named a and b of two namespaces and sets both up. mtu
// is in bytes; 0: the kernel's 1500.
func Veth(na *Namespace, a string, nb *Namespace, b string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = a, mtu
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: b, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(int(nb.fd))}
	if err := na.nl.LinkAdd(v); err != nil {
		return fmt.Errorf("adding veth %s in %s to %s in %s: %w", a, na.Name, b, nb.Name, err)
	}
	if err := errors.Join(skipDAD(na, a), skipDAD(nb, b)); err != nil {
		return err
	}
	if err := na.SetUp(a); err != nil {
		return err
	}
	return nb.SetUp(b)
}

// skipDAD makes the addresses of a new device usable at once: duplicate address
// detection takes a second. Devices that the lab has not made keep it.
func skipDAD(n *Namespace, dev string) error {
	if !n.ip6 {
		return nil
	}
	return n.SetSysctl("net.ipv6.conf."+dev+".accept_dad", "0")
}

// CableGSO is the largest IPv4 super-packet of an uplink, in bytes. Drivers of
// fast network cards support as much, and so does veth, but the kernel's
// default is 64 KiB. The size must suit the whole path, which here is one
// cable: a switch would have to split such packets.
const CableGSO = 128 << 10

// SetGSO sets the largest IPv4 super-packet of a device, in bytes
// (gso_ipv4_max_size).
func (n *Namespace) SetGSO(dev string, bytes int) error {
	return withLink(n, dev, fmt.Sprintf("setting gso_ipv4_max_size %d of %%s in %%s", bytes), func(link netlink.Link) error {
		return n.nl.LinkSetGSOIPv4MaxSize(link, bytes)
	})
}

// GSO returns what SetGSO sets.
func (n *Namespace) GSO(dev string) (int, error) {
	link, err := n.nl.LinkByName(dev)
	if err != nil {
		return 0, fmt.Errorf("reading gso_ipv4_max_size of %s in %s: %w", dev, n.Name, err)
	}
	return int(link.Attrs().GSOIPv4MaxSize), nil
}

// SetUp sets a device up.
func (n *Namespace) SetUp(dev string) error {
	return withLink(n, dev, "setting %s up in %s", n.nl.LinkSetUp)
}

// SetDown sets a device down.
func (n *Namespace) SetDown(dev string) error {
	return withLink(n, dev, "setting %s down in %s", n.nl.LinkSetDown)
}

// DelLink deletes a device.
func (n *Namespace) DelLink(dev string) error {
	return withLink(n, dev, "deleting %s in %s", n.nl.LinkDel)
}

func withLink(n *Namespace, dev, doing string, fn func(netlink.Link) error) error {
	link, err := n.nl.LinkByName(dev)
	if err == nil {
		err = fn(link)
	}
	if err != nil {
		return fmt.Errorf(doing+": %w", dev, n.Name, err)
	}
	return nil
}

// AddAddr adds an address to a device. IPv6 does not look whether somebody else has
// it.
func (n *Namespace) AddAddr(dev string, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return withLink(n, dev, "adding "+p.String()+" to %s in %s", func(link netlink.Link) error {
		return n.nl.AddrAdd(link, a)
	})
}

// DelAddr removes an address from a device.
func (n *Namespace) DelAddr(dev string, p netip.Prefix) error {
	return withLink(n, dev, "taking "+p.String()+" from %s in %s", func(link netlink.Link) error {
		return n.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)})
	})
}

// AddRoute adds a route. An invalid (zero) dst is the default route.
func (n *Namespace) AddRoute(dst netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{Gw: via.AsSlice()}
	if dst.IsValid() {
		r.Dst = ipNet(dst)
	}
	if err := n.nl.RouteAdd(r); err != nil {
		return fmt.Errorf("adding route to %v via %v in %s: %w", dst, via, n.Name, err)
	}
	return nil
}

// MAC returns the MAC address of a device.
func (n *Namespace) MAC(dev string) (net.HardwareAddr, error) {
	link, err := n.nl.LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("reading MAC of %s in %s: %w", dev, n.Name, err)
	}
	return link.Attrs().HardwareAddr, nil
}

// Index returns the ifindex of a device.
func (n *Namespace) Index(dev string) (int, error) {
	link, err := n.nl.LinkByName(dev)
	if err != nil {
		return 0, fmt.Errorf("reading index of %s in %s: %w", dev, n.Name, err)
	}
	return link.Attrs().Index, nil
}

// Counters are a device's counters, as in `ip -s link`.
type Counters struct {
	RXPackets, RXBytes, RXDropped uint64
	TXPackets, TXBytes, TXDropped uint64
}

// Counters reads a device's counters by netlink. /sys shows the devices of the
// namespace in which it was mounted.
func (n *Namespace) Counters(dev string) (Counters, error) {
	link, err := n.nl.LinkByName(dev)
	if err != nil {
		return Counters{}, fmt.Errorf("reading counters of %s in %s: %w", dev, n.Name, err)
	}
	s := link.Attrs().Statistics
	if s == nil {
		return Counters{}, fmt.Errorf("reading counters of %s in %s: the kernel sent none", dev, n.Name)
	}
	return Counters{
		RXPackets: s.RxPackets, RXBytes: s.RxBytes, RXDropped: s.RxDropped,
		TXPackets: s.TxPackets, TXBytes: s.TxBytes, TXDropped: s.TxDropped,
	}, nil
}

// buildPlain connects the containers as docker0 does, without Docker.
func (l *Lab) buildPlain(ctx context.Context) error {
	return l.bridge(ctx, "br0", func(p *plan) netip.Prefix {
		if p == &plan4 {
			return l.opts.Subnet
		}
		return p.plain
	}, l.Containers)
}

// buildNeighbour adds the docker0-style bridge with its container.
func (l *Lab) buildNeighbour(ctx context.Context) error {
	n, err := l.Add("nb")
	if err != nil {
		return err
	}
	l.Neighbour = n
	return l.bridge(ctx, "docker0", func(p *plan) netip.Prefix { return p.docker }, []*Namespace{n})
}

// bridge builds a kernel bridge in the host and plugs each member in as eth0. In
// every family it has the first address of subnet, the members those that follow,
// and what leaves the subnet is masqueraded.
func (l *Lab) bridge(ctx context.Context, name string, subnet func(*plan) netip.Prefix, members []*Namespace) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, l.opts.MTU
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := l.Host.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("adding bridge %s: %w", name, err)
	}
	if err := skipDAD(l.Host, name); err != nil {
		return err
	}
	for _, p := range l.opts.plans() {
		if err := l.Host.AddAddr(name, host(subnet(p), 1)); err != nil {
			return err
		}
	}
	if err := l.Host.SetUp(name); err != nil {
		return err
	}
	for i, m := range members {
		if err := l.plug(name, fmt.Sprintf("%s-%d", name, i+1), m); err != nil {
			return err
		}
	}
	for _, p := range l.opts.plans() {
		s := subnet(p)
		for i, m := range members {
			if err := join(m, host(s, i+2), host(s, 1).Addr()); err != nil {
				return err
			}
		}
		if err := l.Host.SetSysctl(p.forwarding, "1"); err != nil {
			return err
		}
		err := l.Host.NFT(ctx, fmt.Sprintf(`
			table %[3]s lab-%[1]s {
				chain post {
					type nat hook postrouting priority srcnat; policy accept;
					%[3]s saddr %[2]s oifname != "%[1]s" masquerade
				}
			}
			`, name, s.Masked(), p.nftTable))
		if err != nil {
			return err
		}
	}
	return nil
}

// host returns the i-th address of a subnet, with the subnet's length.
func host(subnet netip.Prefix, i int) netip.Prefix {
	a := subnet.Masked().Addr()
	for range i {
		a = a.Next()
	}
	return netip.PrefixFrom(a, subnet.Bits())
}

// BigTCP lets the containers of a plain bridge send super-packets as large as
// the uplinks accept.
func (l *Lab) BigTCP() error {
	err := l.Host.SetGSO("br0", CableGSO)
	for i, c := range l.Containers {
		err = errors.Join(err, l.Host.SetGSO(fmt.Sprintf("br0-%d", i+1), CableGSO), c.SetGSO("eth0", CableGSO))
	}
	return err
}

// plug connects m to the bridge with an eth0.
func (l *Lab) plug(bridge, port string, m *Namespace) error {
	if err := Veth(l.Host, port, m, "eth0", l.opts.MTU); err != nil {
		return err
	}
	return enslave(l.Host, bridge, port)
}

// join gives m an address on its eth0, and a default route.
func join(m *Namespace, addr netip.Prefix, gw netip.Addr) error {
	if err := m.AddAddr("eth0", addr); err != nil {
		return err
	}
	m.SetAddr(addr.Addr())
	return m.AddRoute(netip.Prefix{}, gw)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
