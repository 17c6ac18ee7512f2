package fair

import (
	"net"
	"net/netip"
	"testing"
)

var a, b, c = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")

func TestGreediestGivesWay(t *testing.T) {
	s := New(4)
	var ended []int
	back := map[int]func(){}
	take := func(n int, who netip.Addr) bool {
		giveBack, ok := s.Take(who, func() { ended = append(ended, n) })
		back[n] = giveBack
		return ok
	}
	for n := range 4 {
		if !take(n, a) {
			t.Fatalf("a is refused piece %d while some are free", n)
		}
	}
	if take(4, a) || len(ended) != 0 {
		t.Errorf("a, which has all, gets one more; ended %v", ended)
	}
	if !take(5, b) || !take(6, b) || len(ended) != 2 || ended[0] != 0 || ended[1] != 1 {
		t.Errorf("b comes twice: ended %v, want a's oldest two", ended)
	}
	if take(7, b) {
		t.Errorf("b has as many as a, and takes one of a's; ended %v", ended)
	}
	if !take(8, c) || len(ended) != 3 || ended[2] != 2 {
		t.Errorf("c comes: ended %v, want a's, which are older than b's", ended)
	}
	back[0]() // taken away long ago: this frees nothing
	if take(9, a) {
		t.Errorf("a would have two, as b has, and gets one; ended %v", ended)
	}
	for _, n := range []int{3, 5, 6, 8} {
		back[n]()
	}
	if s.free != 4 || len(s.taken) != 0 {
		t.Errorf("all given back: %d free, taken %v", s.free, s.taken)
	}
}

func TestReplaceTakesOnesOwnOldest(t *testing.T) {
	s := New(1)
	ended := false
	s.Replace(a, func() { ended = true })
	if s.Replace(a, func() { t.Error("the newest was ended") }); !ended {
		t.Error("the oldest is still there")
	}
}

func TestListenEndsOldestConnection(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln = Listen(ln, New(2))
	defer func() { _ = ln.Close() }()
	var clients, served [4]net.Conn
	for i := range clients {
		if clients[i], err = net.Dial("tcp4", ln.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = clients[i].Close() }()
		if served[i], err = ln.Accept(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = served[i].Close() }()
	}
	for i, c := range served {
		_, err := c.Write([]byte("x"))
		if alive := err == nil; alive != (i >= 2) {
			t.Errorf("connection %d of 4, where 2 may be: alive %v", i, alive)
		}
	}
}
