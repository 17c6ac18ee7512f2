package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
)

// PublishRequest asks for ports of the host that lead to a container's.
type PublishRequest struct {
	HostIP      netip.Addr // where clients reach them; see ParseHostIP
	First, Last uint16     // host ports, inclusive
	Port        uint16     // the container's port that First leads to; the others follow
	Proto       string     // "tcp", "udp" or "sctp"
	Name        string     // of the container's port
	Network     string     // "": whichever has a port of that name
	// Allow and Allow6 are the clients by IPv4 and by IPv6; both invalid: all. If only one
	// is valid, nobody else is a client.
	Allow, Allow6 netip.Prefix
	Held          bool // the engine keeps a socket on each port: sockets there do not count
	Any           bool // one port of First to Last is enough: the first that is free
	Lenient       bool // left out, with a line, if the container has no address of HostIP's family
}

// publication is one of a port's, as recorded.
type publication struct {
	HostIP netip.Addr   `json:"host_ip"`
	First  uint16       `json:"first"`
	Last   uint16       `json:"last"`
	Port   uint16       `json:"port"`
	Proto  string       `json:"proto"`
	Allow  netip.Prefix `json:"allow"`
	Allow6 netip.Prefix `json:"allow6,omitzero"`
	Held   bool         `json:"held,omitempty"`
	// Own, Own6: by IPv4, by IPv6, clients use the container's own address and port. If
	// that is so by each family, First is Port.
	Own     bool `json:"own,omitempty"`
	Own6    bool `json:"own6,omitempty"`
	Pending bool `json:"pending,omitempty"`
}

// PublicationView is one publication: `publish ls`. What it is by IPv4 stands beside what it
// is by IPv6; "": by this family it is not published.
type PublicationView struct {
	HostIP           string `json:"host_ip"`  // "0.0.0.0": every IPv4 address of the host
	HostIP6          string `json:"host_ip6"` // "::": every IPv6 address of the host
	HostPort         int    `json:"host_port"`
	HostPortEnd      int    `json:"host_port_end"`
	ContainerPort    int    `json:"container_port"`
	ContainerPortEnd int    `json:"container_port_end"`
	Proto            string `json:"proto"`
	Name             string `json:"name"`
	Network          string `json:"network"`
	IP               string `json:"ip"`     // the container's
	IP6              string `json:"ip6"`    // the container's
	Allow            string `json:"allow"`  // clients, CIDR
	Allow6           string `json:"allow6"` // clients, CIDR
}

// ParseHostIP reads the host address of a publication. "" is every address of each family
// that the container has, an invalid one; 0.0.0.0 is every IPv4 address, and :: every IPv6
// address.
func ParseHostIP(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err
}

// ParseClients reads the clients of a publication: a CIDR for each family, at most.
func ParseClients(texts []string) (v4, v6 netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().Is4In6() {
			return v4, v6, tagged(ErrInvalid, fmt.Sprintf("clients %q: want a CIDR such as 192.0.2.0/24 or 2001:db8::/32", text))
		}
		if err := once(p, p.Addr(), &v4, &v6); err != nil {
			return v4, v6, fmt.Errorf("clients %w", err)
		}
	}
	return v4, v6, nil
}

// protoSCTP is the protocol of ports that the kernel's NAT leads to containers.
const protoSCTP = "sctp"

// protocols are those of ports that can be published.
var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, protoSCTP: unix.IPPROTO_SCTP}

// Protocols names the protocols of ports that can be published, for a sentence.
const Protocols = "tcp, udp or sctp"

// CanPublish reports whether ports of a protocol can be published.
func CanPublish(proto string) bool { return protocols[proto] != 0 }

// ProtocolName returns the name of an IP protocol (IPPROTO_*) whose ports can be
// published, "" for any other.
func ProtocolName(number int) string {
	for name, n := range protocols {
		if int(n) == number {
			return name
		}
	}
	return ""
}

