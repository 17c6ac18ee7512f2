// Package fair divides a scarce resource of a server (connections, waiting
// questions) among its clients, so that no client takes all of it.
package fair

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Shares is a fixed number of pieces. A client may have as many as are free.
// When none is free, the client with the most pieces loses its oldest one to a
// client with fewer. Safe for concurrent use.
type Shares struct {
	mu    sync.Mutex
	free  int
	taken map[netip.Addr][]*piece // by client, oldest first
	last  uint64                  // number of the newest piece
}

type piece struct {
	age uint64
	end func()
}

// New returns n pieces, all free.
func New(n int) *Shares { return &Shares{free: n, taken: map[netip.Addr][]*piece{}} }

// Take gives the client a piece. If the piece is taken away later, end is
// called once; end must not block and must not call Shares. The holder always
// calls giveBack when it no longer needs the piece. Take reports false if no
// piece is free and no other client has more pieces than this one would have
// with the new one.
func (s *Shares) Take(client netip.Addr, end func()) (giveBack func(), ok bool) {
	return s.take(client, end, false)
}

// Replace is like Take, but a client that Take would refuse loses its own
// oldest piece for the new one.
func (s *Shares) Replace(client netip.Addr, end func()) (giveBack func()) {
	giveBack, _ = s.take(client, end, true)
	return giveBack
}

func (s *Shares) take(client netip.Addr, end func(), own bool) (giveBack func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 {
		from := s.greediest(client)
		if from == client && !own {
			return nil, false
		}
		oldest := s.taken[from][0]
		s.remove(from, oldest)
		oldest.end()
	}
	s.free--
	s.last++
	p := &piece{s.last, end}
	s.taken[client] = append(s.taken[client], p)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.remove(client, p)
	}, true
}

// greediest returns the client with the most pieces, counting one more for the
// newcomer. On a tie it is the newcomer; among others it is the one whose
// oldest piece is the oldest.
func (s *Shares) greediest(newcomer netip.Addr) netip.Addr {
	who, most := newcomer, len(s.taken[newcomer])+1
	for client, pieces := range s.taken {
		if client == newcomer {
			continue
		}
		older := who != newcomer && pieces[0].age < s.taken[who][0].age
		if c := cmp.Compare(len(pieces), most); c > 0 || c == 0 && older {
			who, most = client, len(pieces)
		}
	}
	return who
}

// remove frees a piece unless it is free already.
func (s *Shares) remove(client netip.Addr, p *piece) {
	pieces := s.taken[client]
	i := slices.Index(pieces, p)
	if i < 0 {
		return
	}
	s.free++
	if pieces = slices.Delete(pieces, i, i+1); len(pieces) == 0 {
		delete(s.taken, client)
	} else {
		s.taken[client] = pieces
	}
}

// Listen divides the connections of a TCP listener. When there are too many,
// the oldest connection of the client with the most is closed. Several
// listeners may use the same shares.
func Listen(ln net.Listener, s *Shares) net.Listener { return listener{ln, s} }

type listener struct {
	net.Listener
	shares *Shares
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	giveBack := l.shares.Replace(Client(c.RemoteAddr()), func() { _ = c.Close() })
	return &conn{c, giveBack}, nil
}

// conn gives its piece back on the first Close. It is used by pointer, because
// servers keep connections in maps.
type conn struct {
	net.Conn
	giveBack func()
}

func (c *conn) Close() error {
	c.giveBack()
	return c.Conn.Close()
}

// Client returns the address of a peer without the port.
func Client(peer net.Addr) netip.Addr {
	at, _ := netip.ParseAddrPort(peer.String()) // on an error the zero Addr: all such peers count as one client
	return at.Addr().Unmap()
}
