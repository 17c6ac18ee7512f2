package docker

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fastbr/fastbr/ctl"
)

// Host ports for `-p 80` and `-P`: above Linux's ephemeral ports (up to 60999)
// and the NAT range, so that they conflict with neither.
const firstChosen, lastChosen = 61000, 65535

// publishRequests translates a container's port map. Consecutive ports, which
// dockerd passes one by one, become one publication; duplicates count once.
// Fixed host ports come before those that fastbr chooses. binding is the host
// address of ports that name none; "" means every address.
func publishRequests(ports []portBinding, binding string) ([]ctl.PublishRequest, error) {
	var out []ctl.PublishRequest
	for _, b := range ports {
		r, err := publishRequest(b, binding)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b ctl.PublishRequest) int {
		if a.Any != b.Any {
			if b.Any {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.HostIP.Compare(b.HostIP), cmp.Compare(a.First, b.First), cmp.Compare(a.Port, b.Port))
	})
	twice := func(a, b ctl.PublishRequest) bool { return a == b && !a.Any }
	return joined(slices.CompactFunc(out, twice)), nil
}

func publishRequest(b portBinding, binding string) (r ctl.PublishRequest, err error) {
	r = ctl.PublishRequest{First: b.HostPort, Last: b.HostPort, Port: b.Port, Proto: ctl.ProtocolName(b.Proto)}
	if r.Proto == "" {
		return r, fmt.Errorf("port %d: fastbr publishes TCP, UDP and SCTP, not IP protocol %d", b.Port, b.Proto)
	}
	if binding == "0.0.0.0" { // the default: every address of both families
		binding = ""
	}
	if r.HostIP, err = hostAddr(cmp.Or(b.HostIP, binding)); err != nil {
		return r, err
	}
	switch {
	case b.HostPort == 0:
		r.First, r.Last, r.Any = firstChosen, lastChosen, true
	case b.HostPortEnd > b.HostPort:
		r.Last, r.Any = b.HostPortEnd, true
	}
	return r, nil
}

// joined merges sorted requests with consecutive ports.
func joined(rs []ctl.PublishRequest) (out []ctl.PublishRequest) {
	for _, r := range rs {
		if n := len(out); n > 0 && !r.Any && !out[n-1].Any {
			last := &out[n-1]
			if last.Proto == r.Proto && last.HostIP == r.HostIP && last.Last+1 == r.First && last.Port+(r.First-last.First) == r.Port {
				last.Last = r.Last
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// hostAddr is ctl.ParseHostIP.
func hostAddr(s string) (netip.Addr, error) {
	a, err := ctl.ParseHostIP(s)
	if err != nil {
		return a, fmt.Errorf("host address %s: want an IPv4 or an IPv6 address", s)
	}
	return a, nil
}
