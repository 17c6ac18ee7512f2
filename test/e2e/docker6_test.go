package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
)

// TestE2EDocker6 leads a dockerd with networks of both families through a short day.
func TestE2EDocker6(t *testing.T) {
	t.Parallel()
	d := newEngine(t, lab.Options{IPv6: lab.Static}, "--default-address-pool", "base=10.83.0.0/16,size=24", "--default-address-pool", "base=fd00:83::/48,size=64")
	before := d.snapshot(t)
	for option, why := range map[string]string{
		"com.docker.network.bridge.gateway_mode_ipv6=nat-unprotected": "nat-unprotected",
		"com.docker.network.bridge.gateway_mode_ipv6=isolated":        "isolated",
	} {
		d.refused(t, why, "network", "create", "-d", d.driver, "--ipv6", "--subnet", "10.81.0.0/24", "--subnet", "fd00:81::/64", "-o", option, "x")
	}
	d.docker(t, "network", "create", "-d", d.driver, "--ipv6", "--subnet", "10.81.0.0/24", "--subnet", "2001:db8:c::/64",
		"--gateway", "10.81.0.1", "--gateway", "2001:db8:c::ff", "-o", "com.docker.network.bridge.gateway_mode_ipv6=routed", "routed")
	d.docker(t, "network", "create", "-d", d.driver, "--ipv6", "--internal", "--subnet", "10.82.0.0/24", "--subnet", "fd00:82::/64", "inner6")
	if _, err := d.Outside.Run(d.Ctx, "ip", "-6", "route", "add", "2001:db8:c::/64", "via", d.HostAddr6(0).String()); err != nil {
		t.Fatal(err)
	}
	r1, r2 := d.start6(t, "r1", "routed"), d.start6(t, "r2", "routed", "--ip6", "2001:db8:c::99", "-p", "8080:80")
	d.assertInspect6(t)
	d.mustPing(t, r1, r2.Addr6, lab.PingOptions{})
	d.mustPing(t, r1, r2.Addr, lab.PingOptions{})
	d.mustPing(t, r1, netip.MustParseAddr("2001:db8:c::ff"), lab.PingOptions{})
	if out := d.docker(t, "exec", "r1", "/bin/busybox", "nslookup", "-type=aaaa", "r2"); !strings.Contains(out, "2001:db8:c::99") {
		t.Errorf("nslookup r2: %s", out)
	}
	out := d.ServeTCP(t, d.Outside, on(d.Outside.Addr6, 7))
	defer out.Close()
	if err := r2.EchoTCP(d.Ctx, netip.AddrPort{}, out.Addr, "hello"); err != nil {
		t.Error(err)
	}
	assertPeers(t, out, r2.Addr6)
	in := d.ServeTCP(t, r2, on(r2.Addr6, 81))
	defer in.Close()
	d.reached6(t, r2, 80, on(r2.Addr6, 80))
	d.notLetIn(t, d.Outside, in.Addr, "a port that is not published")
	d.assertInner6(t, r1)

	d.docker(t, "network", "create", "-d", d.driver, "--ipv6", "-o", "com.docker.network.host_ipv6="+d.HostAddr6(0).String(), "pool")
	p1 := d.start6(t, "p1", "pool", "-p", "8082:80", "-p", "["+d.HostAddr6(0).String()+"]:8081:81")
	d.reached6(t, p1, 80, on(d.HostAddr6(0), 8082))
	d.reached6(t, p1, 81, on(d.HostAddr6(0), 8081))
	udp := d.ServeUDP(t, d.Outside, on(d.Outside.Addr6, 7))
	defer udp.Close()
	if err := p1.EchoUDP(d.Ctx, netip.AddrPort{}, udp.Addr, "hello"); err != nil {
		t.Error(err)
	}
	assertPeers(t, udp, d.HostAddr6(0))
	d.docker(t, "rm", "-f", "p1")
	d.start6(t, "ll", "routed", "--link-local-ip", "fe80::77")
	d.docker(t, "exec", "ll", "/bin/busybox", "ping", "-6", "-c", "1", "-I", "fe80::77%eth0", "fe80::42:aff:fe51:3%eth0")
	d.docker(t, "rm", "-f", "ll")
	d.docker(t, "network", "rm", "pool")
	d.docker(t, "rm", "-f", "r2")
	d.docker(t, "restart", "-t", "0", "r1")
	d.killDaemon(false)
	d.startDaemon(t)
	r1 = d.adopt6(t, "r1", "routed")
	d.mustPing(t, d.Outside, r1.Addr6, lab.PingOptions{})
	d.assertNoGwbridge(t)
	d.docker(t, "rm", "-f", "r1", "i1")
	d.docker(t, "network", "rm", "routed", "inner6")
	for kind, now := range d.snapshot(t) {
		if diff := lineDiff(before[kind], now); diff != "" {
			t.Errorf("%s differ from before:\n%s", kind, diff)
		}
	}
}

