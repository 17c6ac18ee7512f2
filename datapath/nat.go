package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// natTable is the sessions and their flows, of both families.
type natTable struct{ d *Datapath }

// NATStats returns the instance-wide NAT figures.
func (d *Datapath) NATStats() (NATStats, error) {
	names := reasons()
	out := NATStats{FlowsMax: d.meta.FlowsMax, FlowsOf: map[string]uint32{}, PortTries: make([]uint64, len(tcFbrState{}.Tries)-1), Refused: map[Reason]uint64{}}
	for _, o := range d.families.loaded() {
		st, err := o.state()
		if err != nil {
			return NATStats{}, err
		}
		out.FlowsOf[o.label] = uint32(st.Live)
		out.Flows += uint32(st.Live)
		out.PortOverloads += st.Overloads
		out.PortRemaps += st.Remaps
		out.PortsReclaimed += st.Reclaimed
		out.EarlyDrops += st.DroppedEarly
		for i, n := range st.Tries[1:] {
			out.PortTries[i] += n
		}
		out.PortsNotFound += st.Tries[0]
		out.Refused[names[tcFbrReasonFBR_NAT_FULL]] += st.RefusedFull
		out.Refused[names[tcFbrReasonFBR_QUOTA]] += st.RefusedQuota
	}
	return out, nil
}

// FlushFlows ends every NAT session and returns how many there were.
func (d *Datapath) FlushFlows() (int, error) { return d.nat.flush(0) }