// checkAll is check of each.
func checkAll(rs []PublishRequest) error {
	for _, r := range rs {
		if err := r.check(); err != nil {
			return err
		}
	}
	return nil
}

func (r PublishRequest) check() error {
	bad := func(format string, args ...any) error { return tagged(ErrInvalid, fmt.Sprintf(format, args...)) }
	switch {
	case r.First == 0 || r.Last < r.First:
		return bad("host ports %d-%d: FIRST-LAST, from 1 to 65535", r.First, r.Last)
	case r.Port == 0 || !r.Any && int(r.Port)+int(r.Last-r.First) > 65535:
		return bad("container ports from %d: %d ports do not fit below 65536", r.Port, int(r.Last-r.First)+1)
	case !CanPublish(r.Proto):
		return bad("protocol %q: %s", r.Proto, Protocols)
	case r.HostIP.Zone() != "" || r.HostIP.Is6() && r.HostIP.IsLinkLocalUnicast() || r.HostIP.IsMulticast():
		return bad("address %s: want one that a device has, and not for its own link only", r.HostIP)
	case r.Proto == protoSCTP && r.HostIP.IsLoopback():
		return bad("address %s: SCTP is published on addresses other than loopback's only", r.HostIP)
	case r.Allow.IsValid() && (!r.Allow.Addr().Is4() || r.Allow != r.Allow.Masked()):
		return bad("clients %s: want an IPv4 CIDR such as 192.0.2.0/24", r.Allow)
	case r.Allow6.IsValid() && (!r.Allow6.Addr().Is6() || r.Allow6 != r.Allow6.Masked()):
		return bad("clients %s: want an IPv6 CIDR such as 2001:db8::/32", r.Allow6)
	case r.HostIP.Is4() && r.Allow6.IsValid() && !r.Allow.IsValid(), r.HostIP.Is6() && r.Allow.IsValid() && !r.Allow6.IsValid():
		return bad("clients %s: they do not reach address %s", cmp.Or(r.Allow, r.Allow6), r.HostIP)
	}
	return nil
}

// String names the ports that a request is about.
func (r PublishRequest) String() string {
	s := fmt.Sprint(r.First)
	if r.Last > r.First {
		s += fmt.Sprintf("-%d", r.Last)
	}
	if r.HostIP.IsValid() {
		s = net.JoinHostPort(r.HostIP.String(), s)
	}
	if r.Proto != "" {
		s += "/" + r.Proto
	}
	if r.Name != "" {
		s += " to " + r.Name
	}
	return s
}

// Publish makes ports of the host lead to a container. The error wraps
// ErrInvalid, ErrNotUp, ErrNoPort, or ErrExists if a host port is published
// already or a socket of the host has it.
func (c *Controller) Publish(ctx context.Context, r PublishRequest) (v PublicationView, err error) {
	if err := r.check(); err != nil {
		return v, err
	}
	err = c.instance.mutate(ctx, func(op *operation) error {
		n, p, err := op.ports.named(r.Network, r.Name)
		if err != nil {
			return err
		}
		pubs, err := op.publications.create(n, p, nil, []PublishRequest{r})
		if err != nil {
			return err
		}
		v = pubs[0].view(n, p)
		op.publications.missing6(p, pubs[0])
		return op.runner.run(ctx, op.publications.steps(p, pubs))
	})
	return v, err
}

// Unpublish takes back what Publish did and ends the flows of those ports. Zero
// fields of r match anything. Returns what is published no more; an error
// wrapping ErrNotUp if nothing is up, ErrNoPort if nothing matches.
func (c *Controller) Unpublish(ctx context.Context, r PublishRequest) (gone []PublicationView, err error) {
	err = c.instance.mutate(ctx, func(op *operation) error {
		if err := op.needNetwork(); err != nil {
			return err
		}
		for _, x := range op.publications.all() {
			if !r.matches(x) {
				continue
			}
			if err := op.publications.remove(x.port, x.pub); err != nil {
				return err
			}
			gone = append(gone, x.pub.view(x.net, x.port))
		}
		if len(gone) == 0 {
			return tagged(ErrNoPort, fmt.Sprintf("no publication of %s", r))
		}
		return nil
	})
	return gone, err
}

