package e2e

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// viaE2E is a lab whose default network leaves by tun0 only. Another network does not. The
// default route is by eth0, beyond which secret is, too: the tap on eth0 must not see it.
type viaE2E struct {
	*e2e
	secret netip.Addr
	far    *lab.Namespace // beyond tun0
	as     netip.Addr     // the host's address on tun0
	c1     *lab.Namespace
	other  *lab.Namespace
	tap    *lab.Tap
}

func newVia(t *testing.T, m harness.Mode) *viaE2E {
	t.Helper()
	h := &viaE2E{e2e: newE2E(t, m, lab.Options{Containers: 1})}
	h.secret, h.c1 = h.Servers()[1], h.Containers[0]
	for _, args := range [][]string{
		{"up", "--via", "tun0", "--internal"}, {"up", "--via", "lo"}, {"up", "--via", "no such device"},
		{"up", "--via", "tun0", "--uplink", "eth0"},
	} {
		if r := h.Fastbr(t, args...); r.Code == 0 || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%v: exit %d, %q", args, r.Code, r.Stderr)
		}
	}
	var err error
	if h.tap, err = h.Host.NewTap("eth0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.tap.Close)
	return h
}

// tunnel makes tun0, with secret beyond it.
func (h *viaE2E) tunnel(t *testing.T, name string) {
	t.Helper()
	tun, err := h.AddTunnel(name)
	if err != nil {
		t.Fatal(err)
	}
	h.far, h.as = tun.Outside, tun.HostAddr()
	if err := h.far.AddAddr("lo", netip.PrefixFrom(h.secret, 32)); err != nil {
		t.Fatal(err)
	}
	if name != "tun0" {
		h.onHost(t, "ip link set "+name+" down", "ip link set "+name+" name tun0", "ip link set tun0 up")
	}
	h.far.SetAddr(h.secret)
}

// reach sends everything to secret, which must come by tun0 only.
func (h *viaE2E) reach(t *testing.T, when string) {
	t.Helper()
	tcp, udp := h.ServeTCP(t, h.far, on(h.secret, 0)), h.ServeUDP(t, h.far, on(h.secret, 0))
	defer tcp.Close()
	defer udp.Close()
	h.eventually(t, when, func() error {
		ctx, cancel := context.WithTimeout(h.Ctx, time.Second)
		defer cancel()
		return h.c1.EchoUDP(ctx, netip.AddrPort{}, udp.Addr, "x")
	})
	err := errors.Join(h.reaches(h.c1, tcp.Addr, passTime), h.c1.EchoUDP(h.Ctx, netip.AddrPort{}, udp.Addr, strings.Repeat("x", 4000)))
	if err != nil {
		t.Errorf("%s: %v", when, err)
	}
	h.mustPing(t, h.c1, h.secret, lab.PingOptions{Size: 3000})
	if peer, err := exchangeRaw(h.c1, h.far, 253, []byte("question"), []byte("answer")); err != nil || peer != h.as {
		t.Errorf("%s: another protocol: from %v: %v", when, peer, err)
	}
	assertPeers(t, tcp, h.as)
	assertPeers(t, udp, h.as)
	h.clean(t, when)
}

// cut sends everything, which must not leave.
func (h *viaE2E) cut(t *testing.T, when string) {
	t.Helper()
	s := h.ServeUDP(t, h.Outside, on(h.secret, 0))
	defer s.Close()
	tcp := h.ServeTCP(t, h.Outside, on(h.secret, 0))
	defer tcp.Close()
	ctx, cancel := context.WithTimeout(h.Ctx, dropTime)
	defer cancel()
	for _, size := range []int{1, 4000} {
		if err := h.c1.EchoUDP(ctx, netip.AddrPort{}, s.Addr, strings.Repeat("x", size)); err == nil {
			t.Errorf("%s: a datagram of %d bytes leaves", when, size)
		}
	}
	if !h.blocked(h.c1, tcp.Addr) {
		t.Errorf("%s: a connection leaves", when)
	}
	h.noPing(t, h.c1, h.secret)
	near := h.Outside.Addr
	h.Outside.SetAddr(h.secret)
	if peer, err := exchangeRaw(h.c1, h.Outside, 253, []byte("question"), []byte("answer")); err == nil {
		t.Errorf("%s: another protocol leaves, as %v", when, peer)
	}
	h.Outside.SetAddr(near)
	h.clean(t, when)
	s = h.ServeTCP(t, h.Outside, on(near, 0))
	defer s.Close()
	if err := h.reaches(h.other, s.Addr, passTime); err != nil {
		t.Errorf("%s: another network: %v", when, err)
	}
	assertPeers(t, s, h.HostAddr(0))
}

