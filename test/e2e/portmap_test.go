package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// kernelNetwork is a network of the reference bridge plugin beside fastbr's.
const kernelNetwork = `{"type": "bridge", "bridge": "cni8", "isGateway": true, "ipMasq": true,
	"ipam": {"type": "host-local", "dataDir": "%L", "routes": [{"dst": "0.0.0.0/0"}],
		"ranges": [[{"subnet": "10.89.0.0/16", "gateway": "10.89.0.1"}]]}}`

// portmapChain is what follows the bridge in Podman's default list.
const portmapChain = `, {"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "firewall"}, {"type": "tuning"}`

// portmapPatience is how long an echo on an open path may take.
const portmapPatience = time.Minute

// TestE2EPortmap: the portmap plugin, chained behind fastbr as in Podman's default
// list, publishes a port. The port is reached from everywhere. The container sees the
// same client address as behind the reference bridge plugin.
func TestE2EPortmap(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		r := newRuntime(t, m, lab.Options{Containers: 4})
		r.Must(t, append([]string{"up"}, m.Up...)...)
		server, near, far, kernel := r.Containers[0], r.Containers[1], r.Containers[2], r.Containers[3]
		r.add(t, r.list(t, "1.0.0", "kernel", kernelNetwork+`, {"type": "firewall"}`), kernel, attachment(kernel, nil))
		l := r.list(t, "0.4.0", "podman", bridged("fastbr")+portmapChain)
		r.add(t, l, server, attachment(server, map[string]any{"portMappings": []map[string]any{
			{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 5300, "containerPort": 53, "protocol": "udp"}}}))
		r.add(t, l, near, attachment(near, nil))
		r.add(t, r.list(t, "1.0.0", "other", ownNetwork), far, attachment(far, nil))
		host, gateway := r.HostAddr(0), netip.MustParseAddr("10.88.0.1")
		for _, w := range []reach{
			{how: "outside", from: r.Outside, to: host.String(), seen: r.OutsideAddr(0)},
			{how: "the host by loopback", from: r.Host, to: "127.0.0.1", seen: gateway},
			{how: "the host by its own address", from: r.Host, to: host.String(), seen: host},
			{how: "the same network", from: near, to: host.String(), seen: gateway},
			{how: "the same network by its gateway", from: near, to: gateway.String(), seen: gateway},
			{how: "itself", from: server, to: host.String(), seen: gateway},
			{how: "another network", from: far, to: host.String(), seen: far.Addr},
			{how: "another network by its gateway", from: far, to: r.gatewayOf(far).String(), seen: far.Addr},
			{how: "a kernel bridge", from: kernel, to: host.String(), seen: gateway},
		} {
			r.assertPortmapped(t, server, w)
		}
		r.assertPortmapRefuses(t, far, on(host, 5300))
		r.assertOnlyPortmapped(t, server, far, kernel)
	})
}

// gatewayOf is the gateway of a container of the default network.
func (r *runtime) gatewayOf(c *lab.Namespace) netip.Addr {
	return netip.PrefixFrom(c.Addr, 16).Masked().Addr().Next()
}

// assertPortmapped sends to the ports of server that portmap publishes, in whole
// packets and in fragments.
func (r *runtime) assertPortmapped(t *testing.T, server *lab.Namespace, w reach) {
	t.Helper()
	tcp, udp := r.ServeTCP(t, server, on(server.Addr, 80)), r.ServeUDP(t, server, on(server.Addr, 53))
	defer tcp.Close()
	defer udp.Close()
	to := netip.MustParseAddr(w.to)
	ctx, cancel := context.WithTimeout(r.Ctx, portmapPatience)
	defer cancel()
	for what, err := range map[string]error{
		"TCP":       w.from.EchoTCP(ctx, netip.AddrPort{}, on(to, 8080), "hello"),
		"UDP":       w.from.EchoUDP(ctx, netip.AddrPort{}, on(to, 5300), "hello"),
		"fragments": w.from.EchoUDP(ctx, netip.AddrPort{}, on(to, 5300), strings.Repeat("x", 4000)),
	} {
		if err != nil {
			t.Errorf("%s from %s: %v", what, w.how, err)
		}
	}
	for _, s := range []*lab.Server{tcp, udp} {
		if got := seenBy(s); !slices.Equal(got, []netip.Addr{w.seen}) {
			t.Errorf("from %s, %v saw %v, want %v", w.how, s.Addr, got, w.seen)
		}
	}
}

// assertPortmapRefuses: a client in another network is told that nobody listens.
func (r *runtime) assertPortmapRefuses(t *testing.T, from *lab.Namespace, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(r.Ctx, portmapPatience)
	defer cancel()
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := lab.Echo(ctx, c, "anybody?"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("UDP to a container that does not listen: %v, want %v", err, syscall.ECONNREFUSED)
	}
}

// assertOnlyPortmapped: what the rules do not lead to the container stays closed: its
// own address and its other ports, and everything for an internal network.
func (r *runtime) assertOnlyPortmapped(t *testing.T, server, far, kernel *lab.Namespace) {
	t.Helper()
	s := r.ServeTCP(t, server, on(server.Addr, 80))
	defer s.Close()
	for what, from := range map[string]*lab.Namespace{"another network": far, "a kernel bridge": kernel, "outside": r.Outside} {
		r.notLetIn(t, from, s.Addr, fmt.Sprintf("from %s by the container's own address", what))
	}
	r.Must(t, "network", "create", "shut", "--subnet", "172.28.0.0/24", "--internal")
	shut, err := r.Add("shut")
	if err != nil {
		t.Fatal(err)
	}
	r.Attach(t, shut, "shut", "--network", "shut")
	r.notLetIn(t, shut, on(netip.MustParseAddr("172.28.0.1"), 8080), "from an internal network by its gateway")
}
