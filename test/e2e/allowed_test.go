package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// inside runs commands in a container.
func (h *e2e) inside(t *testing.T, c *lab.Namespace, commands ...string) {
	t.Helper()
	for _, cmd := range commands {
		if _, err := c.Run(h.Ctx, strings.Fields(cmd)...); err != nil {
			t.Fatal(err)
		}
	}
}

// TestE2ERouterContainer: c1 forwards for a machine behind it. What is behind it reaches
// outside and other containers and is reached by them and by the host, translated as c1
// itself, on the fast path. Nobody else can use its address.
func TestE2ERouterContainer(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := newE2E(t, m, lab.Options{Containers: 2})
		h.Must(t, append([]string{"up"}, m.Up...)...)
		c1, c2 := h.Containers[0], h.Containers[1]
		res := h.Attach(t, c1, "c1", "--allowed-address", "10.8.0.0/24")
		if len(res.AllowedAddresses) != 1 || res.AllowedAddresses[0] != "10.8.0.0/24" || res.AllowedMACs == nil {
			t.Errorf("attach says %+v", res)
		}
		h.Attach(t, c2, "c2")
		client, err := h.Add("client")
		if err != nil {
			t.Fatal(err)
		}
		if err := lab.Veth(c1, "lan0", client, "eth0", 1500); err != nil {
			t.Fatal(err)
		}
		behind := netip.MustParseAddr("10.8.0.5")
		h.inside(t, c1, "ip addr add 10.8.0.1/24 dev lan0", "ip link set lan0 up", "sysctl -w net.ipv4.ip_forward=1")
		h.inside(t, client, "ip addr add 10.8.0.5/24 dev eth0", "ip link set eth0 up", "ip route add default via 10.8.0.1")

		out := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
		outUDP := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		own, mine := h.ServeUDP(t, c2, on(c2.Addr, 9090)), h.ServeUDP(t, client, on(behind, 9090))
		if err := h.reaches(client, out.Addr, passTime); err != nil {
			t.Errorf("to outside: %v", err)
		}
		h.mustPing(t, client, h.Outside.Addr, lab.PingOptions{})
		h.mustPing(t, client, h.Outside.Addr, lab.PingOptions{Size: 4000})
		assertPeers(t, out, h.HostAddr(0))
		for name, x := range map[string]struct {
			from *lab.Namespace
			to   netip.AddrPort
		}{"outside": {client, outUDP.Addr}} {
			sock, err := x.from.ListenUDP(on(netip.IPv4Unspecified(), 0))
			if err != nil {
				t.Fatal(err)
			}
			h.becomesFast(t, m, "c1", func() { h.comesToPass(t, sock, x.to, true) })
			if err := sock.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		found := false
		for _, f := range h.Flows(t) {
			found = found || strings.HasPrefix(f.Src, "10.8.0.5:")
		}
		if !found {
			t.Errorf("flows are %+v", h.Flows(t))
		}
		// With other containers, by the host's route, and by a route of the container's own.
		if err := client.EchoUDP(h.Ctx, port(0), own.Addr, "hello"); err != nil {
			t.Errorf("to a container: %v", err)
		}
		if err := c2.EchoUDP(h.Ctx, port(0), mine.Addr, "hello"); err != nil {
			t.Errorf("from a container: %v", err)
		}
		if err := h.Host.EchoUDP(h.Ctx, port(0), mine.Addr, "hello"); err != nil {
			t.Errorf("from the host: %v", err)
		}
		assertPeers(t, own, behind)
		h.inside(t, c2, "ip route add 10.8.0.0/24 via "+c1.Addr.String())
		sock, err := c2.ListenUDP(on(netip.IPv4Unspecified(), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sock.Close() }()
		h.becomesFast(t, m, "c2", func() { h.comesToPass(t, sock, mine.Addr, true) })

		// From outside, and by another container.
		if err := h.Outside.AddRoute(netip.MustParsePrefix("10.8.0.0/24"), h.HostAddr(0)); err != nil {
			t.Fatal(err)
		}
		before := h.drops(t, "direct")
		h.noPing(t, h.Outside, behind)
		h.waitDrops(t, "direct", before, 1)
		v := h.victims(t, netip.Addr{})
		before = h.drops(t, "spoof_ip")
		stolen := testutil.Frame{SrcMAC: v.mac2, DstMAC: v.gwMAC, Src: behind, Dst: h.Outside.Addr, UDP: &testutil.UDP{SrcPort: 5, DstPort: 7}}
		if err := c2.Inject("eth0", stolen.Bytes(t), stolen.With(func(f *testutil.Frame) { f.DstMAC, f.Dst = v.mac1, c1.Addr }).Bytes(t)); err != nil {
			t.Fatal(err)
		}
		h.waitDrops(t, "spoof_ip", before, 2)

		// The route is lost with the bridge, and comes back.
		h.onHost(t, "ip link set fastbr0 down")
		h.Must(t, "up")
		if err := h.Host.EchoUDP(h.Ctx, port(0), mine.Addr, "hello"); err != nil {
			t.Errorf("after the bridge was down: %v", err)
		}
		h.onHost(t, "ip route del 10.8.0.0/24")
		if r := h.Fastbr(t, "status"); !strings.Contains(r.Stdout+r.Stderr, "lost its route to 10.8.0.0/24") {
			t.Errorf("status says %s%s", r.Stdout, r.Stderr)
		}
		h.Must(t, "up")

		// Taken back, and given again.
		h.Must(t, "port", "set", "c1", "--no-allowed-address")
		before = h.drops(t, "spoof_ip")
		if !h.blocked(client, out.Addr) {
			t.Error("no longer allowed, and let out")
		}
		h.waitDrops(t, "spoof_ip", before, 1)
		if routes, err := h.Host.Run(h.Ctx, "ip", "route"); err != nil || strings.Contains(routes, "10.8.0.0") {
			t.Errorf("routes %s, %v", routes, err)
		}
		h.mustPing(t, c1, h.Outside.Addr, lab.PingOptions{})
		h.Must(t, "port", "set", "c1", "--allowed-address", "10.9.0.0/24", "--allowed-address", "10.8.0.0/24")
		if err := h.reaches(client, out.Addr, passTime); err != nil {
			t.Errorf("allowed again: %v", err)
		}
		h.Must(t, "detach", "c1")
		if routes, err := h.Host.Run(h.Ctx, "ip", "route"); err != nil || strings.Contains(routes, "10.8.0.0") || strings.Contains(routes, "10.9.0.0") {
			t.Errorf("routes %s, %v", routes, err)
		}
	})
}

