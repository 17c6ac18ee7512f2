package datapath

import (
	"bytes"
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// statsMax is FBR_STATS_MAX of bpf/lib/types.h: devices that can exist at once.
const statsMax = 4096

// newStats returns a free index into the counters, zeroed. Index 0 stays unused.
func (d *Datapath) newStats() (uint16, error) {
	devs, err := d.devices()
	if err != nil {
		return 0, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return 0, fmt.Errorf("counting CPUs: %w", err)
	}
	var used [statsMax]bool
	for _, dev := range devs {
		used[dev.Stats] = true
	}
	for i := uint32(1); i < statsMax; i++ {
		if used[i] {
			continue
		}
		if err := d.maps.FbrStats.Put(i, make([]tcFbrStats, cpus)); err != nil {
			return 0, fmt.Errorf("clearing counters: %w", err)
		}
		if err := d.maps.FbrDrops.Put(i, make([]tcFbrDrops, cpus)); err != nil {
			return 0, fmt.Errorf("clearing drop counters: %w", err)
		}
		if err := d.maps.FbrQuota.Put(i, &tcFbrQuota{}); err != nil {
			return 0, fmt.Errorf("clearing a quota: %w", err)
		}
		return uint16(i), nil
	}
	return 0, fmt.Errorf("%d devices: %w", statsMax-1, ErrTooMany)
}

// Stats returns the counters of every port and uplink by ifindex.
func (d *Datapath) Stats() (map[int]Counters, error) {
	devs, err := d.devices()
	if err != nil {
		return nil, err
	}
	out := make(map[int]Counters, len(devs))
	for _, dev := range devs {
		if dev.Flags&(tcFbrDevFlagsFBR_DEV_BRIDGE|tcFbrDevFlagsFBR_DEV_FRAGS) != 0 {
			continue
		}
		c, err := d.counters(uint32(dev.Stats))
		if err != nil {
			return nil, err
		}
		out[int(dev.Ifindex)] = c
	}
	return out, nil
}

func (d *Datapath) counters(i uint32) (Counters, error) {
	var (
		stats []tcFbrStats
		drops []tcFbrDrops
		c     Counters
	)
	if err := d.maps.FbrStats.Lookup(i, &stats); err != nil {
		return c, fmt.Errorf("reading fbr_stats: %w", err)
	}
	if err := d.maps.FbrDrops.Lookup(i, &drops); err != nil {
		return c, fmt.Errorf("reading fbr_drops: %w", err)
	}
	const slow, fast = 0, 1
	for _, s := range stats {
		c.RX.SlowPackets += s.Rx[slow].Packets
		c.RX.SlowBytes += s.Rx[slow].Bytes
		c.RX.FastPackets += s.Rx[fast].Packets
		c.RX.FastBytes += s.Rx[fast].Bytes
		c.TX.SlowPackets += s.Tx[slow].Packets
		c.TX.SlowBytes += s.Tx[slow].Bytes
		c.TX.FastPackets += s.Tx[fast].Packets
		c.TX.FastBytes += s.Tx[fast].Bytes
	}
	names, err := reasons()
	if err != nil {
		return c, err
	}
	c.Drops = map[Reason]uint64{}
	for _, n := range drops {
		for r, v := range n.N {
			if v != 0 {
				c.Drops[names[r]] += v
			}
		}
	}
	return c, nil
}

// Reasons returns every reason for which the programs drop packets.
func Reasons() ([]Reason, error) {
	names, err := reasons()
	if err != nil {
		return nil, err
	}
	var out []Reason
	for _, n := range names {
		if n != "" {
			out = append(out, n)
		}
	}
	return out, nil
}

// reasons maps enum fbr_reason to labels, read from the type information of the
// programs, so that there is no second list to keep.
var reasons = sync.OnceValues(func() ([tcFbrReasonFBR_REASON_MAX]Reason, error) {
	var out [tcFbrReasonFBR_REASON_MAX]Reason
	// The types alone: reading the programs too would take most of a scrape.
	types, err := btf.LoadSpecFromReader(bytes.NewReader(_TcBytes))
	if err != nil {
		return out, fmt.Errorf("reading the types of the embedded programs: %w", err)
	}
	var e *btf.Enum
	if err := types.TypeByName("fbr_reason", &e); err != nil {
		return out, fmt.Errorf("finding the drop reasons: %w", err)
	}
	for _, v := range e.Values {
		if v.Value > 0 && v.Value < uint64(len(out)) {
			out[v.Value] = Reason(strings.ToLower(strings.TrimPrefix(v.Name, "FBR_")))
		}
	}
	return out, nil
})
