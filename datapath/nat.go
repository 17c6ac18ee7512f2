package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// natTable is the sessions and their flows.
type natTable struct{ d *Datapath }

// NATStats returns the instance-wide NAT figures.
func (d *Datapath) NATStats() (NATStats, error) {
	st, err := d.control.state()
	if err != nil {
		return NATStats{}, err
	}
	names := reasons()
	return NATStats{
		Flows:          uint32(st.Live),
		FlowsMax:       d.meta.FlowsMax,
		PortOverloads:  st.Overloads,
		PortRemaps:     st.Remaps,
		PortsReclaimed: st.Reclaimed,
		EarlyDrops:     st.DroppedEarly,
		PortTries:      st.Tries[1:],
		PortsNotFound:  st.Tries[0],
		Refused:        map[Reason]uint64{names[tcFbrReasonFBR_NAT_FULL]: st.RefusedFull, names[tcFbrReasonFBR_QUOTA]: st.RefusedQuota},
	}, nil
}

// FlushFlows ends every NAT session and returns how many there were.
func (d *Datapath) FlushFlows() (int, error) { return d.nat.flush(0) }

// Flows returns the live sessions, in no particular order.
func (d *Datapath) Flows() ([]Flow, error) {
	now, err := d.control.now()
	if err != nil {
		return nil, err
	}
	var conf tcFbrConf
	if err := d.maps.FbrConf.Lookup(uint32(0), &conf); err != nil {
		return nil, fmt.Errorf("reading fbr_conf: %w", err)
	}
	slots, sess, err := d.nat.sessions()
	if err != nil {
		return nil, err
	}
	var out []Flow
	for i, s := range sess {
		f, ok, err := d.nat.flowOf(slots[i], s, conf, now)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, f)
		}
	}
	return out, nil
}

// sessions returns the live sessions and their slots.
func (nt natTable) sessions() (slots []uint32, found []tcFbrSession, err error) {
	st, err := nt.d.control.state()
	if err != nil {
		return nil, nil, err
	}
	used := int(min(st.Fresh, uint64(nt.d.meta.FlowsMax)))
	if used == 0 {
		return nil, nil, nil
	}
	keys, all := make([]uint32, used), make([]tcFbrSession, used)
	var cursor ebpf.MapBatchCursor
	n, err := nt.d.maps.FbrSess.BatchLookup(&cursor, keys, all, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil, fmt.Errorf("reading fbr_sess: %w", err)
	}
	for i, s := range all[:n] {
		if live(s) {
			slots, found = append(slots, keys[i]), append(found, s)
		}
	}
	return slots, found, nil
}

// flowOf completes a session from its two entries. It reports false if the
// session has ended meanwhile.
func (nt natTable) flowOf(slot uint32, s tcFbrSession, conf tcFbrConf, now uint64) (Flow, bool, error) {
	var fwd, rev tcFbrFlow
	if err := errors.Join(nt.d.maps.FbrFlow.Lookup(2*slot, &fwd), nt.d.maps.FbrFlow.Lookup(2*slot+1, &rev)); err != nil {
		return Flow{}, false, fmt.Errorf("reading fbr_flow: %w", err)
	}
	if fwd.Key != s.Fwd || rev.Key != reverseKey(s) {
		return Flow{}, false, nil
	}
	f := Flow{
		Proto: protoName(s.Fwd.Proto),
		Src:   addrPort(s.Fwd.Saddr, s.Fwd.Sport),
		Dst:   addrPort(s.Fwd.Daddr, s.Fwd.Dport),
		NAT:   addrPort(s.Ext, s.Eport),
		State: stateName(s),
		Host:  s.Bits&tcFbrSessBitsFBR_S_HOST != 0,
	}
	if s.Fwd.Proto == unix.IPPROTO_ICMP {
		f.Dst = addrPort(s.Fwd.Daddr, s.Eport) // the id that the remote sees
	}
	secs, err := timeout(s)
	if err != nil {
		return Flow{}, false, err
	}
	seen := fwd.Seen
	if s.Bits&tcFbrSessBitsFBR_S_OUT_ONLY == 0 {
		seen = max(seen, rev.Seen)
	}
	end := seen + uint64(secs)*uint64(nt.d.meta.Hz)
	if end <= now {
		return Flow{}, false, nil
	}
	f.Expires = duration(end-now, nt.d.meta.Hz)
	if leaseEnd := fwd.Granted + uint64(fwd.LeaseLen); fwd.Granted > conf.RevokedAt && leaseEnd > now {
		f.Lease = duration(leaseEnd-now, nt.d.meta.Hz)
	}
	return f, true, nil
}

// live reports whether a slot has a session.
func live(s tcFbrSession) bool {
	return s.State&tcFbrSessStateFBR_STATE_MASK == tcFbrSessStateFBR_LIVE
}

// reverseKey returns the key of a session's inbound entry.
func reverseKey(s tcFbrSession) tcFbrFlowKey {
	return tcFbrFlowKey{Saddr: s.Fwd.Daddr, Daddr: s.Ext, Sport: s.Fwd.Dport, Dport: s.Eport, Proto: s.Fwd.Proto}
}

func addrPort(addr uint32, port uint16) netip.AddrPort {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return netip.AddrPortFrom(addrOf(addr), binary.BigEndian.Uint16(b[:]))
}

func protoName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
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

func stateName(s tcFbrSession) string {
	switch {
	case s.Fwd.Proto != unix.IPPROTO_TCP && s.Bits&answered != 0:
		return "replied"
	case s.Fwd.Proto != unix.IPPROTO_TCP:
		return "unreplied"
	case s.Bits&resets != 0, s.Bits&bothFIN == bothFIN:
		return "closed"
	case s.Bits&bothFIN != 0:
		return "closing"
	case s.Bits&open == open:
		return "established"
	default:
		return "new"
	}
}

// timeout returns the timeout of a session in seconds, as fbr_timeout of
// bpf/lib/session.h does.
func timeout(s tcFbrSession) (uint32, error) {
	name := ""
	inbound := s.Bits&tcFbrSessBitsFBR_S_INBOUND != 0
	switch state := stateName(s); {
	case state == "closed":
		name = tcVarCfgToTcpClosing
	case s.Fwd.Proto == unix.IPPROTO_TCP && s.Bits&open != open && inbound:
		name = tcVarCfgToTcpWaiting
	case s.Fwd.Proto == unix.IPPROTO_TCP && s.Bits&open != open:
		name = tcVarCfgToTcpOpen
	case state == "closing":
		name = tcVarCfgToTcpHalf
	case state == "established":
		name = tcVarCfgToTcp
	case s.Fwd.Proto == unix.IPPROTO_ICMP:
		name = tcVarCfgToIcmp
	case s.Bits&assured != 0:
		name = tcVarCfgToUdp
	case s.Bits&answered == 0 && inbound:
		name = tcVarCfgToUdpWaiting
	case s.Bits&answered == 0 || inbound:
		name = tcVarCfgToUdpOneway
	case addrPort(0, s.Fwd.Dport).Port() == 53:
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