// start6 is start, for a network of both families.
func (d *engine) start6(t *testing.T, name, network string, args ...string) *lab.Namespace {
	t.Helper()
	d.start(t, name, network, args...)
	return d.adopt6(t, name, network)
}

func (d *engine) adopt6(t *testing.T, name, network string) *lab.Namespace {
	t.Helper()
	n := d.adopt(t, name, network)
	text := d.docker(t, "inspect", "-f", "{{.NetworkSettings.Networks."+network+".GlobalIPv6Address}}", name)
	a, err := netip.ParseAddr(text)
	if err != nil {
		t.Fatalf("IPv6 address of %s on %s: %v", name, network, err)
	}
	n.SetAddr(a)
	return n
}

// reached6 reaches a container's port from outside by an address, with the client's own.
func (h *e2e) reached6(t *testing.T, c *lab.Namespace, port uint16, to netip.AddrPort) {
	t.Helper()
	s := h.ServeTCP(t, c, on(c.Addr6, port))
	defer s.Close()
	if err := h.Outside.EchoTCP(h.Ctx, on(h.Outside.Addr6, 0), to, "hello"); err != nil {
		t.Errorf("%v: %v", to, err)
	}
	assertPeers(t, s, h.Outside.Addr6)
}

// assertInspect6 checks that Docker, fastbr and the container have the same addresses.
func (d *engine) assertInspect6(t *testing.T) {
	t.Helper()
	got := d.docker(t, "inspect", "-f", "{{with .NetworkSettings.Networks.routed}}{{.IPAddress}} {{.GlobalIPv6Address}}/{{.GlobalIPv6PrefixLen}} {{.IPv6Gateway}}{{end}}", "r2")
	if want := "10.81.0.3 2001:db8:c::99/64 2001:db8:c::ff"; got != want {
		t.Errorf("docker inspect: %q, want %q", got, want)
	}
	var n ctl.NetworkView
	d.JSON(t, &n, "network", "inspect", d.docker(t, "network", "inspect", "-f", "{{.ID}}", "routed"))
	if n.Subnet6 != "2001:db8:c::/64" || n.Gateway6 != "2001:db8:c::ff" || n.Masquerade6 || len(n.Ports) != 2 {
		t.Errorf("fastbr network inspect: %+v", n)
	}
	inside := d.docker(t, "exec", "r2", "/bin/busybox", "sh", "-c", "busybox ip addr show eth0; busybox ip -6 route")
	for _, want := range []string{"10.81.0.3/24", "2001:db8:c::99/64", "default via 2001:db8:c::ff"} {
		if !strings.Contains(inside, want) {
			t.Errorf("eth0 of r2 lacks %q: %s", want, inside)
		}
	}
}

// assertInner6 connects a container to an internal network of both families, with an address
// of the user's.
func (d *engine) assertInner6(t *testing.T, r1 *lab.Namespace) {
	t.Helper()
	i1 := d.start6(t, "i1", "inner6")
	d.docker(t, "network", "connect", "--ip6", "fd00:82::77", "inner6", "r1")
	d.mustPing(t, i1, netip.MustParseAddr("fd00:82::77"), lab.PingOptions{})
	d.noPing(t, i1, r1.Addr6)
	if routes := d.docker(t, "exec", "i1", "/bin/busybox", "ip", "-6", "route"); strings.Contains(routes, "default") {
		t.Errorf("an internal network leads outside: %s", routes)
	}
	d.docker(t, "network", "disconnect", "inner6", "r1")
}
