package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EHairpin: containers reach each other by the host's address. Each sees the
// other's external address and port (RFC 4787 REQ-9, RFC 5382 REQ-8).
func TestE2EHairpin(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 2})
		t.Run("UDP", h.testHairpinUDP)
		t.Run("TCP", h.testHairpinTCP)
		t.Run("nobody's port", h.testHairpinNobody)
		t.Run("reset by a firewall", h.testHairpinReset)
		h.assertBytesEqual(t)
	})
}

// external is a container's socket address as a server outside sees it.
func (h *e2e) external(t *testing.T, proto string, src netip.AddrPort) netip.AddrPort {
	t.Helper()
	for _, f := range h.Flows(t) {
		if f.Proto == proto && f.Src == src.String() {
			return netip.MustParseAddrPort(f.NAT)
		}
	}
	t.Fatalf("no flow of %s %s", proto, src)
	return netip.AddrPort{}
}

// mapped opens a UDP socket that has a mapping. It returns the external address, too.
func (h *e2e) mapped(t *testing.T, c *lab.Namespace, server netip.AddrPort) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	sock, err := c.ListenUDP(on(netip.IPv4Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sock.Close() })
	if err := lab.EchoUDPOn(h.Ctx, sock, server, "here I am"); err != nil {
		t.Fatal(err)
	}
	src := on(c.Addr, sock.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	return sock, h.external(t, "udp", src)
}

func (h *e2e) testHairpinUDP(t *testing.T) {
	s := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
	defer s.Close()
	a, aExt := h.mapped(t, h.Containers[0], s.Addr)
	b, bExt := h.mapped(t, h.Containers[1], s.Addr)
	if aExt.Addr() != h.HostAddr(0) || bExt.Addr() != h.HostAddr(0) {
		t.Fatalf("external addresses %s and %s", aExt, bExt)
	}
	before := h.drops(t, "filtered")
	send := func(from *net.UDPConn, to netip.AddrPort, msg string) {
		t.Helper()
		if _, err := from.WriteToUDPAddrPort([]byte(msg), to); err != nil {
			t.Fatal(err)
		}
	}
	want := func(at *net.UDPConn, from netip.AddrPort, msg string) {
		t.Helper()
		buf := make([]byte, 1<<16)
		_ = at.SetReadDeadline(time.Now().Add(pingPatience))
		n, src, err := at.ReadFromUDPAddrPort(buf)
		if src = on(src.Addr().Unmap(), src.Port()); err != nil || string(buf[:n]) != msg || src != from {
			t.Errorf("got %.20q… (%d bytes) from %s (%v), want %.20q… (%d) from %s", buf[:n], n, src, err, msg, len(msg), from)
		}
	}
	// b has not written to a yet, and so does not let it in, although a is its
	// neighbour.
	send(a, bExt, "too early")
	h.waitDrops(t, "filtered", before, 1)
	for i := range 3 {
		send(b, aExt, fmt.Sprint("from b ", i))
		want(a, bExt, fmt.Sprint("from b ", i))
		send(a, bExt, fmt.Sprint("from a ", i))
		want(b, aExt, fmt.Sprint("from a ", i))
	}
	// Datagrams that need fragments pass, too.
	for i := range 3 {
		big := strings.Repeat(fmt.Sprint("big ", i, " "), 1000)
		send(a, bExt, big)
		want(b, aExt, big)
	}
	// The error of a closed port reaches the sender, and quotes the sender's own
	// packet.
	_ = b.Close()
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1) })
	if err != nil {
		t.Fatal(err)
	}
	send(a, bExt, "anybody there?")
	_ = a.SetReadDeadline(time.Now().Add(pingPatience))
	if _, _, err := a.ReadFromUDPAddrPort(make([]byte, 100)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a closed port: %v, want connection refused", err)
	}
}

// testHairpinTCP opens one connection from both ends at once, by external addresses.
// Neither end listens.
func (h *e2e) testHairpinTCP(t *testing.T) {
	s := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 80))
	defer s.Close()
	var ext [2]netip.AddrPort
	for i, c := range h.Containers {
		src := on(c.Addr, uint16(43210+i))
		conn, err := c.DialTCP(h.Ctx, src, s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if err := lab.Echo(h.Ctx, conn, "here I am"); err != nil {
			t.Fatal(err)
		}
		ext[i] = h.external(t, "tcp", src)
	}
	ctx, cancel := context.WithTimeout(h.Ctx, 30*time.Second)
	defer cancel()
	conns := make(chan *net.TCPConn, 2)
	for i, c := range h.Containers {
		go func() {
			conn, err := c.DialTCP(ctx, on(c.Addr, uint16(43210+i)), ext[1-i])
			if err != nil {
				t.Errorf("c%d to %s: %v", i+1, ext[1-i], err)
			}
			conns <- conn
		}()
	}
	x, y := <-conns, <-conns
	if x == nil || y == nil {
		return
	}
	defer func() { _, _ = x.Close(), y.Close() }()
	if x.RemoteAddr().String() == y.RemoteAddr().String() {
		t.Errorf("both ends see %s", x.RemoteAddr())
	}
	go func() {
		buf := make([]byte, 5)
		n, _ := y.Read(buf)
		_, _ = y.Write(buf[:n])
	}()
	if err := lab.Echo(ctx, x, "hello"); err != nil {
		t.Error(err)
	}
}

// A port of the range that nobody uses is the host's.
func (h *e2e) testHairpinNobody(t *testing.T) {
	s := h.ServeTCP(t, h.Host, on(h.HostAddr(0), 12345))
	defer s.Close()
	if err := h.Containers[0].EchoTCP(h.Ctx, netip.AddrPort{}, s.Addr, "hello, host"); err != nil {
		t.Error(err)
	}
	assertPeers(t, s, h.Containers[0].Addr)
}

// A firewall's RST reaches a client that has connected by the host's address.
func (h *e2e) testHairpinReset(t *testing.T) {
	h.Must(t, "publish", "add", "8080:80", "c1")
	h.withRule(t, []string{"FORWARD", "-d", h.Containers[0].Addr.String(), "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"})
	ctx, cancel := context.WithTimeout(h.Ctx, pingPatience)
	defer cancel()
	c, err := h.Containers[1].DialTCP(ctx, netip.AddrPort{}, on(h.HostAddr(0), 8080))
	if c != nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connecting: %v, want connection refused", err)
	}
}
