package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// Publication publishes ports of a container on the host.
type Publication struct {
	// HostAddr is the address that clients connect to. Invalid: any address of
	// the host of the container's family. In a network with PublishedOnly, it is the container's own.
	HostAddr netip.Addr
	// First and Last are the first and last host port. New mappings do not use
	// those in the NAT range. An existing mapping keeps its port for the remotes
	// that it has.
	First, Last uint16
	// Proto is the IP protocol: TCP, UDP or SCTP. The kernel translates SCTP; the
	// programs only keep the host's own sockets from answering on those ports.
	Proto uint8
	// Held: the engine keeps its own socket on the host's port. So the port may
	// be bound, and a listener on it does not take precedence.
	Held bool
	// Allow is the prefix of the permitted clients, of the same family. Invalid: all
	// clients.
	Allow netip.Prefix

	Ifindex   int        // of the container's port
	Container netip.Addr // the container's address, whose family is the publication's
	Port      uint16     // the container's port for First; the others follow
}

// publications keeps the published ports and what follows from them.
type publications struct{ d *Datapath }

// pubTables writes fbr_pub and fbr_pub_of of a family.
type pubTables interface {
	set(o *object, ps []Publication) error
	unset(o *object, p Publication) error
	verify(o *object, p Publication) error
}

// pubTypes are the types of those maps' keys and values.
type pubTypes[K, V comparable] struct {
	key func(a netip.Addr, port uint16, proto uint8) K // an invalid address is any
	pub func(p Publication, port uint16) V             // that leads to a port of the container
}

var (
	pubs4 = pubTypes[tcFbrBindKey, tcFbrPub]{
		key: func(a netip.Addr, port uint16, proto uint8) tcFbrBindKey {
			return tcFbrBindKey{Ip: in4(a), Port: be16(port), Proto: proto}
		},
		pub: func(p Publication, port uint16) tcFbrPub {
			return tcFbrPub{Ip: in4(p.Container), Port: be16(port), Pif: uint32(p.Ifindex), Held: uint8(cBool(p.Held)),
				Allow: in4(p.Allow.Addr()), AllowMask: in4(prefixMask(p.Allow))}
		},
	}
	pubs6 = pubTypes[tc6FbrBindKey, tc6FbrPub]{
		key: func(a netip.Addr, port uint16, proto uint8) tc6FbrBindKey {
			return tc6FbrBindKey{Ip: in6(a), Port: be16(port), Proto: proto}
		},
		pub: func(p Publication, port uint16) tc6FbrPub {
			return tc6FbrPub{Ip: in6(p.Container), Port: be16(port), Pif: uint32(p.Ifindex), Held: uint8(cBool(p.Held)),
				Allow: in6(p.Allow.Addr()), AllowMask: in6(prefixMask(p.Allow))}
		},
	}
)

// in4 returns an IPv4 address as the maps hold it. An invalid one is 0.0.0.0.
func in4(a netip.Addr) uint32 {
	if !a.IsValid() {
		return 0
	}
	return be32(a)
}

// prefixMask returns the mask of a prefix; an invalid one for an invalid prefix.
func prefixMask(p netip.Prefix) netip.Addr {
	ones := bytes.Repeat([]byte{0xff}, p.Addr().BitLen()/8)
	all, _ := netip.AddrFromSlice(ones)
	mask, _ := all.Prefix(p.Bits()) // of its family
	return mask.Addr()
}

// entries returns the map entries of publications: host and to for fbr_pub
// (from host ports to containers), inside for fbr_pub_of (from container ports
// to host ports).
func (t pubTypes[K, V]) entries(ps ...Publication) (host []K, to []V, inside []K) {
	n := 0
	for _, p := range ps {
		n += int(p.Last-p.First) + 1
	}
	host, to, inside = make([]K, 0, n), make([]V, 0, n), make([]K, 0, n)
	for _, p := range ps {
		for i := range uint32(p.Last-p.First) + 1 {
			port := p.Port + uint16(i)
			host = append(host, t.key(p.HostAddr, p.First+uint16(i), p.Proto))
			to = append(to, t.pub(p, port))
			inside = append(inside, t.key(p.Container, port, p.Proto))
		}
	}
	return host, to, inside
}

// set makes host ports lead to containers.
func (t pubTypes[K, V]) set(o *object, ps []Publication) error {
	host, to, inside := t.entries(ps...)
	if _, err := o.maps[tcMapFbrPub].BatchUpdate(host, to, nil); err != nil {
		return fmt.Errorf("writing fbr_pub: %w", err)
	}
	if _, err := o.maps[tcMapFbrPubOf].BatchUpdate(inside, host, nil); err != nil {
		return fmt.Errorf("writing fbr_pub_of: %w", err)
	}
	return nil
}

// unset removes one publication from both maps. It keeps the entry of a
// container's port that another publication has taken over.
func (t pubTypes[K, V]) unset(o *object, p Publication) error {
	host, _, inside := t.entries(p)
	if err := deleteKeys(o.maps[tcMapFbrPub], host); err != nil {
		return fmt.Errorf("removing ports from fbr_pub: %w", err)
	}
	var mine []K
	for i := range inside {
		var now K
		if err := o.maps[tcMapFbrPubOf].Lookup(&inside[i], &now); err == nil && now == host[i] {
			mine = append(mine, inside[i])
		}
	}
	if err := deleteKeys(o.maps[tcMapFbrPubOf], mine); err != nil {
		return fmt.Errorf("removing ports from fbr_pub_of: %w", err)
	}
	return nil
}

