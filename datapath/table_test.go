package datapath

import (
	"encoding/binary"
	"errors"
	"maps"
	"math/bits"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
)

// The model has ports in host byte order, the maps in network byte order.
func fromBE32(a uint32) (addr nm.Addr) {
	if a != 0 {
		addr = netip.AddrFrom4([4]byte(binary.NativeEndian.AppendUint32(nil, a)))
	}
	return addr
}
func fromBE16(p uint16) uint16 { return bits.ReverseBytes16(p) }

// fromIn6 is an address as IPv6's maps hold it. The model has none where they have ::.
func fromIn6(a tc6FbrAddr) (addr nm.Addr) {
	if a != (tc6FbrAddr{}) {
		addr = netip.AddrFrom16(*(*[16]byte)(unsafe.Pointer(&a.Word)))
	}
	return addr
}

// fromProto is a protocol of either family as the model has it.
func fromProto(p uint8) nm.Proto {
	if p == unix.IPPROTO_ICMPV6 {
		return nm.ICMP
	}
	return nm.Proto(p)
}

// What the maps of a family hold, without its types.
type (
	flowView struct {
		key                  nm.Tuple
		sess                 uint32
		seen, granted, lease uint64
	}
	sessView struct {
		nm.Session
		rev nm.Tuple
		on  bool
	}
	portOwner struct {
		ip            nm.Addr
		port, bound   uint16
		pif, refs     uint32
		noted, usedAt uint64
	}
	binding struct {
		key nm.Tuple
		off uint32
	}
)

func flowOf(key nm.Tuple, sess uint32, seen, granted uint64, lease uint16) flowView {
	v := flowView{key: key, sess: sess, seen: seen, granted: granted}
	if granted != 0 {
		v.lease = uint64(lease)
	}
	return v
}

func sessionOf(fwd nm.Tuple, ext nm.Addr, eport uint16, state, bits, pif, isn uint32) sessView {
	return sessView{
		Session: nm.Session{Fwd: fwd, Ext: ext, EPort: eport, Bits: nm.Bits(bits), Ifindex: int(pif), ISN: isn},
		rev:     nm.Tuple{Src: fwd.Dst, Dst: ext, SPort: fwd.DPort, DPort: eport, Proto: fwd.Proto},
		on:      tcFbrSessState(state)&tcFbrSessStateFBR_STATE_MASK == tcFbrSessStateFBR_LIVE,
	}
}

func fromKey(k tcFbrFlowKey) nm.Tuple {
	return nm.Tuple{Src: fromBE32(k.Saddr), Dst: fromBE32(k.Daddr), SPort: fromBE16(k.Sport), DPort: fromBE16(k.Dport), Proto: fromProto(k.Proto)}
}

func fromKey6(k tc6FbrFlowKey) nm.Tuple {
	return nm.Tuple{Src: fromIn6(k.Saddr), Dst: fromIn6(k.Daddr), SPort: fromBE16(k.Sport), DPort: fromBE16(k.Dport), Proto: fromProto(k.Proto)}
}

// contents are a family's NAT maps without the family's types.
type contents struct {
	flows map[uint32]flowView // by entry
	of    map[nm.Tuple]uint32
	sess  map[uint32]sessView // by slot
	binds []binding
	peers map[nm.Tuple]int
	ports []portOwner // of all classes
}

