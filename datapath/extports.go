package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// classes is the number of port spaces, each of which has all 65536 ports.
const classes = uint32(tcFbrClassFBR_CLASSES)

// extPorts decides which external ports new mappings may have.
type extPorts struct{ d *Datapath }

// allClasses returns the port spaces.
func allClasses() []tcFbrClass {
	return []tcFbrClass{tcFbrClassFBR_CLASS_TCP, tcFbrClassFBR_CLASS_UDP, tcFbrClassFBR_CLASS_ICMP}
}

// setPorts makes the ports [from, to) of some port spaces available to new
// mappings of every family, or unavailable. A mapping that has such a port keeps it
// until its last session ends.
func (xp extPorts) setPorts(open bool, from, to uint32, of ...tcFbrClass) error {
	for _, o := range xp.d.families.loaded() {
		if err := o.setPorts(open, from, to, of...); err != nil {
			return err
		}
	}
	return nil
}

// setPorts does so for a family. Each address has ports of its own.
func (o *object) setPorts(open bool, from, to uint32, of ...tcFbrClass) error {
	op := tcFbrOp(tcFbrOpFBR_OP_SHUT)
	if open {
		op = tcFbrOpFBR_OP_OPEN
	}
	for _, class := range of {
		err := inChunks(to-from, func(a, b uint32) error {
			_, err := request(o.progs[tcProgFbrControl], tcFbrRequest{Op: op, From: from + a, To: from + b, Arg: uint64(class)})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// openAll makes the NAT range available to a family that has no mapping and no
// publication yet.
func (xp extPorts) openAll(o *object) error {
	return o.setPorts(true, xp.d.meta.NatFirst, xp.d.meta.NatFirst+xp.d.meta.NatCount, allClasses()...)
}

// classOf is the port space of an IP protocol that mappings have ports of.
func classOf(proto uint8) (class tcFbrClass, any bool) {
	switch proto {
	case unix.IPPROTO_TCP:
		return tcFbrClassFBR_CLASS_TCP, true
	case unix.IPPROTO_UDP:
		return tcFbrClassFBR_CLASS_UDP, true
	}
	return 0, false
}

// inRange returns the part [from, to) of a publication's ports that lies in the
// NAT range, and their port space.
func (xp extPorts) inRange(p Publication) (class tcFbrClass, from, to uint32, any bool) {
	class, any = classOf(p.Proto)
	from = max(uint32(p.First), xp.d.meta.NatFirst)
	to = min(uint32(p.Last)+1, xp.d.meta.NatFirst+xp.d.meta.NatCount)
	return class, from, to, any && from < to
}

// shut makes a publication's ports unavailable to mappings.
func (xp extPorts) shut(p Publication) error {
	class, from, to, any := xp.inRange(p)
	if !any {
		return nil
	}
	o, err := xp.d.families.of(p.Container)
	if err != nil {
		return err
	}
	return o.setPorts(false, from, to, class)
}

// openRange makes the ports of the NAT range available to mappings, except
// published ones.
func (xp extPorts) openRange() error {
	first, last := uint16(xp.d.meta.NatFirst), uint16(xp.d.meta.NatFirst+xp.d.meta.NatCount-1) // Config has checked it
	for _, o := range xp.d.families.loaded() {
		err := errors.Join(
			o.setPorts(true, xp.d.meta.NatFirst, xp.d.meta.NatFirst+xp.d.meta.NatCount, tcFbrClassFBR_CLASS_ICMP),
			xp.openOf(o, Publication{First: first, Last: last, Proto: unix.IPPROTO_TCP}, Publication{First: first, Last: last, Proto: unix.IPPROTO_UDP}))
		if err != nil {
			return err
		}
	}
	return nil
}

// open makes the ports of publications that are gone available to mappings.
func (xp extPorts) open(ps ...Publication) error {
	for _, o := range xp.d.families.loaded() {
		if err := xp.openOf(o, o.publications(ps)...); err != nil {
			return err
		}
	}
	return nil
}

// openOf makes the ports of spans that lie in the NAT range available to a family's
// mappings, except published ones.
func (xp extPorts) openOf(o *object, spans ...Publication) error {
	var published map[tcFbrClass]*[65536]bool // read only when a port of the range is concerned
	for _, p := range spans {
		class, from, to, any := xp.inRange(p)
		if !any {
			continue
		}
		if published == nil {
			var err error
			if published, err = o.publishedPorts(); err != nil {
				return err
			}
		}
		taken := published[class]
		for from < to {
			end := from
			for end < to && !taken[end] {
				end++
			}
			if err := o.setPorts(true, from, end, class); err != nil {
				return err
			}
			from = end + 1
		}
	}
	return nil
}

// publishedPorts returns the published host ports, by port space.
func (o *object) publishedPorts() (map[tcFbrClass]*[65536]bool, error) {
	out := map[tcFbrClass]*[65536]bool{tcFbrClassFBR_CLASS_TCP: {}, tcFbrClassFBR_CLASS_UDP: {}}
	return out, eachEntry(o.maps[tcMapFbrPub], 0, func(k, _ []byte) error {
		// struct fbr_bind_key: an address of either family, then port, protocol and a byte
		port, proto := binary.BigEndian.Uint16(k[len(k)-4:]), k[len(k)-2]
		if class, any := classOf(proto); any {
			out[class][port] = true
		}
		return nil
	})
}

// SetNATRange moves the NAT range for new mappings. Existing mappings keep
// their ports until they end. A call after a crash completes what the first one
// began.
func (d *Datapath) SetNATRange(first, last uint16) error {
	if first == 0 || last < first {
		return fmt.Errorf("NAT range %d-%d is empty", first, last)
	}
	meta := d.meta
	meta.NatFirst, meta.NatCount = uint32(first), uint32(last-first)+1
	err := d.control.changeConf(func(c *tcFbrConf) error {
		end := max(c.NatFirst+c.NatCount, uint32(last)+1)
		c.NatFirst = min(c.NatFirst, uint32(first))
		c.NatCount = end - c.NatFirst
		return nil
	})
	if err != nil {
		return err
	}
	d.meta = meta
	err = errors.Join(d.ports.setPorts(false, 0, uint32(first), allClasses()...), d.ports.setPorts(false, uint32(last)+1, 65536, allClasses()...), d.ports.openRange())
	if err != nil {
		return err
	}
	// Last: until it is written the map has the old range, and the next command
	// starts again.
	if err := d.maps.FbrMeta.Put(uint32(0), &meta); err != nil {
		return fmt.Errorf("writing fbr_meta: %w", err)
	}
	return nil
}
