package datapath

import (
	"bytes"
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// statsMax is the maximum number of devices.
const statsMax = uint32(tcFbrLayoutFBR_STATS_MAX)

// newStats returns a free index into the counters, with counters at zero. Index
// 0 stays unused.
func (dt deviceTable) newStats() (uint16, error) {
	devs, err := dt.devices()
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
		if err := dt.d.maps.FbrStats.Put(i, make([]tcFbrStats, cpus)); err != nil {
			return 0, fmt.Errorf("clearing counters: %w", err)
		}
		if err := dt.d.maps.FbrDrops.Put(i, make([]tcFbrDrops, cpus)); err != nil {
			return 0, fmt.Errorf("clearing drop counters: %w", err)
		}
		if err := dt.d.maps.FbrQuota.Put(i, &tcFbrQuota{}); err != nil {
			return 0, fmt.Errorf("clearing a quota: %w", err)
		}
		return uint16(i), nil
	}
	return 0, fmt.Errorf("%d devices: %w", statsMax-1, ErrTooMany)
}

// countersAtOnce is the number of counters of one CPU that one call reads.
const countersAtOnce = 512

// Stats returns the counters of these ports and uplinks by ifindex, and
// possibly those of others. If none is named it returns all, which takes
// longer. It leaves out devices that do not exist.
func (d *Datapath) Stats(ifindexes ...int) (map[int]Counters, error) {
	lastSlot := uint32(MaxDevices + moreDevices - 1)
	if len(ifindexes) > 0 {
		lastSlot = 0
		for _, index := range ifindexes {
			lastSlot = max(lastSlot, slot(index))
		}
	}
	devs, err := d.devs.devicesUpTo(lastSlot)
	if err != nil {
		return nil, err
	}
	inFirst := make(map[int]bool, len(devs))
	for _, dev := range devs {
		inFirst[int(dev.Ifindex)] = true
	}
	for _, index := range ifindexes {
		if inFirst[index] {
			continue
		}
		if dev, ok, err := d.devs.device(index); err != nil {
			return nil, err
		} else if ok {
			devs = append(devs, dev)
		}
	}
	last := uint32(0)
	for _, dev := range devs {
		last = max(last, uint32(dev.Stats))
	}
	byIndex := make([]uint32, last+1) // ifindex by counter index
	for _, dev := range devs {
		if dev.Flags&(tcFbrDevFlagsFBR_DEV_BRIDGE|tcFbrDevFlagsFBR_DEV_FRAGS) == 0 {
			byIndex[dev.Stats] = dev.Ifindex
		}
	}
	out := make(map[int]Counters, len(devs))
	err = eachCounter(d.maps.FbrStats, last, func(i uint32, cpus []tcFbrStats) {
		if ifindex := int(byIndex[i]); ifindex != 0 {
			out[ifindex] = sumPaths(cpus)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("reading fbr_stats: %w", err)
	}
	names := reasons()
	err = eachCounter(d.maps.FbrDrops, last, func(i uint32, cpus []tcFbrDrops) {
		if ifindex := int(byIndex[i]); ifindex != 0 {
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

// eachCounter calls f with the elements of a per-CPU array, up to the index
// last. values has one element per CPU.
func eachCounter[T any](m *ebpf.Map, last uint32, f func(i uint32, cpus []T)) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("counting CPUs: %w", err)
	}
	return eachElement(m, max(1, countersAtOnce/cpus), cpus, last, f)
}

func sumPaths(cpus []tcFbrStats) (c Counters) {
	const slow, fast = tcFbrLayoutFBR_SLOW, tcFbrLayoutFBR_FAST
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

// sumDrops returns the sums over all CPUs by reason, or nil if nothing was
// dropped.
func sumDrops(cpus []tcFbrDrops, names []Reason) (drops map[Reason]uint64) {
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
func Reasons() []Reason {
	return reasons()[1:] // without FBR_NONE
}

// reasons returns the labels of enum fbr_reason, by value: their names in the
// programs' type information.
var reasons = sync.OnceValue(func() []Reason {
	types, err := btf.LoadSpecFromReader(bytes.NewReader(_TcBytes))
	var e *btf.Enum
	if err == nil {
		err = types.TypeByName("fbr_reason", &e)
	}
	if err != nil {
		panic(fmt.Sprintf("reading the types of the embedded programs: %v", err)) // the build is broken
	}
	out := make([]Reason, tcFbrReasonFBR_REASON_MAX)
	for _, v := range e.Values {
		if v.Value < uint64(len(out)) {
			out[v.Value] = Reason(strings.ToLower(strings.TrimPrefix(v.Name, "FBR_")))
		}
	}
	return out
})
