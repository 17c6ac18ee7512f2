package link

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ErrPortInUse: a socket of the host has the port.
var ErrPortInUse = errors.New("in use")

// PortFree says whether a socket could be bound to the port of addr (invalid:
// any address) in the current namespace. proto is "tcp" or "udp". The error
// wraps ErrPortInUse if a socket has the port.
func PortFree(proto string, addr netip.Addr, port uint16) error {
	kind := unix.SOCK_STREAM
	if proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	sa := &unix.SockaddrInet4{Port: int(port)}
	if addr.IsValid() {
		sa.Addr = addr.As4()
	}
	// A TCP connection in TIME_WAIT is nobody's; a listener is found all the same.
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
