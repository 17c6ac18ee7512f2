package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EPublished6ToTheHost reaches published ports from processes of the host by IPv6:
// each socket is led to the container's IPv6 address, if it has one and is published there,
// and told the address that it asked for. Nobody else gets the port.
func TestE2EPublished6ToTheHost(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 2, IPv6: lab.Static})
	h.Must(t, "up", "four", "--subnet", "172.29.0.0/24")
	h.Attach(t, h.Containers[1], "c2", "--network", "four")
	old := h.ServeTCP(t, h.Containers[1], on(h.Containers[1].Addr, 80))
	defer old.Close()
	// IPv4's programs are on the hooks before those of IPv6.
	h.Must(t, "publish", "add", "8070:80", "c2")
	h.Must(t, "up", "--ipv6")
	web := h.Containers[0]
	attached := h.Attach(t, web, "c1")
	tcp4, udp4 := h.ServeTCP(t, web, on(web.Addr, 80)), h.ServeUDP(t, web, on(web.Addr, 53))
	tcp6, udp6 := h.ServeTCP(t, web, on(web.Addr6, 80)), h.ServeUDP(t, web, on(web.Addr6, 53))
	for _, s := range []*lab.Server{tcp4, udp4, tcp6, udp6} {
		defer s.Close()
	}
	h.Must(t, "publish", "add", "8080:80", "c1")
	h.Must(t, "publish", "add", "8080:53/udp", "c1")
	h.Must(t, "publish", "add", "[::1]:8091:80", "c1")
	h.Must(t, "publish", "add", "0.0.0.0:8092:80", "c1")
	h.Must(t, "publish", "add", "[::]:8093:80", "c1")
	own, gateway := h.HostAddr6(0).String(), attached.Gateway6
	gateway4, gateway6 := netip.MustParseAddr(attached.Gateway), netip.MustParseAddr(gateway)
	for _, c := range []struct {
		args   string
		server *lab.Server
		from   netip.Addr // what the container must see
	}{
		{"tcp 6 connect - [::1]:8080", tcp6, gateway6},
		{"udp 6 connect - [::1]:8080", udp6, gateway6},
		{"udp 6 sendto - [::1]:8080", udp6, gateway6},
		{"tcp 6 connect [::]:45454 [::1]:8080", tcp6, gateway6},
		{"tcp 6 connect - [" + own + "]:8080", tcp6, h.HostAddr6(0)},
		{"udp 6 connect - [" + own + "]:8080", udp6, h.HostAddr6(0)},
		{"udp 6 sendto - [" + own + "]:8080", udp6, h.HostAddr6(0)},
		{"tcp 6 connect [" + own + "]:0 [" + own + "]:8080", tcp6, h.HostAddr6(0)},
		{"tcp 6 connect - [" + gateway + "]:8080", tcp6, gateway6},
		{"tcp 6 connect - [::1]:8091", tcp6, gateway6},
		{"tcp 6 connect - [::ffff:127.0.0.1]:8080", tcp4, gateway4},
		{"udp 6 sendto - [::ffff:127.0.0.1]:8080", udp4, gateway4},
		{"tcp 4 connect - 127.0.0.1:8080", tcp4, gateway4},
		{"tcp 6 connect - [::1]:8092", tcp4, gateway4}, // as where there is no IPv6
		{"tcp 6 connect - [::1]:8070", old, netip.MustParseAddr("172.29.0.1")},
	} {
		args := strings.Fields(c.args)
		s, ok := h.reachedFromHost(t, args)
		if !ok {
			continue
		}
		if from := on(c.from, netip.MustParseAddrPort(s.Local).Port()); c.server.Peers()[from] == 0 {
			t.Errorf("%s: the container did not see %s: %v", c.args, from, c.server.Peers())
		}
	}
	for _, args := range []string{"tcp 6 connect [::1]:0 [::1]:8080", "tcp 6 connect dev:lo [::1]:8080", "udp 6 sendto dev:lo [::1]:8080",
		"tcp 4 connect - 127.0.0.1:8091", "tcp 6 connect - [" + own + "]:8091", "tcp 6 connect - [" + own + "]:8092", "udp 6 sendto - [::1]:8092"} {
		if s := h.hostSocket(t, h.Host, strings.Fields(args)...); s.Err == "" {
			t.Errorf("%s: %+v", args, s)
		}
	}
	if s := h.hostSocket(t, h.Containers[1], "tcp", "6", "connect", "-", "[::1]:8080"); !strings.Contains(s.Err, "refused") {
		t.Errorf("a container's own loopback: %+v", s)
	}

	for args, taken := range map[string]bool{
		"tcp 6 bind [::]:8080 -":               true,
		"tcp 6only bind [::]:8080 -":           true,
		"udp 6only bind [::]:8080 -":           true,
		"tcp 6 bind [::1]:8080 -":              true,
		"tcp 6 bind [" + own + "]:8080 -":      true,
		"tcp 6 bind [::]:8091 -":               true, // ::1's is one of its ports
		"tcp 6 bind [" + own + "]:8091 -":      false,
		"tcp 4 bind 0.0.0.0:8091 -":            false,
		"tcp 6 bind [::]:8092 -":               true,
		"tcp 6only bind [::]:8092 -":           false,
		"tcp 6only bind [" + own + "]:8092 -":  false,
		"udp 6 bind [::]:8092 -":               false,
		"tcp 6 bind [::]:8093 -":               true,
		"tcp 4 bind 0.0.0.0:8093 -":            false,
		"tcp 6 bind [::ffff:127.0.0.1]:8093 -": false,
	} {
		s := h.hostSocket(t, h.Host, strings.Fields(args)...)
		if got := strings.Contains(s.Err, "address already in use"); got != taken || !got && s.Err != "" {
			t.Errorf("%s: %+v, want taken: %v", args, s, taken)
		}
	}

	stays := []*staying{h.stay(t, "tcp 6 stay - [::1]:8080"), h.stay(t, "udp 6 stay - ["+own+"]:8080")}
	kept := h.stay(t, "tcp 6 stay - [::1]:8091")
	h.Must(t, "publish", "rm", "8080")
	for _, s := range stays {
		if got := s.again(t); got.Err == "" {
			t.Errorf("%s: still connected: %+v", s.args, got)
		}
	}
	if got := kept.again(t); got.Echo != "hello" {
		t.Errorf("%s: %+v", kept.args, got)
	}
	if s := h.hostSocket(t, h.Host, "tcp", "6", "connect", "-", "[::1]:8080"); !strings.Contains(s.Err, "refused") {
		t.Errorf("published no more: %+v", s)
	}
	// IPv4's programs keep the hooks when the last network with IPv6 goes.
	h.Must(t, "down", "default")
	if s := h.hostSocket(t, h.Host, "tcp", "6", "connect", "-", "[::1]:8070"); s.Echo != "hello" {
		t.Errorf("IPv4's, without IPv6: %+v", s)
	}
	h.Must(t, "publish", "rm", "8070")
	if left := h.hostPrograms(t); left != "" {
		t.Errorf("left on the cgroup: %s", left)
	}
}

