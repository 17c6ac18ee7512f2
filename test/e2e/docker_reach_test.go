package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
)

// reach is one way to reach a container: TCP to port tcp and UDP to port udp of an
// address. seen is the client address that the container must see.
type reach struct {
	how      string
	from     *lab.Namespace
	to       string
	tcp, udp string // ports; "": not by this protocol
	seen     netip.Addr
}

// assertReach reaches a container's published ports from everywhere, and the container
// itself from its network. far is in another network, whose gateway is farGateway.
func (d *engine) assertReach(t *testing.T, c1, c2, far *lab.Namespace) {
	t.Helper()
	host, gateway := d.HostAddr(0), netip.MustParseAddr("10.77.0.1")
	ways := []reach{
		{"outside", d.Outside, host.String(), "8080", "5300", d.OutsideAddr(0)},
		{"the host by loopback", d.Host, "127.0.0.1", "8080", "5300", gateway},
		{"the host by ::1", d.Host, "[::1]", "8080", "5300", gateway},
		{"the host by its own address", d.Host, host.String(), "8080", "5300", host},
		{"the host by the container's address", d.Host, c1.Addr.String(), "80", "53", gateway},
		{"the same network by the container's address", c2, c1.Addr.String(), "80", "53", c2.Addr},
	}
	for from, c := range map[string]*lab.Namespace{"the same network": c2, "another network": far, "itself": c1} {
		for _, to := range []netip.Addr{host, gateway} {
			ways = append(ways, reach{from + " by " + to.String(), c, to.String(), "8080", "5300", to})
		}
	}
	for _, w := range ways {
		tcp, udp := d.ServeTCP(t, c1, on(c1.Addr, 80)), d.ServeUDP(t, c1, on(c1.Addr, 53))
		d.ask(t, w, "tcp", w.to+":"+w.tcp)
		d.ask(t, w, "udp", w.to+":"+w.udp)
		for _, s := range []*lab.Server{tcp, udp} {
			if got := seenBy(s); !slices.Equal(got, []netip.Addr{w.seen}) {
				t.Errorf("reached from %s, %v saw %v, want %v", w.how, s.Addr, got, w.seen)
			}
			s.Close()
		}
	}
	tcp := d.ServeTCP(t, c1, on(c1.Addr, 80))
	defer tcp.Close()
	d.notLetIn(t, far, tcp.Addr, "from another network by the container's own address")
	d.notLetIn(t, d.Outside, tcp.Addr, "from outside by the container's own address")
}

// ask sends one question by a way. If the host asks, a process in the lab's cgroup does
// it.
func (d *engine) ask(t *testing.T, w reach, proto, to string) {
	t.Helper()
	family := "4"
	if strings.HasPrefix(to, "[") {
		family = "6"
	}
	if s := d.hostSocket(t, w.from, proto, family, "connect", "-", to); s.Echo != "hello" || s.Peer != to {
		t.Errorf("%s from %s to %s: %+v", proto, w.how, to, s)
	}
}

// seenBy are the addresses of a server's clients.
func seenBy(s *lab.Server) (out []netip.Addr) {
	for p := range s.Peers() {
		if !slices.Contains(out, p.Addr()) {
			out = append(out, p.Addr())
		}
	}
	return out
}

// assertMovesOut connects a running container to a second network, which becomes its
// way out, as Docker decides by the names. Its ports are then published there. When the
// container has left that network, they are published where they were before.
func (d *engine) assertMovesOut(t *testing.T, c1, far *lab.Namespace) {
	t.Helper()
	d.docker(t, "network", "connect", "other", "c1")
	there := d.adopt(t, "c1", "other")
	d.mustPing(t, far, there.Addr, lab.PingOptions{})
	if out := d.docker(t, "exec", "far", "/bin/busybox", "nslookup", "c1"); !strings.Contains(out, there.Addr.String()) {
		t.Errorf("nslookup c1 from its second network: %s", out)
	}
	var pubs []ctl.PublicationView
	d.JSON(t, &pubs, "publish", "ls")
	for _, p := range pubs {
		if p.IP != there.Addr.String() {
			t.Errorf("published on a network that is not the way out any more: %+v", p)
		}
	}
	d.assertPublished(t, there)
	d.docker(t, "network", "disconnect", "other", "c1")
	d.assertPublished(t, c1)
}
