package link

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrPortInUse: a socket of the host has the port.
var ErrPortInUse = errors.New("in use")

// PortsFree checks that a socket could be bound to each of the ports from first
// to last of addr in the current namespace. An unspecified addr means any address of its
// family.
// proto is "tcp", "udp" or "sctp". The error wraps ErrPortInUse if a socket has one of
// the ports. PortsFree binds to each port, because only an attempt is certain; a
// thousand take 14 ms. It loads no module: while the kernel has no SCTP, nobody has a
// port of it.
//
// except returns the inodes of sockets that do not count. It is called only
// when a port is in use, and may be nil.
func PortsFree(proto string, addr netip.Addr, first, last uint16, except func() map[uint32]bool) error {
	if proto == "sctp" {
		except = nil // engines hold no port of SCTP
		if _, err := os.Stat("/proc/thread-self/net/sctp"); errors.Is(err, os.ErrNotExist) {
			return bindPort("udp", addr, 0) // whether it is an address of the host
		}
	}
	spared := sync.OnceValue(except)
	for port := int(first); port <= int(last); port++ {
		err := bindPort(proto, addr, uint16(port))
		if except != nil && errors.Is(err, ErrPortInUse) {
			if only, listErr := onlySockets(proto, addr, uint16(port), spared()); only || listErr != nil {
				err = listErr
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// onlySockets reports whether every socket that conflicts with a port of addr
// is among these (by inode).
func onlySockets(proto string, addr netip.Addr, port uint16, these map[uint32]bool) (bool, error) {
	all, err := sockets(proto, port)
	if err != nil {
		return false, err
	}
	for _, s := range all {
		elsewhere := addr.Is6() && s.addr.Is4() || !addr.IsUnspecified() && !s.addr.IsUnspecified() && s.addr != addr
		if s.inode != 0 && !elsewhere && !these[s.inode] { // 0: not accepted yet, or in TIME_WAIT
			return false, nil
		}
	}
	return true, nil
}

// SocketsOf returns the inodes of the sockets that processes have open.
func SocketsOf(pids []int) map[uint32]bool {
	out := map[uint32]bool{}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			var inode uint32
			if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil {
				if n, err := fmt.Sscanf(to, "socket:[%d]", &inode); err == nil && n == 1 {
					out[inode] = true
				}
			}
		}
	}
	return out
}

// bindPort binds a socket to the port of addr, and closes it. It is for the packets of
// addr's family only.
func bindPort(proto string, addr netip.Addr, port uint16) error {
	kind, protocol := unix.SOCK_STREAM, 0
	switch proto {
	case "udp":
		kind = unix.SOCK_DGRAM
	case "sctp":
		protocol = unix.IPPROTO_SCTP
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(port), Addr: addr.As16()})
	if addr.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fmt.Errorf("opening a socket: %w", err)
		}
	}
	// A TCP connection in TIME_WAIT does not hold the port; a listener does.
	if kind == unix.SOCK_STREAM {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("opening a socket: %w", err)
		}
	}
	switch err := unix.Bind(fd, sa); {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("host port %d/%s is %w by a socket of the host", port, proto, ErrPortInUse)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%s is no address of this host", addr)
	case err != nil:
		return fmt.Errorf("binding to port %d/%s: %w", port, proto, err)
	}
	return nil
}