// TestE2EAllowedRefused: what is somebody else's cannot be allowed, whoever comes first.
func TestE2EAllowedRefused(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 3})
	h.Must(t, "up")
	h.Must(t, "network", "create", "lab", "--subnet", "10.66.0.0/24")
	h.Must(t, "network", "create", "open", "--subnet", "10.67.0.0/24", "--masquerade=false", "--published-only")
	c1, c2, c3 := h.Containers[0], h.Containers[1], h.Containers[2]
	h.Attach(t, c1, "c1", "--allowed-address", "172.30.0.3", "--allowed-address", "10.8.0.0/24", "--allowed-mac", "02:42:ac:1e:00:04")
	h.Attach(t, c2, "c2")
	if c2.Addr.String() != "172.30.0.5" { // .3 is c1's to use, and the MAC address of .4
		t.Errorf("c2 has %s", c2.Addr)
	}
	many := []string{}
	for i := range 65 {
		many = append(many, "--allowed-address", fmt.Sprintf("10.9.%d.0/24", i))
	}
	attach := []string{"attach", c3.Path()}
	for want, args := range map[string][]string{
		"want an IPv4 address or prefix":                   {"--allowed-address", "nonsense"},
		"did you mean 10.8.0.0/24":                         {"--allowed-address", "10.8.0.5/24"},
		"0.0.0.0/0: not a usable subnet: /8 to /32":        {"--allowed-address", "0.0.0.0/0"},
		"fd00::/64: not a usable subnet: IPv4 only":        {"--allowed-address", "fd00::/64"},
		"224.0.0.18/32: not a usable subnet: not unicast":  {"--allowed-address", "224.0.0.18"},
		"contains the gateway's address 172.30.0.1":        {"--allowed-address", "172.30.0.1"},
		"contains the broadcast address 172.30.255.255":    {"--allowed-address", "172.30.255.0/24"},
		"contains the network's address 172.30.0.0":        {"--allowed-address", "172.30.0.0"},
		"contains 172.30.0.2, the address of c1":           {"--allowed-address", "172.30.0.2/31"},
		"contains the subnet 172.30.0.0/16":                {"--allowed-address", "172.16.0.0/12"},
		"overlaps 10.66.0.0/24 of network lab":             {"--allowed-address", "10.66.0.128/25"},
		"this host's device eth0 is in":                    {"--allowed-address", "198.51.100.0/25"},
		"65 allowed addresses":                             many,
		"want six bytes":                                   {"--allowed-mac", "nonsense"},
		"want a unicast Ethernet address":                  {"--allowed-mac", "01:00:5e:00:00:12"},
		"allowed MAC address 02:42:ac:1e:00:01 is the bri": {"--allowed-mac", "02:42:ac:1e:00:01"},
		"allowed MAC address 02:42:ac:1e:00:02 is c1's":    {"--allowed-mac", "02:42:ac:1e:00:02"},
		"address 172.30.0.3: taken":                        {"--ip", "172.30.0.3"},
		"a port with the MAC address 02:42:ac:1e:00:04":    {"--mac", "02:42:ac:1e:00:04"},
		"which containers of network default may use":      {"--network", "lab", "--allowed-address", "10.8.0.0/16"},
		"network open is made with --published-only":       {"--network", "open", "--allowed-address", "10.7.0.0/16"},
	} {
		r := h.Fastbr(t, append(attach, args...)...)
		if r.Code == 0 || !strings.Contains(r.Stderr, want) || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%v: exit %d: %q, want %q", args, r.Code, r.Stderr, want)
		}
	}
	if r := h.Fastbr(t, "network", "create", "vpn", "--subnet", "10.8.0.0/20"); r.Code == 0 || !strings.Contains(r.Stderr, "containers of network default may use") {
		t.Errorf("a network of it: exit %d: %s", r.Code, r.Stderr)
	}
	if r := h.Fastbr(t, "port", "set", "c2", "--allowed-address", "172.30.0.2"); r.Code == 0 || !strings.Contains(r.Stderr, "the address of c1") {
		t.Errorf("port set: exit %d: %s", r.Code, r.Stderr)
	}
	if n := len(h.ports(t)); n != 3 { // and the uplink
		t.Errorf("%d ports", n)
	}
	// Two may share.
	h.Must(t, "port", "set", "c2", "--allowed-address", "172.30.0.3", "--allowed-address", "10.8.0.0/24", "--allowed-mac", "02:42:ac:1e:00:04")
	if p := h.ports(t)["c2"]; len(p.AllowedAddresses) != 2 || len(p.AllowedMACs) != 1 {
		t.Errorf("c2 is %+v", p)
	}
	h.Must(t, "detach", "c1")
	if routes, err := h.Host.Run(h.Ctx, "ip", "route", "get", "10.8.0.5"); err != nil || !strings.Contains(routes, "via 172.30.0.5") {
		t.Errorf("route %s, %v", routes, err)
	}
	h.Must(t, "detach", "c2")
	h.Must(t, "network", "create", "vpn", "--subnet", "10.8.0.0/20")
}