// clean fails if a frame on eth0 is about secret.
func (h *viaE2E) clean(t *testing.T, when string) {
	t.Helper()
	err := h.tap.Drain(func(f lab.Tapped) {
		if bytes.Contains(f.Frame, h.secret.AsSlice()) {
			t.Errorf("%s: on eth0: % x", when, f.Frame[:min(len(f.Frame), 60)])
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// TestE2EVia: a network with --via leaves by that device only, whatever the routes and rules
// of the host say, and is reached by it only. While it is gone nothing leaves; when it is
// back, all is as before.
func TestE2EVia(t *testing.T) {
	t.Parallel()
	for _, m := range []harness.Mode{{Name: "fast"}, {Name: "slow", Up: []string{"--lease", "0"}}, {Name: "serve"}} {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			h := newVia(t, m)
			h.Must(t, append([]string{"up", "--via", "tun0"}, m.Up...)...) // it may come later
			h.Attach(t, h.c1, "c1")
			h.other = h.otherNetwork(t)
			h.cut(t, "not there yet")
			if m.Name == "serve" {
				h.serve(t)
			}
			command := func() {
				if m.Name != "serve" {
					h.Must(t, "flows", "flush")
				}
			}
			h.tunnel(t, "tun0")
			command()
			h.reach(t, "up")
			udp := h.ServeUDP(t, h.far, on(h.secret, 0))
			sock, err := h.c1.ListenUDP(on(netip.IPv4Unspecified(), 20001))
			if err != nil {
				t.Fatal(err)
			}
			defer sock.Close()
			path := m
			if m.Name == "serve" {
				path.Name = "fast"
			}
			h.becomesFast(t, path, "c1", func() { h.comesToPass(t, sock, udp.Addr, true) })
			if m.Name != "serve" {
				h.Upgrade(t)
				h.comesToPass(t, sock, udp.Addr, true)
				h.testViaPublished(t)
			}

			// Rules of the host, and somebody who takes ours away.
			if err := h.Host.IPTables(h.Ctx, "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE"); err != nil {
				t.Fatal(err)
			}
			h.reach(t, "a rule masquerades")
			if m.Name != "serve" {
				h.onHost(t, "ip rule del iif fastbr0")
				h.Must(t, "stats")
				h.cut(t, "the rule is gone")
				if notes := h.notes(t); !strings.Contains(notes, "tun0") {
					t.Errorf("status does not tell of the rule: %q", notes)
				}
				h.testViaErrors(t)
				command()
				h.reach(t, "the rule is back")
			}

			h.onHost(t, "ip link del tun0")
			h.cut(t, "deleted")
			h.comesToPass(t, sock, udp.Addr, false)
			command()
			h.cut(t, "deleted and seen")
			if notes := h.notes(t); !strings.Contains(notes, "tun0 only, which is gone") {
				t.Errorf("status does not say so: %q", notes)
			}
			h.tunnel(t, "tun1")
			command()
			h.reach(t, "back")
			if notes := h.notes(t); strings.Contains(notes, "tun0") {
				t.Errorf("status notes %q", notes)
			}
		})
	}
}

// testViaPublished: published ports answer by tun0, and to other containers.
func (h *viaE2E) testViaPublished(t *testing.T) {
	t.Helper()
	h.ServeTCP(t, h.c1, on(h.c1.Addr, 80))
	h.ServeTCP(t, h.other, on(h.other.Addr, 80))
	h.Must(t, "publish", "add", "8080:80", "c1")
	h.Must(t, "publish", "add", "8081:80", "other1")
	for _, from := range []*lab.Namespace{h.far, h.other} {
		if err := h.reaches(from, on(h.as, 8080), passTime); err != nil {
			t.Errorf("published, from %s: %v", from.Name, err)
		}
	}
	if err := h.reaches(h.c1, on(h.HostAddr(0), 8081), passTime); err != nil {
		t.Errorf("another network's published port: %v", err)
	}
	if err := h.reaches(h.Outside, on(h.HostAddr(0), 8081), passTime); err != nil {
		t.Errorf("another network's published port from outside: %v", err)
	}
	h.onHost(t, "sysctl -qw net.ipv4.conf.eth0.rp_filter=0", "sysctl -qw net.ipv4.conf.all.rp_filter=0")
	for _, to := range []netip.Addr{h.HostAddr(0), h.as} {
		if !h.blocked(h.Outside, on(to, 8080)) {
			t.Errorf("published by another device, at %v", to)
		}
	}
}

// testViaErrors: an ICMP error of a container about what came by tun0 does not leave by
// eth0, where the routes lead.
func (h *viaE2E) testViaErrors(t *testing.T) {
	t.Helper()
	h.Must(t, "publish", "add", "9000:9000/udp", "c1")
	h.onHost(t, "ip rule del iif fastbr0")
	c, err := h.far.DialUDP(on(h.secret, 0), on(h.as, 9000))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for range 3 {
		_, werr := c.Write([]byte("?"))
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, rerr := c.Read(make([]byte, 10))
		if errors.Is(errors.Join(werr, rerr), syscall.ECONNREFUSED) {
			t.Error("an error came back, though the routes lead elsewhere")
		}
	}
	h.clean(t, "errors")
	h.Must(t, "publish", "rm", "9000")
	h.reach(t, "after errors")
	h.onHost(t, "ip rule del iif fastbr0")
}

// TestE2EViaEthernet: a second card, whose default route is not the host's, and tunnels over
// the card that the default route leads by. Taken down, or killed half-way, nothing is left.
func TestE2EViaEthernet(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast", Leaky: true}, lab.Options{Containers: 1, Uplinks: 2}) // a row is routed
	c1, far := h.Containers[0], h.Outsides[1]
	beyond := netip.MustParseAddr("203.0.113.77")
	if err := far.AddAddr("lo", netip.PrefixFrom(beyond, 32)); err != nil {
		t.Fatal(err)
	}
	h.onHost(t, "ip route add default via "+h.OutsideAddr(1).String()+" metric 500")
	before := h.snapshot(t)
	for _, step := range []string{"record", "uplinks", "via", "done"} {
		h.KillAt(t, step, "up", "--via", "eth1")
		h.Must(t, "down", "--all")
		h.assertAsBefore(t, before)
	}
	h.Must(t, "up", "--via", "eth1")
	h.Attach(t, c1, "c1")
	s := h.ServeTCP(t, far, on(beyond, 7))
	if err := h.reaches(c1, s.Addr, passTime); err != nil {
		t.Error(err)
	}
	assertPeers(t, s, h.HostAddr(1))
	if !h.blocked(c1, h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7)).Addr) {
		t.Error("it leaves by eth0")
	}
	h.onHost(t, "ip route del default metric 500")
	h.Must(t, "flows", "flush")
	if notes := h.notes(t); !strings.Contains(notes, "no default route leads there") {
		t.Errorf("status does not tell of the default route: %q", notes)
	}
	h.onHost(t, "ip route add default via "+h.OutsideAddr(1).String()+" metric 500")
	h.Must(t, "detach", "c1")
	h.KillAt(t, "undo-via", "down")
	h.Must(t, "down", "--all")
	h.assertAsBefore(t, before)

	// The same without translation. The routes of the outsides lead back.
	h.Must(t, "up", "--via", "eth1", "--masquerade=false")
	h.Attach(t, c1, "c1")
	for i, out := range h.Outsides {
		if _, err := out.Run(h.Ctx, "ip", "route", "add", "172.30.0.0/16", "via", h.HostAddr(i).String()); err != nil {
			t.Fatal(err)
		}
	}
	s = h.ServeTCP(t, far, on(beyond, 8))
	if err := h.reaches(c1, s.Addr, passTime); err != nil {
		t.Errorf("routed: %v", err)
	}
	assertPeers(t, s, c1.Addr)
	inside := h.ServeTCP(t, c1, on(c1.Addr, 80))
	if err := h.reaches(far, inside.Addr, passTime); err != nil {
		t.Errorf("routed, from outside: %v", err)
	}
	if !h.blocked(h.Outside, inside.Addr) {
		t.Error("routed: it is reached by eth0")
	}
	h.Must(t, "detach", "c1")
	h.Must(t, "down", "--all")

	// What a tunnel wraps leaves by another device.
	add := func(n *lab.Namespace, own, remote netip.Addr, addr string) {
		for _, c := range []string{"ip link add x0 type vxlan id 7 dstport 4789 local " + own.String() + " remote " + remote.String(),
			"ip addr add " + addr + " dev x0", "ip link set x0 up"} {
			if _, err := n.Run(h.Ctx, strings.Fields(c)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(h.Host, h.HostAddr(0), h.OutsideAddr(0), "10.77.0.1/24")
	add(h.Outside, h.OutsideAddr(0), h.HostAddr(0), "10.77.0.2/24")
	h.Must(t, "up", "--via", "x0")
	h.Attach(t, c1, "c1")
	s = h.ServeTCP(t, h.Outside, on(netip.MustParseAddr("10.77.0.2"), 7))
	if err := h.reaches(c1, s.Addr, passTime); err != nil {
		t.Errorf("through a tunnel: %v", err)
	}
	assertPeers(t, s, netip.MustParseAddr("10.77.0.1"))
	h.Must(t, "down", "--all")
}
