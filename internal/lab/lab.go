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
	// IPv6 says how the host has its IPv6 addresses. The zero value turns IPv6
	// off in every namespace of the lab.
	IPv6 Addressing
	// Neighbour adds to the host a docker0-style bridge (172.17.0.1/16,
	// masqueraded on every uplink) with one container, 172.17.0.2.
	Neighbour bool
	// Router puts a switch between the host's eth0 and the outside, with a LAN
	// neighbour and a router that has a server behind it. It needs a single
	// uplink.
	Router bool
	// NFCall leaves the host's bridge-nf-call-iptables and -ip6tables at the
	// kernel's default (1 where br_netfilter is loaded). If false they are 0, which
	// does not flatter fastbr.
	NFCall bool
	// MTU of the uplinks in bytes; 0: 1500.
	MTU int
	// Private lists the prefixes that must never appear outside. Nil: the
	// private ranges of RFC 1918, and with IPv6 those of RFC 4193. Empty but not
	// nil: no capture.
	Private []netip.Prefix
	// Excepted are destinations outside that may see Private.
	Excepted []netip.Prefix
}

// Addressing is a way of getting IPv6 addresses.
type Addressing int

const (
	// NoIPv6: IPv6 is off.
	NoIPv6 Addressing = iota
	// Static: addresses and routes are set by hand, as those of IPv4 are.
	Static
	// Automatic: the host has its addresses and its default route from router
	// advertisements of the outsides (SLAAC, RFC 4862). They send one when the
	// lab is built, and another whenever Advertise is called; none comes by
	// itself, so whatever takes the route away is seen.
	Automatic
)

// plan is how a lab is addressed in one family.
type plan struct {
	host, outside       [2]netip.Prefix    // by uplink
	servers             [2][2]netip.Prefix // beyond each uplink
	router, lan         netip.Prefix       // on the switch
	routerFar, far      netip.Prefix       // behind the router
	tunHost, tunOutside netip.Prefix
	tunServer           netip.Prefix
	plain, docker       netip.Prefix // subnets of kernel bridges
	private             []netip.Prefix
	forwarding          string // the sysctl
	nfCall              string // the sysctl
	nftTable            string // the family's word in nft's language
}

// The plans use the documentation ranges (RFC 5737, RFC 3849); tunnels of IPv4 use
// the one for benchmarks (RFC 2544).
var (
	plan4 = plan{
		host:    prefixes("198.51.100.1/24", "203.0.113.1/24"),
		outside: prefixes("198.51.100.2/24", "203.0.113.2/24"),
		servers: [2][2]netip.Prefix{prefixes("192.0.2.11/32", "192.0.2.12/32"), prefixes("192.0.2.21/32", "192.0.2.22/32")},
		router:  netip.MustParsePrefix("198.51.100.3/24"), lan: netip.MustParsePrefix("198.51.100.66/24"),
		routerFar: netip.MustParsePrefix("192.0.2.129/25"), far: netip.MustParsePrefix("192.0.2.130/25"),
		tunHost: netip.MustParsePrefix("198.18.0.1/24"), tunOutside: netip.MustParsePrefix("198.18.0.2/24"),
		tunServer: netip.MustParsePrefix("192.0.2.31/32"),
		plain:     netip.MustParsePrefix("172.30.0.0/16"), docker: netip.MustParsePrefix("172.17.0.0/16"),
		private:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16")},
		forwarding: "net.ipv4.ip_forward", nfCall: "net.bridge.bridge-nf-call-iptables", nftTable: "ip",
	}
	plan6 = plan{
		host:    prefixes("2001:db8:1::1/64", "2001:db8:2::1/64"),
		outside: prefixes("2001:db8:1::2/64", "2001:db8:2::2/64"),
		servers: [2][2]netip.Prefix{prefixes("2001:db8:f::11/128", "2001:db8:f::12/128"), prefixes("2001:db8:f::21/128", "2001:db8:f::22/128")},
		router:  netip.MustParsePrefix("2001:db8:1::3/64"), lan: netip.MustParsePrefix("2001:db8:1::66/64"),
		routerFar: netip.MustParsePrefix("2001:db8:e::1/64"), far: netip.MustParsePrefix("2001:db8:e::2/64"),
		tunHost: netip.MustParsePrefix("2001:db8:3::1/64"), tunOutside: netip.MustParsePrefix("2001:db8:3::2/64"),
		tunServer: netip.MustParsePrefix("2001:db8:f::31/128"),
		plain:     netip.MustParsePrefix("fd00:172:30::/64"), docker: netip.MustParsePrefix("fd00:172:17::/64"),
		private:    []netip.Prefix{netip.MustParsePrefix("fc00::/7")},
		forwarding: "net.ipv6.conf.all.forwarding", nfCall: "net.bridge.bridge-nf-call-ip6tables", nftTable: "ip6",
	}
)