// Publications lists what is published, by host port.
func (c *Controller) Publications(ctx context.Context) (out []PublicationView, err error) {
	err = c.looking(ctx, func(r *reading) error {
		if err := r.anyUp(); err != nil {
			return err
		}
		out = []PublicationView{}
		for _, x := range r.op.publications.all() {
			if !x.pub.Pending {
				out = append(out, x.pub.view(x.net, x.port))
			}
		}
		return nil
	})
	return out, err
}

// publications are the host ports that lead to containers.
type publications struct {
	op      *operation
	reached bool // reachFromHost has been called
}

// published is a publication with what it belongs to.
type published struct {
	net  *network
	port *port
	pub  *publication
}

func (r PublishRequest) matches(x published) bool {
	return r.First == x.pub.First && r.Last == x.pub.Last &&
		(r.Port == 0 || r.Port == x.pub.Port) &&
		(r.Proto == "" || r.Proto == x.pub.Proto) &&
		(!r.HostIP.IsValid() || slices.Equal(x.pub.hosts(x.port), []netip.Addr{r.HostIP})) &&
		(r.Name == "" || r.Name == x.port.Name || r.Name == x.port.Port) &&
		(r.Network == "" || r.Network == x.net.Name)
}

// madeFor reports whether an engine's container asked for this publication with r, by any
// of its ports.
func (r PublishRequest) madeFor(o Owner, x published) bool {
	same := x.port.Owner != nil && x.port.Owner.Engine == o.Engine && x.port.Owner.Container == o.Container
	want := r.record(x.net, x.port)
	return same && slices.Equal(x.pub.hosts(x.port), want.hosts(x.port)) && x.pub.First == want.First && x.pub.Last == want.Last && x.pub.Port == want.Port && x.pub.Proto == want.Proto
}

// all returns those of the instance, by host port.
func (ps *publications) all() (out []published) {
	for _, n := range ps.op.st.Networks {
		for _, p := range n.Ports {
			for _, pub := range p.Publications {
				out = append(out, published{n, p, pub})
			}
		}
	}
	slices.SortFunc(out, func(a, b published) int {
		return cmp.Or(cmp.Compare(a.pub.First, b.pub.First), cmp.Compare(a.pub.Proto, b.pub.Proto), a.pub.HostIP.Compare(b.pub.HostIP))
	})
	return out
}

// lead is what a publication is by one family.
type lead struct {
	host        netip.Addr   // where clients reach it; unspecified: at every address of the host
	first, last uint16       // the ports there
	own         bool         // host is the container's own address
	container   netip.Addr   //
	allow       netip.Prefix // clients; invalid: all
}

// at is host for those to whom an invalid address is every one of the host.
func (l lead) at() netip.Addr {
	if l.host.IsUnspecified() {
		return netip.Addr{}
	}
	return l.host
}

// leads are what a publication of the port is by each family that the container has, unless
// its host address or its clients are only of the other.
func (pub *publication) leads(p *port) (out []lead) {
	for _, l := range []lead{
		{host: netip.IPv4Unspecified(), container: p.IP, allow: pub.Allow, own: pub.Own},
		{host: netip.IPv6Unspecified(), container: p.IP6, allow: pub.Allow6, own: pub.Own6},
	} {
		otherHost := pub.HostIP.IsValid() && pub.HostIP.Is4() != l.host.Is4()
		otherClients := !l.allow.IsValid() && (pub.Allow.IsValid() || pub.Allow6.IsValid())
		if !l.container.IsValid() || otherHost || otherClients {
			continue
		}
		l.first, l.last = pub.First, pub.Last
		switch {
		case l.own:
			l.host, l.first, l.last = l.container, pub.Port, pub.Port+(pub.Last-pub.First)
		case pub.HostIP.IsValid():
			l.host = pub.HostIP
		}
		out = append(out, l)
	}
	return out
}

