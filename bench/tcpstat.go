package bench

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/fastbr/fastbr/internal/lab"
)

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
