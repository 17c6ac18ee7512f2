package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2ENAT6: containers of a network with IPv6 get outside with the host's address, fast
// and slow, by every protocol and by devices that are no uplinks. Errors come back. Nothing
// leaves with a container's address, nobody outside reaches one, and `down` leaves nothing.
func TestE2ENAT6(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := newE2E(t, m, lab.Options{Containers: 1, Uplinks: 2, IPv6: lab.Static})
		before := h.snapshot(t)
		h.Must(t, append([]string{"up", "--ipv6"}, m.Up...)...)
		c1 := h.Containers[0]
		h.Attach(t, c1, "c1")
		for i, out := range h.Outsides {
			h.assertTranslated6(t, c1, out, h.HostAddr6(i))
		}
		h.testShare6(t, m, c1)
		h.testErrors6(t, c1)
		h.testMTUHole6(t, c1)
		if drops := h.allDrops(t); len(drops) > 0 {
			t.Errorf("drops %v", drops)
		}
		if _, err := h.Outside.Run(h.Ctx, "ip", "-6", "route", "add", "fd00::/8", "via", h.HostAddr6(0).String()); err != nil {
			t.Fatal(err)
		}
		direct := h.drops(t, "direct")
		h.noPing(t, h.Outside, c1.Addr6)
		h.waitDrops(t, "direct", direct, 1)
		h.Must(t, "down", "--all")
		h.assertAsBefore(t, before)
	})
}

// assertTranslated6: what a container sends to a server by IPv6 is answered, and has left
// with an address of the host.
func (h *e2e) assertTranslated6(t *testing.T, c, server *lab.Namespace, as netip.Addr) {
	t.Helper()
	tcp, udp := h.ServeTCP(t, server, on(server.Addr6, 0)), h.ServeUDP(t, server, on(server.Addr6, 0))
	defer tcp.Close()
	defer udp.Close()
	if err := h.reaches(c, tcp.Addr, passTime); err != nil {
		t.Errorf("TCP to %v: %v", server.Addr6, err)
	}
	if err := c.EchoUDP(h.Ctx, netip.AddrPort{}, udp.Addr, "datagram"); err != nil {
		t.Errorf("UDP to %v: %v", server.Addr6, err)
	}
	h.mustPing(t, c, server.Addr6, lab.PingOptions{Count: 1, Size: 1400})
	assertPeers(t, tcp, as)
	assertPeers(t, udp, as)
	if peer, err := exchangeRawAt(c, server, server.Addr6, 253, []byte("question"), []byte("answer")); err != nil || peer != as {
		t.Errorf("another protocol to %v: from %v: %v", server.Addr6, peer, err)
	}
}

