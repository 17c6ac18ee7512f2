package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// EndLed ends the connections of a protocol (IPPROTO_*) that the current namespace's NAT
// leads to one of these sockets of containers: connection tracking forgets them. Later
// packets of theirs are new to it. It succeeds where the kernel cannot list connections.
func EndLed(proto uint8, to []netip.AddrPort) error {
	if len(to) == 0 {
		return nil
	}
	wanted := map[netip.AddrPort]bool{}
	for _, a := range to {
		wanted[a] = true
	}
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return fmt.Errorf("opening conntrack: %w", err)
	}
	defer conn.Close()
	all, err := dump(func() ([]conntrack.Flow, error) { return conn.Dump(nil) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // no nf_conntrack_netlink
		return nil
	} else if err != nil {
		return fmt.Errorf("listing connections: %w", err)
	}
	for _, f := range all {
		from := f.TupleReply
		if f.TupleOrig.Proto.Protocol != proto || f.TupleOrig.IP.DestinationAddress == from.IP.SourceAddress ||
			!wanted[netip.AddrPortFrom(from.IP.SourceAddress, from.Proto.SourcePort)] {
			continue
		}
		if err := conn.Delete(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("ending a connection to %s: %w", from.IP.SourceAddress, err)
		}
	}
	return nil
}
