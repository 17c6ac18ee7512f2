package datapath

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

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
func fromKey(k tcFbrFlowKey) nm.Tuple {
	return nm.Tuple{Src: fromBE32(k.Saddr), Dst: fromBE32(k.Daddr), SPort: fromBE16(k.Sport), DPort: fromBE16(k.Dport), Proto: nm.Proto(k.Proto)}
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

// table reads everything that the NAT remembers, as the model describes it.
func (h *harness) table(t testing.TB) nm.Table {
	t.Helper()
	st, err := h.Datapath.control.state()
	check(t, err)
	out := nm.Table{
		Sessions: map[int]nm.Session{}, Binds: map[nm.Tuple]int{}, Peers: map[nm.Tuple]int{}, Usage: map[int]nm.Usage{},
		Counters: nm.Counters{
			Overloads: st.Overloads, Remaps: st.Remaps, Reclaimed: st.Reclaimed, RefusedFull: st.RefusedFull, RefusedQuota: st.RefusedQuota,
			Tries: st.Tries, Live: int(st.Live), Waiting: int(st.Waiting), DroppedEarly: st.DroppedEarly,
		},
	}
	entries := all[uint32, tcFbrFlow](t, h.maps.FbrFlow, 2*h.meta.FlowsMax)
	flows := map[tcFbrFlowKey]tcFbrFlow{}
	for k, i := range all[tcFbrFlowKey, uint32](t, h.maps.FbrFlowOf, 2*h.meta.FlowsMax) {
		flows[k] = entries[i]
		delete(entries, i)
		if f := flows[k]; f.Key != k || f.Sess != i/2 {
			t.Errorf("%+v leads to entry %d: %+v", k, i, f)
		}
	}
	for i, f := range entries {
		if f.Key.Proto != 0 {
			t.Errorf("nothing leads to entry %d: %+v", i, f)
		}
	}
	slots, live, err := h.Datapath.nat.sessions()
	check(t, err)
	for i, s := range live {
		out.Sessions[int(slots[i])] = h.session(t, flows, slots[i], s)
	}
	if len(flows) != 0 {
		t.Errorf("entries without a session: %v", flows)
	}
	for k, v := range all[tcFbrBindKey, uint32](t, h.maps.FbrBind, h.maps.FbrBind.MaxEntries()) {
		out.Binds[nm.Tuple{Src: fromBE32(k.Ip), SPort: fromBE16(k.Port), Proto: nm.Proto(k.Proto)}] = int(v - h.meta.NatFirst)
	}
	for k, v := range all[tcFbrPeerKey, uint32](t, h.maps.FbrPeer, h.meta.FlowsMax) {
		out.Peers[nm.Tuple{Src: fromBE32(k.Addr), DPort: uint16(k.Nport - h.meta.NatFirst), Proto: nm.Proto(k.Nport >> 16)}] = int(v)
	}
	ports := make([]tcFbrNport, h.maps.FbrNport.MaxEntries())
	check(t, eachElement(h.maps.FbrNport, 1<<14, 1, classes<<16, func(i uint32, np []tcFbrNport) { ports[i] = np[0] }))
	for class := range classes {
		var pool tcFbrPool
		check(t, h.maps.FbrPool.Lookup(class, &pool))
		first := class<<16 + h.meta.NatFirst
		for i, np := range ports[first : first+h.meta.NatCount] {
			out.Ports[class] = append(out.Ports[class], portView(np, pool.State[int(h.meta.NatFirst)+i]))
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

// session is a session with its two entries, which it removes from flows.
func (h *harness) session(t testing.TB, flows map[tcFbrFlowKey]tcFbrFlow, slot uint32, s tcFbrSession) nm.Session {
	t.Helper()
	out := nm.Session{Fwd: fromKey(s.Fwd), Ext: fromBE32(s.Ext), EPort: fromBE16(s.Eport), Bits: nm.Bits(s.Bits), Ifindex: int(s.Pif), ISN: s.Isn}
	for i, k := range []tcFbrFlowKey{s.Fwd, reverseKey(s)} {
		f, ok := flows[k]
		if !ok || f.Sess != slot {
			t.Errorf("slot %d has no entry of its own in direction %d: %+v", slot, i, f)
		}
		delete(flows, k)
		out.Seen[i], out.Granted[i] = f.Seen, f.Granted
		if f.Granted != 0 {
			out.Lease[i] = uint64(f.LeaseLen)
		}
	}
	return out
}

func portView(p tcFbrNport, state tcFbrPortState) nm.Port {
	v := nm.Port{Taken: state&portTaken != 0, Free: state&portFree != 0, Bound: p.Bound != 0, Refs: int(p.Refs), NotedAt: p.NotedAt, UsedAt: p.UsedAt}
	if v.Taken {
		v.Addr, v.Port, v.Ifindex = fromBE32(p.Ip), fromBE16(p.Port), int(p.Pif)
	}
	return v
}
