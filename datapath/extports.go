package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
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
// mappings, or unavailable. A mapping that has such a port keeps it until its
// last session ends.
func (xp extPorts) setPorts(open bool, from, to uint32, of ...tcFbrClass) error {
	op := tcFbrOp(tcFbrOpFBR_OP_SHUT)
	if open {
		op = tcFbrOpFBR_OP_OPEN
	}
	for _, class := range of {
		err := inChunks(to-from, func(a, b uint32) error {
			_, err := request(xp.d.progs.FbrControl, tcFbrRequest{Op: op, From: from + a, To: from + b, Arg: uint64(class)})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
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
	return xp.setPorts(false, from, to, class)
}

// openRange makes the ports of the NAT range available to mappings, except
// published ones. If publications are given, it does so only for their ports.
func (xp extPorts) openRange(only ...Publication) error {
	spans := only
	if len(only) == 0 {
		last := uint16(xp.d.meta.NatFirst + xp.d.meta.NatCount - 1) // Config has checked it
		spans = []Publication{{First: uint16(xp.d.meta.NatFirst), Last: last, Proto: unix.IPPROTO_TCP}, {First: uint16(xp.d.meta.NatFirst), Last: last, Proto: unix.IPPROTO_UDP}}
		if err := xp.setPorts(true, xp.d.meta.NatFirst, xp.d.meta.NatFirst+xp.d.meta.NatCount, tcFbrClassFBR_CLASS_ICMP); err != nil {
			return err
		}
	}
	var published map[tcFbrClass]*[65536]bool // read only when a port of the range is concerned
	for _, p := range spans {
		class, from, to, any := xp.inRange(p)
		if !any {
			continue
		}
		if published == nil {
			var err error
			if published, err = xp.publishedPorts(); err != nil {
				return err
			}
		}
		taken := published[class]
		for from < to {
			end := from
			for end < to && !taken[end] {
				end++
			}
			if err := xp.setPorts(true, from, end, class); err != nil {
				return err
			}
			from = end + 1
		}
	}
	return nil
}

// publishedPorts returns the published host ports, by port space.
func (xp extPorts) publishedPorts() (map[tcFbrClass]*[65536]bool, error) {
	out := map[tcFbrClass]*[65536]bool{tcFbrClassFBR_CLASS_TCP: {}, tcFbrClassFBR_CLASS_UDP: {}}
	const atOnce = 4096
	keys, values := make([]tcFbrBindKey, atOnce), make([]tcFbrPub, atOnce)
	for cursor := new(ebpf.MapBatchCursor); ; {
		n, err := xp.d.maps.FbrPub.BatchLookup(cursor, keys, values, nil)
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return nil, fmt.Errorf("reading fbr_pub: %w", err)
		}
		for _, k := range keys[:n] {
			if class, any := classOf(k.Proto); any {
				out[class][addrPort(0, k.Port).Port()] = true
			}
		}
		if end {
			return out, nil
		}
	}
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
