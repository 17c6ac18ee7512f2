package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// loAddr is an address of the host that only lo has.
var loAddr = netip.MustParseAddr("198.51.100.77")

// wayOut is how the host's routes lead from a container to a server.
type wayOut struct {
	name   string
	lead   []string // commands on the host
	server *lab.Namespace
	addr   netip.Addr // the server's; the zero one: server.Addr
	as     netip.Addr // whom the server sees
	device string     // by which it leaves
	back   []string   // commands that undo lead
}

// waysOut are the ways of a lab with two cards, the tunnel tun0 and another bridge, docker0.
func (h *e2e) waysOut(t *testing.T, tun *lab.Tunnel) []wayOut {
	t.Helper()
	near, far, peer := h.Outsides[0], h.Outsides[1], tun.Outside.Addr.String()
	both := h.Servers()[1] // beyond both cards
	via := func(i int) string { return "via " + h.OutsideAddr(i).String() }
	// The two outsides know each other, and the second leads to the host's first address.
	if err := lab.Veth(near, "mid", far, "mid", 1500); err != nil {
		t.Fatal(err)
	}
	for n, a := range map[*lab.Namespace]string{near: "192.0.2.65/30", far: "192.0.2.66/30"} {
		if err := n.AddAddr("mid", netip.MustParsePrefix(a)); err != nil {
			t.Fatal(err)
		}
	}
	outside := func(n *lab.Namespace, commands ...string) {
		t.Helper()
		for _, c := range commands {
			if _, err := n.Run(h.Ctx, strings.Fields(c)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	outside(far, "ip addr add "+both.String()+"/32 dev lo", "sysctl -qw net.ipv4.ip_forward=1",
		"ip route add "+loAddr.String()+"/32 dev eth0", "ip route add "+h.HostAddr(0).String()+"/32 dev eth0")
	for _, d := range []string{"all", "default", "eth0", "eth1", "tun0"} {
		if err := h.Host.SetSysctl("net.ipv4.conf."+d+".rp_filter", "0"); err != nil {
			t.Fatal(err)
		}
	}
	detour := "ip route add " + h.HostAddr(0).String() + "/32 via 192.0.2.66"
	defaults := "ip route replace default " + via(0)
	return []wayOut{
		{name: "default route", server: near, as: h.HostAddr(0), device: "eth0"},
		{name: "second card", server: far, as: h.HostAddr(1), device: "eth1"},
		{name: "another bridge of the host", server: h.Neighbour, as: netip.MustParseAddr("172.17.0.1"), device: "docker0"},
		{name: "split tunnel", server: tun.Outside, as: tun.HostAddr(), device: "tun0",
			back: []string{"ip route del " + peer + " dev tun0"}},
		{name: "two halves, as openvpn", server: tun.Outside, as: tun.HostAddr(), device: "tun0",
			lead: []string{"ip route add 0.0.0.0/1 dev tun0", "ip route add 128.0.0.0/1 dev tun0"},
			back: []string{"ip route del 0.0.0.0/1 dev tun0", "ip route del 128.0.0.0/1 dev tun0"}},
		{name: "a rule, as wg-quick", server: tun.Outside, as: tun.HostAddr(), device: "tun0", lead: wgQuick,
			back: []string{"ip rule del table main", "ip rule del table 51820", "ip route flush table 51820"}},
		{name: "the default route moves to a tunnel", server: tun.Outside, as: tun.HostAddr(), device: "tun0",
			lead: []string{"ip route replace default dev tun0"}, back: []string{defaults}},
		{name: "failover by metric", server: far, addr: both, as: h.HostAddr(1), device: "eth1",
			lead: []string{"ip route add default " + via(1) + " metric 200", "ip link set eth0 down"},
			back: []string{"ip link set eth0 up", defaults, "ip route del default " + via(1) + " metric 200"}},
		{name: "answers come in by another card", server: near, as: h.HostAddr(0), device: "eth0",
			lead: []string{"nsenter --net=" + near.Path() + " " + detour},
			back: []string{"nsenter --net=" + near.Path() + " " + strings.Replace(detour, "add", "del", 1)}},
		{name: "a card without an address", server: far, as: h.HostAddr(0), device: "eth1",
			lead: []string{"ip addr flush dev eth1", "ip route replace " + far.Addr.String() + "/32 dev eth1"}},
		{name: "an address of lo", server: far, as: loAddr, device: "eth1",
			lead: []string{"ip addr add " + loAddr.String() + "/32 dev lo"}},
	}
}

// TestE2EWaysOut: a container gets outside by whatever device the host's routes lead to,
// as behind a kernel bridge with masquerade, with the address that the host has there. No
// command and no process has to notice. With `serve`, the device soon is an uplink, and
// has the fast path.
func TestE2EWaysOut(t *testing.T) {
	t.Parallel()
	modes := append(e2eModes(), harness.Mode{Name: "serve"})
	for _, m := range modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			h := newE2E(t, m, lab.Options{Containers: 1, Uplinks: 2, Neighbour: true, Private: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16")}})
			c1 := h.Containers[0]
			if !m.Plain {
				h.Must(t, append([]string{"up"}, m.Up...)...)
				h.Attach(t, c1, "c1")
			}
			if m.Name == "serve" {
				h.serve(t)
			}
			if err := h.Watch("docker0-1", h.Neighbour, "eth0"); err != nil {
				t.Fatal(err)
			}
			tun, err := h.AddTunnel("tun0")
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range h.waysOut(t, tun) {
				h.onHost(t, w.lead...)
				if m.Name == "serve" {
					h.eventually(t, w.name+": an uplink", func() error { return h.isUplink(t, w.device) })
				}
				h.assertWayOut(t, w, uint16(1000+i))
				if t.Failed() {
					t.Fatalf("%s: stopping here, since the next ways build on it", w.name)
				}
				h.onHost(t, w.back...)
			}
		})
	}
}

// isUplink is an error unless the device is an uplink.
func (h *e2e) isUplink(t *testing.T, device string) error {
	t.Helper()
	var v ctl.StatusView
	h.JSON(t, &v, "status")
	if !slices.ContainsFunc(v.Uplinks, func(u ctl.UplinkView) bool { return u.Device == device }) {
		return fmt.Errorf("uplinks are %v", v.Uplinks)
	}
	return nil
}

// assertWayOut sends everything by a way: echo requests, whole and in fragments, UDP, and
// TCP both ways. port is the server's.
func (h *e2e) assertWayOut(t *testing.T, w wayOut, port uint16) {
	t.Helper()
	c1, to := h.Containers[0], w.addr
	if !to.IsValid() {
		to = w.server.Addr
	}
	tcp, udp := h.ServeTCP(t, w.server, on(to, port)), h.ServeUDP(t, w.server, on(to, port))
	defer tcp.Close()
	defer udp.Close()
	// What the host knew of its neighbours has gone with the old way.
	h.eventually(t, w.name, func() error {
		ctx, cancel := context.WithTimeout(h.Ctx, time.Second)
		defer cancel()
		return c1.EchoUDP(ctx, netip.AddrPort{}, udp.Addr, "x")
	})
	h.mustPing(t, c1, to, lab.PingOptions{})
	h.mustPing(t, c1, to, lab.PingOptions{Size: 4000})
	if err := h.reaches(c1, tcp.Addr, passTime); err != nil {
		t.Errorf("%s: TCP: %v", w.name, err)
	}
	for _, reverse := range []bool{false, true} {
		if err := lab.Bulk(h.Ctx, c1, w.server, to, 4<<20, reverse); err != nil {
			t.Errorf("%s: TCP, reverse %v: %v", w.name, reverse, err)
		}
	}
	assertPeers(t, tcp, w.as)
	assertPeers(t, udp, w.as)
	if h.Mode.Name != "serve" {
		return
	}
	sock, err := c1.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	h.becomesFast(t, harness.Mode{Name: "fast"}, "c1", func() { h.comesToPass(t, sock, udp.Addr, true) })
}

// TestE2EUplinksComeAndGo: each command takes up the devices that lead outside, and gives
// one up when it is gone or has become a port of another. Published ports answer on all of
// them. The host becomes no router by that, and `down` leaves all as it was.
func TestE2EUplinksComeAndGo(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1, Uplinks: 2})
	h.setForward(t, "0")
	near, far := h.Outsides[0], h.Outsides[1]
	_, farther := h.routesThrough(t)
	before := h.snapshot(t)
	h.Must(t, "up")
	c1 := h.Containers[0]
	h.Attach(t, c1, "c1")
	want := func(when string, devices ...string) {
		t.Helper()
		var v ctl.StatusView
		h.JSON(t, &v, "status")
		got := []string{}
		for _, u := range v.Uplinks {
			got = append(got, u.Device)
		}
		if !slices.Equal(got, devices) {
			t.Errorf("%s: uplinks %v, want %v", when, got, devices)
		}
		if len(v.Notes) > 0 {
			t.Errorf("%s: status notes %q", when, v.Notes)
		}
	}
	changed := func(when string, commands []string, devices ...string) {
		t.Helper()
		h.onHost(t, commands...)
		h.Must(t, "flows", "flush")
		want(when, devices...)
	}
	want("up", "eth0", "eth1")
	h.mustPing(t, c1, near.Addr, lab.PingOptions{})
	h.mustPing(t, c1, far.Addr, lab.PingOptions{})
	h.noPing(t, near, farther)

	h.ServeTCP(t, c1, on(c1.Addr, 80))
	h.Must(t, "publish", "add", "8080:80", "c1")
	for i, client := range []*lab.Namespace{near, far} {
		if err := h.reaches(client, on(h.HostAddr(i), 8080), passTime); err != nil {
			t.Errorf("published, from outside %d: %v", i, err)
		}
	}
	changed("the default route moves", []string{"ip route replace default via " + h.OutsideAddr(1).String()}, "eth0", "eth1")
	if err := h.reaches(near, on(h.HostAddr(0), 8080), passTime); err != nil {
		t.Errorf("published, where the default route has gone: %v", err)
	}
	h.onHost(t, "ip route replace default via "+h.OutsideAddr(0).String())
	changed("a bridge, and another that leads nowhere", []string{"ip link add other0 type bridge", "ip addr add 198.18.9.1/24 dev other0",
		"ip link set other0 up", "ip link add later0 type bridge", "ip link set later0 up"}, "eth0", "eth1", "other0")
	changed("a card becomes a port", []string{"ip link set eth1 master other0"}, "eth0", "other0")
	changed("a card is none any more", []string{"ip link set eth1 nomaster"}, "eth0", "eth1", "other0")
	h.Must(t, "up", "--uplink", "eth0")
	want("named", "eth0")
	h.noPing(t, c1, far.Addr)
	h.Must(t, "up", "--uplink", "auto")
	want("auto again", "eth0", "eth1", "other0")
	h.mustPing(t, c1, far.Addr, lab.PingOptions{})
	changed("a bridge is gone", []string{"ip link del other0"}, "eth0", "eth1")

	h.onHost(t, "ip link del later0")
	h.Must(t, "publish", "rm", "8080")
	h.Must(t, "detach", "c1")
	h.Must(t, "down", "--all")
	h.assertAsBefore(t, before)
	if got := h.forwarding(t, "all") + h.forwarding(t, "default") + h.forwarding(t, "eth0") + h.forwarding(t, "eth1"); got != "0000" {
		t.Errorf("forwarding of all, default, eth0, eth1 after down: %s", got)
	}
}