// TestE2EMacvlanInside: a device with a MAC address of its own inside a container reaches
// everybody and is reached.
func TestE2EMacvlanInside(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := newE2E(t, m, lab.Options{Containers: 2})
		h.Must(t, append([]string{"up"}, m.Up...)...)
		c1, c2 := h.Containers[0], h.Containers[1]
		inner, err := h.Add("inner")
		if err != nil {
			t.Fatal(err)
		}
		h.Attach(t, c1, "c1", "--allowed-address", "172.30.0.128/28", "--allowed-mac", "02:00:00:00:00:81")
		h.Attach(t, c2, "c2")
		h.inside(t, c1, "ip link add mv0 link eth0 address 02:00:00:00:00:81 type macvlan mode bridge", "ip link set mv0 netns "+inner.Path())
		h.inside(t, inner, "ip addr add 172.30.0.129/16 dev mv0", "ip link set mv0 up", "ip route add default via 172.30.0.1")
		addr := netip.MustParseAddr("172.30.0.129")
		out := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		s, own := h.ServeUDP(t, inner, on(addr, 9090)), h.ServeUDP(t, c2, on(c2.Addr, 9090))
		for _, x := range []struct {
			from *lab.Namespace
			to   netip.AddrPort
			port string // whose packets are fast
		}{{inner, out.Addr, "c1"}, {inner, own.Addr, "c1"}, {c2, s.Addr, "c2"}, {h.Host, s.Addr, ""}} {
			sock, err := x.from.ListenUDP(on(netip.IPv4Unspecified(), 0))
			if err != nil {
				t.Fatal(err)
			}
			if h.comesToPass(t, sock, x.to, true); x.port != "" {
				h.becomesFast(t, m, x.port, func() { h.comesToPass(t, sock, x.to, true) })
			}
			_ = sock.Close()
		}
		assertPeers(t, own, addr)
		h.mustPing(t, c1, c2.Addr, lab.PingOptions{})
		before := h.drops(t, "spoof_mac")
		h.inside(t, inner, "ip link set mv0 address 02:00:00:00:00:82")
		h.noPing(t, inner, c2.Addr)
		h.waitDrops(t, "spoof_mac", before, 1)
	})
}