// Flows returns the live sessions, those of IPv4 first, else in no particular order.
func (d *Datapath) Flows() (out []Flow, err error) {
	now, err := d.control.now()
	if err != nil {
		return nil, err
	}
	var conf tcFbrConf
	if err := d.maps.FbrConf.Lookup(uint32(0), &conf); err != nil {
		return nil, fmt.Errorf("reading fbr_conf: %w", err)
	}
	for _, o := range d.families.loaded() {
		err := d.nat.each(o, func(s session) error {
			f, ok, err := d.nat.flowOf(o, s, conf, now)
			if ok {
				out = append(out, f)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// flowKey is a key of fbr_flow_of: addresses and ports as on the wire.
type flowKey struct {
	src, dst netip.AddrPort
	proto    uint8
}

// session is what fbr_sess has of a live session, of whichever family.
type session struct {
	slot     uint32
	fwd      flowKey        // of the outbound entry
	external netip.AddrPort // the port is the ICMP id, where there are no ports
	state    tcFbrSessState
	bits     tcFbrSessBits
	isn      uint32
}

// entry is what fbr_flow has of a direction of a session.
type entry struct {
	key           flowKey
	granted, seen uint64 // jiffies
	lease         uint16 // jiffies
}

func session4(b []byte) session {
	s := as[tcFbrSession](b)
	return session{fwd: key4(s.Fwd), external: addrPort(s.Ext, s.Eport), state: s.State, bits: s.Bits, isn: s.Isn}
}

func session6(b []byte) session {
	s := as[tc6FbrSession](b)
	return session{fwd: key6(s.Fwd), external: addrPort6(s.Ext, s.Eport), state: tcFbrSessState(s.State), bits: tcFbrSessBits(s.Bits), isn: s.Isn}
}

func entry4(b []byte) entry {
	f := as[tcFbrFlow](b)
	return entry{key4(f.Key), f.Granted, f.Seen, f.LeaseLen}
}

func entry6(b []byte) entry {
	f := as[tc6FbrFlow](b)
	return entry{key6(f.Key), f.Granted, f.Seen, f.LeaseLen}
}

func key4(k tcFbrFlowKey) flowKey {
	return flowKey{addrPort(k.Saddr, k.Sport), addrPort(k.Daddr, k.Dport), k.Proto}
}

func key6(k tc6FbrFlowKey) flowKey {
	return flowKey{addrPort6(k.Saddr, k.Sport), addrPort6(k.Daddr, k.Dport), k.Proto}
}

// live reports whether a slot has a session.
func (s session) live() bool {
	return s.state&tcFbrSessStateFBR_STATE_MASK == tcFbrSessStateFBR_LIVE
}

// rev is the key of the inbound entry.
func (s session) rev() flowKey {
	return flowKey{s.fwd.dst, s.external, s.fwd.proto}
}

// used returns the number of slots that ever had a session.
func (nt natTable) used(o *object) (uint32, error) {
	st, err := o.state()
	return uint32(min(st.Fresh, uint64(nt.d.meta.FlowsMax))), err
}

// each calls f with the live sessions of a family.
func (nt natTable) each(o *object, f func(session) error) error {
	used, err := nt.used(o)
	if err != nil || used == 0 {
		return err
	}
	return eachEntry(o.maps[tcMapFbrSess], 0, func(k, v []byte) error {
		slot := binary.NativeEndian.Uint32(k)
		if slot >= used {
			return errEnd
		}
		s := o.session(v)
		if !s.live() {
			return nil
		}
		s.slot = slot
		return f(s)
	})
}

// entry returns the entry of fbr_flow at an index.
func (nt natTable) entry(o *object, i uint32) (entry, error) {
	b, err := o.maps[tcMapFbrFlow].LookupBytes(i)
	if err != nil {
		return entry{}, fmt.Errorf("reading fbr_flow: %w", err)
	}
	return o.entry(b), nil
}

// flowOf completes a session from its two entries. It reports false if the
// session has ended meanwhile.
func (nt natTable) flowOf(o *object, s session, conf tcFbrConf, now uint64) (Flow, bool, error) {
	fwd, err := nt.entry(o, 2*s.slot)
	if err != nil {
		return Flow{}, false, err
	}
	rev, err := nt.entry(o, 2*s.slot+1)
	if err != nil {
		return Flow{}, false, err
	}
	if fwd.key != s.fwd || rev.key != s.rev() {
		return Flow{}, false, nil
	}
	f := Flow{
		Proto: protoName(s.fwd.proto),
		Src:   s.fwd.src,
		Dst:   s.fwd.dst,
		NAT:   s.external,
		State: stateName(s),
		Host:  s.bits&tcFbrSessBitsFBR_S_HOST != 0,
	}
	if isICMP(s.fwd.proto) {
		f.Dst = netip.AddrPortFrom(f.Dst.Addr(), f.NAT.Port()) // the id that the remote sees
	}
	secs, err := timeout(s)
	if err != nil {
		return Flow{}, false, err
	}
	seen := fwd.seen
	if s.bits&tcFbrSessBitsFBR_S_OUT_ONLY == 0 {
		seen = max(seen, rev.seen)
	}
	end := seen + uint64(secs)*uint64(nt.d.meta.Hz)
	if end <= now {
		return Flow{}, false, nil
	}
	f.Expires = duration(end-now, nt.d.meta.Hz)
	if leaseEnd := fwd.granted + uint64(fwd.lease); fwd.granted > conf.RevokedAt && leaseEnd > now {
		f.Lease = duration(leaseEnd-now, nt.d.meta.Hz)
	}
	return f, true, nil
}

func addrPort(addr uint32, port uint16) netip.AddrPort {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return netip.AddrPortFrom(addrOf(addr), binary.BigEndian.Uint16(b[:]))
}

func addrPort6(addr tc6FbrAddr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(addrOf6(addr), addrPort(0, port).Port())
}

// isICMP reports whether a protocol is ICMP or ICMPv6. No session of IPv4 is of ICMPv6, nor
// the other way round.
func isICMP(p uint8) bool { return p == unix.IPPROTO_ICMP || p == unix.IPPROTO_ICMPV6 }

func protoName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	default:
		return "icmp"
	}
}

const (
	bothFIN  = tcFbrSessBitsFBR_S_FIN_IN | tcFbrSessBitsFBR_S_FIN_OUT
	answered = tcFbrSessBitsFBR_S_REPLIED
	assured  = tcFbrSessBitsFBR_S_ASSURED
	open     = answered | assured
	resets   = tcFbrSessBitsFBR_S_RST | tcFbrSessBitsFBR_S_RST_IN
)

func stateName(s session) string {
	switch {
	case s.fwd.proto != unix.IPPROTO_TCP && s.bits&answered != 0:
		return "replied"
	case s.fwd.proto != unix.IPPROTO_TCP:
		return "unreplied"
	case s.bits&resets != 0, s.bits&bothFIN == bothFIN:
		return "closed"
	case s.bits&bothFIN != 0:
		return "closing"
	case s.bits&open == open:
		return "established"
	default:
		return "new"
	}
}

// timeout returns the timeout of a session in seconds, as fbr_timeout of
// bpf/lib/session.h does.
func timeout(s session) (uint32, error) {
	name := ""
	inbound := s.bits&tcFbrSessBitsFBR_S_INBOUND != 0
	switch state := stateName(s); {
	case state == "closed":
		name = tcVarCfgToTcpClosing
	case s.fwd.proto == unix.IPPROTO_TCP && s.bits&open != open && inbound:
		name = tcVarCfgToTcpWaiting
	case s.fwd.proto == unix.IPPROTO_TCP && s.bits&open != open:
		name = tcVarCfgToTcpOpen
	case state == "closing":
		name = tcVarCfgToTcpHalf
	case state == "established":
		name = tcVarCfgToTcp
	case isICMP(s.fwd.proto):
		name = tcVarCfgToIcmp
	case s.bits&assured != 0:
		name = tcVarCfgToUdp
	case s.bits&answered == 0 && inbound:
		name = tcVarCfgToUdpWaiting
	case s.bits&answered == 0 || inbound:
		name = tcVarCfgToUdpOneway
	case s.fwd.dst.Port() == 53:
		name = tcVarCfgToUdpDns
	default:
		name = tcVarCfgToUdp
	}
	t, err := timeouts()
	return t[name], err
}

// timeouts returns the values compiled into the programs, by variable.
var timeouts = sync.OnceValues(func() (map[string]uint32, error) {
	spec, err := objectFile()
	if err != nil {
		return nil, fmt.Errorf("reading the embedded programs: %w", err)
	}
	out := map[string]uint32{}
	for name, v := range spec.Variables {
		if !strings.HasPrefix(name, "cfg_to_") {
			continue
		}
		var secs uint32
		if err := v.Get(&secs); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		out[name] = secs
	}
	return out, nil
})
