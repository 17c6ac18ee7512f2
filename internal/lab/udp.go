package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ListenUDP opens a socket of the address's family inside the namespace. Port 0
// takes a free port. The caller closes the socket. ListenUDP retries a taken port for bindPatience.
func (n *Namespace) ListenUDP(at netip.AddrPort) (*net.UDPConn, error) {
	var c *net.UDPConn
	err := retryBind(func() error {
		return n.Do(func() (err error) {
			c, err = net.ListenUDP(network("udp", at.Addr()), net.UDPAddrFromAddrPort(at))
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("opening UDP %v in %s: %w", at, n.Name, err)
	}
	return c, nil
}

// network returns Go's name of a protocol ("tcp", "udp") in the family of a. A zero
// address is IPv4's.
func network(protocol string, a netip.Addr) string {
	if a.Is6() {
		return protocol + "6"
	}
	return protocol + "4"
}

// unspecified returns the address of a's family that stands for all.
func unspecified(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// DialUDP opens a socket inside the namespace that is connected to to. A zero
// local takes any free port. The caller closes the socket. DialUDP retries a
// taken port for bindPatience.
func (n *Namespace) DialUDP(local, to netip.AddrPort) (*net.UDPConn, error) {
	var from *net.UDPAddr
	if local.IsValid() {
		from = net.UDPAddrFromAddrPort(local)
	}
	var c *net.UDPConn
	err := retryBind(func() error {
		return n.Do(func() (err error) {
			c, err = net.DialUDP(network("udp", to.Addr()), from, net.UDPAddrFromAddrPort(to))
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("connecting UDP to %v in %s: %w", to, n.Name, err)
	}
	return c, nil
}

// bindPatience bounds how long a closed socket may still hold its port: a
// process that any goroutine has just forked has a copy of the socket until its
// exec.
const bindPatience = 10 * time.Second

// retryBind calls bind until it succeeds or fails with another error than a
// taken port.
func retryBind(bind func() error) error {
	for end := time.Now().Add(bindPatience); ; time.Sleep(time.Millisecond) {
		if err := bind(); !errors.Is(err, unix.EADDRINUSE) || time.Now().After(end) {
			return err
		}
	}
}

// ServeUDPEcho sends every datagram back to its sender.
func (n *Namespace) ServeUDPEcho(at netip.AddrPort) (*Server, error) {
	c, err := n.ListenUDP(at)
	if err != nil {
		return nil, err
	}
	s := &Server{
		Addr:  c.LocalAddr().(*net.UDPAddr).AddrPort(),
		peers: map[netip.AddrPort]int{},
		stop:  func() { _ = c.Close() },
	}
	s.wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDP(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error about an earlier answer
			}
			s.sawPeer(from)
			_, _ = c.WriteToUDP(buf[:n], from)
		}
	})
	if !onClose(n, s.Close) {
		s.Close()
		return nil, fmt.Errorf("serving %v: %s is closed", at, n.Name)
	}
	return s, nil
}

// udpTry is the time after which a datagram without an echo is sent again.
const udpTry = time.Second

// EchoUDP sends msg and expects it back. It resends a lost datagram until ctx
// ends. from may be zero, or have only a port.
func (n *Namespace) EchoUDP(ctx context.Context, from, to netip.AddrPort, msg string) error {
	if !from.Addr().IsValid() {
		from = netip.AddrPortFrom(unspecified(to.Addr()), from.Port())
	}
	c, err := n.ListenUDP(from)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return EchoUDPOn(ctx, c, to, msg)
}

// EchoUDPOn is EchoUDP on an existing unconnected socket.
func EchoUDPOn(ctx context.Context, c *net.UDPConn, to netip.AddrPort, msg string) error {
	buf := make([]byte, 1<<16)
	for tries := 1; ; tries++ {
		if _, err := c.WriteToUDPAddrPort([]byte(msg), to); err != nil {
			return fmt.Errorf("sending to %v: %w", to, err)
		}
		if err := c.SetReadDeadline(time.Now().Add(udpTry)); err != nil {
			return fmt.Errorf("setting a deadline: %w", err)
		}
		n, from, err := c.ReadFromUDPAddrPort(buf)
		switch {
		case err == nil && string(buf[:n]) == msg && from.Addr().Unmap() == to.Addr() && from.Port() == to.Port():
			return nil
		case err == nil:
			return fmt.Errorf("echo from %v differs: %d bytes from %v", to, n, from)
		case ctx.Err() != nil:
			return fmt.Errorf("no echo from %v in %d tries: %w", to, tries, ctx.Err())
		}
	}
}
