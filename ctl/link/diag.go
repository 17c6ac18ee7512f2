package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Constants of linux/inet_diag.h that golang.org/x/sys/unix lacks.
const (
	diagBytecode   = 1         // INET_DIAG_REQ_BYTECODE
	diagSourceGE   = 2         // INET_DIAG_BC_S_GE
	diagSourceLE   = 3         // INET_DIAG_BC_S_LE
	diagStates     = 1<<14 - 1 // all states; TCP_BOUND_INACTIVE is the last
	diagRequestLen = 56        // struct inet_diag_req_v2
	// Offsets in struct inet_diag_msg.
	diagSourcePort = 4 // big-endian
	diagSource     = 8 // 16 bytes, the first 4 for IPv4
	diagInode      = 68
)

// socketPorts returns those of the ports from first to last that are the local
// port of a socket in the current namespace.
func socketPorts(proto string, first, last uint16) (map[uint16]bool, error) {
	ports := map[uint16]bool{}
	all, err := sockets(proto, first, last)
	for _, s := range all {
		ports[s.port] = true
	}
	return ports, err
}

// socket is a socket of the current namespace.
type socket struct {
	addr  netip.Addr // the local address
	port  uint16
	inode uint32 // 0: no descriptor refers to it
}

// sockets lists the sockets whose local port lies between first and last, in
// any state and with any address, IPv6 sockets included. See sock_diag(7).
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

// diagRequest asks for the sockets of a family whose local port lies between
// first and last: a struct inet_diag_req_v2 and a filter program for the
// kernel.
func diagRequest(family uint8, proto string, first, last uint16) []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = family, unix.IPPROTO_TCP
	if proto == "udp" {
		b[1] = unix.IPPROTO_UDP
	}
	binary.NativeEndian.PutUint32(b[4:], diagStates)
	// Two conditions of two words each. The first word has the code, the bytes to
	// skip if the condition holds, and the bytes to skip if not (past the end: no
	// match). The second word has the port.
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
