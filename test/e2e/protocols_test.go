package e2e

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EOtherProtocols: protocols that the datapath does not translate leave with the
// host's address, and their answers come back. They may use a chosen uplink, a named
// uplink, or another device.
func TestE2EOtherProtocols(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 2, Uplinks: 2})
	h.Must(t, "up")
	c1 := h.Containers[0]
	h.Attach(t, c1, "c1")
	h.Attach(t, h.Containers[1], "c2")
	timestamp := []byte{13, 0, 0xf2, 0xd4, 0, 42, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	stamped := bytes.Clone(timestamp)
	stamped[0], stamped[2] = 14, 0xf1 // the checksum's high half, too
	for name, p := range map[string]struct {
		proto     int
		ask, tell []byte
	}{
		"IPIP":           {unix.IPPROTO_IPIP, []byte("question"), []byte("answer")},
		"GRE":            {unix.IPPROTO_GRE, []byte("\x00\x00\x08\x00question"), []byte("\x00\x00\x08\x00answer")},
		"ESP":            {unix.IPPROTO_ESP, []byte("\x00\x00\x10\x01question"), []byte("\x00\x00\x10\x02answer")},
		"AH":             {unix.IPPROTO_AH, []byte("question"), []byte("answer")},
		"experimental":   {253, []byte("question"), []byte("answer")},
		"ICMP timestamp": {unix.IPPROTO_ICMP, timestamp, stamped},
	} {
		for i, out := range h.Outsides {
			if peer, err := exchangeRaw(c1, out, p.proto, p.ask, p.tell); err != nil || peer != h.HostAddr(i) {
				t.Errorf("%s by eth%d: from %v, want %v: %v", name, i, peer, h.HostAddr(i), err)
			}
		}
	}
	h.Must(t, "up", "--uplink", "eth0")
	if peer, err := exchangeRaw(c1, h.Outside, 253, []byte("question"), []byte("answer")); err != nil || peer != h.HostAddr(0) {
		t.Errorf("named uplink: from %v: %v", peer, err)
	}
	if peer, err := exchangeRaw(c1, h.Outsides[1], 253, []byte("question"), []byte("answer")); err == nil {
		t.Errorf("a device that was not named: from %v", peer)
	}
	// Without the table no such packet leaves.
	if err := h.Host.NFT(h.Ctx, "flush ruleset"); err != nil {
		t.Fatal(err)
	}
	if peer, err := exchangeRaw(h.Containers[1], h.Outside, 254, []byte("question"), []byte("answer")); err == nil {
		t.Errorf("after a flush: from %v", peer)
	}
	h.Must(t, "detach", "c2")
	if peer, err := exchangeRaw(c1, h.Outside, 252, []byte("question"), []byte("answer")); err != nil {
		t.Errorf("after the next command: from %v: %v", peer, err)
	}
}

// exchangeRaw is exchangeRawAt with to's IPv4 address.
func exchangeRaw(from, to *lab.Namespace, proto int, ask, tell []byte) (peer netip.Addr, err error) {
	return exchangeRawAt(from, to, to.Addr, proto, ask, tell)
}

// exchangeRawAt sends a packet of a protocol from one namespace to an address of another,
// which answers. It returns where the question came from.
func exchangeRawAt(from, to *lab.Namespace, at netip.Addr, proto int, ask, tell []byte) (peer netip.Addr, err error) {
	family, place := unix.AF_INET, unix.Sockaddr(nil)
	if at.Is6() {
		family, place = unix.AF_INET6, &unix.SockaddrInet6{Addr: at.As16()}
	} else {
		place = &unix.SockaddrInet4{Addr: at.As4()}
	}
	open := func(n *lab.Namespace) (fd int, err error) {
		err = n.Do(func() error {
			if fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto); err != nil {
				return err
			}
			wait := unix.NsecToTimeval((2 * time.Second).Nanoseconds())
			return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
		})
		return fd, err
	}
	a, err := open(from)
	if err != nil {
		return peer, err
	}
	defer unix.Close(a)
	b, err := open(to)
	if err != nil {
		return peer, err
	}
	defer unix.Close(b)
	if err := unix.Bind(b, place); err != nil {
		return peer, err
	}
	await := func(fd int, want []byte) (unix.Sockaddr, error) {
		buf := make([]byte, 2048)
		for {
			n, sa, err := receive(fd, buf)
			if err != nil {
				return nil, err
			}
			if bytes.HasSuffix(buf[:n], want) {
				return sa, nil
			}
		}
	}
	if err := unix.Sendto(a, ask, 0, place); err != nil {
		return peer, err
	}
	sa, err := await(b, ask[max(0, len(ask)-4):])
	if err != nil {
		return peer, err
	}
	if six, ok := sa.(*unix.SockaddrInet6); ok {
		peer = netip.AddrFrom16(six.Addr)
	} else {
		peer = netip.AddrFrom4(sa.(*unix.SockaddrInet4).Addr)
	}
	if err := unix.Sendto(b, tell, 0, sa); err != nil {
		return peer, err
	}
	_, err = await(a, tell[max(0, len(tell)-4):])
	return peer, err
}
