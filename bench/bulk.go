package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
)

// Direction is the direction of a workload's payload.
type Direction int

// The directions.
const (
	ContainerToContainer Direction = iota
	ContainerToOutside
	OutsideToContainer // in a flow that the container began
)

// String returns the direction for reports.
func (d Direction) String() string {
	return [...]string{"container → container", "container → outside", "outside → container"}[d]
}

// Bulk is TCP at full speed with iperf3, one stream per process.
//
// Sender and receiver of a stream share a CPU, unless they are Apart, and
// neither preempts the other (SCHED_BATCH). So the CPU is never idle, and
// throughput shows the whole cost of a byte. On two CPUs throughput depends on
// how often one wakes up the other: the faster one sleeps after each segment,
// and waking it up costs the other more than the segment did. Whether a run
// gets into that state is chance.
type Bulk struct {
	Direction Direction
	// Apart puts sender and receiver on two CPUs, if there are two.
	Apart bool
	// Processes is the number of concurrent processes; 0: one. iperf3's -P would
	// not do: before 3.16 iperf3 is single-threaded.
	Processes int
	// IPv6 is the family.
	IPv6 bool
	// Omit is the number of seconds at the start that do not count.
	Omit int
}

// congestion is the congestion control of all bulk transfers: the kernel's
// default, whatever the machine's is. BBR also sends from a pacing timer. In a
// lab of veth pairs that measures how two CPUs overtake each other: tens of
// thousands of spurious retransmits, at little more than half the throughput.
const congestion = "cubic"

// firstPort is iperf3's default port. The processes use the ports from there
// on.
const firstPort = 5201

// Name implements Workload.
func (b Bulk) Name() string {
	name := [...]string{"tcp-c2c", "tcp-c2o", "tcp-o2c"}[b.Direction]
	if b.Processes > 1 {
		name = fmt.Sprintf("%s-%d", name, b.Processes)
	}
	if b.Apart {
		name += "-apart"
	}
	return ipv6Text(name, b.IPv6, ipv6)
}

// Title implements Workload.
func (b Bulk) Title() string {
	title := "TCP " + b.Direction.String()
	if b.Processes > 1 {
		title += fmt.Sprintf(", %d processes", b.Processes)
	}
	if b.Apart {
		title += ", two CPUs"
	}
	return ipv6Text(title, b.IPv6, ", IPv6")
}

// Unit implements Workload.
func (b Bulk) Unit() string { return gbits }

// gbits is the unit of Bulk: payload received.
const gbits = "Gbit/s"

// Run implements Workload. d is rounded down to whole seconds, at least one.
func (b Bulk) Run(ctx context.Context, l *lab.Lab, d time.Duration, start func() error) (Sample, error) {
	from, to := l.Containers[0], l.Outside
	if b.Direction == ContainerToContainer {
		to = l.Containers[1]
	}
	o := lab.IperfOptions{
		Seconds: max(1, int(d/time.Second)),
		Omit:    b.Omit,
		Reverse: b.Direction == OutsideToContainer,

		Congestion: congestion,
		Batch:      true,
	}
	sender := from
	if o.Reverse {
		sender = to
	}
	before, err := readTCP(sender)
	if err != nil {
		return Sample{}, err
	}
	if err := start(); err != nil {
		return Sample{}, err
	}
	cpus, err := usableCPUs()
	if err != nil {
		return Sample{}, err
	}
	n := max(1, b.Processes)
	results, errs := make([]lab.IperfResult, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			mine := o
			mine.Port = firstPort + uint16(i)
			mine.ClientCPU, mine.ServerCPU = b.place(cpus, i)
			results[i], errs[i] = lab.Iperf(ctx, from, to, addrIn(to, b.IPv6), mine)
		})
	}
	all.Wait()
	var s Sample
	for _, r := range results {
		s.Value += r.BitsPerSecond / 1e9
	}
	after, err := readTCP(sender)
	s.Retransmits, s.Spurious = after.again-before.again, after.twice-before.twice
	return s, errors.Join(append(errs, err)...)
}

// place returns the CPUs of client and server of the i-th process.
func (b Bulk) place(cpus []int, i int) (client, server *int) {
	client = &cpus[i%len(cpus)]
	if b.Apart {
		return client, &cpus[(i+1)%len(cpus)]
	}
	return client, client
}

// usableCPUs returns the CPUs on which this process may run.
func usableCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("reading the CPUs to run on: %w", err)
	}
	var cpus []int
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// tcpStat counts segments of all TCP senders of a namespace.
type tcpStat struct {
	again int64 // sent again
	twice int64 // reported by a receiver as received twice (DSACK): they were sent again without need
}

// readTCP reads the kernel's counters. iperf3's omit the first seconds of one
// figure and lack the other.
func readTCP(n *lab.Namespace) (s tcpStat, err error) {
	var snmp, netstat []byte
	err = n.Do(func() (err error) {
		if snmp, err = os.ReadFile("/proc/thread-self/net/snmp"); err != nil {
			return err
		}
		netstat, err = os.ReadFile("/proc/thread-self/net/netstat")
		return err
	})
	if err == nil {
		s.again, err = counter(string(snmp), "Tcp:", "RetransSegs")
	}
	if err == nil {
		s.twice, err = counter(string(netstat), "TcpExt:", "TCPDSACKRecvSegs")
	}
	if err != nil {
		return s, fmt.Errorf("reading the TCP counters of %s: %w", n.Name, err)
	}
	return s, nil
}

// counter parses pairs of lines "GROUP NAME …" and "GROUP VALUE …".
func counter(text, group, name string) (int64, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || fields[0] != group:
		case names == nil:
			names = fields
		default:
			if at := slices.Index(names, name); at > 0 && at < len(fields) {
				return strconv.ParseInt(fields[at], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("no counter %s %s", group, name)
}