// testShare6 checks which path connections and datagrams take.
func (h *e2e) testShare6(t *testing.T, m harness.Mode, c *lab.Namespace) {
	t.Helper()
	was := h.ports(t)["c1"]
	for _, reverse := range []bool{false, true} {
		if err := lab.Bulk(h.Ctx, c, h.Outside, h.Outside.Addr6, 128<<20, reverse); err != nil {
			t.Errorf("bulk, reverse %v: %v", reverse, err)
		}
	}
	now := h.ports(t)["c1"]
	fast, slow := now.FastPackets-was.FastPackets, now.SlowPackets-was.SlowPackets
	if share := float64(fast) / float64(fast+slow); m.Name == "fast" && share < 0.999 {
		t.Errorf("fast share %.5f (%d fast, %d slow), want 0.999", share, fast, slow)
	}
	if m.Name == "slow" && fast > 0 {
		t.Errorf("%d packets took the fast path that is switched off", fast)
	}
	udp := h.ServeUDP(t, h.Outside, on(h.Outside.Addr6, 0))
	defer udp.Close()
	sock, err := c.ListenUDP(on(netip.IPv6Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	h.becomesFast(t, m, "c1", func() { h.comesToPass(t, sock, udp.Addr, true) })
	assertPeers(t, udp, h.HostAddr6(0))
}

// testErrors6: a container learns that a port is closed, and that a packet has had its hops.
func (h *e2e) testErrors6(t *testing.T, c *lab.Namespace) {
	t.Helper()
	conn, err := c.DialUDP(netip.AddrPort{}, on(h.Outside.Addr6, 9))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = lab.Poll(h.Ctx, func() (bool, error) {
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, err := conn.Write([]byte("anybody"))
		if err == nil {
			_, err = conn.Read(make([]byte, 10))
		}
		return errors.Is(err, syscall.ECONNREFUSED), nil
	})
	if err != nil {
		t.Errorf("a closed port is not refused: %v", err)
	}
	beyond := h.Servers6()[0]
	r, err := c.Ping(h.Ctx, beyond, lab.PingOptions{Count: 1, TTL: 1, Wait: pingPatience})
	if err != nil || len(r.Errors) != 1 {
		t.Errorf("hop limit 1: %+v, %v", r, err)
	}
}

// testMTUHole6: a router beyond the uplink takes less than containers send. They hear of it.
func (h *e2e) testMTUHole6(t *testing.T, c *lab.Namespace) {
	t.Helper()
	hole := h.Servers6()[0]
	h.onHost(t, fmt.Sprintf("ip -6 route add %s via %s mtu 1300", hole, h.OutsideAddr6(0)))
	s := h.ServeTCP(t, h.Outside, on(hole, 0))
	defer s.Close()
	if err := lab.EchoBulk(h.Ctx, c, s.Addr, 4<<20); err != nil {
		t.Errorf("through a hole of 1300 bytes: %v", err)
	}
	out, err := c.Run(h.Ctx, "ip", "-6", "route", "get", hole.String())
	if err != nil || !strings.Contains(out, "mtu 1300") {
		t.Errorf("the container knows %q of the route (%v), want mtu 1300", out, err)
	}
	h.onHost(t, fmt.Sprintf("ip -6 route del %s", hole))
}

// TestE2ENAT6Renumbered: on a host with advertised addresses, a flow of a container lives as
// long as its external address is the host's: while another makes the host a router and takes
// it back, while the prefix is renumbered, and while temporary addresses rotate. New flows
// have the address that the kernel prefers. `down` leaves all as it was.
func TestE2ENAT6Renumbered(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 1, IPv6: lab.Automatic})
	before := h.snapshot(t)
	h.Must(t, "up", "--ipv6")
	c1 := h.Containers[0]
	h.Attach(t, c1, "c1")
	first := h.HostAddr6(0)
	s := h.ServeTCP(t, h.Outside, on(h.Outside.Addr6, 7))
	old := h.begun6(t, c1, s)
	assertPeers(t, s, first)
	lives := func(when string) {
		t.Helper()
		if err := lab.Echo(h.Ctx, old, "still there"); err != nil {
			t.Errorf("%s: the flow: %v", when, err)
		}
	}
	for _, v := range []string{"1", "1", "0"} {
		h.sysctl6(t, "all.forwarding", v)
		lives("all.forwarding=" + v)
	}
	if out := h.Must(t, "check"); !strings.Contains(out, "net.ipv6.conf.fastbr0.forwarding is 0") {
		t.Errorf("check does not tell of the bridge: %s", out)
	}
	h.Must(t, "up")

	// as is the source address of a new flow.
	as := func(when string, prefix string) netip.Addr {
		t.Helper()
		peers := s.Peers()
		_ = h.begun6(t, c1, s)
		for p := range s.Peers() {
			if _, known := peers[p]; !known && netip.MustParsePrefix(prefix).Contains(p.Addr()) {
				return p.Addr()
			}
		}
		t.Errorf("%s: a new flow has none of %s: %v", when, prefix, s.Peers())
		return first
	}
	as("a router no more", "2001:db8:1::/64")
	for _, prefix := range []string{"2001:db8:9::/64", "2001:db8:a::/64"} {
		if _, err := h.Outside.Run(h.Ctx, "ip", "-6", "route", "add", prefix, "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	a := lab.FirstAdvertisement(0)
	a.Prefixes[0].Preferred = 0
	a.Prefixes = append(a.Prefixes, lab.AdvertisedPrefix{Prefix: netip.MustParsePrefix("2001:db8:9::/64"), Valid: time.Hour, Preferred: time.Hour})
	h.advertised(t, a, "2001:db8:9:")
	lives("renumbered")
	settled := as("renumbered", "2001:db8:9::/64")
	h.sysctl6(t, "eth0.use_tempaddr", "2")
	a.Prefixes[1].Preferred = 0
	a.Prefixes = append(a.Prefixes, lab.AdvertisedPrefix{Prefix: netip.MustParsePrefix("2001:db8:a::/64"), Valid: 2 * time.Hour, Preferred: 2 * time.Hour})
	h.advertised(t, a, "temporary")
	lives("temporary addresses")
	temporary := as("temporary addresses", "2001:db8:a::/64")
	if made, err := lab.SLAAC(h.Host, "eth0", netip.MustParsePrefix("2001:db8:a::/64")); err != nil || temporary == made || settled == temporary {
		t.Errorf("a new flow leaves as %v, not with a temporary address (%v)", temporary, err)
	}
	conn := h.begun6(t, c1, s)
	h.onHost(t, fmt.Sprintf("ip -6 addr del %s/64 dev eth0", first))
	if err := lab.Echo(h.Ctx, conn, "the other one"); err != nil {
		t.Errorf("a flow with another address than the one that has gone: %v", err)
	}
	h.Must(t, "up")
	if out := h.Must(t, "status"); strings.Contains(out, first.String()) {
		t.Errorf("status still names the address that has gone: %s", out)
	}
	h.sysctl6(t, "eth0.use_tempaddr", "0")
	h.Must(t, "detach", "c1")
	h.Must(t, "down", "--all")
	for key, want := range map[string]string{"eth0.accept_ra": "1", "eth0.forwarding": "0", "default.forwarding": "0", "eth0.force_forwarding": "0", "default.force_forwarding": "0"} {
		if now, err := h.Host.Sysctl("net.ipv6.conf." + key); err == nil && now != want {
			t.Errorf("%s is %s after down, want %s", key, now, want)
		}
	}
	if got := h.snapshot(t)["nft list ruleset in host"]; got != before["nft list ruleset in host"] {
		t.Errorf("left of the rules: %s", got)
	}
	if out, err := h.Host.Run(h.Ctx, "ip", "-6", "route", "show", "default", "proto", "ra"); err != nil || out == "" {
		t.Errorf("the advertised default route has gone (%v)", err)
	}
}

// begun6 is a connection of a container that has carried something.
func (h *e2e) begun6(t *testing.T, c *lab.Namespace, s *lab.Server) net.Conn {
	t.Helper()
	conn, err := c.DialTCP(h.Ctx, netip.AddrPort{}, s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := lab.Echo(h.Ctx, conn, "first"); err != nil {
		t.Fatal(err)
	}
	return conn
}

// advertised sends a router advertisement, and waits until `ip addr` of the host's eth0 says
// what it brings, and nothing is tentative.
func (h *e2e) advertised(t *testing.T, a lab.Advertisement, brings string) {
	t.Helper()
	if err := lab.Advertise(h.Ctx, h.Outside, "eth0", a); err != nil {
		t.Fatal(err)
	}
	h.eventually(t, brings, func() error {
		out, err := h.Host.Run(h.Ctx, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "global")
		if err == nil && (!strings.Contains(out, brings) || strings.Contains(out, "tentative")) {
			err = errors.New(out)
		}
		return err
	})
}

// TestE2ENAT6OtherDevices: on a host that is no router, containers get outside by IPv6 by
// devices that are no uplinks, too, and those of a routed network by a side uplink. The host
// forwards for nobody else, and what it sends itself by a tunnel passes. `down` closes all.
func TestE2ENAT6OtherDevices(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast", Leaky: true}, lab.Options{Containers: 2, Uplinks: 2, IPv6: lab.Static})
	if _, err := h.Host.Run(h.Ctx, "cat", "/proc/sys/net/ipv6/conf/default/force_forwarding"); err != nil {
		t.Skip("before Linux 6.17 a network with IPv6 makes the host a router")
	}
	h.Must(t, "up", "--ipv6")
	h.Must(t, "up", "routed", "--subnet", "2001:db8:c::/64", "--masquerade6=false")
	c1, c2, near, far := h.Containers[0], h.Containers[1], h.Outsides[0], h.Outsides[1]
	h.Attach(t, c1, "c1")
	h.Attach(t, c2, "c2", "--network", "routed")
	tun, err := h.AddTunnel("tun0")
	if err != nil {
		t.Fatal(err)
	}
	h.assertTranslated6(t, c1, tun.Outside, tun.HostAddr6())
	for i, out := range h.Outsides {
		for _, route := range []string{"2001:db8:c::/64", h.Outsides[1-i].Addr6.String() + "/128"} {
			if _, err := out.Run(h.Ctx, "ip", "-6", "route", "replace", route, "via", h.HostAddr6(i).String()); err != nil {
				t.Fatal(err)
			}
		}
		h.mustPing(t, c2, out.Addr6, lab.PingOptions{})
	}
	h.noPing(t, near, far.Addr6)
	h.noPing(t, far, near.Addr6)

	// A tunnel over eth0: what it wraps is the host's.
	h.onHost(t, fmt.Sprintf("ip link add tnl0 type vxlan id 7 dstport 4789 local %s remote %s dev eth0", h.HostAddr6(0), h.OutsideAddr6(0)),
		"ip link set tnl0 up", "ip -6 addr add 2001:db8:7::1/64 dev tnl0 nodad")
	for _, command := range []string{fmt.Sprintf("ip link add tnl0 type vxlan id 7 dstport 4789 local %s remote %s dev eth0", h.OutsideAddr6(0), h.HostAddr6(0)),
		"ip link set tnl0 up", "ip -6 addr add 2001:db8:7::2/64 dev tnl0 nodad"} {
		if _, err := near.Run(h.Ctx, strings.Fields(command)...); err != nil {
			t.Fatal(err)
		}
	}
	end := netip.MustParseAddr("2001:db8:7::2")
	h.mustPing(t, h.Host, end, lab.PingOptions{})
	h.mustPing(t, c1, end, lab.PingOptions{})
	h.Must(t, "up")
	h.mustPing(t, h.Host, end, lab.PingOptions{})
	h.mustPing(t, c1, end, lab.PingOptions{})
	h.noPing(t, near, far.Addr6)

	h.Must(t, "down", "--all")
	if out, err := h.Host.Run(h.Ctx, "sh", "-c", "cat /proc/sys/net/ipv6/conf/*/force_forwarding"); err != nil || strings.Contains(out, "1") {
		t.Errorf("devices are open after down: %q, %v", out, err)
	}
}

// TestE2ENAT6Options: what a network says of its source address, of destinations without
// translation, of published ports and of its only way out holds for IPv6 as for IPv4.
func TestE2ENAT6Options(t *testing.T) {
	t.Parallel()
	for _, m := range []harness.Mode{{Name: "fast", Leaky: true}, {Name: "slow", Leaky: true, Up: []string{"--lease", "0"}}} {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			h := newE2E(t, m, lab.Options{Containers: 3, Uplinks: 2, IPv6: lab.Static})
			near, far, mail := h.Outsides[0], h.Outsides[1], netip.MustParseAddr("2001:db8:1::25")
			for _, args := range []string{"--ipv6 --snat-address 2001:db8:1::25", "--ipv6 --snat-address fe80::1", "--snat-address 2001:db8:1::1",
				"--no-masquerade 2001:db8::/32", "--ipv6 --internal --no-masquerade 2001:db8::/32", "--ipv6 --published-only",
				"--subnet 2001:db8:c::/64 --masquerade6=false --snat-address 2001:db8:1::1",
				"--subnet 2001:db8:d::/64 --masquerade6=false --nd-proxy", "--subnet 2001:db8:1::/112 --masquerade6=false --nd-proxy"} {
				if r := h.Fastbr(t, append([]string{"up"}, strings.Fields(args)...)...); r.Code == 0 || strings.Count(r.Stderr, "\n") != 1 {
					t.Errorf("up %s: exit %d, %q", args, r.Code, r.Stderr)
				}
			}
			h.onHost(t, "ip -6 addr add "+mail.String()+"/128 dev eth0 nodad",
				fmt.Sprintf("ip -6 route add default via %s dev eth1 table 100", h.OutsideAddr6(1)))
			for i, out := range h.Outsides {
				for _, subnet := range []string{"fd00::/8", "2001:db8:c::/64"} {
					if _, err := out.Run(h.Ctx, "ip", "-6", "route", "add", subnet, "via", h.HostAddr6(i).String()); err != nil {
						t.Fatal(err)
					}
				}
			}
			before := h.snapshot(t)
			h.Must(t, append([]string{"up", "--ipv6", "--snat-address", mail.String(), "--no-masquerade", far.Addr6.String() + "/128,2001:db8:2::/64"}, m.Up...)...)
			h.Must(t, "up", "pub", "--subnet", "2001:db8:c::/64", "--masquerade6=false", "--published-only")
			h.Must(t, "up", "vpn", "--ipv6", "--via", "eth1")
			c1, c2, c3 := h.Containers[0], h.Containers[1], h.Containers[2]
			h.Attach(t, c1, "c1")
			h.Attach(t, c2, "c2", "--network", "pub")
			h.Attach(t, c3, "c3", "--network", "vpn")

			h.assertTranslated6(t, c1, near, mail)
			h.assertTranslated6(t, c1, far, c1.Addr6)
			h.mustPing(t, far, c1.Addr6, lab.PingOptions{Count: 1})
			h.noPing(t, near, c1.Addr6)

			for _, out := range h.Outsides {
				h.assertTranslated6(t, c2, out, c2.Addr6)
				h.mustPing(t, out, c2.Addr6, lab.PingOptions{Count: 1})
			}
			web := h.ServeTCP(t, c2, on(c2.Addr6, 80))
			h.notLetIn(t, near, web.Addr, "a port that is not published")

			h.assertTranslated6(t, c3, far, h.HostAddr6(1))
			h.noPing(t, c3, near.Addr6)

			udp := h.ServeUDP(t, near, on(near.Addr6, 7))
			sock, err := c1.ListenUDP(on(netip.IPv6Unspecified(), 0))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sock.Close() }()
			h.comesToPass(t, sock, udp.Addr, true)
			h.onHost(t, "ip -6 addr del "+mail.String()+"/128 dev eth0")
			h.comesToPass(t, sock, udp.Addr, false)
			missing := h.drops(t, "no_uplink")
			h.noPing(t, c1, near.Addr6)
			h.waitDrops(t, "no_uplink", missing, 1)
			if notes := h.notes(t); !strings.Contains(notes, mail.String()) {
				t.Errorf("status does not say so: %q", notes)
			}
			h.onHost(t, "ip -6 addr add "+mail.String()+"/128 dev eth0 nodad")
			h.assertTranslated6(t, c1, near, mail)
			h.Must(t, "down", "--all")
			h.assertAsBefore(t, before)
		})
	}
}

