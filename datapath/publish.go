package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Publication leads ports of the host to a container.
type Publication struct {
	// HostAddr is the address that clients come to; invalid: any of the host's.
	HostAddr netip.Addr
	// First and Last host port, inclusive. They must not lie in the NAT range.
	First, Last uint16
	// UDP instead of TCP.
	UDP bool
	// Allow are the clients; invalid: all.
	Allow netip.Prefix

	Ifindex   int        // of the container's port
	Container netip.Addr // the container's address
	Port      uint16     // the container's port that First leads to; the others follow
}

func (p Publication) proto() uint8 {
	if p.UDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// entries are the content of fbr_pub and fbr_pub_of.
func (p Publication) entries() (host []tcFbrBindKey, to []tcFbrPub, inside []tcFbrBindKey) {
	var addr, allow, mask uint32
	if p.HostAddr.IsValid() {
		addr = be32(p.HostAddr)
	}
	if p.Allow.IsValid() {
		allow = be32(p.Allow.Masked().Addr())
		mask = be32(prefixMask(p.Allow.Bits()))
	}
	for i := range uint32(p.Last-p.First) + 1 {
		host = append(host, tcFbrBindKey{Ip: addr, Port: be16(p.First + uint16(i)), Proto: p.proto()})
		to = append(to, tcFbrPub{Ip: be32(p.Container), Port: be16(p.Port + uint16(i)), Pif: uint32(p.Ifindex), Allow: allow, AllowMask: mask})
		inside = append(inside, tcFbrBindKey{Ip: be32(p.Container), Port: be16(p.Port + uint16(i)), Proto: p.proto()})
	}
	return host, to, inside
}

func prefixMask(bits int) netip.Addr {
	p, _ := netip.AddrFrom4([4]byte{255, 255, 255, 255}).Prefix(bits) // 0 to 32 always works
	return p.Addr()
}

// Publish makes the ports lead to the container, all in one go however many.
// Publishing the same again changes nothing. The caller sees to it that no
// other publication has the same host ports.
func (d *Datapath) Publish(p Publication) error {
	if p.Last < p.First || uint32(p.Port)+uint32(p.Last-p.First) > 65535 {
		return fmt.Errorf("publishing %d-%d: no such range", p.First, p.Last)
	}
	host, to, inside := p.entries()
	if _, err := d.maps.FbrPub.BatchUpdate(host, to, nil); err != nil {
		return fmt.Errorf("writing fbr_pub: %w", err)
	}
	if _, err := d.maps.FbrPubOf.BatchUpdate(inside, host, nil); err != nil {
		return fmt.Errorf("writing fbr_pub_of: %w", err)
	}
	_, err := d.setPublished()
	return err
}

// Unpublish takes the publication back and ends its sessions, so that nothing
// of theirs reaches whoever gets the ports next. The last one takes with it what
// AttachHost did. It succeeds when it is not there.
func (d *Datapath) Unpublish(p Publication) error {
	host, _, inside := p.entries()
	for i := range host {
		if err := deleteKey(d.maps.FbrPub, &host[i]); err != nil {
			return fmt.Errorf("removing a port from fbr_pub: %w", err)
		}
		var now tcFbrBindKey
		if err := d.maps.FbrPubOf.Lookup(&inside[i], &now); err == nil && now == host[i] {
			if err := deleteKey(d.maps.FbrPubOf, &inside[i]); err != nil {
				return fmt.Errorf("removing a port from fbr_pub_of: %w", err)
			}
		}
	}
	any, err := d.setPublished()
	if err == nil && !any {
		err = d.DetachHost()
	}
	if err != nil {
		return err
	}
	return d.endPublished(p)
}

// setPublished tells the programs whether they need look at all: whether there
// are any publications.
func (d *Datapath) setPublished() (any bool, err error) {
	var k tcFbrBindKey
	err = d.maps.FbrPub.NextKey(nil, &k)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, fmt.Errorf("reading fbr_pub: %w", err)
	}
	any = err == nil
	return any, d.changeConf(func(c *tcFbrConf) error {
		c.Published = 0
		if any {
			c.Published = 1
		}
		return nil
	})
}

// endPublished ends the sessions that clients have made through a publication.
func (d *Datapath) endPublished(p Publication) error {
	slots, sess, err := d.sessions()
	if err != nil {
		return err
	}
	for i, s := range sess {
		eport := addrPort(0, s.Eport).Port()
		if s.Bits&tcFbrSessBitsFBR_S_PUBLISHED == 0 || s.Fwd.Proto != p.proto() || eport < p.First || eport > p.Last ||
			p.HostAddr.IsValid() && s.Ext != be32(p.HostAddr) {
			continue
		}
		if _, err := d.flushSlots(p.Ifindex, slots[i], slots[i]+1); err != nil {
			return err
		}
	}
	return nil
}