// verify checks that each port leads where set made it lead.
func (t pubTypes[K, V]) verify(o *object, p Publication) error {
	host, to, inside := t.entries(p)
	for i := range host {
		var leads V
		if err := o.maps[tcMapFbrPub].Lookup(&host[i], &leads); err != nil || leads != to[i] {
			return fmt.Errorf("port %d: not in fbr_pub: %w", int(p.First)+i, ErrDetached)
		}
		var back K // another publication's, where several share a container's port
		if err := o.maps[tcMapFbrPubOf].Lookup(&inside[i], &back); err != nil {
			return fmt.Errorf("port %d: not in fbr_pub_of: %w", int(p.First)+i, ErrDetached)
		}
	}
	return nil
}

// Publish makes the ports lead to containers, all at once however many.
// Publishing the same again changes nothing. The caller makes sure that no
// other publication has the same host ports.
func (d *Datapath) Publish(ps ...Publication) error {
	if len(ps) == 0 {
		return nil
	}
	for _, p := range ps {
		if p.Last < p.First || uint32(p.Port)+uint32(p.Last-p.First) > 65535 {
			return fmt.Errorf("publishing %d-%d: no such range", p.First, p.Last)
		}
		if _, err := d.families.of(p.Container); err != nil {
			return fmt.Errorf("publishing %d-%d: %w", p.First, p.Last, err)
		}
	}
	for _, p := range onHost(ps) {
		if err := d.ports.shut(p); err != nil {
			return err
		}
	}
	for _, o := range d.families.loaded() {
		if of := o.publications(ps); len(of) > 0 {
			if err := o.pubs.set(o, of); err != nil {
				return err
			}
		}
	}
	_, err := d.publications.setPublished()
	return err
}

// Unpublish removes publications. It ends their sessions and the connections of
// the host's sockets, so that none of their packets reaches whoever gets the
// ports next. Removing the last publication also undoes AttachHost. It succeeds
// when the publications do not exist. The caller is in the datapath's network
// namespace.
func (d *Datapath) Unpublish(ps ...Publication) error {
	if len(ps) == 0 {
		return nil
	}
	for _, o := range d.families.loaded() {
		for _, p := range o.publications(ps) {
			if err := o.pubs.unset(o, p); err != nil {
				return err
			}
		}
	}
	any, err := d.publications.setPublished()
	if err != nil {
		return err
	}
	err = d.publications.endPublished(ps)
	if host := onHost(ps); len(host) > 0 {
		err = errors.Join(err, d.ports.open(host...))
	}
	if err != nil {
		return err
	}
	if err := d.sockets.endHost(); err != nil || any {
		return err
	}
	return d.DetachHost()
}

// publications returns those of the family.
func (f family) publications(ps []Publication) []Publication {
	return slices.DeleteFunc(slices.Clone(ps), func(p Publication) bool { return !f.of(p.Container) })
}

// deleteKeys deletes the keys that exist.
func deleteKeys[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys, nil)
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		keys = keys[n+1:] // the kernel stopped at a missing key
	}
	return nil
}

// onHost are the publications that take a port of the host.
func onHost(ps []Publication) (out []Publication) {
	for _, p := range ps {
		if p.HostAddr != p.Container {
			out = append(out, p)
		}
	}
	return out
}

// setPublished tells the programs whether there are any publications, and so
// whether they need to look. They also look for a network with PublishedOnly, whose
// sessions have ports outside the range.
func (pb publications) setPublished() (any bool, err error) {
	own := false
	for _, o := range pb.d.families.loaded() {
		first, err := o.maps[tcMapFbrPub].NextKeyBytes(nil)
		if err != nil {
			return false, fmt.Errorf("reading fbr_pub: %w", err)
		}
		has, err := o.anyNetwork(func(_ uint32, flags tcFbrNetFlags) bool { return flags&tcFbrNetFlagsFBR_NET_OWN != 0 })
		if err != nil {
			return false, err
		}
		any, own = any || first != nil, own || has
	}
	return any, pb.d.control.changeConf(func(c *tcFbrConf) error {
		c.Published = cBool(any || own)
		return nil
	})
}

// endPublished ends the sessions that clients made through publications.
func (pb publications) endPublished(ps []Publication) error {
	for _, o := range pb.d.families.loaded() {
		err := pb.d.nat.each(o, func(s session) error {
			at := slices.IndexFunc(ps, func(p Publication) bool { return p.made(s) })
			if at < 0 {
				return nil
			}
			_, err := o.endSlots(tcFbrOpFBR_OP_FLUSH, ps[at].Ifindex, s.slot, s.slot+1)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// made reports whether a client made the session through the publication.
func (p Publication) made(s session) bool {
	port := s.external.Port()
	return s.bits&tcFbrSessBitsFBR_S_PUBLISHED != 0 && s.fwd.proto == p.Proto && port >= p.First && port <= p.Last &&
		s.external.Addr().Is4() == p.Container.Is4() && (!p.HostAddr.IsValid() || s.external.Addr() == p.HostAddr)
}