// hosts are the host addresses of the leads.
func (pub *publication) hosts(p *port) (out []netip.Addr) {
	for _, l := range pub.leads(p) {
		out = append(out, l.host)
	}
	return out
}

// overlaps reports whether some of the host ports are another's, and says which is the first.
func (l lead) overlaps(x lead) (uint16, bool) {
	sameIP := l.host.Is4() == x.host.Is4() && (l.host == x.host || l.host.IsUnspecified() || x.host.IsUnspecified())
	return max(l.first, x.first), sameIP && l.own == x.own && x.first <= l.last && l.first <= x.last
}

// overlaps is the same for publications of two ports, which may be one, and names the port
// for a sentence; "": there is none.
func (pub *publication) overlaps(p *port, x *publication, of *port) string {
	if pub.Proto != x.Proto {
		return ""
	}
	for _, a := range pub.leads(p) {
		for _, b := range x.leads(of) {
			if at, both := a.overlaps(b); both && a.own {
				return fmt.Sprintf("container port %d/%s", at, pub.Proto)
			} else if both {
				return fmt.Sprintf("host port %d/%s", at, pub.Proto)
			}
		}
	}
	return ""
}

func (pub *publication) view(n *network, p *port) PublicationView {
	v := PublicationView{HostPort: int(pub.First), HostPortEnd: int(pub.Last),
		ContainerPort: int(pub.Port), ContainerPortEnd: int(pub.Port) + int(pub.Last-pub.First), Proto: pub.Proto,
		Name: p.Name, Network: n.Name}
	for _, l := range pub.leads(p) {
		host, ip, allow := &v.HostIP, &v.IP, &v.Allow
		if l.container.Is6() {
			host, ip, allow = &v.HostIP6, &v.IP6, &v.Allow6
		}
		if !l.allow.IsValid() {
			l.allow, _ = l.container.Prefix(0) // always succeeds
		}
		*host, *ip, *allow = l.host.String(), l.container.String(), l.allow.String()
	}
	return v
}

// record is the publication that is asked for. Where a network has PublishedOnly, clients
// use the container's own address and port in each family that is not translated: a host's
// address and port say nothing there.
func (r PublishRequest) record(n *network, p *port) *publication {
	pub := &publication{HostIP: r.HostIP, First: r.First, Last: r.Last, Port: r.Port, Proto: r.Proto, Allow: r.Allow, Allow6: r.Allow6, Held: r.Held, Pending: true,
		Own: n.PublishedOnly && !n.Masquerade, Own6: n.PublishedOnly && n.Routed6}
	if slices.ContainsFunc(pub.leads(p), func(l lead) bool { return !l.own }) || !pub.Own && !pub.Own6 {
		return pub
	}
	pub.Last = r.Port
	if !r.Any {
		pub.Last += r.Last - r.First
	}
	pub.First, pub.Held = r.Port, false
	switch {
	case !p.IP6.IsValid():
		pub.HostIP = netip.Addr{}
	case r.HostIP.Is4():
		pub.HostIP = netip.IPv4Unspecified()
	case r.HostIP.Is6():
		pub.HostIP = netip.IPv6Unspecified()
	}
	return pub
}