func (h *harness) contents(t testing.TB) contents {
	t.Helper()
	m, flows := h.object().maps, h.meta.FlowsMax
	peer := func(addr nm.Addr, nport uint32) nm.Tuple {
		return nm.Tuple{Src: addr, DPort: uint16(nport - h.meta.NatFirst), Proto: nm.Proto(nport >> 16)}
	}
	c := contents{flows: map[uint32]flowView{}, of: map[nm.Tuple]uint32{}, sess: map[uint32]sessView{}, peers: map[nm.Tuple]int{}, ports: make([]portOwner, m[tcMapFbrNport].MaxEntries())}
	bound := m[tcMapFbrBind].MaxEntries()
	if h.addr.server.Is4() {
		for i, f := range all[uint32, tcFbrFlow](t, m[tcMapFbrFlow], 2*flows) {
			c.flows[i] = flowOf(fromKey(f.Key), f.Sess, f.Seen, f.Granted, f.LeaseLen)
		}
		for k, i := range all[tcFbrFlowKey, uint32](t, m[tcMapFbrFlowOf], 2*flows) {
			c.of[fromKey(k)] = i
		}
		for i, s := range all[uint32, tcFbrSession](t, m[tcMapFbrSess], flows) {
			c.sess[i] = sessionOf(fromKey(s.Fwd), fromBE32(s.Ext), fromBE16(s.Eport), uint32(s.State), uint32(s.Bits), s.Pif, s.Isn)
		}
		for k, v := range all[tcFbrBindKey, uint32](t, m[tcMapFbrBind], bound) {
			c.binds = append(c.binds, binding{nm.Tuple{Src: fromBE32(k.Ip), SPort: fromBE16(k.Port), Proto: fromProto(k.Proto)}, v})
		}
		for k, v := range all[tcFbrPeerKey, uint32](t, m[tcMapFbrPeer], flows) {
			c.peers[peer(fromBE32(k.Addr), k.Nport)] = int(v)
		}
		check(t, eachElement(m[tcMapFbrNport], 1<<14, 1, classes<<16, func(i uint32, np []tcFbrNport) {
			p := np[0]
			c.ports[i] = portOwner{fromBE32(p.Ip), fromBE16(p.Port), p.Bound, p.Pif, p.Refs, p.NotedAt, p.UsedAt}
		}))
		return c
	}
	for i, f := range all[uint32, tc6FbrFlow](t, m[tcMapFbrFlow], 2*flows) {
		c.flows[i] = flowOf(fromKey6(f.Key), f.Sess, f.Seen, f.Granted, f.LeaseLen)
	}
	for k, i := range all[tc6FbrFlowKey, uint32](t, m[tcMapFbrFlowOf], 2*flows) {
		c.of[fromKey6(k)] = i
	}
	for i, s := range all[uint32, tc6FbrSession](t, m[tcMapFbrSess], flows) {
		c.sess[i] = sessionOf(fromKey6(s.Fwd), fromIn6(s.Ext), fromBE16(s.Eport), s.State, s.Bits, s.Pif, s.Isn)
	}
	for k, v := range all[tc6FbrBindKey, uint32](t, m[tcMapFbrBind], bound) {
		c.binds = append(c.binds, binding{nm.Tuple{Src: fromIn6(k.Ip), SPort: fromBE16(k.Port), Proto: fromProto(k.Proto)}, v})
	}
	for k, v := range all[tc6FbrPeerKey, uint32](t, m[tcMapFbrPeer], flows) {
		c.peers[peer(fromIn6(k.Addr), k.Nport)] = int(v)
	}
	check(t, eachElement(m[tcMapFbrNport], 1<<14, 1, classes<<16, func(i uint32, np []tc6FbrNport) {
		p := np[0]
		c.ports[i] = portOwner{fromIn6(p.Ip), fromBE16(p.Port), p.Bound, p.Pif, p.Refs, p.NotedAt, p.UsedAt}
	}))
	return c
}

// all reads a whole map of at most n entries.
func all[K comparable, V any](t testing.TB, m *ebpf.Map, n uint32) map[K]V {
	t.Helper()
	keys, values := make([]K, n+1), make([]V, n+1)
	var cursor ebpf.MapBatchCursor
	got := 0
	for got < len(keys) {
		c, err := m.BatchLookup(&cursor, keys[got:], values[got:], nil)
		got += c
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			break
		}
		check(t, err)
	}
	out := make(map[K]V, got)
	for i := range got {
		out[keys[i]] = values[i]
	}
	return out
}

