package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// carrier copies the sessions of a family from maps of another layout into a
// datapath's maps.
type carrier struct {
	d                *Datapath // with the new maps
	o                *object   // the family's
	sess, flow       *ebpf.Map
	sessOf, flowOf   conversion
	nport, state     *ebpf.Map
	notesOf, timesOf conversion // of fbr_nport: times, and the address they are about
	stateOf          conversion
	pool             *ebpf.Map // nil: schemas before 4 have none
	poolOf           conversion

	// seen holds the state of each old slot at the time it was last carried. It
	// is empty if another process did that.
	seen []slotMark
}

// carriers are those of the families.
type carriers []*carrier

func (cs carriers) pass(seenToo bool) error {
	for _, c := range cs {
		if err := c.pass(seenToo); err != nil {
			return err
		}
	}
	return nil
}

// slotMark shows whether a session has changed.
type slotMark struct {
	state   tcFbrSessState
	bits    tcFbrSessBits
	isn     uint32
	out, in uint64 // jiffies of the last packets
}

func newCarrier(d *Datapath, o *object, old map[string]*ebpf.Map, specs map[string]*ebpf.MapSpec) (*carrier, error) {
	c := &carrier{d: d, o: o}
	for _, x := range []struct {
		name string
		m    **ebpf.Map
		conv *conversion
	}{
		{tcMapFbrSess, &c.sess, &c.sessOf},
		{tcMapFbrFlow, &c.flow, &c.flowOf},
		{tcMapFbrNport, &c.nport, &c.notesOf},
		{tcMapFbrState, &c.state, &c.stateOf},
		{tcMapFbrPool, &c.pool, &c.poolOf},
	} {
		m := old[x.name]
		if m == nil && x.name == tcMapFbrPool {
			continue
		}
		if m == nil {
			return nil, fmt.Errorf("there is no map %s to upgrade", x.name)
		}
		_, t, err := mapTypes(m)
		if err != nil {
			return nil, err
		}
		if *x.conv, err = converting(t, specs[x.name].Value); err != nil {
			return nil, fmt.Errorf("map %s: %w", x.name, err)
		}
		*x.m = m
	}
	nport := specs[tcMapFbrNport].Value
	c.timesOf, c.notesOf = c.notesOf.only(nport, "noted_at", "used_at"), c.notesOf.only(nport, "noted_at", "used_at", "ip")
	c.stateOf = c.stateOf.only(specs[tcMapFbrState].Value, append([]string{"fresh"}, counted...)...)
	return c, nil
}

// counters carries the counters of fbr_state over. No program may run on the
// new maps yet: writing the entry ends its timer.
func (c *carrier) counters() error {
	st, err := c.oldState()
	if err != nil {
		return err
	}
	st.Fresh = 0
	if err := c.o.maps[tcMapFbrState].Put(uint32(0), &st); err != nil {
		return fmt.Errorf("writing fbr_state: %w", err)
	}
	return nil
}

func (c *carrier) oldState() (st tcFbrState, err error) {
	raw, err := c.state.LookupBytes(uint32(0))
	if err != nil {
		return st, fmt.Errorf("reading fbr_state: %w", err)
	}
	return as[tcFbrState](c.stateOf.apply(raw)), nil
}

// notes carries over which ports are on hold, and which a neighbour was seen
// using.
func (c *carrier) notes() error {
	nport := c.o.maps[tcMapFbrNport]
	return eachEntry(c.nport, 0, func(k, v []byte) error {
		if allZero(c.timesOf.apply(v)) {
			return nil
		}
		i := c.portIndex(binary.NativeEndian.Uint32(k))
		now, err := nport.LookupBytes(i)
		if err != nil {
			return fmt.Errorf("reading fbr_nport: %w", err)
		}
		c.notesOf.into(now, v)
		if err := nport.Put(i, now); err != nil {
			return fmt.Errorf("writing fbr_nport: %w", err)
		}
		return nil
	})
}

