package e2e

import (
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EHeldPorts: a port that the runtime holds for its container can be published. A
// port on which anybody else listens cannot.
func TestE2EHeldPorts(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 1})
	c := r.Containers[0]
	rt := attachment(c, map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}})
	l := r.list(t, "1.0.0", "net", ownNetwork)
	r.Must(t, "up")

	stranger := r.ServeTCP(t, r.Host, on(r.Host.Addr, 8080)) // the test's own, not one that the runtime has started for the container
	if _, err := r.cni.AddNetworkList(r.Ctx, l, rt); err == nil || !strings.Contains(err.Error(), "8080/tcp is in use by a socket of the host") {
		t.Errorf("ADD beside a stranger's listener: %v", err)
	}
	stranger.Close()

	holder := r.Host.Exec(r.Ctx, "busybox", "nc", "-ll", "-p", "8080", "-e", "/bin/true")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	}()
	waitFor(t, r.Ctx, "the holder to listen", func() bool {
		out, err := r.Host.Run(r.Ctx, "ss", "-Hltn", "sport", "8080")
		return err == nil && out != ""
	})
	r.add(t, l, c, rt)
	s := r.ServeTCP(t, c, on(c.Addr, 80))
	defer s.Close()
	if err := r.Outside.EchoTCP(r.Ctx, on(r.Outside.Addr, 0), on(r.Host.Addr, 8080), "hello"); err != nil {
		t.Error(err)
	}
	assertPeers(t, s, r.Outside.Addr)
	r.del(t, l, rt)
}

// TestE2ECNIOldVersions: lists older than 0.3.1, or without a version, get the
// reference plugin's results, with either kind of configuration.
func TestE2ECNIOldVersions(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 1})
	c := r.Containers[0]
	for _, v := range []string{"", "0.1.0", "0.2.0", "0.3.0"} {
		for kind, plugin := range map[string]string{"own": ownNetwork, "bridged": strings.Replace(bridged("fastbr"), `"hairpinMode"`, `"promiscMode"`, 1)} {
			l, rt := r.list(t, v, "net", plugin), attachment(c, nil)
			r.Must(t, "up")
			res := r.add(t, l, c, rt)
			if len(res.IPs) != 1 || len(res.Routes) != 1 {
				t.Errorf("version %q, %s: %+v", v, kind, res)
			}
			r.mustPing(t, c, r.Outside.Addr, lab.PingOptions{Count: 1})
			r.del(t, l, rt)
			r.assertNoLeases(t, "net")
		}
	}
}

// TestE2ECNIEmptyNetworkFollows: a list with another subnet or MTU, as after the node
// got another podCIDR, recreates a network without containers. A network with
// containers is left as it is.
func TestE2ECNIEmptyNetworkFollows(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 2})
	a, b := r.Containers[0], r.Containers[1]
	before := r.list(t, "1.0.0", "pods", bridged("fastbr"))
	moved := r.list(t, "1.0.0", "pods", strings.NewReplacer("10.88.", "10.99.", `"isGateway"`, `"mtu": 1400, "isGateway"`).Replace(bridged("fastbr")))
	r.add(t, before, a, attachment(a, nil))
	if _, err := r.cni.AddNetworkList(r.Ctx, moved, attachment(b, nil)); code(t, err) != types.ErrInvalidNetworkConfig {
		t.Errorf("ADD of other settings beside a container: %v", err)
	}
	r.mustPing(t, a, r.Outside.Addr, lab.PingOptions{Count: 1})
	r.del(t, before, attachment(a, nil))
	res := r.add(t, moved, b, attachment(b, nil))
	if ip := res.IPs[0].Address.String(); !strings.HasPrefix(ip, "10.99.") || res.Interfaces[2].Mtu != 1400 {
		t.Errorf("the container has %s, MTU %d", ip, res.Interfaces[2].Mtu)
	}
	r.mustPing(t, b, r.Outside.Addr, lab.PingOptions{Count: 1})
	r.del(t, moved, attachment(b, nil))
	r.assertNoLeases(t, "pods")
}