// TestE2ENAT6OlderKernel: before Linux 6.17 the host is an IPv6 router while a network has
// IPv6. It keeps its advertised route, and is no router after `down`.
func TestE2ENAT6OlderKernel(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 1, IPv6: lab.Automatic})
	h.Env = []string{"FASTBR_PROBE_MISSING=force_forwarding"}
	sysctls := func(when string, want map[string]string) {
		t.Helper()
		for key, v := range want {
			if now, err := h.Host.Sysctl("net.ipv6.conf." + key); err != nil || now != v {
				t.Errorf("%s: %s is %s (%v), want %s", when, key, now, err, v)
			}
		}
		if out, err := h.Host.Run(h.Ctx, "ip", "-6", "route", "show", "default", "proto", "ra"); err != nil || out == "" {
			t.Errorf("%s: the advertised default route has gone (%v)", when, err)
		}
	}
	h.Must(t, "up", "--ipv6")
	h.Attach(t, h.Containers[0], "c1")
	sysctls("up", map[string]string{"all.forwarding": "1", "fastbr0.forwarding": "1", "eth0.accept_ra": "2"})
	h.assertTranslated6(t, h.Containers[0], h.Outside, h.HostAddr6(0))
	if out := h.Must(t, "check"); !strings.Contains(out, "until the last 'fastbr down'") {
		t.Errorf("check does not say why the host is a router: %s", out)
	}
	h.Must(t, "detach", "c1")
	h.Must(t, "down", "--all")
	sysctls("down", map[string]string{"all.forwarding": "0", "default.forwarding": "0", "eth0.forwarding": "0", "eth0.accept_ra": "1"})
}
