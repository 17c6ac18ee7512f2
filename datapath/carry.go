package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// carrier copies sessions from maps of another layout into a datapath's maps.
type carrier struct {
	d                *Datapath // with the new maps
	sess, flow       *ebpf.Map
	sessOf, flowOf   conversion
	nport, state     *ebpf.Map
	nportOf, stateOf conversion
	pool             *ebpf.Map // nil: schemas before 4 have none
	poolOf           conversion

	// seen holds the state of each old slot at the time it was last carried. It
	// is empty if another process did that.
	seen []slotMark
}

// slotMark shows whether a session has changed.
type slotMark struct {
	state   tcFbrSessState
	bits    tcFbrSessBits
	isn     uint32
	out, in uint64 // jiffies of the last packets
}

func newCarrier(d *Datapath, old map[string]*ebpf.Map, spec *ebpf.CollectionSpec) (*carrier, error) {
	c := &carrier{d: d}
	for _, x := range []struct {
		name string
		m    **ebpf.Map
		conv *conversion
	}{
		{tcMapFbrSess, &c.sess, &c.sessOf},
		{tcMapFbrFlow, &c.flow, &c.flowOf},
		{tcMapFbrNport, &c.nport, &c.nportOf},
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
		if *x.conv, err = converting(t, spec.Maps[x.name].Value); err != nil {
			return nil, fmt.Errorf("map %s: %w", x.name, err)
		}
		*x.m = m
	}
	c.stateOf = c.stateOf.only(spec.Maps[tcMapFbrState].Value, append([]string{"fresh"}, counted...)...)
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
	if err := c.d.maps.FbrState.Put(uint32(0), &st); err != nil {
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
	return eachEntry(c.nport, 0, func(k, v []byte) error {
		was := as[tcFbrNport](c.nportOf.apply(v))
		i := c.portIndex(binary.NativeEndian.Uint32(k))
		if was.NotedAt == 0 && was.UsedAt == 0 {
			return nil
		}
		var now tcFbrNport
		if err := c.d.maps.FbrNport.Lookup(i, &now); err != nil {
			return fmt.Errorf("reading fbr_nport: %w", err)
		}
		now.NotedAt, now.UsedAt, now.Ip = was.NotedAt, was.UsedAt, was.Ip
		if err := c.d.maps.FbrNport.Put(i, &now); err != nil {
			return fmt.Errorf("writing fbr_nport: %w", err)
		}
		return nil
	})
}

// portIndex returns the index into the new fbr_nport for an index into the old
// one. Before schema 4 the map held only the ports of the NAT range.
func (c *carrier) portIndex(old uint32) uint32 {
	if c.nport.MaxEntries() == c.d.maps.FbrNport.MaxEntries() {
		return old
	}
	class, off := old/c.d.meta.NatCount, old%c.d.meta.NatCount
	return class<<16 | (c.d.meta.NatFirst + off)
}

// ports opens in the new maps the ports that are open in the old ones.
func (c *carrier) ports() error {
	if c.pool == nil {
		return c.d.ports.setPorts(true, c.d.meta.NatFirst, c.d.meta.NatFirst+c.d.meta.NatCount, allClasses()...)
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
			if err := c.d.ports.setPorts(true, uint32(from), uint32(to), class); err != nil {
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
		any = any || live(as[tcFbrSession](s))
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
	s, out, in := as[tcFbrSession](raw), as[tcFbrFlow](rawOut), as[tcFbrFlow](rawIn)
	if !live(s) || out.Key != s.Fwd || in.Key != reverseKey(s) {
		return nil // ended, or not begun yet
	}
	mark := slotMark{s.State, s.Bits, s.Isn, out.Seen, in.Seen}
	was := &c.seen[slot]
	if mark == *was || !seenToo && mark.state == was.state && mark.bits == was.bits && mark.isn == was.isn {
		return nil
	}
	*was = mark
	// A killed process carried everything that began before it read the maps. A
	// session of that age that the new maps lack has ended there.
	anew := uint32(1)
	if resumed && max(out.Seen, in.Seen)+2*uint64(c.d.meta.Hz) < c.d.meta.CarriedAt {
		anew = 0
	}
	payload := append(append(append([]byte(nil), raw...), rawOut...), rawIn...)
	got, err := request(c.d.progs.FbrControl, tcFbrRequest{Op: tcFbrOpFBR_OP_CARRY, From: anew}, payload...)
	if err != nil {
		return err
	}
	if tcFbrCarryResult(got) == tcFbrCarryResultFBR_CARRY_FULL {
		return errors.New("the new maps have no room for a session of the old ones")
	}
	return nil
}
