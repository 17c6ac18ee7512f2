package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// Chunks of SCTP (RFC 9260 section 3.3).
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctpPacket is an SCTP packet with one chunk of the kind of INIT.
func sctpPacket(source, dest uint16, tag uint32, chunk byte) []byte {
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b, source)
	binary.BigEndian.PutUint16(b[2:], dest)
	binary.BigEndian.PutUint32(b[4:], tag)
	b[12] = chunk
	binary.BigEndian.PutUint16(b[14:], 20)
	binary.BigEndian.PutUint32(b[16:], 0x1234) // the sender's own tag
	binary.BigEndian.PutUint32(b[20:], 65535)
	binary.BigEndian.PutUint16(b[24:], 1)
	binary.BigEndian.PutUint16(b[26:], 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// sctpSocket receives all SCTP packets of a namespace, as no SCTP socket need exist.
type sctpSocket int

func rawSCTP(t *testing.T, n *lab.Namespace) sctpSocket {
	t.Helper()
	fd := -1
	if err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return sctpSocket(fd)
}

func (s sctpSocket) send(to netip.Addr, packet []byte) error {
	return unix.Sendto(int(s), packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
}

// next waits for a packet to a port with such a chunk. Its checksum must be right.
func (s sctpSocket) next(dest uint16, chunk byte, patience time.Duration) (from netip.AddrPort, err error) {
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(patience); ; {
		left := max(time.Until(deadline), time.Millisecond)
		wait := unix.NsecToTimeval(left.Nanoseconds())
		if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return from, err
		}
		n, sa, err := receive(int(s), buf)
		if err != nil {
			return from, err
		}
		p := buf[20:n] // behind the IPv4 header
		if len(p) != 32 || binary.BigEndian.Uint16(p[2:]) != dest || p[12] != chunk {
			continue
		}
		sum := binary.LittleEndian.Uint32(p[8:])
		binary.LittleEndian.PutUint32(p[8:], 0)
		if right := crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)); sum != right {
			return from, fmt.Errorf("checksum %#x, want %#x", sum, right)
		}
		return netip.AddrPortFrom(netip.AddrFrom4(sa.(*unix.SockaddrInet4).Addr), binary.BigEndian.Uint16(p)), nil
	}
}

// sctpReach is a way to a published SCTP port.
type sctpReach struct {
	how  string
	from *lab.Namespace
	to   netip.AddrPort // the host's
	seen netip.Addr     // by the container; invalid: nobody answers
}

// assertSCTP sends an INIT and, if the container gets it, has that answer.
func assertSCTP(t *testing.T, client, server sctpSocket, source, inside uint16, w sctpReach) {
	t.Helper()
	patience := passTime
	if !w.seen.IsValid() {
		patience = 300 * time.Millisecond
	}
	if err := client.send(w.to.Addr(), sctpPacket(source, w.to.Port(), 0, sctpInit)); err != nil {
		t.Errorf("%s: %v", w.how, err)
		return
	}
	from, err := server.next(inside, sctpInit, patience)
	if !w.seen.IsValid() {
		if err == nil {
			t.Errorf("%s: the container has a packet from %s", w.how, from)
		}
		return
	}
	if err != nil || from.Addr() != w.seen {
		t.Errorf("%s: the container sees %v, want %v: %v", w.how, from, w.seen, err)
		return
	}
	if err := server.send(from.Addr(), sctpPacket(inside, from.Port(), 0x1234, sctpInitAck)); err != nil {
		t.Errorf("%s: %v", w.how, err)
	}
	if from, err := client.next(source, sctpInitAck, passTime); err != nil || from != w.to {
		t.Errorf("%s: an answer from %v, want %v: %v", w.how, from, w.to, err)
	}
}

