package bench

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

func TestPPSNames(t *testing.T) {
	for flows, want := range map[int]string{1: "pps-c2o", 100_000: "pps-c2o-100k", 1_000_000: "pps-c2o-1m"} {
		if got := (PPS{Direction: ContainerToOutside, Flows: flows}).Name(); got != want {
			t.Errorf("%d flows: %s, want %s", flows, got, want)
		}
	}
	if got := thousands(1_002_003); got != "1,002,003" {
		t.Errorf("got %s", got)
	}
}

// TestGeneratorSendsGoodFrames: a receiver's stack takes the frames for UDP
// with correct checksums, of as many flows as requested, and with translated
// addresses.
func TestGeneratorSendsGoodFrames(t *testing.T) {
	needRoot(t)
	l, err := Build(t.Context(), Bridge{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = Close(Bridge{}, l) }()
	c, out := l.Containers[0], l.Outside
	p := PPS{Direction: ContainerToOutside}
	s, err := p.stream(t.Context(), c, out)
	if err != nil {
		t.Fatal(err)
	}
	s.sports = 20                                   // twice as many frames, a page each, fit the socket
	s.arriveAt = netip.MustParseAddr("192.0.2.200") // the sink lets everything pass
	socket, err := out.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), ppsServerPort))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	g, err := newGenerator(s, c, out)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close() }()
	if err := g.send(2 * s.sports); err != nil {
		t.Fatal(err)
	}
	seen := map[uint16]int{}
	if err := socket.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for len(seen) < s.sports || seen[ppsSourcePort] < 2 {
		n, from, err := socket.ReadFromUDPAddrPort(make([]byte, 100))
		if err != nil {
			t.Fatalf("%d of %d flows arrived: %v %v", len(seen), s.sports, err, seen)
		}
		if n != frameBytes-42 || from.Addr().Unmap() != l.HostAddr(0) {
			t.Fatalf("%d bytes from %v", n, from)
		}
		seen[from.Port()]++
	}
}

// TestPPSArrives: all packets arrive, in every direction.
func TestPPSArrives(t *testing.T) {
	needRoot(t)
	l, err := Build(t.Context(), Bridge{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = Close(Bridge{}, l) }()
	for _, d := range []Direction{ContainerToContainer, ContainerToOutside, OutsideToContainer} {
		s := Measure(t.Context(), Bridge{}, PPS{Direction: d}, l, time.Millisecond)
		if s.Error != "" || s.Value == 0 || s.Lost == nil || *s.Lost > 0.5 || s.CPUSeconds == 0 {
			t.Errorf("%v: %+v", d, s)
		}
	}
}

func TestNextHop(t *testing.T) {
	needRoot(t)
	l, err := lab.New(t.Context(), Bridge{}.Options())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want, err := l.Host.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Outside.NextHop(context.Background(), l.HostAddr(0))
	if err != nil || got.String() != want.String() || len(got) != len(net.HardwareAddr{}) && len(got) != 6 {
		t.Errorf("got %v %v, want %v", got, err, want)
	}
}

// TestIPv6Arrives: frames and streams of IPv6 arrive, in every direction, through what
// redirects, routes and translates it.
func TestIPv6Arrives(t *testing.T) {
	needRoot(t)
	for _, c := range []Contestant{Bridge{IPv6: true}, Bridge{NAT: Routed, IPv6: true}, NewFloor().WithIPv6()} {
		l, err := Build(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []Direction{ContainerToContainer, ContainerToOutside, OutsideToContainer} {
			s := Measure(t.Context(), c, PPS{Direction: d, IPv6: true}, l, time.Millisecond)
			if s.Error != "" || s.Value == 0 || s.Lost == nil || *s.Lost > 0.5 || s.CPUSeconds == 0 {
				t.Errorf("%s, %v: %+v", c.Name(), d, s)
			}
		}
		if err := Close(c, l); err != nil {
			t.Error(err)
		}
	}
}
