// Package fair divides what a server has few of (connections, questions that
// wait for an answer) among its clients, so that nobody takes it all.
package fair

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Shares is so many pieces of something. A client may have as many as are free.
// When none is, a client with fewer than the greediest gets the greediest's
// oldest piece. Safe for concurrent use.
type Shares struct {
	mu    sync.Mutex
	free  int
	taken map[netip.Addr][]*piece // by client, oldest first
	last  uint64                  // age of the newest piece
}

type piece struct {
	age uint64
	end func()
}

// New returns n pieces, all free.
func New(n int) *Shares { return &Shares{free: n, taken: map[netip.Addr][]*piece{}} }

// Take gives the client a piece. When it is taken away again, end is called once,
// which must not wait and must not call Shares. The holder calls giveBack when it
// needs the piece no more, in any case. Reports false if none is free and no other
// client has more than this one would have then.
func (s *Shares) Take(client netip.Addr, end func()) (giveBack func(), ok bool) {
	return s.take(client, end, false)
}

// Replace is Take, but a client that would be refused loses its own oldest piece
// for the new one.
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

// greediest is who would have most if the newcomer had one more: the newcomer
// itself before others, among others who has had theirs for longest.
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

// remove frees a piece, unless that has been done.
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

// Listen divides the connections of a TCP listener: one too many ends the oldest
// of the client that has most. Several listeners may divide the same shares.
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

// conn gives its piece back when it is closed, once or more often. By pointer,
// since servers keep connections in maps.
type conn struct {
	net.Conn
	giveBack func()
}

func (c *conn) Close() error {
	c.giveBack()
	return c.Conn.Close()
}

// Client is the address of a peer, whatever its port.
func Client(peer net.Addr) netip.Addr {
	at, _ := netip.ParseAddrPort(peer.String()) // no address: all of them are one client
	return at.Addr().Unmap()
}