// TestE2ECNIOlderIPAMPlugin: a list of version 1.1.0 with an IPAM plugin that knows
// only 1.0.0 goes through its whole life, and GC leaves no address.
func TestE2ECNIOlderIPAMPlugin(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 2})
	a, b := r.Containers[0], r.Containers[1]
	if out, err := r.exec.RawExec.ExecPlugin(r.Ctx, filepath.Join(debianCNI, "host-local"), []byte(`{"cniVersion": "1.1.0"}`), []string{"CNI_COMMAND=VERSION"}); err != nil || strings.Contains(string(out), "1.1.0") {
		t.Skipf("host-local knows more than 1.0.0: %s, %v", out, err)
	}
	l := r.list(t, "1.1.0", "pods", bridged("fastbr"))
	r.add(t, l, a, attachment(a, nil))
	r.add(t, l, b, attachment(b, nil))
	for what, err := range map[string]error{
		"CHECK":  r.cni.CheckNetworkList(r.Ctx, l, attachment(a, nil)),
		"STATUS": r.cni.GetStatusNetworkList(r.Ctx, l),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	forgetful := libcni.NewCNIConfigWithCacheDir(r.cni.Path, t.TempDir(), r.exec)
	valid := []types.GCAttachment{{ContainerID: containerID(b), IfName: "eth0"}}
	if err := forgetful.GCNetworkList(r.Ctx, l, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		t.Errorf("GC: %v", err)
	}
	leases, err := filepath.Glob(filepath.Join(r.leases, "pods", "10.*"))
	if n := r.containers(t); err != nil || n != 1 || len(leases) != 1 {
		t.Errorf("after GC: %d ports, leases %v, %v; want the one that is valid", n, leases, err)
	}
	r.del(t, l, attachment(b, nil))
	r.assertNoLeases(t, "pods")
}

// TestE2EPublishedAddress: a port is published on an address by which somebody can
// reach it. Otherwise the command says why not.
func TestE2EPublishedAddress(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1}, "--uplink", "eth0")
	for _, argv := range [][]string{
		{"ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1"}, {"ip", "link", "set", "lan0", "up"},
		{"ip", "addr", "add", "10.5.0.1/24", "dev", "lan0"}, {"ip", "addr", "add", "10.6.0.1/32", "dev", "lo"},
	} {
		if _, err := h.Host.Run(h.Ctx, argv...); err != nil {
			t.Fatal(err)
		}
	}
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "10.6.0.1", h.Host.Addr.String(), "172.30.0.1"} {
		h.Must(t, "publish", "add", host+":8080:80", "c1")
		h.Must(t, "publish", "rm", host+":8080")
	}
	r := h.Fastbr(t, "publish", "add", "10.5.0.1:8080:80", "c1")
	want := "fastbr: host address 10.5.0.1 belongs to lan0, which is no uplink: nobody would reach the port by it. " +
		"Publish on another address, or run 'fastbr up --no-network --uplink eth0 --uplink lan0' first\n"
	if r.Code == 0 || r.Stderr != want {
		t.Errorf("exit %d: %q, want %q", r.Code, r.Stderr, want)
	}
	h.Must(t, "up", "--no-network", "--uplink", "eth0", "--uplink", "lan0")
	h.Must(t, "publish", "add", "10.5.0.1:8080:80", "c1")
	h.Must(t, "publish", "rm", "10.5.0.1:8080")
	h.Must(t, "up", "--uplink", "auto")
	h.Must(t, "publish", "add", "10.5.0.1:8080:80", "c1")
}

