package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What golang.org/x/sys/unix lacks of linux/inet_diag.h. Ports are big-endian.
const (
	diagStates     = 1<<14 - 1 // all states; TCP_BOUND_INACTIVE is the last
	diagRequestLen = 56        // struct inet_diag_req_v2
	diagWantStates = 4         // offset in it
	diagWantPort   = 8         // the local one
	// Offsets in struct inet_diag_msg.
	diagPort      = 4
	diagAddr      = 8 // 16 bytes, the first 4 for IPv4
	diagInode     = 68
	diagAnswerLen = 72
)

// socket is a socket of the current namespace.
type socket struct {
	addr  netip.Addr // the local address
	inode uint32     // 0: no descriptor refers to it
}

// sockets lists the sockets with a local port, in any state and with any
// address, IPv6 sockets included. Before Linux 6.8 it lacks TCP sockets that are
// only bound. See sock_diag(7).
func sockets(proto string, port uint16) (out []socket, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddRawData(diagRequest(family, proto, port))
		length := 4
		if family == unix.AF_INET6 {
			length = 16
		}
		list, err := dump(func() ([][]byte, error) { return req.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY) })
		if err != nil {
			return nil, fmt.Errorf("listing sockets: %w", err)
		}
		for _, m := range list {
			if len(m) < diagAnswerLen {
				return nil, errors.New("listing sockets: a short message")
			}
			// The kernel does not compare the ports of sockets that are only bound.
			if binary.BigEndian.Uint16(m[diagPort:]) != port {
				continue
			}
			addr, _ := netip.AddrFromSlice(m[diagAddr : diagAddr+length])
			out = append(out, socket{addr.Unmap(), binary.NativeEndian.Uint32(m[diagInode:])})
		}
	}
	return out, nil
}

// diagRequest returns a struct inet_diag_req_v2 for the sockets of a family
// with a local port.
func diagRequest(family uint8, proto string, port uint16) []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = family, unix.IPPROTO_TCP
	if proto == "udp" {
		b[1] = unix.IPPROTO_UDP
	}
	binary.NativeEndian.PutUint32(b[diagWantStates:], diagStates)
	binary.BigEndian.PutUint16(b[diagWantPort:], port)
	return b
}
