package link

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ErrPortInUse: a socket of the host has the port.
var ErrPortInUse = errors.New("in use")

// fewPorts are tried one by one sooner than the kernel has listed its sockets.
const fewPorts = 256

// PortsFree says whether sockets could be bound to each of the ports from first to
// last of addr (invalid: any address) in the current namespace. proto is "tcp" or
// "udp". The error wraps ErrPortInUse if a socket has one of the ports.
//
// Only an attempt tells for certain, which takes some ten microseconds. So of many
// ports those are tried which any socket has, in whatever way. That the kernel
// lists what is bound, and nothing more, as it does since 6.8, shows by the first
// port's own attempt; where it does not, all are tried.
func PortsFree(proto string, addr netip.Addr, first, last uint16) error {
	fd, err := bindPort(proto, addr, first)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
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
		fd, err := bindPort(proto, addr, uint16(port))
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	return nil
}

// bindPort returns a socket that is bound to the port of addr, for the caller to close.
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
	// A TCP connection in TIME_WAIT is nobody's; a listener is found all the same.
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
