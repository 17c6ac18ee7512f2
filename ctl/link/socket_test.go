package link

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPortsFreeIsWhatBindSays: the answer is that of an attempt, whatever a
// socket does with one port of the range.
func TestPortsFreeIsWhatBindSays(t *testing.T) {
	const first, last, port = 20000, 20499, 20100
	four, six := &unix.SockaddrInet4{Port: port}, &unix.SockaddrInet6{Port: port}
	loopback := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	for name, s := range map[string]struct {
		proto string
		open  func(t *testing.T)
	}{
		"nobody":              {"tcp", func(*testing.T) {}},
		"nobody, UDP":         {"udp", func(*testing.T) {}},
		"listener":            {"tcp", func(t *testing.T) { listen(t, socketAt(t, unix.SOCK_STREAM, four)) }},
		"listener, loopback":  {"tcp", func(t *testing.T) { listen(t, socketAt(t, unix.SOCK_STREAM, loopback)) }},
		"listener, dual":      {"tcp", func(t *testing.T) { listen(t, socketAt(t, unix.SOCK_STREAM, six)) }},
		"listener, IPv6 only": {"tcp", func(t *testing.T) { listen(t, socketAt(t, unix.SOCK_STREAM, six, unix.IPV6_V6ONLY)) }},
		"bound":               {"tcp", func(t *testing.T) { socketAt(t, unix.SOCK_STREAM, four) }},
		"bound, IPv6":         {"tcp", func(t *testing.T) { socketAt(t, unix.SOCK_STREAM, six) }},
		"connected":           {"tcp", func(t *testing.T) { connected(t, loopback, false) }},
		"connection ended":    {"tcp", func(t *testing.T) { connected(t, loopback, true) }},
		"UDP":                 {"udp", func(t *testing.T) { socketAt(t, unix.SOCK_DGRAM, four) }},
		"UDP, dual":           {"udp", func(t *testing.T) { socketAt(t, unix.SOCK_DGRAM, six) }},
		"UDP, loopback":       {"udp", func(t *testing.T) { socketAt(t, unix.SOCK_DGRAM, loopback) }},
		"TCP, not UDP":        {"udp", func(t *testing.T) { socketAt(t, unix.SOCK_STREAM, four) }},
	} {
		t.Run(name, func(t *testing.T) {
			if err := inNetns(t).SetUp(1, true); err != nil { // lo
				t.Fatal(err)
			}
			s.open(t)
			for _, addr := range []netip.Addr{netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.AddrFrom4([4]byte{127, 0, 0, 2}), netip.IPv6Unspecified(), netip.IPv6Loopback()} {
				want := bindPort(s.proto, addr, port)
				if want != nil && !errors.Is(want, ErrPortInUse) {
					t.Fatal(want)
				}
				for _, r := range [][2]uint16{{first, last}, {first, port}, {port, last}, {port, port}, {port - 1, port + 1}} {
					if err := PortsFree(s.proto, addr, r[0], r[1], nil); (err == nil) != (want == nil) || want != nil && err.Error() != want.Error() {
						t.Errorf("%s of %v: %v, want %v", addr, r, err, want)
					}
				}
				for _, r := range [][2]uint16{{first, port - 1}, {port + 1, last}} {
					if err := PortsFree(s.proto, addr, r[0], r[1], nil); err != nil {
						t.Errorf("%s of %v: %v", addr, r, err)
					}
				}
			}
		})
	}
}

// socketAt returns a bound socket that lasts as long as the test, with the
// given IPv6 options set to 1.
func socketAt(t *testing.T, kind int, at unix.Sockaddr, options ...int) int {
	t.Helper()
	family := unix.AF_INET
	if _, ok := at.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, o := range options {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, o, 1))
	}
	if err := errors.Join(err, unix.Bind(fd, at)); err != nil {
		t.Fatal(err)
	}
	return fd
}

func listen(t *testing.T, fd int) {
	t.Helper()
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
}

