package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Server is a service inside a namespace. It ends with Close or with its
// namespace.
type Server struct {
	// Addr is the address on which it listens.
	Addr netip.AddrPort

	stop func()
	wg   sync.WaitGroup

	mu    sync.Mutex
	peers map[netip.AddrPort]int
}

// Peers returns the clients' addresses, with the number of connections (TCP) or
// datagrams (UDP) of each.
func (s *Server) Peers() map[netip.AddrPort]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[netip.AddrPort]int, len(s.peers))
	for k, v := range s.peers {
		m[k] = v
	}
	return m
}

func (s *Server) sawPeer(a net.Addr) {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	s.mu.Lock()
	s.peers[netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())]++
	s.mu.Unlock()
}

// Close ends the server and its connections. It is idempotent.
func (s *Server) Close() {
	s.stop()
	s.wg.Wait()
}

// ListenTCP listens inside the namespace. Port 0 takes a free port. The caller
// closes the listener. ListenTCP retries a taken port for bindPatience.
func (n *Namespace) ListenTCP(at netip.AddrPort) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var ln net.Listener
	err := retryBind(func() error {
		return n.Do(func() (err error) {
			ln, err = lc.Listen(context.Background(), network("tcp", at.Addr()), at.String())
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("listening on %v in %s: %w", at, n.Name, err)
	}
	return ln.(*net.TCPListener), nil
}

// ServeTCP calls handle with each connection. The connection is closed when
// handle returns.
func (n *Namespace) ServeTCP(at netip.AddrPort, handle func(*net.TCPConn)) (*Server, error) {
	ln, err := n.ListenTCP(at)
	if err != nil {
		return nil, err
	}
	s := &Server{Addr: ln.Addr().(*net.TCPAddr).AddrPort(), peers: map[netip.AddrPort]int{}}
	var conns sync.Map
	s.stop = func() {
		_ = ln.Close()
		conns.Range(func(c, _ any) bool { _ = c.(*net.TCPConn).Close(); return true })
	}
	s.wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			s.sawPeer(c.RemoteAddr())
			conns.Store(c, nil)
			s.wg.Go(func() {
				defer func() { _ = c.Close(); conns.Delete(c) }()
				handle(c)
			})
		}
	})
	if !onClose(n, s.Close) {
		s.Close()
		return nil, fmt.Errorf("serving %v: %s is closed", at, n.Name)
	}
	return s, nil
}

// ServeTCPEcho sends back what it receives, and closes when the client has
// closed.
func (n *Namespace) ServeTCPEcho(at netip.AddrPort) (*Server, error) {
	return n.ServeTCP(at, func(c *net.TCPConn) { _, _ = io.Copy(c, struct{ io.Reader }{c}) })
}

// DialTCP connects from inside the namespace. from may be zero, or have only an
// address or only a port.
func (n *Namespace) DialTCP(ctx context.Context, from, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: localTCP(from), Control: reuseAddr}
	d.SetMultipathTCP(false)
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = d.DialContext(ctx, network("tcp", to.Addr()), to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connecting from %s: %w", n.Name, err)
	}
	return c.(*net.TCPConn), nil
}

// reuseAddr lets a socket bind to a port while an earlier connection is in
// TIME_WAIT.
func reuseAddr(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(cerr, err)
}

func localTCP(a netip.AddrPort) net.Addr {
	if !a.IsValid() && a.Port() == 0 {
		return nil
	}
	t := &net.TCPAddr{Port: int(a.Port())}
	if a.Addr().IsValid() {
		t.IP = a.Addr().AsSlice()
	}
	return t
}

// EchoTCP connects, sends msg, and expects it back.
func (n *Namespace) EchoTCP(ctx context.Context, from, to netip.AddrPort, msg string) error {
	c, err := n.DialTCP(ctx, from, to)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return Echo(ctx, c, msg)
}

// Echo sends msg on a connection and expects it back.
func Echo(ctx context.Context, c net.Conn, msg string) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(c, msg); err != nil {
		return fmt.Errorf("sending %d bytes to %v: %w", len(msg), c.RemoteAddr(), err)
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("reading the echo of %d bytes from %v: %w", len(msg), c.RemoteAddr(), err)
	}
	if string(got) != msg {
		return fmt.Errorf("echo from %v differs: sent %.40q, got %.40q", c.RemoteAddr(), msg, got)
	}
	return nil
}

// Bulk sends size bytes over one TCP connection from client to a sink in
// server. The sink answers with the number of bytes it got. With reverse the
// server sends. The error says how far the transfer got.
func Bulk(ctx context.Context, client, server *Namespace, addr netip.Addr, size int64, reverse bool) error {
	var got atomic.Int64
	s, err := server.ServeTCP(netip.AddrPortFrom(addr, 0), func(c *net.TCPConn) {
		if reverse {
			_, _ = io.CopyN(c, zeros{}, size)
			return
		}
		n, _ := io.Copy(io.Discard, struct{ io.Reader }{c})
		got.Store(n)
		_, _ = c.Write([]byte{1})
	})
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := client.DialTCP(ctx, netip.AddrPort{}, s.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if reverse {
		n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		return bulkResult(n, size, err)
	}
	sent, err := io.CopyN(c, zeros{}, size)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", sent, size, err)
	}
	if err := c.CloseWrite(); err != nil {
		return fmt.Errorf("closing the sending side: %w", err)
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return bulkResult(got.Load(), size, err)
}

// EchoBulk sends size bytes to an echo server, and expects them back.
func EchoBulk(ctx context.Context, client *Namespace, to netip.AddrPort, size int64) error {
	c, err := client.DialTCP(ctx, netip.AddrPort{}, to)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(c, zeros{}, size)
		sent <- err
	}()
	n, err := io.CopyN(io.Discard, c, size)
	return errors.Join(bulkResult(n, size, err), <-sent)
}

func bulkResult(got, want int64, err error) error {
	if err == nil && got != want {
		err = errors.New("connection closed early")
	}
	if err != nil {
		return fmt.Errorf("received %d of %d bytes: %w", got, want, err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