// keepalived starts keepalived in a container. Its end is graceful: it gives the address up.
func (h *e2e) keepalived(t *testing.T, c *lab.Namespace, priority int, vmac string) (stop func()) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "keepalived.conf")
	text := fmt.Sprintf(`global_defs {
	vrrp_version 3
	vrrp_garp_master_refresh 1
}
vrrp_instance V {
	state BACKUP
	interface eth0
	virtual_router_id 51
	priority %d
	advert_int 0.2
	%s
	virtual_ipaddress {
		172.30.0.100/16
	}
}
`, priority, vmac)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(h.Ctx)
	cmd := c.Exec(ctx, "keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", conf,
		"--pid", filepath.Join(dir, "pid"), "--vrrp_pid", filepath.Join(dir, "vrrp.pid"))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("keepalived in %s: %s", c.Name, said.String())
		}
	})
	var stopped bool
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		cancel()
	}
	t.Cleanup(stop)
	return stop
}

// TestE2EKeepalived: the address of two keepalived moves between their containers, with
// the containers' own MAC addresses and with the virtual one. Everybody follows: another
// container, the host, and clients outside by a rule of the host.
func TestE2EKeepalived(t *testing.T) {
	t.Parallel()
	testutil.RequireCommand(t, "keepalived")
	for _, x := range []struct{ name, vmac string }{{"own MAC", ""}, {"virtual MAC", "use_vmac vrrp51\n\tvmac_xmit_base"}} {
		for _, m := range e2eModes()[:2] {
			t.Run(m.Name+" "+x.name, func(t *testing.T) {
				t.Parallel()
				h := newE2E(t, m, lab.Options{Containers: 3})
				h.Must(t, append([]string{"up"}, m.Up...)...)
				c3, vip := h.Containers[2], netip.MustParseAddr("172.30.0.100")
				h.Attach(t, c3, "c3")
				for i, c := range h.Containers[:2] {
					name := fmt.Sprint("c", i+1)
					h.Attach(t, c, name, "--allowed-address", vip.String(), "--allowed-mac", "00:00:5e:00:01:33")
					h.inside(t, c, "sysctl -w net.ipv4.ip_nonlocal_bind=1")
					if _, err := c.ServeTCP(on(vip, 80), func(conn *net.TCPConn) { _, _ = conn.Write([]byte(name)) }); err != nil {
						t.Fatal(err)
					}
				}
				if err := h.Host.NFT(h.Ctx, "table ip vip {\nchain c {\ntype nat hook prerouting priority dstnat;\niifname eth0 tcp dport 8080 dnat to 172.30.0.100:80\n}\n}"); err != nil {
					t.Fatal(err)
				}
				// leadsTo waits until everybody is answered by a container.
				leadsTo := func(name string) {
					t.Helper()
					for _, from := range []struct {
						*lab.Namespace
						to netip.AddrPort
					}{{c3, on(vip, 80)}, {h.Host, on(vip, 80)}, {h.Outside, on(h.HostAddr(0), 8080)}} {
						ctx, cancel := context.WithTimeout(h.Ctx, harness.Deadline)
						last := ""
						err := lab.Poll(ctx, func() (bool, error) {
							ctx, cancel := context.WithTimeout(ctx, passTime)
							defer cancel()
							conn, err := from.DialTCP(ctx, netip.AddrPort{}, from.to)
							if err != nil {
								last = err.Error()
								return false, nil
							}
							defer func() { _ = conn.Close() }()
							b := make([]byte, 8)
							n, _ := conn.Read(b)
							last = string(b[:n])
							return last == name, nil
						})
						cancel()
						if err != nil {
							t.Fatalf("%s: %v: answered by %q, want %s", from.Name, err, last, name)
						}
					}
					h.mustPing(t, c3, vip, lab.PingOptions{})
				}
				first := h.keepalived(t, h.Containers[0], 150, x.vmac)
				leadsTo("c1")
				second := h.keepalived(t, h.Containers[1], 100, x.vmac)
				first()
				leadsTo("c2")
				h.becomesFast(t, m, "c3", func() { h.mustPing(t, c3, vip, lab.PingOptions{}) })
				again := h.keepalived(t, h.Containers[0], 150, x.vmac)
				leadsTo("c1")
				h.becomesFast(t, m, "c3", func() { h.mustPing(t, c3, vip, lab.PingOptions{}) })
				again()
				leadsTo("c2")
				second()
				for _, reason := range []string{"spoof_arp", "spoof_mac", "spoof_ip"} {
					if n := h.drops(t, reason); n != 0 {
						t.Errorf("%d frames dropped as %s", n, reason)
					}
				}
			})
		}
	}
}
