package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// vip is an address of the host that is on no device by which packets come.
var vip = netip.MustParseAddr("192.0.2.99")

// addVIP gives the host vip on lo, and the outside a route to it.
func (h *e2e) addVIP(t *testing.T) {
	t.Helper()
	p := netip.PrefixFrom(vip, 32)
	if err := errors.Join(h.Host.AddAddr("lo", p), h.Outside.AddRoute(p, h.HostAddr(0))); err != nil {
		t.Fatal(err)
	}
}

// TestE2ESpoofedPacketsTakeNoPort sends packets from one remote address and port to
// every port of the NAT range, as anybody outside can. Connection tracking then has an
// entry for each datagram. The containers must still reach that remote.
func TestE2ESpoofedPacketsTakeNoPort(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 1}, "--nat-range", "10000-10031")
		if err := h.Host.NFT(h.Ctx, `table ip track { chain in { type filter hook input priority 0; ct state invalid counter; }; }`); err != nil {
			t.Fatal(err)
		}
		udp, tcp := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 53)), h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 443))
		defer udp.Close()
		defer tcp.Close()
		var frames [][]byte
		for p := uint16(10000); p <= 10031; p++ {
			to := testutil.Frame{Src: h.Outside.Addr, Dst: h.HostAddr(0)}
			frames = append(frames,
				h.arriving(t, 0, to.With(func(f *testutil.Frame) { f.UDP = &testutil.UDP{SrcPort: 53, DstPort: p} })).Bytes(t),
				h.arriving(t, 0, to.With(func(f *testutil.Frame) { f.TCP = &testutil.TCP{SrcPort: 443, DstPort: p, SYN: true} })).Bytes(t))
		}
		if err := h.Outside.Inject("eth0", frames...); err != nil {
			t.Fatal(err)
		}
		known := 0
		ctx, cancel := context.WithTimeout(h.Ctx, 20*time.Second)
		defer cancel()
		err := lab.Poll(ctx, func() (bool, error) {
			n, err := h.Host.Sysctl("net.netfilter.nf_conntrack_count")
			if err != nil {
				return false, err
			}
			known, err = strconv.Atoi(n)
			return known >= len(frames)/2, err // a RST ends the entries of TCP
		})
		if err != nil {
			t.Fatalf("connection tracking knows %d of %d datagrams: %v", known, len(frames)/2, err)
		}
		for i := range 3 {
			if err := h.Containers[0].EchoUDP(h.Ctx, port(0), udp.Addr, fmt.Sprint("question ", i)); err != nil {
				t.Errorf("UDP: %v", err)
			}
			if err := h.Containers[0].EchoTCP(h.Ctx, netip.AddrPort{}, tcp.Addr, fmt.Sprint("question ", i)); err != nil {
				t.Errorf("TCP: %v", err)
			}
		}
		if n := h.drops(t, "nat_full"); n != 0 {
			t.Errorf("%d packets found no port", n)
		}
	})
}

