package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// Publication publishes ports of a container on the host.
type Publication struct {
	// HostAddr is the address that clients connect to. Invalid: any address of
	// the host. In a network with PublishedOnly, it is the container's own.
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
	// Allow is the prefix of the permitted clients. Invalid: all clients.
	Allow netip.Prefix

	Ifindex   int        // of the container's port
	Container netip.Addr // the container's address
	Port      uint16     // the container's port for First; the others follow
}

// publications keeps the published ports and what follows from them.
type publications struct{ d *Datapath }

// entries returns the map entries of publications: host and to for fbr_pub
// (from host ports to containers), inside for fbr_pub_of (from container ports
// to host ports).
func entries(ps ...Publication) (host []tcFbrBindKey, to []tcFbrPub, inside []tcFbrBindKey) {
	n := 0
	for _, p := range ps {
		n += int(p.Last-p.First) + 1
	}
	host, to, inside = make([]tcFbrBindKey, 0, n), make([]tcFbrPub, 0, n), make([]tcFbrBindKey, 0, n)
	for _, p := range ps {
		outer := tcFbrBindKey{Proto: p.Proto}
		inner := tcFbrBindKey{Ip: be32(p.Container), Proto: p.Proto}
		pub := tcFbrPub{Ip: inner.Ip, Pif: uint32(p.Ifindex)}
		if p.Held {
			pub.Held = 1
		}
		if p.HostAddr.IsValid() {
			outer.Ip = be32(p.HostAddr)
		}
		if p.Allow.IsValid() {
			pub.Allow = be32(p.Allow.Masked().Addr())
			pub.AllowMask = be32(prefixMask(p.Allow.Bits()))
		}
		for i := range uint32(p.Last-p.First) + 1 {
			outer.Port, inner.Port = be16(p.First+uint16(i)), be16(p.Port+uint16(i))
			pub.Port = inner.Port
			host, to, inside = append(host, outer), append(to, pub), append(inside, inner)
		}
	}
	return host, to, inside
}

func prefixMask(bits int) netip.Addr {
	p, _ := netip.AddrFrom4([4]byte{255, 255, 255, 255}).Prefix(bits) // bits is 0 to 32, so this always succeeds
	return p.Addr()
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
	}
	for _, p := range onHost(ps) {
		if err := d.ports.shut(p); err != nil {
			return err
		}
	}
	host, to, inside := entries(ps...)
	if _, err := d.maps.FbrPub.BatchUpdate(host, to, nil); err != nil {
		return fmt.Errorf("writing fbr_pub: %w", err)
	}
	if _, err := d.maps.FbrPubOf.BatchUpdate(inside, host, nil); err != nil {
		return fmt.Errorf("writing fbr_pub_of: %w", err)
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
	for _, p := range ps {
		if err := d.publications.unset(p); err != nil {
			return err
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

// unset removes one publication from both maps. It keeps the entry of a
// container's port that another publication has taken over.
func (pb publications) unset(p Publication) error {
	host, _, inside := entries(p)
	if err := deleteKeys(pb.d.maps.FbrPub, host); err != nil {
		return fmt.Errorf("removing ports from fbr_pub: %w", err)
	}
	var mine []tcFbrBindKey
	for i := range inside {
		var now tcFbrBindKey
		if err := pb.d.maps.FbrPubOf.Lookup(&inside[i], &now); err == nil && now == host[i] {
			mine = append(mine, inside[i])
		}
	}
	if err := deleteKeys(pb.d.maps.FbrPubOf, mine); err != nil {
		return fmt.Errorf("removing ports from fbr_pub_of: %w", err)
	}
	return nil
}

// deleteKeys deletes the keys that exist.
func deleteKeys(m *ebpf.Map, keys []tcFbrBindKey) error {
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
	var k tcFbrBindKey
	err = pb.d.maps.FbrPub.NextKey(nil, &k)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, fmt.Errorf("reading fbr_pub: %w", err)
	}
	any = err == nil
	own := false
	for _, o := range pb.d.families.loaded() {
		has, err := o.anyNetwork(func(_ uint32, flags tcFbrNetFlags) bool { return flags&tcFbrNetFlagsFBR_NET_OWN != 0 })
		if err != nil {
			return false, err
		}
		own = own || has
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