// TestE2EPublishSCTP: published SCTP ports are reached from outside by any device, from
// the host and from containers. The kernel's NAT leads there, and no socket of the host
// ever has a packet for such a port.
func TestE2EPublishSCTP(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 3, Uplinks: 2})
	before := h.snapshot(t)
	h.Must(t, "up")
	c1, c2, c3 := h.Containers[0], h.Containers[1], h.Containers[2]
	h.Attach(t, c1, "c1")
	h.Attach(t, c2, "c2")
	h.Must(t, "network", "create", "other", "--subnet", "192.168.7.0/24")
	h.Attach(t, c3, "c3", "--network", "other")
	h.Must(t, "publish", "add", "8080-8089:80/sctp", "c1")
	h.Must(t, "publish", "add", h.HostAddr(0).String()+":9090:90/sctp", "c1", "--allow", netip.PrefixFrom(h.OutsideAddr(0), 32).String())
	var all []ctl.PublicationView
	if h.JSON(t, &all, "publish", "ls"); len(all) != 2 || all[0].Proto != "sctp" || all[0].HostPortEnd != 8089 || all[1].HostIP != h.HostAddr(0).String() {
		t.Errorf("publish ls: %+v", all)
	}

	// Each outside reaches the host's other address, too.
	for i, out := range h.Outsides {
		if err := out.AddRoute(netip.PrefixFrom(h.HostAddr(1-i), 32), h.HostAddr(i)); err != nil {
			t.Fatal(err)
		}
	}

	socket := map[*lab.Namespace]sctpSocket{}
	for _, n := range []*lab.Namespace{c1, c2, c3, h.Host, h.Outside, h.Outsides[1]} {
		socket[n] = rawSCTP(t, n)
	}
	next := uint16(40000)
	reach := func(w sctpReach) {
		t.Helper()
		next++
		inside := w.to.Port() - 8000
		if w.to.Port() == 9090 {
			inside = 90
		}
		assertSCTP(t, socket[w.from], socket[c1], next, inside, w)
	}
	host, host1, gateway := h.HostAddr(0), h.HostAddr(1), h.gateway()
	for _, w := range []sctpReach{
		{how: "outside", from: h.Outside, to: on(host, 8080), seen: h.OutsideAddr(0)},
		{how: "outside, last port", from: h.Outside, to: on(host, 8089), seen: h.OutsideAddr(0)},
		{how: "outside, second card", from: h.Outsides[1], to: on(host1, 8081), seen: h.OutsideAddr(1)},
		{how: "outside, another port", from: h.Outside, to: on(host, 8090)},
		{how: "the host by its own address", from: h.Host, to: on(host, 8080), seen: host},
		{how: "the host by the gateway", from: h.Host, to: on(gateway, 8080), seen: gateway},
		{how: "same network", from: c2, to: on(host, 8080), seen: gateway},
		{how: "same network by its gateway", from: c2, to: on(gateway, 8080), seen: gateway},
		{how: "another network", from: c3, to: on(host, 8080), seen: gateway},
		{how: "another network by this one's gateway", from: c3, to: on(gateway, 8080), seen: gateway},
		{how: "another network by this one's gateway, not published", from: c3, to: on(gateway, 8099)},
		{how: "another network by the container's address", from: c3, to: on(c1.Addr, 8080)},
		{how: "itself", from: c1, to: on(host, 8080), seen: gateway},
		{how: "allowed", from: h.Outside, to: on(host, 9090), seen: h.OutsideAddr(0)},
		{how: "allowed, another address of the host", from: h.Outside, to: on(host1, 9090)},
		{how: "not allowed", from: h.Outsides[1], to: on(host, 9090)},
		{how: "not allowed, a container", from: c2, to: on(host, 9090)},
		{how: "the host is always allowed", from: h.Host, to: on(host, 9090), seen: host},
	} {
		reach(w)
	}

	// Without the rules nobody is led there, and the host does not answer in its place.
	mine := on(host, 8080)
	assertSCTP(t, socket[h.Outside], socket[c1], 50000, 80, sctpReach{how: "before a flush", from: h.Outside, to: mine, seen: h.OutsideAddr(0)})
	if err := h.Host.NFT(h.Ctx, "flush ruleset"); err != nil {
		t.Fatal(err)
	}
	reach(sctpReach{how: "flushed", from: h.Outside, to: mine})
	reach(sctpReach{how: "flushed, same network", from: c2, to: mine})
	if err := socket[c1].send(h.OutsideAddr(0), sctpPacket(80, 50000, 0x1234, sctpInitAck)); err != nil {
		t.Error(err)
	}
	if from, err := socket[h.Outside].next(50000, sctpInitAck, 300*time.Millisecond); err == nil {
		t.Errorf("flushed: an answer leaves from %v", from)
	}
	if from, err := socket[h.Host].next(8080, sctpInit, time.Millisecond); err == nil {
		t.Errorf("flushed: a socket of the host has a packet from %v", from)
	}
	if from, err := socket[h.Host].next(9090, sctpInit, time.Millisecond); err == nil {
		t.Errorf("not allowed: a socket of the host has a packet from %v", from)
	}
	h.Must(t, "publish", "rm", "9090/sctp")
	reach(sctpReach{how: "mended", from: h.Outside, to: mine, seen: h.OutsideAddr(0)})

	// What is taken back ends at once, also for connections that were led there.
	assertSCTP(t, socket[h.Outside], socket[c1], 50001, 80, sctpReach{how: "before rm", from: h.Outside, to: mine, seen: h.OutsideAddr(0)})
	h.Must(t, "publish", "rm", "8080-8089")
	assertSCTP(t, socket[h.Outside], socket[c1], 50001, 80, sctpReach{how: "after rm", from: h.Outside, to: mine})
	if from, err := socket[h.Host].next(8080, sctpInit, passTime); err != nil || from.Addr() != h.OutsideAddr(0) {
		t.Errorf("after rm: the host has a packet from %v: %v", from, err)
	}
	if out, err := h.Host.Run(h.Ctx, "nft", "list", "table", "ip", "fastbr"); err != nil || strings.Contains(out, "dnat") {
		t.Errorf("after rm: %v\n%s", err, out)
	}
	if r := h.Fastbr(t, "publish", "add", "127.0.0.1:8080:80/sctp", "c1"); r.Code != 2 || !strings.Contains(r.Stderr, "loopback") {
		t.Errorf("on loopback: %+v", r)
	}
	h.Must(t, "publish", "add", "8080:80/sctp", "c1")
	for _, name := range []string{"c1", "c2", "c3"} {
		h.Must(t, "detach", name)
	}
	if out, err := h.Host.Run(h.Ctx, "nft", "list", "table", "ip", "fastbr"); err != nil || strings.Contains(out, "dnat") {
		t.Errorf("after detach: %v\n%s", err, out)
	}
	h.Must(t, "network", "rm", "other")
	h.Must(t, "down", "--all")
	h.assertAsBefore(t, before)
}