// TestE2EServicesOfTheHostOnPortsOfTheRange: a container has a mapping on the port on
// which the host serves. The service is at addresses that are not the mapping's, or at
// the mapping's own once the service is there, or behind a rule of the admin. The other
// containers reach all of them.
func TestE2EServicesOfTheHostOnPortsOfTheRange(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 3})
		h.addVIP(t)
		c1, c2, c3 := h.Containers[0], h.Containers[1], h.Containers[2]
		out, far := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7)), h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
		defer out.Close()
		defer far.Close()
		const first = 15000
		// c1 has the ports, since its own source ports are in the range.
		for p := uint16(first); p < first+4; p++ {
			if err := c1.EchoUDP(h.Ctx, on(c1.Addr, p), out.Addr, "mine"); err != nil {
				t.Fatal(err)
			}
			conn, err := c1.DialTCP(h.Ctx, on(c1.Addr, p), far.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
		}
		try := func(what string, c *lab.Namespace, to netip.AddrPort) {
			t.Helper()
			ctx, cancel := context.WithTimeout(h.Ctx, 4*time.Second)
			defer cancel()
			for i := range 2 {
				if err := c.EchoTCP(ctx, netip.AddrPort{}, to, fmt.Sprint(what, i)); err != nil {
					t.Errorf("%s, TCP: %v", what, err)
				}
				if err := c.EchoUDP(ctx, port(0), to, fmt.Sprint(what, i)); err != nil {
					t.Errorf("%s, UDP: %v", what, err)
				}
			}
		}
		serve := func(n *lab.Namespace, at netip.AddrPort) {
			t.Helper()
			s, u := h.ServeTCP(t, n, at), h.ServeUDP(t, n, at)
			t.Cleanup(func() { s.Close(); u.Close() })
		}
		gateway := netip.MustParseAddr("172.30.0.1")
		serve(h.Host, on(gateway, first))
		try("at the gateway", c2, on(gateway, first))
		serve(h.Host, on(vip, first))
		try("at an address on lo", c2, on(vip, first))
		serve(h.Host, on(h.HostAddr(0), first+1))
		try("at the mapping's own address", c2, on(h.HostAddr(0), first+1))
		serve(c3, on(c3.Addr, 80))
		if err := h.Host.NFT(h.Ctx, fmt.Sprintf(`table ip admin {
			chain pre { type nat hook prerouting priority dstnat; ip daddr %s meta l4proto { tcp, udp } th dport %d dnat to %s:80; }
			chain post { type nat hook postrouting priority srcnat; ct status dnat ip saddr 172.30.0.0/16 ip daddr %s masquerade; }
		}`, h.HostAddr(0), first+2, c3.Addr, c3.Addr)); err != nil {
			t.Fatal(err)
		}
		try("by a rule of the admin's", c2, on(h.HostAddr(0), first+2))
		// A port that nobody has stays silent: c1 might send to c2 next.
		ctx, cancel := context.WithTimeout(h.Ctx, 2*time.Second)
		defer cancel()
		if _, err := c2.DialTCP(ctx, netip.AddrPort{}, on(h.HostAddr(0), first+3)); err == nil || errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a mapping that has not asked: %v, want silence", err)
		}
		h.assertBytesEqual(t)
	})
}

// TestE2EPublishedAtAnAddressElsewhere reaches a published port by an address of the
// host that is not on the device by which packets come.
func TestE2EPublishedAtAnAddressElsewhere(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 2})
		h.addVIP(t)
		web := h.Containers[0]
		tcp, udp := h.ServeTCP(t, web, on(web.Addr, 80)), h.ServeUDP(t, web, on(web.Addr, 53))
		defer tcp.Close()
		defer udp.Close()
		h.Must(t, "publish", "add", "8080:80", "c1")
		h.Must(t, "publish", "add", vip.String()+":5353:53/udp", "c1")
		for i := range 4 {
			if err := h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, on(vip, 8080), fmt.Sprint("hello ", i)); err != nil {
				t.Errorf("TCP: %v", err)
			}
			if err := h.Outside.EchoUDP(h.Ctx, port(44000), on(vip, 5353), fmt.Sprint("hello ", i)); err != nil {
				t.Errorf("UDP: %v", err)
			}
			if err := h.Containers[1].EchoTCP(h.Ctx, netip.AddrPort{}, on(vip, 8080), fmt.Sprint("hello ", i)); err != nil {
				t.Errorf("TCP from a container: %v", err)
			}
		}
		h.assertBytesEqual(t)
	})
}

