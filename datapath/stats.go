package datapath

import (
	"bytes"
	"errors"
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

// countersAtOnce is how many counters of one CPU are read by a call.
const countersAtOnce = 512

// Stats returns the counters of every port and uplink by ifindex.
func (d *Datapath) Stats() (map[int]Counters, error) {
	devs, err := d.devices()
	if err != nil {
		return nil, err
	}
	byIndex := [statsMax]int{} // ifindex by index into the counters
	last := 0
	for _, dev := range devs {
		if dev.Flags&(tcFbrDevFlagsFBR_DEV_BRIDGE|tcFbrDevFlagsFBR_DEV_FRAGS) == 0 {
			byIndex[dev.Stats], last = int(dev.Ifindex), max(last, int(dev.Stats))
		}
	}
	out := make(map[int]Counters, len(devs))
	err = eachCounter(d.maps.FbrStats, last, func(i int, cpus []tcFbrStats) {
		if ifindex := byIndex[i]; ifindex != 0 {
			out[ifindex] = sumPaths(cpus)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("reading fbr_stats: %w", err)
	}
	names, err := reasons()
	if err != nil {
		return nil, err
	}
	err = eachCounter(d.maps.FbrDrops, last, func(i int, cpus []tcFbrDrops) {
		if ifindex := byIndex[i]; ifindex != 0 {
			if drops := sumDrops(cpus, names); drops != nil {
				c := out[ifindex]
				c.Drops = drops
				out[ifindex] = c
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("reading fbr_drops: %w", err)
	}
	return out, nil
}

// eachCounter calls f with the elements of a per-CPU array, one value per CPU,
// up to the index last.
func eachCounter[T any](m *ebpf.Map, last int, f func(i int, cpus []T)) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("counting CPUs: %w", err)
	}
	chunk := max(1, countersAtOnce/cpus)
	keys, values := make([]uint32, chunk), make([]T, chunk*cpus)
	for cursor := new(ebpf.MapBatchCursor); ; {
		n, err := m.BatchLookup(cursor, keys, values, nil)
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return err
		}
		for i, key := range keys[:n] {
			if int(key) > last {
				return nil
			}
			f(int(key), values[i*cpus:(i+1)*cpus])
		}
		if end {
			return nil
		}
	}
}

func sumPaths(cpus []tcFbrStats) (c Counters) {
	const slow, fast = 0, 1
	for _, s := range cpus {
		c.RX.SlowPackets += s.Rx[slow].Packets
		c.RX.SlowBytes += s.Rx[slow].Bytes
		c.RX.FastPackets += s.Rx[fast].Packets
		c.RX.FastBytes += s.Rx[fast].Bytes
		c.TX.SlowPackets += s.Tx[slow].Packets
		c.TX.SlowBytes += s.Tx[slow].Bytes
		c.TX.FastPackets += s.Tx[fast].Packets
		c.TX.FastBytes += s.Tx[fast].Bytes
	}
	return c
}

// sumDrops is nil where nothing was dropped.
func sumDrops(cpus []tcFbrDrops, names [tcFbrReasonFBR_REASON_MAX]Reason) (drops map[Reason]uint64) {
	for _, n := range cpus {
		for r, v := range n.N {
			if v == 0 {
				continue
			}
			if drops == nil {
				drops = map[Reason]uint64{}
			}
			drops[names[r]] += v
		}
	}
	return drops
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