// connected makes a client connection from the port to a listener elsewhere.
// With ended both have closed, the client first, and TIME_WAIT is left.
func connected(t *testing.T, at *unix.SockaddrInet4, ended bool) {
	t.Helper()
	to := &unix.SockaddrInet4{Port: at.Port + 1000, Addr: at.Addr}
	server := socketAt(t, unix.SOCK_STREAM, to)
	listen(t, server)
	client := socketAt(t, unix.SOCK_STREAM, at)
	if err := unix.Connect(client, to); err != nil {
		t.Fatal(err)
	}
	accepted, _, err := unix.Accept(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(accepted) })
	if !ended {
		return
	}
	for _, fd := range []int{client, accepted} {
		if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSocketsListsWhatIsBound: since Linux 6.8 the kernel lists TCP sockets that
// are only bound, whatever their port.
func TestSocketsListsWhatIsBound(t *testing.T) {
	inNetns(t)
	socketAt(t, unix.SOCK_STREAM, &unix.SockaddrInet4{Port: 20100})
	socketAt(t, unix.SOCK_STREAM, &unix.SockaddrInet6{Port: 20200})
	socketAt(t, unix.SOCK_STREAM, &unix.SockaddrInet4{Port: 20201})
	for port, addr := range map[uint16]netip.Addr{20100: netip.IPv4Unspecified(), 20200: netip.IPv6Unspecified()} {
		have, err := sockets("tcp", port)
		if err != nil || len(have) > 0 && (len(have) != 1 || have[0].addr != addr || have[0].inode == 0) {
			t.Errorf("port %d: %v, %v", port, have, err)
		}
		if len(have) == 0 {
			t.Log("this kernel does not list sockets that are only bound")
		}
	}
}

// TestPortsFreeButFor: the given sockets do not count, and all others do.
func TestPortsFreeButFor(t *testing.T) {
	inode := func(fd int) uint32 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		return uint32(st.Ino)
	}
	if err := inNetns(t).SetUp(1, true); err != nil { // lo
		t.Fatal(err)
	}
	held := socketAt(t, unix.SOCK_STREAM, &unix.SockaddrInet4{Port: 8080, Addr: [4]byte{127, 0, 0, 1}})
	six := socketAt(t, unix.SOCK_STREAM, &unix.SockaddrInet6{Port: 8081})
	other := socketAt(t, unix.SOCK_STREAM, &unix.SockaddrInet4{Port: 8080, Addr: [4]byte{127, 0, 0, 2}})
	for _, fd := range []int{held, six, other} {
		listen(t, fd)
	}
	if !SocketsOf([]int{unix.Getpid()})[inode(held)] {
		t.Error("our own socket is not among ours")
	}
	one, two := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	for _, c := range []struct {
		addr   netip.Addr
		last   uint16
		except []int
		free   bool
	}{
		{one, 8080, []int{held}, true},
		{one, 8080, []int{other}, false},
		{two, 8080, []int{held}, false},
		{netip.IPv4Unspecified(), 8080, []int{held}, false},
		{netip.IPv4Unspecified(), 8080, []int{held, other}, true},
		{netip.IPv6Unspecified(), 8080, nil, true},
		{netip.IPv6Unspecified(), 8081, nil, false},
		{netip.IPv6Loopback(), 8081, []int{six}, true},
		{one, 8081, []int{held}, false},
		{one, 8081, []int{held, six}, true},
		{one, 9000, []int{held, six}, true},
	} {
		except := map[uint32]bool{}
		for _, fd := range c.except {
			except[inode(fd)] = true
		}
		err := PortsFree("tcp", c.addr, 8080, c.last, func() map[uint32]bool { return except })
		if (err == nil) != c.free || err != nil && !errors.Is(err, ErrPortInUse) {
			t.Errorf("%v to %d but for %v: %v, want free %v", c.addr, c.last, c.except, err, c.free)
		}
	}
}