// portIndex returns the index into the new fbr_nport for an index into the old
// one. Before schema 4 the map held only the ports of the NAT range.
func (c *carrier) portIndex(old uint32) uint32 {
	if c.nport.MaxEntries() == c.o.maps[tcMapFbrNport].MaxEntries() {
		return old
	}
	class, off := old/c.d.meta.NatCount, old%c.d.meta.NatCount
	return class<<16 | (c.d.meta.NatFirst + off)
}

// ports opens in the new maps the ports that are open in the old ones.
func (c *carrier) ports() error {
	if c.pool == nil {
		return c.d.ports.openAll(c.o)
	}
	return eachEntry(c.pool, 0, func(k, v []byte) error {
		class := tcFbrClass(binary.NativeEndian.Uint32(k))
		state := as[tcFbrPool](c.poolOf.apply(v)).State
		open := func(port int) bool { return state[port]&tcFbrPortStateFBR_PORT_OPEN != 0 }
		for from := 0; from < len(state); from++ {
			to := from
			for to < len(state) && open(to) {
				to++
			}
			if to == from {
				continue
			}
			if err := c.o.setPorts(true, uint32(from), uint32(to), class); err != nil {
				return err
			}
			from = to
		}
		return nil
	})
}

// pass carries what has changed since the last pass. With seenToo, a changed
// time of the last packet counts as a change, too.
func (c *carrier) pass(seenToo bool) error {
	st, err := c.oldState()
	if err != nil {
		return err
	}
	used := uint32(min(st.Fresh, uint64(c.sess.MaxEntries())))
	resumed := c.seen == nil && !seenToo
	if c.seen == nil {
		c.seen = make([]slotMark, c.sess.MaxEntries())
	}
	for from := uint32(0); from < used; from += batchSize {
		if err := c.chunk(from, min(from+batchSize, used), seenToo, resumed); err != nil {
			return err
		}
	}
	return nil
}

// chunk carries the slots [from, to).
func (c *carrier) chunk(from, to uint32, seenToo, resumed bool) error {
	sessions := make([][]byte, 0, batchSize)
	any := false
	err := eachEntry(c.sess, from, func(k, v []byte) error {
		if binary.NativeEndian.Uint32(k) >= to {
			return errEnd
		}
		s := c.sessOf.apply(v)
		any = any || c.o.session(s).live()
		sessions = append(sessions, s)
		return nil
	})
	if err != nil || !any {
		return err
	}
	flows := make([][]byte, 0, 2*batchSize)
	err = eachEntry(c.flow, 2*from, func(k, v []byte) error {
		if binary.NativeEndian.Uint32(k) >= 2*to {
			return errEnd
		}
		flows = append(flows, c.flowOf.apply(v))
		return nil
	})
	if err != nil {
		return err
	}
	for i, raw := range sessions {
		if err := c.session(from+uint32(i), raw, flows[2*i], flows[2*i+1], seenToo, resumed); err != nil {
			return err
		}
	}
	return nil
}

func (c *carrier) session(slot uint32, raw, rawOut, rawIn []byte, seenToo, resumed bool) error {
	s, out, in := c.o.session(raw), c.o.entry(rawOut), c.o.entry(rawIn)
	if !s.live() || out.key != s.fwd || in.key != s.rev() {
		return nil // ended, or not begun yet
	}
	mark := slotMark{s.state, s.bits, s.isn, out.seen, in.seen}
	was := &c.seen[slot]
	if mark == *was || !seenToo && mark.state == was.state && mark.bits == was.bits && mark.isn == was.isn {
		return nil
	}
	*was = mark
	// A killed process carried everything that began before it read the maps. A
	// session of that age that the new maps lack has ended there.
	anew := uint32(1)
	if resumed && max(out.seen, in.seen)+2*uint64(c.d.meta.Hz) < c.d.meta.CarriedAt {
		anew = 0
	}
	payload := append(append(append([]byte(nil), raw...), rawOut...), rawIn...)
	got, err := request(c.o.progs[tcProgFbrControl], tcFbrRequest{Op: tcFbrOpFBR_OP_CARRY, From: anew}, payload...)
	if err != nil {
		return err
	}
	if tcFbrCarryResult(got) == tcFbrCarryResultFBR_CARRY_FULL {
		return errors.New("the new maps have no room for a session of the old ones")
	}
	return nil
}
