package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What linux/inet_diag.h calls these; golang.org/x/sys/unix has none of them.
const (
	diagBytecode   = 1         // INET_DIAG_REQ_BYTECODE
	diagSourceGE   = 2         // INET_DIAG_BC_S_GE
	diagSourceLE   = 3         // INET_DIAG_BC_S_LE
	diagStates     = 1<<14 - 1 // all, TCP_BOUND_INACTIVE the last
	diagRequestLen = 56        // struct inet_diag_req_v2
	// Of struct inet_diag_msg.
	diagSourcePort = 4 // big-endian
	diagSource     = 8 // 16 bytes, the first 4 for IPv4
	diagInode      = 68
)

// socketPorts are those of the ports from first to last that a socket of the
// current namespace has as its own.
func socketPorts(proto string, first, last uint16) (map[uint16]bool, error) {
	ports := map[uint16]bool{}
	all, err := sockets(proto, first, last)
	for _, s := range all {
		ports[s.port] = true
	}
	return ports, err
}

// socket is one of the current namespace.
type socket struct {
	addr  netip.Addr // its own
	port  uint16
	inode uint32 // 0: no descriptor's
}

// sockets lists those whose own port lies between first and last, IPv6 sockets
// included, whatever their address and state. See sock_diag(7).
func sockets(proto string, first, last uint16) (out []socket, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddRawData(diagRequest(family, proto, first, last))
		list, err := req.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
		if err != nil {
			return nil, fmt.Errorf("listing sockets: %w", err)
		}
		for _, m := range list {
			length := 4
			if family == unix.AF_INET6 {
				length = 16
			}
			addr, _ := netip.AddrFromSlice(m[diagSource : diagSource+length])
			out = append(out, socket{addr.Unmap(), binary.BigEndian.Uint16(m[diagSourcePort:]), binary.NativeEndian.Uint32(m[diagInode:])})
		}
	}
	return out, nil
}

// diagRequest asks for the sockets of a family whose own port lies between first
// and last: struct inet_diag_req_v2, and a program for the kernel.
func diagRequest(family uint8, proto string, first, last uint16) []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = family, unix.IPPROTO_TCP
	if proto == "udp" {
		b[1] = unix.IPPROTO_UDP
	}
	binary.NativeEndian.PutUint32(b[4:], diagStates)
	// Two conditions of two words each: a code, how many bytes to go on where it
	// holds and where not (past the end: no), and the port.
	const length = 16
	words := []struct {
		code, yes uint8
		no        uint16
	}{{diagSourceGE, 8, length + 4}, {no: first}, {diagSourceLE, 8, length/2 + 4}, {no: last}}
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofNlAttr+length)
	b = binary.NativeEndian.AppendUint16(b, diagBytecode)
	for _, w := range words {
		b = binary.NativeEndian.AppendUint16(append(b, w.code, w.yes), w.no)
	}
	return b
}
