package e2e

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EPlainDestinations: destinations of --no-masquerade see containers' own addresses
// and reach them, by every device, on either path, and with any protocol. All others see the
// host's.
func TestE2EPlainDestinations(t *testing.T) {
	t.Parallel()
	for _, m := range []harness.Mode{{Name: "fast"}, {Name: "slow", Up: []string{"--lease", "0"}}} {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			except := []string{"192.0.2.11/32", "192.0.2.21/32", "192.0.2.31/32", "10.9.0.0/16"}
			o := lab.Options{Containers: 2, Uplinks: 2}
			var args []string
			for _, e := range except {
				o.Excepted = append(o.Excepted, netip.MustParsePrefix(e))
				args = append(args, "--no-masquerade", e)
			}
			h := upE2E(t, m, o, args...)
			c1, c2 := h.Containers[0], h.Containers[1]
			near, other, second := h.Servers()[0], h.Servers()[1], h.Outsides[1]
			for i, out := range h.Outsides {
				if _, err := out.Run(h.Ctx, "ip", "route", "add", "172.30.0.0/16", "via", h.HostAddr(i).String()); err != nil {
					t.Fatal(err)
				}
			}
			h.testPlain(t, m, c1, near, other)

			// By another device, and by other protocols.
			s := h.ServeUDP(t, second, on(second.Addr, 7))
			if err := c1.EchoUDP(h.Ctx, netip.AddrPort{}, s.Addr, "x"); err != nil {
				t.Error(err)
			}
			assertPeers(t, s, c1.Addr)
			if err := second.EchoTCP(h.Ctx, on(second.Addr, 0), h.ServeTCP(t, c2, on(c2.Addr, 70)).Addr, "x"); err != nil {
				t.Errorf("by another device: %v", err)
			}
			if peer, err := exchangeRaw(c1, h.Outside, 253, []byte("question"), []byte("answer")); err != nil || peer != c1.Addr {
				t.Errorf("another protocol: from %v: %v", peer, err)
			}

			// What a router on the way says is not from there, but about it.
			if err := h.Outside.SetSysctl("net.ipv4.ip_forward", "1"); err != nil {
				t.Fatal(err)
			}
			r, err := c1.Ping(h.Ctx, netip.MustParseAddr("10.9.0.1"), lab.PingOptions{Count: 1, Wait: pingPatience})
			if err != nil || !slices.Contains(r.Errors, h.OutsideAddr(0)) {
				t.Errorf("the error of a router on the way does not arrive: %v, %v", r.Errors, err)
			}

			// Published ports keep their address, also for these clients.
			web := h.ServeTCP(t, c1, on(c1.Addr, 80))
			h.Must(t, "publish", "add", "8080:80", "c1")
			for _, from := range []netip.Addr{near, other} {
				if err := h.Outside.EchoTCP(h.Ctx, on(from, 0), on(h.HostAddr(0), 8080), "published"); err != nil {
					t.Errorf("published, from %v: %v", from, err)
				}
			}
			if err := c2.EchoTCP(h.Ctx, netip.AddrPort{}, on(h.HostAddr(0), 8080), "hairpin"); err != nil {
				t.Error(err)
			}
			assertPeers(t, web, near, other, h.HostAddr(0))

			h.Upgrade(t)
			if err := h.Host.NFT(h.Ctx, "flush ruleset"); err != nil {
				t.Fatal(err)
			}
			h.testPlain(t, m, c2, near, other)
		})
	}
}