// sessions are the live sessions, by slot.
func (h *harness) sessions(t testing.TB) map[uint32]sessView {
	t.Helper()
	c := h.contents(t)
	maps.DeleteFunc(c.sess, func(_ uint32, s sessView) bool { return !s.on })
	return c.sess
}

// table reads everything that the NAT remembers, as the model describes it.
func (h *harness) table(t testing.TB) nm.Table {
	t.Helper()
	m, c := h.object().maps, h.contents(t)
	var st tcFbrState
	check(t, m[tcMapFbrState].Lookup(uint32(0), &st))
	out := nm.Table{
		Sessions: map[int]nm.Session{}, Binds: map[nm.Tuple]int{}, Peers: c.peers, Usage: map[int]nm.Usage{},
		Counters: nm.Counters{
			Overloads: st.Overloads, Remaps: st.Remaps, Reclaimed: st.Reclaimed, RefusedFull: st.RefusedFull, RefusedQuota: st.RefusedQuota,
			Tries: st.Tries, Live: int(st.Live), Waiting: int(st.Waiting), DroppedEarly: st.DroppedEarly,
		},
	}
	flows := map[nm.Tuple]flowView{}
	for k, i := range c.of {
		flows[k] = c.flows[i]
		delete(c.flows, i)
		if f := flows[k]; f.key != k || f.sess != i/2 {
			t.Errorf("%+v leads to entry %d: %+v", k, i, f)
		}
	}
	for i, f := range c.flows {
		if f.key.Proto != 0 {
			t.Errorf("nothing leads to entry %d: %+v", i, f)
		}
	}
	for slot, s := range c.sess {
		if !s.on {
			continue
		}
		for i, k := range []nm.Tuple{s.Fwd, s.rev} {
			f, ok := flows[k]
			if !ok || f.sess != slot {
				t.Errorf("slot %d has no entry of its own in direction %d: %+v", slot, i, f)
			}
			delete(flows, k)
			s.Seen[i], s.Granted[i], s.Lease[i] = f.seen, f.granted, f.lease
		}
		out.Sessions[int(slot)] = s.Session
	}
	if len(flows) != 0 {
		t.Errorf("entries without a session: %v", flows)
	}
	for _, b := range c.binds {
		out.Binds[b.key] = int(b.off - h.meta.NatFirst)
	}
	for class := range classes {
		var pool tcFbrPool
		check(t, m[tcMapFbrPool].Lookup(class, &pool))
		first := class<<16 + h.meta.NatFirst
		for i, p := range c.ports[first : first+h.meta.NatCount] {
			out.Ports[class] = append(out.Ports[class], portView(p, pool.State[int(h.meta.NatFirst)+i]))
		}
		for at := pool.Head; at != pool.Tail; at++ {
			out.Free[class] = append(out.Free[class], int(pool.Ring[uint16(at)])-int(h.meta.NatFirst))
		}
		out.Ripe[class] = int(pool.Ripe - pool.Head)
	}
	for _, p := range []Port{h.c1, h.c2, h.other} {
		dev, _, err := h.Datapath.devs.device(p.Ifindex)
		check(t, err)
		var q tcFbrQuota
		check(t, h.maps.FbrQuota.Lookup(uint32(dev.Stats), &q))
		out.Usage[p.Ifindex] = nm.Usage{Sessions: int(q.Sessions), Ports: int(q.Ports), Half: int(q.Half)}
	}
	return out
}

func portView(p portOwner, state tcFbrPortState) nm.Port {
	v := nm.Port{Taken: state&portTaken != 0, Free: state&portFree != 0, Bound: p.bound != 0, Refs: int(p.refs), NotedAt: p.noted, UsedAt: p.usedAt}
	if v.Taken {
		v.Addr, v.Port, v.Ifindex = p.ip, p.port, int(p.pif)
	}
	return v
}