// create makes the records of what is asked of the network, if the host ports are free.
// o is who asks, nil: a user.
func (ps *publications) create(n *network, p *port, o *Owner, rs []PublishRequest) (out []*publication, err error) {
	if len(rs) > 0 && n.Internal {
		return nil, tagged(ErrInvalid, fmt.Sprintf("network %s is internal: its ports cannot be published", n.Name))
	}
	there := ps.all()
	for _, r := range rs {
		pub := r.record(n, p)
		if r.Proto == protoSCTP && slices.ContainsFunc(pub.leads(p), func(l lead) bool { return l.own }) {
			return nil, tagged(ErrInvalid, fmt.Sprintf("network %s has only its TCP and UDP ports published: SCTP needs a network without --published-only", n.Name))
		}
		if len(pub.leads(p)) == 0 {
			err := tagged(ErrInvalid, fmt.Sprintf("%s has no IPv6 address, so no client would reach it by %s. Publish it by IPv4, or attach it to a network with --ipv6",
				p.Name, cmp.Or(addrText(r.HostIP), r.Allow6.String())))
			if !r.Lenient {
				return nil, err
			}
			ps.op.say("port %s is left out: %v", r, err)
			continue
		}
		if pub.owns(p) && slices.ContainsFunc(out, func(x *publication) bool { return *x == *pub }) {
			continue // two ports of the host would have led there
		}
		if pub, err = ps.choose(o, r, pub, p, there, out); err != nil {
			return nil, err
		}
		out = append(out, pub)
	}
	return out, nil
}

// owns reports whether clients use the container's own address by each family.
func (pub *publication) owns(p *port) bool {
	return !slices.ContainsFunc(pub.leads(p), func(l lead) bool { return !l.own })
}

// missing6 says that clients by IPv6 do not reach what was asked for on every address of the
// host, which has IPv6. docker-proxy, a process, leads them to an IPv4 address; a translation
// of packets cannot do that, since the container would have no address to answer to.
func (ps *publications) missing6(p *port, pub *publication) {
	if p.IP6.IsValid() || pub.HostIP.IsValid() || pub.Allow.IsValid() {
		return
	}
	addrs, err := ps.op.host.allAddrs(link.IPv6)
	if err != nil || !slices.ContainsFunc(addrs, netip.Addr.IsGlobalUnicast) {
		return // nobody can ask, or nobody knows
	}
	ps.op.say("%s has no IPv6 address: port %d/%s is reached by IPv4 only. Attach it to a network with --ipv6 for IPv6 clients", p.Name, pub.First, pub.Proto)
}

// notYet leaves out what another port of the same container leads to
// already: an engine asks it of each network that a container joins.
func (ps *publications) notYet(o *Owner, rs []PublishRequest) []PublishRequest {
	if o == nil {
		return rs
	}
	return slices.DeleteFunc(slices.Clone(rs), func(r PublishRequest) bool {
		return slices.ContainsFunc(ps.all(), func(x published) bool { return r.madeFor(*o, x) })
	})
}

// choose decides which host ports a request gets, whose record is pub; there are those
// published, others are being asked for with it.
func (ps *publications) choose(o *Owner, r PublishRequest, pub *publication, p *port, there []published, others []*publication) (*publication, error) {
	if !r.Any || pub.owns(p) {
		return pub, ps.checkFree(o, pub, p, there, others)
	}
	var err error
	for host := int(r.First); host <= int(r.Last); host++ {
		pub.First, pub.Last = uint16(host), uint16(host)
		if err = ps.checkFree(o, pub, p, there, others); err == nil {
			return pub, nil
		}
	}
	return nil, tagged(ErrExists, fmt.Sprintf("none of the host ports %d-%d/%s is free: %v", r.First, r.Last, r.Proto, err))
}