// TestE2EPublished6 reaches a container by IPv6 and ports of the host: from outside, from
// containers of the same and of another network, and from itself. Networks whose IPv6 is
// translated and those that are routed publish in the same way.
func TestE2EPublished6(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		m.Leaky = true // the addresses of the routed network
		h := newE2E(t, m, lab.Options{Containers: 3, IPv6: lab.Static})
		h.Must(t, append([]string{"up", "--ipv6"}, m.Up...)...)
		h.Must(t, "up", "routed", "--subnet", "172.29.0.0/24", "--subnet", "2001:db8:c::/64", "--masquerade6=false")
		h.Attach(t, h.Containers[0], "c1")
		h.Attach(t, h.Containers[1], "c2")
		h.Attach(t, h.Containers[2], "c3", "--network", "routed")
		host, outside, allowed := h.HostAddr6(0), on(h.Outside.Addr6, 0), h.Outside.Addr6.String()+"/128"
		for i, name := range []string{"c1", "c3"} {
			c, first := h.Containers[2*i], uint16(8000+1000*i)
			tcp, udp := h.ServeTCP(t, c, on(c.Addr6, 80)), h.ServeUDP(t, c, on(c.Addr6, 53))
			defer tcp.Close()
			defer udp.Close()
			h.Must(t, "publish", "add", fmt.Sprintf("%d:80", first), name)
			h.Must(t, "publish", "add", fmt.Sprintf("[%s]:%d-%d:53-54/udp", host, first, first+1), name, "--allow", allowed)
			h.Must(t, "publish", "add", fmt.Sprintf("[::]:%d:80", first+10), name, "--allow", "2001:db8:ffff::/48")
			h.Must(t, "publish", "add", fmt.Sprintf("[::1]:%d:80", first+20), name)
			for j := range 3 {
				if err := h.Outside.EchoTCP(h.Ctx, outside, on(host, first), fmt.Sprint("hello ", j)); err != nil {
					t.Errorf("%s: TCP: %v", name, err)
				}
			}
			sock, err := h.Outside.ListenUDP(outside)
			if err != nil {
				t.Fatal(err)
			}
			h.becomesFast(t, m, name, func() { h.comesToPass(t, sock, on(host, first), true) })
			assertPeers(t, tcp, h.Outside.Addr6)
			assertPeers(t, udp, h.Outside.Addr6)
			h.notLetInUDP(t, h.Outside, on(host, first), "from another address")
			h.notLetIn(t, h.Outside, on(host, first+10), "for others")
			h.notLetIn(t, h.Outside, on(host, first+20), "by loopback")
			// By an address of the host, from every container.
			for _, client := range h.Containers {
				if err := client.EchoTCP(h.Ctx, netip.AddrPort{}, on(host, first), "hello, neighbour"); err != nil {
					t.Errorf("%s from %s: %v", name, client.Addr6, err)
				}
				h.notLetIn(t, client, on(host, first+20), "by loopback, from a container")
			}
			assertPeers(t, tcp, h.Outside.Addr6, host)
			if err := lab.EchoBulk(h.Ctx, h.Outside, on(host, first), 8<<20); err != nil {
				t.Errorf("%s: bulk: %v", name, err)
			}
			// Nobody is at the second UDP port: the client learns it.
			if s := h.hostSocket(t, h.Outside, "udp", "6", "connect", outside.String(), on(host, first+1).String()); !strings.Contains(s.Err, "refused") {
				t.Errorf("%s: a closed port: %+v", name, s)
			}
			h.Must(t, "publish", "rm", fmt.Sprintf("[%s]:%d-%d/udp", host, first, first+1))
			h.comesToPass(t, sock, on(host, first), false)
			_ = sock.Close()
		}
	})
}

// notLetInUDP asserts that a datagram has no answer.
func (h *e2e) notLetInUDP(t *testing.T, from *lab.Namespace, to netip.AddrPort, what string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.Ctx, time.Second)
	defer cancel()
	if err := from.EchoUDP(ctx, netip.AddrPort{}, to, "let me in"); err == nil {
		t.Errorf("%s is let in %s", to, what)
	}
}