// udpBecomesFast sends from one socket of c1 or c2 until its packets to the server are fast.
func (h *e2e) udpBecomesFast(t *testing.T, m harness.Mode, c *lab.Namespace, udp *lab.Server) {
	t.Helper()
	sock, err := c.ListenUDP(on(netip.IPv4Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	name := "c1"
	if c == h.Containers[1] {
		name = "c2"
	}
	h.becomesFast(t, m, name, func() { h.comesToPass(t, sock, udp.Addr, true) })
	_ = sock.Close()
}

// testPlain tests a container with a server's address near, which is excepted from
// translation, and its address other, which is not.
func (h *e2e) testPlain(t *testing.T, m harness.Mode, c *lab.Namespace, near, other netip.Addr) {
	t.Helper()
	for to, as := range map[netip.Addr]netip.Addr{near: c.Addr, other: h.HostAddr(0)} {
		tcp, udp := h.ServeTCP(t, h.Outside, on(to, 0)), h.ServeUDP(t, h.Outside, on(to, 0))
		if err := c.EchoTCP(h.Ctx, netip.AddrPort{}, tcp.Addr, "tcp"); err != nil {
			t.Errorf("TCP to %v: %v", to, err)
		}
		h.udpBecomesFast(t, m, c, udp)
		assertPeers(t, tcp, as)
		assertPeers(t, udp, as)
		h.mustPing(t, c, to, lab.PingOptions{Count: 1})
		h.mustPing(t, c, to, lab.PingOptions{Count: 1, Size: 4000})
		for _, reverse := range []bool{false, true} {
			if err := lab.Bulk(h.Ctx, c, h.Outside, to, 8<<20, reverse); err != nil {
				t.Errorf("bulk with %v: %v", to, err)
			}
		}
		tcp.Close()
		udp.Close()
	}
	inside, datagrams := h.ServeTCP(t, c, on(c.Addr, 0)), h.ServeUDP(t, c, on(c.Addr, 0))
	if err := h.Outside.EchoTCP(h.Ctx, on(near, 0), inside.Addr, "in"); err != nil {
		t.Errorf("from %v to %v: %v", near, inside.Addr, err)
	}
	if err := h.Outside.EchoUDP(h.Ctx, on(near, 0), datagrams.Addr, "in"); err != nil {
		t.Errorf("from %v to %v: %v", near, inside.Addr, err)
	}
	before := h.drops(t, "direct")
	ctx, cancel := context.WithTimeout(h.Ctx, 300*time.Millisecond)
	defer cancel()
	if err := h.Outside.EchoTCP(ctx, on(other, 0), inside.Addr, "in"); err == nil {
		t.Errorf("%v reaches %v", other, inside.Addr)
	}
	if h.drops(t, "direct") == before {
		t.Errorf("what %v sends to %v is not counted as direct", other, inside.Addr)
	}
}

// TestE2EPlainRefused: what --no-masquerade cannot mean is refused in one line, and the
// network says what it has.
func TestE2EPlainRefused(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{})
	for _, args := range [][]string{
		{"--no-masquerade", "10.0.0.1/8"},
		{"--no-masquerade", "fd00::/8"},
		{"--no-masquerade", "ten"},
		{"--no-masquerade", "10.0.0.0/8", "--masquerade=false"},
		{"--no-masquerade", "10.0.0.0/8", "--internal"},
	} {
		r := h.Fastbr(t, append([]string{"up"}, args...)...)
		if r.Code != 2 || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, args[1]) && !strings.Contains(r.Stderr, args[0]) {
			t.Errorf("up %v: exit %d, %q", args, r.Code, r.Stderr)
		}
	}
	h.Must(t, "up", "--no-masquerade", "192.168.0.0/16,10.0.0.0/8", "--no-masquerade", "10.0.0.0/8")
	h.Must(t, "up", "--no-masquerade", "10.0.0.0/8,192.168.0.0/16")
	if r := h.Fastbr(t, "up", "--no-masquerade", "10.0.0.0/8"); r.Code != 1 || !strings.Contains(r.Stderr, "10.0.0.0/8,192.168.0.0/16") {
		t.Errorf("up with others: exit %d, %q", r.Code, r.Stderr)
	}
	var v ctl.NetworkView
	h.JSON(t, &v, "network", "inspect", "default")
	if !slices.Equal(v.NoMasquerade, []string{"10.0.0.0/8", "192.168.0.0/16"}) {
		t.Errorf("inspect: %v", v.NoMasquerade)
	}
}