// checkFree refuses ports that somebody has: a publication in there, one in others, or a
// socket of the host. A socket with which the engine itself holds a port does not count.
func (ps *publications) checkFree(o *Owner, pub *publication, p *port, there []published, others []*publication) error {
	for _, x := range others {
		if what := pub.overlaps(p, x, p); what != "" {
			return tagged(ErrExists, what+" is asked for twice")
		}
	}
	for _, x := range there {
		if what := pub.overlaps(p, x.pub, x.port); what != "" {
			return tagged(ErrExists, fmt.Sprintf("%s is published already, to %s", what, x.port.Name))
		}
	}
	if err := ps.leadsHere(pub.HostIP); err != nil {
		return err
	}
	var holders func() map[uint32]bool
	if pub.Held && o != nil {
		holders = o.sockets
	}
	for _, l := range pub.leads(p) {
		if l.own {
			continue
		}
		err := link.PortsFree(pub.Proto, l.host, l.first, l.last, holders)
		if errors.Is(err, link.ErrPortInUse) {
			return tagged(ErrExists, err.Error())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leadsHere refuses the address of a device that is no uplink: the programs do not see
// its packets, so nobody outside would reach what is published there. Packets to an
// address that lies in no network, such as one of loopback, may come by any device.
func (ps *publications) leadsHere(host netip.Addr) error {
	if !host.IsValid() || host.IsUnspecified() || host.IsLoopback() || len(ps.op.st.Uplinks) == 0 {
		return nil
	}
	devices, err := ps.op.conn.WithAddr(host)
	if err != nil || len(devices) == 0 {
		return err // an address that the host does not have is refused when a socket is bound to it
	}
	for _, d := range devices {
		uplink := slices.ContainsFunc(ps.op.st.Uplinks, func(u uplink) bool { return u.Index == d.Index })
		if uplink || d.Loopback || d.Kind == dummy || strings.HasPrefix(d.Alias, ownerMark("")) {
			return nil
		}
	}
	remedy := "Publish on another address"
	if ps.op.others.excluded() {
		var names []string
		for _, u := range ps.op.st.Uplinks {
			names = append(names, "--uplink "+u.Name)
		}
		remedy += fmt.Sprintf(", or run 'fastbr up --no-network %s --uplink %s' first", strings.Join(names, " "), devices[0].Name)
	}
	return tagged(ErrInvalid, fmt.Sprintf("host address %s belongs to %s, which is no uplink: nobody would reach the port by it. %s",
		host, devices[0].Name, remedy))
}

func (ps *publications) steps(p *port, pubs []*publication) []step {
	return []step{
		{"publish-record", func() error { p.Publications = append(p.Publications, pubs...); return ps.record() },
			func() error {
				p.forget(pubs)
				return errors.Join(ps.op.hostconf.Reserve(ps.op.st.reserved()), ps.op.save())
			}, nil},
		{"publish-ports", func() error { return ps.set(p, pubs) }, func() error { return ps.unset(p, pubs) }, nil},
		{"publish-lead", func() error { return ps.op.others.lead(pubs, false) }, func() error { return ps.op.others.lead(pubs, true) }, nil},
		{"publish-done", func() error { setPending(pubs, false); return ps.op.save() }, nil, nil},
	}
}

func setPending(pubs []*publication, pending bool) {
	for _, pub := range pubs {
		pub.Pending = pending
	}
}

func (p *port) forget(pubs []*publication) {
	p.Publications = slices.DeleteFunc(p.Publications, func(x *publication) bool { return slices.Contains(pubs, x) })
}

// publish publishes what comes with a new port, which is still pending.
func (ps *publications) publish(p *port, pubs []*publication) error {
	for _, pub := range pubs {
		pub.Pending = false
	}
	if p.Publications = pubs; len(pubs) == 0 {
		return nil
	}
	if err := ps.record(); err != nil {
		return err
	}
	if err := ps.set(p, pubs); err != nil {
		return err
	}
	return ps.op.others.lead(pubs, false)
}

// record saves what has been added, and what it will reserve.
func (ps *publications) record() error {
	if err := ps.op.hostconf.RecordReserved(ps.op.st.reserved()); err != nil {
		return err
	}
	return ps.op.save()
}

func (ps *publications) remove(p *port, pubs ...*publication) error {
	if len(pubs) == 0 {
		return nil
	}
	setPending(pubs, true)
	if err := ps.op.save(); err != nil {
		return err
	}
	return ps.op.runner.undo(ps.steps(p, pubs))
}

// set makes host ports lead to a port. Before that it reserves them, so that the
// kernel gives none of them to a socket.
func (ps *publications) set(p *port, pubs []*publication) error {
	if len(pubs) == 0 {
		return nil
	}
	if err := ps.op.hostconf.Reserve(ps.op.st.reserved()); err != nil {
		return err
	}
	if err := ps.op.dp.Publish(p.toDatapath(pubs)...); err != nil {
		return fmt.Errorf("publishing ports of %s: %w", p.Name, err)
	}
	ps.op.firewall.warn()
	return ps.reachFromHost()
}

// unset undoes set, but for the reservation, which goes
// with the record.
func (ps *publications) unset(p *port, pubs []*publication) error {
	if ps.op.dp == nil {
		return nil
	}
	if err := ps.op.dp.Unpublish(p.toDatapath(pubs)...); err != nil {
		return fmt.Errorf("unpublishing ports of %s: %w", p.Name, err)
	}
	return nil
}

// toDatapath are publications of the port's as the datapath knows them.
func (p *port) toDatapath(pubs []*publication) (out []datapath.Publication) {
	for _, pub := range pubs {
		for _, l := range pub.leads(p) {
			out = append(out, datapath.Publication{HostAddr: l.at(), First: l.first, Last: l.last, Proto: protocols[pub.Proto], Allow: l.allow, Held: pub.Held,
				Ifindex: p.Index, Container: l.container, Port: pub.Port})
		}
	}
	return out
}

// reachFromHost makes published ports reachable for the host's own processes.
// Where that cannot be, they are reached from everywhere else, and the user is told.
func (ps *publications) reachFromHost() error {
	if ps.reached {
		return nil
	}
	ps.reached = true
	if err := ps.syncLocal(); err != nil {
		return err
	}
	cgroup, err := ps.op.hooks.hostCgroup()
	if err == nil {
		err = ps.op.dp.AttachHost(cgroup)
	}
	if err != nil {
		ps.op.say("published ports are not reached from the host itself: %v", err)
	}
	return nil
}

// syncLocal tells the datapath which addresses the host has.
func (ps *publications) syncLocal() error {
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	for _, f := range []link.Family{link.IPv4, link.IPv6} {
		of, err := ps.op.host.allAddrs(f)
		if err != nil {
			return err
		}
		for _, a := range of {
			if a.Is4() || !a.IsLinkLocalUnicast() { // nothing is published at an address of one link only
				addrs = append(addrs, a)
			}
		}
	}
	if err := ps.op.dp.SetLocal(addrs); err != nil {
		return fmt.Errorf("noting the host's addresses: %w", err)
	}
	return nil
}

// hostCgroup is the cgroup that all processes of the host are in: the root of
// the cgroup2 hierarchy, wherever it is mounted. Tests and labs name another: their
// programs must not run for the whole machine.
func (h hooks) hostCgroup() (string, error) {
	if h.cgroup != "" {
		return h.cgroup, nil
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("looking for the cgroup2 mount: %w", err)
	}
	return cgroup2Root(string(b))
}

// cgroup2Root finds the mount of the whole cgroup2 hierarchy in the format of
// /proc/PID/mountinfo (proc_pid_mountinfo(5)). On a host that still has cgroup v1
// it is not /sys/fs/cgroup.
func cgroup2Root(mountinfo string) (string, error) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mountinfo) {
		mount, fs, ok := strings.Cut(line, " - ")
		m, f := strings.Fields(mount), strings.Fields(fs)
		if ok && len(m) > 4 && len(f) > 0 && f[0] == "cgroup2" && m[3] == "/" {
			return unescape.Replace(m[4]), nil
		}
	}
	return "", errors.New("no cgroup2 filesystem is mounted")
}
