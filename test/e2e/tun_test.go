package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// tunE2E brings fastbr up with two uplinks: eth0 and a TUN device.
func tunE2E(t *testing.T, m harness.Mode, upArgs ...string) (*e2e, *lab.Tunnel) {
	t.Helper()
	h := newE2E(t, m, lab.Options{Containers: 2})
	tun, err := h.AddTunnel("tun0")
	if err != nil {
		t.Fatal(err)
	}
	h.Must(t, append(append([]string{"up", "--uplink", "tun0", "--uplink", "eth0"}, m.Up...), upArgs...)...)
	for i, c := range h.Containers {
		h.Attach(t, c, fmt.Sprintf("c%d", i+1))
	}
	return h, tun
}

// TestE2ERawIPUplink sends over an uplink without Ethernet header what other tests send
// over an uplink with one.
func TestE2ERawIPUplink(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h, tun := tunE2E(t, m)
		c1, far := h.Containers[0], tun.Outside
		tcp, udp := h.ServeTCP(t, far, on(far.Addr, 7)), h.ServeUDP(t, far, on(far.Addr, 7))
		for _, c := range h.Containers {
			h.mustPing(t, c, far.Addr, lab.PingOptions{Count: 3})
			h.mustPing(t, c, far.Addr, lab.PingOptions{Count: 3, Size: 3000}) // in pieces
			for k := range 3 {
				err := errors.Join(c.EchoTCP(h.Ctx, netip.AddrPort{}, tcp.Addr, fmt.Sprint(k)),
					c.EchoUDP(h.Ctx, port(20000), udp.Addr, strings.Repeat("x", 1+700*k)))
				if err != nil {
					t.Error(err)
				}
			}
		}
		for _, reverse := range []bool{false, true} {
			if err := lab.Bulk(h.Ctx, c1, far, far.Addr, 4<<20, reverse); err != nil {
				t.Error(err)
			}
		}
		assertPeers(t, tcp, tun.HostAddr())
		assertPeers(t, udp, tun.HostAddr())
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{})     // and over the other uplink
		h.mustPing(t, c1, far.Addr, lab.PingOptions{Size: 4000}) // in fragments
		h.testTunFrames(t, tun)
		h.assertBytesEqual(t)
		if u := h.ports(t)["tun0"]; m.Name == "fast" && u.FastPackets < u.SlowPackets {
			t.Errorf("the fast path was hardly used: %+v", u)
		}
		var v ctl.StatusView
		h.JSON(t, &v, "status")
		for _, u := range v.Uplinks {
			if want := map[string]string{"tun0": "raw ip", "eth0": "ethernet"}[u.Device]; u.Kind != want {
				t.Errorf("status calls %s %q, want %q", u.Device, u.Kind, want)
			}
		}
	})
}

// testTunFrames checks the frames that a container receives. They must be complete,
// though the packets came without an Ethernet header.
func (h *e2e) testTunFrames(t *testing.T, tun *lab.Tunnel) {
	c1, far := h.Containers[0], tun.Outside
	mac, err := c1.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	gw, err := h.Host.MAC("fastbr0")
	if err != nil {
		t.Fatal(err)
	}
	sniff, err := c1.NewSniffer("eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer sniff.Close()
	h.sendClosing(t, c1, far)
	f, err := sniff.Next(h.Ctx, func(f []byte) bool {
		return isClosing(f) && netip.AddrFrom4([4]byte(f[26:30])) == far.Addr
	})
	want := append(append(append([]byte(nil), mac...), gw...), 8, 0)
	if err != nil || string(f[:14]) != string(want) {
		t.Errorf("the container received % x, %v; want a frame that begins with % x", f[:min(len(f), 14)], err, want)
	}
}

// TestE2ERawIPUplinkErrors sends ICMP errors in both directions over such an uplink.
func TestE2ERawIPUplinkErrors(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h, tun := tunE2E(t, m, "--mtu", "1400")
		if m.Name == "fast" {
			h.Must(t, "up", "--lease", "1s")
		}
		h.Outside = tun.Outside // the subtests talk to it
		t.Run("reject reply", h.testRejectReply)
		t.Run("ttl of reply", h.testReplyTTL)
		t.Run("reply too big", h.testReplyTooBig)
		t.Run("tcp reset", h.testRejectTCP)
		t.Run("port unreachable", func(t *testing.T) {
			h.wantSocketError(t, h.Containers[0], on(tun.Outside.Addr, 9), syscall.ECONNREFUSED)
		})
	})
}

// TestE2ERawIPUplinkRefusal: a container is told that its flow is refused for lack of a
// port.
func TestE2ERawIPUplinkRefusal(t *testing.T) {
	t.Parallel()
	h, tun := tunE2E(t, e2eModes()[0], "--nat-range", "20000-20007", "--nat-on-exhaustion", "refuse")
	s := h.ServeUDP(t, tun.Outside, on(tun.Outside.Addr, 7))
	c1 := h.Containers[0]
	for i := range 7 { // a container may have four fifths of the ports
		if err := c1.EchoUDP(h.Ctx, port(uint16(30000+i)), s.Addr, "mine"); err != nil {
			t.Fatal(err)
		}
	}
	h.wantSocketError(t, c1, s.Addr, syscall.EHOSTUNREACH)
}

// TestE2ERawIPUplinkIsGuarded sends from beyond the tunnel to a container's own
// address.
func TestE2ERawIPUplinkIsGuarded(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h, tun := tunE2E(t, m)
		c1, far := h.Containers[0], tun.Outside
		if err := far.AddRoute(netip.MustParsePrefix("172.30.0.0/16"), tun.HostAddr()); err != nil {
			t.Fatal(err)
		}
		h.mustPing(t, c1, far.Addr, lab.PingOptions{})
		before := h.drops(t, "direct")
		h.noPing(t, far, c1.Addr)
		h.waitDrops(t, "direct", before, 1)
		// The host itself is reached, but not at ports of the range.
		h.mustPing(t, far, tun.HostAddr(), lab.PingOptions{})
		h.wantSocketError(t, far, on(tun.HostAddr(), 9), syscall.ECONNREFUSED)
		before = h.drops(t, "foreign")
		c, err := far.ListenUDP(on(netip.IPv4Unspecified(), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.WriteToUDPAddrPort([]byte("?"), on(tun.HostAddr(), 20123)); err != nil {
			t.Fatal(err)
		}
		h.waitDrops(t, "foreign", before, 1)
	})
}

// wantSocketError sends datagrams until the socket gets an ICMP error.
func (h *e2e) wantSocketError(t *testing.T, from *lab.Namespace, to netip.AddrPort, want syscall.Errno) {
	t.Helper()
	c, err := from.DialUDP(netip.AddrPort{}, to)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	waitFor(t, h.Ctx, fmt.Sprintf("%v at %s", want, from.Name), func() bool {
		_, werr := c.Write([]byte("?"))
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, rerr := c.Read(make([]byte, 100))
		return errors.Is(errors.Join(werr, rerr), want)
	})
}
