package link

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrPortInUse: a socket of the host has the port.
var ErrPortInUse = errors.New("in use")

// fewPorts is the number of ports below which trying each one is faster than a
// list of the kernel's sockets.
const fewPorts = 256

// PortsFree checks that a socket could be bound to each of the ports from first
// to last of addr in the current namespace. An invalid addr means any address.
// proto is "tcp" or "udp". The error wraps ErrPortInUse if a socket has one of
// the ports.
//
// Only an attempt to bind is certain, and takes some ten microseconds. Of many
// ports, PortsFree tries only those that appear in the kernel's list of
// sockets. Before Linux 6.8 the list lacks sockets that are only bound.
// PortsFree notices that because it has just bound the first port itself; then
// it tries all ports.
//
// except returns the inodes of sockets that do not count. It is called only
// when a port is in use, and may be nil.
// use, and may be nil.
func PortsFree(proto string, addr netip.Addr, first, last uint16, except func() map[uint32]bool) error {
	free := func(port uint16) (fd int, err error) {
		fd, err = bindPort(proto, addr, port)
		if except != nil && errors.Is(err, ErrPortInUse) {
			if only, listErr := onlySockets(proto, addr, port, except()); listErr != nil || !only {
				return fd, errors.Join(err, listErr)
			}
			return -1, nil
		}
		return fd, err
	}
	fd, err := free(first)
	if err != nil {
		return err
	}
	if fd >= 0 {
		defer unix.Close(fd)
	}
	var had map[uint16]bool
	if last-first >= fewPorts {
		if had, err = socketPorts(proto, first, last); err != nil || !had[first] {
			had = nil
		}
	}
	for port := int(first) + 1; port <= int(last); port++ {
		if had != nil && !had[uint16(port)] {
			continue
		}
		fd, err := free(uint16(port))
		if err != nil {
			return err
		}
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return nil
}

// onlySockets reports whether every socket that conflicts with a port of addr
// is among these (by inode).
func onlySockets(proto string, addr netip.Addr, port uint16, these map[uint32]bool) (bool, error) {
	all, err := sockets(proto, port, port)
	if err != nil {
		return false, err
	}
	for _, s := range all {
		elsewhere := addr.IsValid() && !s.addr.IsUnspecified() && s.addr != addr
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

// bindPort returns a socket bound to the port of addr. The caller closes it.
func bindPort(proto string, addr netip.Addr, port uint16) (fd int, err error) {
	kind := unix.SOCK_STREAM
	if proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("opening a socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	sa := &unix.SockaddrInet4{Port: int(port)}
	if addr.IsValid() {
		sa.Addr = addr.As4()
	}
	// A TCP connection in TIME_WAIT does not hold the port; a listener does.
	if kind == unix.SOCK_STREAM {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return -1, fmt.Errorf("opening a socket: %w", err)
		}
	}
	switch err := unix.Bind(fd, sa); {
	case errors.Is(err, unix.EADDRINUSE):
		return -1, fmt.Errorf("host port %d/%s is %w by a socket of the host", port, proto, ErrPortInUse)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return -1, fmt.Errorf("%s is no address of this host", addr)
	case err != nil:
		return -1, fmt.Errorf("binding to port %d/%s: %w", port, proto, err)
	}
	return fd, nil
}