func prefixes(a, b string) [2]netip.Prefix {
	return [2]netip.Prefix{netip.MustParsePrefix(a), netip.MustParsePrefix(b)}
}

// plans are those of the families that the lab has.
func (o Options) plans() []*plan {
	if o.IPv6 == NoIPv6 {
		return []*plan{&plan4}
	}
	return []*plan{&plan4, &plan6}
}

// Lab is a running lab.
type Lab struct {
	// ID is the random part of every name.
	ID string
	// Host is the machine on which fastbr works. Its Addr and Addr6 are those of
	// eth0.
	Host *Namespace
	// Outside is the first outside, beyond eth0. Its addresses are a server's and
	// not on the link, so the host has to route.
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
	host6   [2]netip.Addr // the host's, by uplink
	sw      *Namespace    // nil: no switch
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
		for _, p := range o.plans() {
			o.Private = append(o.Private, p.private...)
		}
	}
	if !o.Subnet.IsValid() {
		o.Subnet = plan4.plain
	}
	return o
}

func (l *Lab) build(ctx context.Context) error {
	if l.opts.Uplinks < 1 || l.opts.Uplinks > len(plan4.host) {
		return fmt.Errorf("%d uplinks: one or two are possible", l.opts.Uplinks)
	}
	var err error
	if l.Host, err = l.Add("h"); err != nil {
		return err
	}
	if l.opts.NFCall {
		for _, p := range l.opts.plans() {
			if err := l.Host.SetSysctl(p.nfCall, "1"); err != nil {
				return err
			}
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
		if err := l.buildUplink(ctx, i); err != nil {
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
	n, err := newNamespace(l.name(name), l.opts.IPv6 != NoIPv6)
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

// Servers returns the IPv4 addresses of the servers outside: two beyond each uplink.
func (l *Lab) Servers() []netip.Addr { return l.servers(&plan4) }

// Servers6 returns their IPv6 addresses.
func (l *Lab) Servers6() []netip.Addr { return l.servers(&plan6) }

func (l *Lab) servers(p *plan) []netip.Addr {
	var s []netip.Addr
	for _, of := range p.servers[:l.opts.Uplinks] {
		s = append(s, of[0].Addr(), of[1].Addr())
	}
	return s
}

// HostAddr returns the host's IPv4 address on uplink i, which may appear outside.
func (l *Lab) HostAddr(i int) netip.Addr { return plan4.host[i].Addr() }

// HostAddr6 returns the host's IPv6 address on uplink i: the static one, or the one
// that it makes of the advertised prefix and its MAC address.
func (l *Lab) HostAddr6(i int) netip.Addr { return l.host6[i] }

// OutsideAddr returns the IPv4 address at the other end of uplink i.
func (l *Lab) OutsideAddr(i int) netip.Addr { return plan4.outside[i].Addr() }

// OutsideAddr6 returns the IPv6 address at the other end of uplink i.
func (l *Lab) OutsideAddr6(i int) netip.Addr { return plan6.outside[i].Addr() }

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