// TestE2EPublishedRouted publishes ports of a network that is not translated. What
// answers a published port has the host's address, fragments and ICMP errors included.
// Other packets stay as they are. The lab's captures check the addresses.
func TestE2EPublishedRouted(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 2}, "--masquerade=false")
		c1, c2 := h.Containers[0], h.Containers[1]
		tcp, udp := h.ServeTCP(t, c1, on(c1.Addr, 80)), h.ServeUDP(t, c1, on(c1.Addr, 53))
		defer tcp.Close()
		defer udp.Close()
		h.Must(t, "publish", "add", "8080:80", "c1")
		h.Must(t, "publish", "add", "5300-5301:53/udp", "c1")
		big := strings.Repeat("0123456789", 400)
		for range 3 {
			if err := h.Outside.EchoTCP(h.Ctx, on(h.Outside.Addr, 0), on(h.Host.Addr, 8080), big); err != nil {
				t.Error(err)
			}
			for _, text := range []string{"short", big} {
				if err := h.Outside.EchoUDP(h.Ctx, on(h.Outside.Addr, 44000), on(h.Host.Addr, 5300), text); err != nil {
					t.Error(err)
				}
			}
		}
		assertPeers(t, tcp, h.Outside.Addr)
		assertPeers(t, udp, h.Outside.Addr)
		h.wantSocketError(t, h.Outside, on(h.Host.Addr, 5301), syscall.ECONNREFUSED) // c1's port unreachable
		if err := c2.EchoTCP(h.Ctx, netip.AddrPort{}, on(h.Host.Addr, 8080), "hairpin"); err != nil {
			t.Error(err)
		}
		before := h.ports(t)["c1"]
		h.Must(t, "publish", "add", "5201:5201", "c1")
		if _, err := lab.Iperf(h.Ctx, h.Outside, c1, c1.Addr, lab.IperfOptions{Seconds: 1, Via: h.Host.Addr}); err != nil {
			t.Fatal(err)
		}
		after := h.ports(t)["c1"]
		if fast, slow := after.FastPackets-before.FastPackets, after.SlowPackets-before.SlowPackets; (fast > 10*slow) != (m.Name == "fast") {
			t.Errorf("%s: %d packets on the fast path, %d on the kernel's", m.Name, fast, slow)
		}
	})
}

// TestE2ERoutedStaysRouted: besides its published ports, a container of such a network
// sends and receives with its own address.
func TestE2ERoutedStaysRouted(t *testing.T) {
	t.Parallel()
	h := upE2E(t, harness.Mode{Name: "fast", Leaky: true}, lab.Options{Containers: 1}, "--masquerade=false")
	c1 := h.Containers[0]
	if _, err := h.Outside.Run(h.Ctx, "ip", "route", "add", "172.30.0.0/16", "via", h.Host.Addr.String()); err != nil {
		t.Fatal(err)
	}
	h.Must(t, "publish", "add", "8080:80", "c1")
	in, out := h.ServeTCP(t, c1, on(c1.Addr, 80)), h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 81))
	defer in.Close()
	defer out.Close()
	for _, to := range []netip.AddrPort{on(h.Host.Addr, 8080), on(c1.Addr, 80), on(h.Host.Addr, 8080)} {
		if err := h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, to, "inwards"); err != nil {
			t.Errorf("to %s: %v", to, err)
		}
	}
	if err := c1.EchoTCP(h.Ctx, netip.AddrPort{}, out.Addr, "outwards"); err != nil {
		t.Error(err)
	}
	assertPeers(t, out, c1.Addr)
	udp := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 82))
	defer udp.Close()
	if err := c1.EchoUDP(h.Ctx, netip.AddrPort{}, udp.Addr, strings.Repeat("fragments ", 400)); err != nil {
		t.Error(err)
	}
	assertPeers(t, udp, c1.Addr)
}

// TestE2EDockerOrphan: serve does not run while dockerd removes a container. The next
// command finds the device that has come back, and the port is free.
func TestE2EDockerOrphan(t *testing.T) {
	t.Parallel()
	r := newReplay(t, e2eModes()[0], 2)
	r.createNetwork(t)
	e, c := endpointID("1"), r.Containers[0]
	src := r.join(t, e, c, "10.77.0.2/24", "")
	r.call(t, "ProgramExternalConnectivity", r.with(e, portMap(fields{"Proto": 6, "Port": 80, "HostPort": 8080})))
	r.join(t, endpointID("2"), r.Containers[1], "10.77.0.3/24", "")
	_ = r.serve.Process.Kill()
	_ = r.serve.Wait()
	r.serve = nil
	r.ip(t, c, "link", "set", "eth0", "down")
	r.ip(t, c, "link", "set", "eth0", "name", src)
	r.ip(t, c, "link", "set", src, "netns", r.Host.Name)
	r.Must(t, "flows", "flush")
	if out := r.Must(t, "publish", "ls", "-o", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("still published: %s", out)
	}
	if left := r.ports(t); len(left) != 2 { // the other container, and eth0
		t.Errorf("ports %v", left)
	}
}