// sctpStream opens an SCTP socket in a namespace, one of whose reads and writes take
// passTime at most. It skips the test where the kernel has no SCTP.
func sctpStream(t *testing.T, n *lab.Namespace) int {
	t.Helper()
	fd := -1
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Skip("this kernel has no SCTP; make kernels runs this test on one that has")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	sctpPatience(t, fd, passTime)
	return fd
}

// sctpPatience sets how long a socket waits, also to connect.
func sctpPatience(t *testing.T, fd int, d time.Duration) {
	t.Helper()
	wait := unix.NsecToTimeval(d.Nanoseconds())
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &wait); err != nil {
			t.Fatal(err)
		}
	}
}

func sctpListen(t *testing.T, n *lab.Namespace, p uint16) int {
	t.Helper()
	fd := sctpStream(t, n)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: int(p)}), unix.Listen(fd, 8)); err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestE2EPublishSCTPSockets: associations of real sockets, with whatever offloads the
// devices have for the checksum.
func TestE2EPublishSCTPSockets(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 2, Uplinks: 1})
	c1, c2 := h.Containers[0], h.Containers[1]
	server := sctpListen(t, c1, 80)
	sctpListen(t, h.Host, 9999)
	h.Must(t, "up", "--nat-flows", "16384") // conntrack of a small machine has room for no more
	h.Attach(t, c1, "c1")
	h.Attach(t, c2, "c2")
	if r := h.Fastbr(t, "publish", "add", "9999:80/sctp", "c1"); r.Code != 1 || !strings.Contains(r.Stderr, "9999/sctp is in use") {
		t.Errorf("a port that the host has: %+v", r)
	}
	h.Must(t, "publish", "add", "8080:80/sctp", "c1")
	public := on(h.HostAddr(0), 8080)
	asked := unix.SockaddrInet4{Port: 8080, Addr: public.Addr().As4()}
	for _, from := range []struct {
		n         *lab.Namespace
		own, seen netip.Addr
		to        netip.AddrPort
	}{
		{h.Outside, h.OutsideAddr(0), h.OutsideAddr(0), public},
		{h.Host, h.HostAddr(0), h.HostAddr(0), public},
		{c1, c1.Addr, h.gateway(), public},
		{c2, c2.Addr, h.gateway(), public},
		{c2, c2.Addr, c2.Addr, on(c1.Addr, 80)},
	} {
		client := sctpStream(t, from.n)
		// A client of several addresses names them all, and no NAT leads the container's
		// packets for the others back to the same association.
		if err := unix.Bind(client, &unix.SockaddrInet4{Addr: from.own.As4()}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(client, &unix.SockaddrInet4{Addr: from.to.Addr().As4(), Port: int(from.to.Port())}); err != nil {
			t.Fatalf("from %s: %v", from.n.Name, err)
		}
		conn, peer, err := unix.Accept(server)
		if err != nil {
			t.Fatalf("from %s: %v", from.n.Name, err)
		}
		if got := netip.AddrFrom4(peer.(*unix.SockaddrInet4).Addr); got != from.seen {
			t.Errorf("from %s: the container sees %v, want %v", from.n.Name, got, from.seen)
		}
		size := 20000 // so that there are super-packets
		if from.n == h.Host {
			size = 1000 // its route leads by lo, whose MTU is no container's
		}
		message, got := make([]byte, size), make([]byte, size)
		for i := range message {
			message[i] = byte(i)
		}
		for _, way := range [][2]int{{client, conn}, {conn, client}} {
			if _, err := unix.Write(way[0], message); err != nil {
				t.Fatalf("from %s: %v", from.n.Name, err)
			}
			for n := 0; n < len(message); {
				k, err := unix.Read(way[1], got[n:])
				if err != nil || k == 0 {
					t.Fatalf("from %s: %d bytes, then %v", from.n.Name, n, err)
				}
				n += k
			}
			if !bytes.Equal(got, message) {
				t.Errorf("from %s: other bytes have arrived", from.n.Name)
			}
		}
		unix.Close(conn)
	}
	// A socket that the host has bound since gets nothing, with the rules or without.
	mine := sctpListen(t, h.Host, 8080)
	if err := unix.SetNonblock(mine, true); err != nil {
		t.Fatal(err)
	}
	if err := h.Host.NFT(h.Ctx, "flush ruleset"); err != nil {
		t.Fatal(err)
	}
	client := sctpStream(t, h.Outside)
	sctpPatience(t, client, 300*time.Millisecond)
	if err := unix.Connect(client, &asked); err == nil {
		t.Error("flushed: somebody answers")
	}
	if _, _, err := unix.Accept(mine); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("flushed: the host's socket has a client: %v", err)
	}
	// Other ports of the host are as before.
	client = sctpStream(t, h.Outside)
	if err := unix.Connect(client, &unix.SockaddrInet4{Port: 9999, Addr: asked.Addr}); err != nil {
		t.Error(err)
	}
}