// TestE2EPublishedAnswersByTheOtherUplink: clients' packets come by one uplink, while
// the host's route to the clients leads by the other. The answers must have the address
// that was asked.
func TestE2EPublishedAnswersByTheOtherUplink(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 1, Uplinks: 2}, "--uplink", "eth0", "--uplink", "eth1")
		web := h.Containers[0]
		tcp, udp := h.ServeTCP(t, web, on(web.Addr, 80)), h.ServeUDP(t, web, on(web.Addr, 53))
		defer tcp.Close()
		defer udp.Close()
		h.Must(t, "publish", "add", "8080:80", "c1")
		h.Must(t, "publish", "add", "5353:53/udp", "c1")
		client := h.Outsides[1].Addr // beyond eth1, as the host sees it
		sniff, err := h.Outsides[1].NewSniffer("eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer sniff.Close()
		ask := func(what string, i int, f testutil.Frame, sport uint16) {
			t.Helper()
			f.Src, f.Dst = client, h.HostAddr(0)
			if err := h.Outside.Inject("eth0", h.arriving(t, 0, f).Bytes(t)); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(h.Ctx, 3*time.Second)
			defer cancel()
			got, err := sniff.Next(ctx, func(b []byte) bool {
				return len(b) >= 38 && b[12] == 8 && b[13] == 0 && netip.AddrFrom4([4]byte(b[30:34])) == client &&
					uint16(b[34])<<8|uint16(b[35]) == sport
			})
			if err != nil {
				t.Errorf("%s %d: no answer: %v", what, i, err)
				return
			}
			if src := netip.AddrFrom4([4]byte(got[26:30])); src != h.HostAddr(0) {
				t.Errorf("%s %d: the answer comes from %s, %s was asked", what, i, src, h.HostAddr(0))
			}
		}
		for i := range 6 {
			ask("UDP", i, testutil.Frame{UDP: &testutil.UDP{SrcPort: 44000, DstPort: 5353}, Payload: []byte(fmt.Sprint("hello ", i))}, 5353)
			ask("TCP", i, testutil.Frame{TCP: &testutil.TCP{SrcPort: uint16(44000 + i), DstPort: 8080, SYN: true, Seq: 1}}, 8080)
		}
	})
}

// TestE2EPublishedPortOfTheRange publishes ports of the NAT range. One is free. A
// container's mapping has the other, and goes on with its remote. No mapping gets
// either port while it is published.
func TestE2EPublishedPortOfTheRange(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 2}, "--nat-range", "27000-27063")
		web, c2 := h.Containers[0], h.Containers[1]
		far := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
		defer far.Close()
		conn, err := c2.DialTCP(h.Ctx, on(c2.Addr, 27001), far.Addr) // it also has that port outside
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		tcp := h.ServeTCP(t, web, on(web.Addr, 80))
		defer tcp.Close()
		h.Must(t, "publish", "add", "27000-27003:80", "c1")
		h.Must(t, "publish", "rm", "27000-27003")
		h.Must(t, "publish", "add", "27000:80", "c1")
		h.Must(t, "publish", "add", "27001:80", "c1")
		reach := func(when string, p uint16) {
			t.Helper()
			ctx, cancel := context.WithTimeout(h.Ctx, 10*time.Second)
			defer cancel()
			for i := range 2 {
				if err := h.Outside.EchoTCP(ctx, netip.AddrPort{}, on(h.HostAddr(0), p), fmt.Sprint("hello ", i)); err != nil {
					t.Errorf("%s, port %d from outside: %v", when, p, err)
				}
				if err := c2.EchoTCP(ctx, netip.AddrPort{}, on(h.HostAddr(0), p), fmt.Sprint("hello ", i)); err != nil {
					t.Errorf("%s, port %d from a container: %v", when, p, err)
				}
			}
		}
		reach("published", 27000)
		reach("a mapping's", 27001)
		if err := lab.Echo(h.Ctx, conn, "still mine"); err != nil {
			t.Errorf("the mapping that had the port: %v", err)
		}
		// After a change of the range, what is published stays published, inside or
		// outside the range. The connection stays, too.
		h.Must(t, "up", "--nat-range", "27001-27040")
		reach("another range", 27000)
		reach("another range", 27001)
		if err := lab.Echo(h.Ctx, conn, "still mine"); err != nil {
			t.Errorf("the mapping of the old range: %v", err)
		}
		if v, err := h.Host.Sysctl("net.ipv4.ip_local_reserved_ports"); err != nil || v != "27000-27040" {
			t.Errorf("reserved are %q (%v), want 27000-27040", v, err)
		}
		before := map[string]bool{}
		for _, f := range h.Flows(t) {
			before[f.Proto+f.Src] = true
		}
		for i := range 6 {
			_ = c2.EchoTCP(h.Ctx, on(c2.Addr, 0), far.Addr, fmt.Sprint("new ", i))
		}
		for _, f := range h.Flows(t) {
			if p := netip.MustParseAddrPort(f.NAT).Port(); !before[f.Proto+f.Src] && (p < 27002 || p > 27040) {
				t.Errorf("a new flow has port %d, want one of 27002-27040", p)
			}
		}
		h.assertBytesEqual(t)
	})
}
