package e2e

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EPublishedOnly: in a routed network with --published-only, containers get outside
// with their own addresses, and only answers, ICMP and what is for published ports come in,
// by every device and on either path.
func TestE2EPublishedOnly(t *testing.T) {
	t.Parallel()
	for _, m := range []harness.Mode{{Name: "fast", Leaky: true}, {Name: "slow", Leaky: true, Up: []string{"--lease", "0"}}} {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			h := newE2E(t, m, lab.Options{Containers: 2, Uplinks: 2})
			for i, out := range h.Outsides {
				if _, err := out.Run(h.Ctx, "ip", "route", "add", "172.30.0.0/16", "via", h.HostAddr(i).String()); err != nil {
					t.Fatal(err)
				}
			}
			if err := h.Host.NFT(h.Ctx, trackedForward); err != nil {
				t.Fatal(err)
			}
			before := h.snapshot(t)
			h.Must(t, append([]string{"up", "--masquerade=false", "--published-only"}, m.Up...)...)
			c1, c2, far := h.Containers[0], h.Containers[1], h.Outsides[1]
			h.Attach(t, c1, "c1")
			h.Attach(t, c2, "c2")
			web, other, names := h.ServeTCP(t, c1, on(c1.Addr, 80)), h.ServeTCP(t, c1, on(c1.Addr, 81)), h.ServeUDP(t, c1, on(c1.Addr, 53))

			h.testOwnOut(t, m, c1)
			for name, from := range map[string]*lab.Namespace{"uplink": h.Outside, "another device": far} {
				h.notLetIn(t, from, web.Addr, name+": before it is published")
			}
			h.Must(t, "publish", "add", "8080:80", "c1")
			h.Must(t, "publish", "add", "127.0.0.1:5300:53/udp", "c1")
			if r := h.Fastbr(t, "publish", "add", "8081:80", "c1"); r.Code != 1 || !strings.Contains(r.Stderr, "container port 80/tcp is published already") {
				t.Errorf("published twice: exit %d, %q", r.Code, r.Stderr)
			}
			var pubs []ctl.PublicationView
			h.JSON(t, &pubs, "publish", "ls")
			if len(pubs) != 2 || pubs[1].HostIP != c1.Addr.String() || pubs[1].HostPort != 80 {
				t.Errorf("publish ls: %+v", pubs)
			}
			for name, from := range map[string]*lab.Namespace{"uplink": h.Outside, "another device": far} {
				if err := h.reaches(from, web.Addr, passTime); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := from.EchoUDP(h.Ctx, netip.AddrPort{}, names.Addr, strings.Repeat("x", 4000)); err != nil {
					t.Errorf("%s: a datagram in fragments: %v", name, err)
				}
				h.notLetIn(t, from, other.Addr, name+": a port that is not published")
				h.notLetIn(t, from, on(h.HostAddr(0), 8080), name+": by the host's address")
				h.mustPing(t, from, c1.Addr, lab.PingOptions{Count: 1})
			}
			sock, err := h.Outside.ListenUDP(on(netip.IPv4Unspecified(), 0))
			if err != nil {
				t.Fatal(err)
			}
			h.becomesFast(t, m, "c1", func() { h.comesToPass(t, sock, names.Addr, true) })
			h.Upgrade(t)
			h.comesToPass(t, sock, names.Addr, true)
			h.testOwnOut(t, m, c2)
			h.Must(t, "publish", "rm", "53/udp")
			h.comesToPass(t, sock, names.Addr, false)
			_ = sock.Close()

			// A segment that belongs to nothing.
			filtered := h.drops(t, "filtered")
			f := h.arriving(t, 0, testutil.Frame{Src: h.Outside.Addr, Dst: c1.Addr, TCP: &testutil.TCP{SrcPort: 4000, DstPort: 81, ACK: true}})
			if err := h.Outside.Inject("eth0", f.Bytes(t)); err != nil {
				t.Fatal(err)
			}
			h.waitDrops(t, "filtered", filtered, 1)

			second := h.otherNetwork(t)
			h.notLetIn(t, second, web.Addr, "from another network")

			// A port of the host that leads to another container is not open at this one.
			h.Must(t, "publish", "add", "54:54/udp", "other1")
			closed := h.ServeUDP(t, c1, on(c1.Addr, 54))
			for name, from := range map[string]*lab.Namespace{"uplink": h.Outside, "another device": far} {
				ctx, cancel := context.WithTimeout(h.Ctx, time.Second)
				if err := from.EchoUDP(ctx, netip.AddrPort{}, closed.Addr, strings.Repeat("x", 4000)); err == nil {
					t.Errorf("%s: a port that another container has published", name)
				}
				cancel()
			}
			h.Must(t, "down", "--all")
			h.assertAsBefore(t, before)
		})
	}
}

// testOwnOut: what a container begins works, with its own address.
func (h *e2e) testOwnOut(t *testing.T, m harness.Mode, c *lab.Namespace) {
	t.Helper()
	for _, out := range h.Outsides {
		tcp, udp := h.ServeTCP(t, out, on(out.Addr, 0)), h.ServeUDP(t, out, on(out.Addr, 0))
		if err := c.EchoTCP(h.Ctx, netip.AddrPort{}, tcp.Addr, "tcp"); err != nil {
			t.Errorf("TCP to %v: %v", out.Addr, err)
		}
		if err := c.EchoUDP(h.Ctx, netip.AddrPort{}, udp.Addr, strings.Repeat("x", 4000)); err != nil {
			t.Errorf("UDP in fragments to %v: %v", out.Addr, err)
		}
		assertPeers(t, tcp, c.Addr)
		assertPeers(t, udp, c.Addr)
		h.mustPing(t, c, out.Addr, lab.PingOptions{Count: 1, Size: 4000})
		if peer, err := exchangeRaw(c, out, 253, []byte("question"), []byte("answer")); err != nil || peer != c.Addr {
			t.Errorf("another protocol: from %v: %v", peer, err)
		}
		for _, reverse := range []bool{false, true} {
			if err := lab.Bulk(h.Ctx, c, out, out.Addr, 4<<20, reverse); err != nil {
				t.Errorf("bulk with %v: %v", out.Addr, err)
			}
		}
		tcp.Close()
		udp.Close()
	}
	udp := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 0))
	h.udpBecomesFast(t, m, c, udp)
	if n, err := h.Host.RuleCounter(h.Ctx, "invalid"); err != nil || n != 0 {
		t.Errorf("%d packets were INVALID (%v), want none", n, err)
	}
}
