package lab

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
)

// Options describe a lab. The zero value is a host with one uplink, one outside
// and no containers.
type Options struct {
	// Containers is the number of empty namespaces c1 to cN.
	Containers int
	// Uplinks is 1 (eth0; 0 means 1) or 2 (eth0 and eth1, each with its own
	// outside).
	Uplinks int
	// Plain connects the containers with a kernel bridge and nftables masquerade
	// on every uplink, for comparison with fastbr. If false, containers are left
	// for fastbr to attach.
	Plain bool
	// Subnet of the plain bridge. Its first address is the gateway's; those of
	// the containers follow. Zero: 172.30.0.0/16, fastbr's default.
	Subnet netip.Prefix
	// Neighbour adds to the host a docker0-style bridge (172.17.0.1/16,
	// masqueraded on every uplink) with one container, 172.17.0.2.
	Neighbour bool
	// Router puts a switch between the host's eth0 and the outside, with a LAN
	// neighbour and a router that has a server behind it. It needs a single
	// uplink.
	Router bool
	// NFCall leaves the host's bridge-nf-call-iptables at the kernel's default
	// (1 where br_netfilter is loaded). If false it is 0, which does not flatter
	// fastbr.
	NFCall bool
	// MTU of the uplinks in bytes; 0: 1500.
	MTU int
	// Private lists the prefixes that must never appear outside. Nil: the
	// private ranges of RFC 1918. Empty but not nil: no capture.
	Private []netip.Prefix
	// Excepted are destinations outside that may see Private.
	Excepted []netip.Prefix
}

// Addresses of every lab, from the documentation ranges (RFC 5737).
var (
	hostAddr     = [2]netip.Prefix{netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("203.0.113.1/24")}
	outsideAddr  = [2]netip.Prefix{netip.MustParsePrefix("198.51.100.2/24"), netip.MustParsePrefix("203.0.113.2/24")}
	serverAddr   = [2][2]string{{"192.0.2.11/32", "192.0.2.12/32"}, {"192.0.2.21/32", "192.0.2.22/32"}}
	rfc1918      = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16")}
	plainSubnet  = netip.MustParsePrefix("172.30.0.0/16")
	dockerSubnet = netip.MustParsePrefix("172.17.0.0/16")
)

// Lab is a running lab.
type Lab struct {
	// ID is the random part of every name.
	ID string
	// Host is the machine on which fastbr works. Its Addr is that of eth0.
	Host *Namespace
	// Outside is the first outside, beyond eth0. Its Addr is a server's and not
	// on the link, so the host has to route.
	Outside *Namespace
	// Outsides holds all outsides; Outsides[1] is beyond eth1.
	Outsides []*Namespace
	// Containers holds c1 to cN.
	Containers []*Namespace
	// Neighbour is the container on the docker0-style bridge; nil without one.
	Neighbour *Namespace
	// Router, Far and LAN are the router, the server behind it and the neighbour
	// on the switch. They are nil without Options.Router.
	Router, Far, LAN *Namespace
	// Captures watch the outside end of each uplink. It is empty if
	// Options.Private is.
	Captures []*Capture

	opts    Options
	sw      *Namespace // nil: no switch
	tunnels []*Tunnel
	closed  sync.Once
	mu      sync.Mutex
	all     []*Namespace
}

// New builds a lab. On failure, or when ctx ends meanwhile, it removes what it
// has made. The caller must Close the lab; ctx does not bound its life. New
// first removes what killed processes left of their labs.
func New(ctx context.Context, o Options) (*Lab, error) {
	removeDead()
	l := &Lab{ID: randomID(), opts: o.withDefaults()}
	if err := l.build(ctx); err != nil {
		l.Close()
		return nil, fmt.Errorf("building the lab: %w", err)
	}
	return l, nil
}

func (o Options) withDefaults() Options {
	if o.Uplinks == 0 {
		o.Uplinks = 1
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.Private == nil {
		o.Private = rfc1918
	}
	if !o.Subnet.IsValid() {
		o.Subnet = plainSubnet
	}
	return o
}

func (l *Lab) build(ctx context.Context) error {
	if l.opts.Uplinks < 1 || l.opts.Uplinks > len(hostAddr) {
		return fmt.Errorf("%d uplinks: one or two are possible", l.opts.Uplinks)
	}
	var err error
	if l.Host, err = l.Add("h"); err != nil {
		return err
	}
	if l.opts.NFCall {
		if err := l.Host.SetSysctl("net.bridge.bridge-nf-call-iptables", "1"); err != nil {
			return err
		}
	}
	if l.opts.Router {
		if l.opts.Uplinks != 1 {
			return fmt.Errorf("a router and %d uplinks: only one is possible", l.opts.Uplinks)
		}
		if err := l.buildSwitch(); err != nil {
			return err
		}
	}
	for i := range l.opts.Uplinks {
		if err := l.buildUplink(i); err != nil {
			return err
		}
	}
	if l.opts.Router {
		if err := l.buildRouter(); err != nil {
			return fmt.Errorf("router: %w", err)
		}
	}
	l.Outside = l.Outsides[0]
	for i := range l.opts.Containers {
		c, err := l.Add(fmt.Sprintf("c%d", i+1))
		if err != nil {
			return err
		}
		l.Containers = append(l.Containers, c)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if l.opts.Neighbour {
		if err := l.buildNeighbour(ctx); err != nil {
			return fmt.Errorf("neighbour bridge: %w", err)
		}
	}
	if l.opts.Plain {
		if err := l.buildPlain(ctx); err != nil {
			return fmt.Errorf("plain bridge: %w", err)
		}
	}
	return ctx.Err()
}

// name returns the full name of one of the lab's namespaces.
func (l *Lab) name(name string) string { return namePrefix + l.ID + "-" + name }

// Add makes another namespace, "fblab-ID-NAME", which lives as long as the lab.
func (l *Lab) Add(name string) (*Namespace, error) {
	n, err := NewNamespace(l.name(name))
	if err != nil {
		return nil, err
	}
	l.keep(n)
	return n, nil
}

func (l *Lab) keep(n *Namespace) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, n)
}

// Servers returns the addresses of the servers outside: two beyond each uplink.
func (l *Lab) Servers() []netip.Addr {
	var s []netip.Addr
	for i := range l.opts.Uplinks {
		for _, a := range serverAddr[i] {
			s = append(s, netip.MustParsePrefix(a).Addr())
		}
	}
	return s
}

// HostAddr returns the host's address on uplink i, which may appear outside.
func (l *Lab) HostAddr(i int) netip.Addr { return hostAddr[i].Addr() }

// OutsideAddr returns the address at the other end of uplink i.
func (l *Lab) OutsideAddr(i int) netip.Addr { return outsideAddr[i].Addr() }

// Close removes what New and Add made, processes included. It is idempotent.
func (l *Lab) Close() {
	l.closed.Do(func() {
		for _, c := range l.Captures {
			c.Close()
		}
		for _, t := range l.tunnels {
			t.close()
		}
		l.mu.Lock()
		all := l.all
		l.mu.Unlock()
		for i := len(all) - 1; i >= 0; i-- {
			all[i].Close()
		}
	})
}
