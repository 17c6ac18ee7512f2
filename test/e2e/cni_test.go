package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// debianCNI is where Debian keeps the reference plugins.
const debianCNI = "/usr/lib/cni"

// runtime is a lab whose host has a CNI runtime: libcni, the library that engines use,
// with the plugin as `fastbr cni install` installs it.
type runtime struct {
	*e2e
	cni    *libcni.CNIConfig
	leases string // of host-local
	exec   *harness.PluginExec
}

func newRuntime(t *testing.T, m harness.Mode, o lab.Options) *runtime {
	t.Helper()
	testutil.RequireCommand(t, filepath.Join(debianCNI, "host-local"))
	r := &runtime{e2e: newE2E(t, m, o), leases: t.TempDir()}
	bin := t.TempDir()
	r.Must(t, "cni", "install", "--bin-dir", bin, "--conf-dir", t.TempDir())
	r.exec = r.PluginExec()
	r.cni = libcni.NewCNIConfigWithCacheDir([]string{bin, debianCNI}, t.TempDir(), r.exec)
	return r
}

// list makes a network list. %L in it stands for the directory of host-local's leases.
func (r *runtime) list(t *testing.T, version, name, plugins string) *libcni.NetworkConfigList {
	t.Helper()
	text := fmt.Sprintf(`{"cniVersion": %q, "name": %q, "plugins": [%s]}`, version, name, strings.ReplaceAll(plugins, "%L", r.leases))
	l, err := libcni.ConfListFromBytes([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// attachment is what a runtime says about one attachment.
func attachment(c *lab.Namespace, capabilities map[string]any) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: containerID(c), NetNS: c.Path(), IfName: "eth0", CapabilityArgs: capabilities}
}

// containerID is an id whose first letters differ between the containers of all labs,
// as a runtime's ids do.
func containerID(c *lab.Namespace) string {
	parts := strings.Split(c.Name, "-") // fblab-LAB-NAME
	return parts[2] + "-" + parts[1]
}

// add attaches a container, which must succeed.
func (r *runtime) add(t *testing.T, l *libcni.NetworkConfigList, c *lab.Namespace, rt *libcni.RuntimeConf) *current.Result {
	t.Helper()
	raw, err := r.cni.AddNetworkList(r.Ctx, l, rt)
	if err != nil {
		t.Fatalf("ADD of %s: %v", c.Name, err)
	}
	res, err := current.NewResultFromResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.IPs) == 0 {
		t.Fatalf("ADD gave %v", res)
	}
	for _, ip := range res.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			t.Fatalf("ADD gave %v", ip)
		}
		c.SetAddr(a.Unmap())
	}
	return res
}

func (r *runtime) del(t *testing.T, l *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	t.Helper()
	if err := r.cni.DelNetworkList(r.Ctx, l, rt); err != nil {
		t.Errorf("DEL of %s: %v", rt.ContainerID, err)
	}
}

// containers is the number of ports, without uplinks.
func (r *runtime) containers(t *testing.T) (n int) {
	t.Helper()
	if r.Fastbr(t, "status").Code == 3 {
		return 0 // nothing is up
	}
	for _, p := range r.ports(t) {
		if p.Network != "" {
			n++
		}
	}
	return n
}

// code is the CNI error code of an error, 0 for none.
func code(t *testing.T, err error) uint {
	t.Helper()
	var e *types.Error
	if err != nil && !errors.As(err, &e) {
		t.Fatalf("%v is no CNI error", err)
	}
	if err == nil {
		return 0
	}
	return e.Code
}

const ownNetwork = `{"type": "fastbr", "network": "default",
	"capabilities": {"portMappings": true, "ips": true, "mac": true, "dns": true, "bandwidth": true}}`

// bridgeNetwork is a configuration of the reference bridge plugin as Podman writes it,
// with a placeholder for the type.
const bridgeNetwork = `{"type": "%s", "bridge": "cni7", "isGateway": true, "ipMasq": true, "hairpinMode": true,
	"ipam": {"type": "host-local", "dataDir": "%%L", "routes": [{"dst": "0.0.0.0/0"}],
		"ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]]}}`

func bridged(kind string) string { return fmt.Sprintf(bridgeNetwork, kind) }

// TestE2ECNILife leads an attachment through its life in every version of CNI.
func TestE2ECNILife(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 2})
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			l := r.list(t, v, "net", ownNetwork)
			a, b := r.Containers[0], r.Containers[1]
			ra, rb := attachment(a, nil), attachment(b, nil)
			res := r.add(t, l, a, ra)
			r.add(t, l, b, rb)
			if ip := res.IPs[0]; len(res.Interfaces) != 3 || res.Interfaces[0].Name != "fastbr0" || res.Interfaces[2].Name != "eth0" ||
				res.Interfaces[2].Sandbox != a.Path() || *ip.Interface != 2 || ip.Gateway.String() != "172.30.0.1" || len(res.Routes) != 1 {
				t.Errorf("result = %+v, IP %+v", res.Interfaces, ip)
			}
			r.mustPing(t, a, b.Addr, lab.PingOptions{Count: 1})
			r.mustPing(t, a, r.Outside.Addr, lab.PingOptions{Count: 1})
			if v != "0.3.1" {
				if err := r.cni.CheckNetworkList(r.Ctx, l, ra); err != nil {
					t.Errorf("CHECK: %v", err)
				}
			}
			if v == "1.1.0" {
				if err := r.cni.GetStatusNetworkList(r.Ctx, l); err != nil {
					t.Errorf("STATUS: %v", err)
				}
			}
			if _, err := r.cni.AddNetworkList(r.Ctx, l, ra); err == nil {
				t.Error("the same ADD again succeeded")
			}
			r.del(t, l, ra)
			r.del(t, l, ra)
			rb.NetNS = "" // as after a restart of the container
			r.del(t, l, rb)
			if n := r.containers(t); n != 0 {
				t.Errorf("%d ports are left", n)
			}
		})
	}
}

// TestE2ECNIOnlyTheTypeChanged runs one list with the reference bridge plugin, and the
// same list with only the type changed to fastbr. The container must see no difference.
func TestE2ECNIOnlyTheTypeChanged(t *testing.T) {
	t.Parallel()
	chain := `, {"type": "firewall"}, {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}`
	portmap := `, {"type": "portmap", "capabilities": {"portMappings": true}}`
	var seen []string
	for _, kind := range []string{"bridge", "fastbr"} {
		t.Run(kind, func(t *testing.T) {
			r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 2})
			l := r.list(t, "1.0.0", "podman", bridged(kind)+portmap+chain)
			a, b := r.Containers[0], r.Containers[1]
			ra := attachment(a, map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}})
			rb := attachment(b, nil)
			res := r.add(t, l, a, ra)
			r.add(t, l, b, rb)
			seen = append(seen, inside(t, r, a, res))
			r.mustPing(t, a, b.Addr, lab.PingOptions{Count: 1})
			r.mustPing(t, a, r.Outside.Addr, lab.PingOptions{Count: 1})
			s := r.ServeTCP(t, a, on(a.Addr, 80))
			defer s.Close()
			if err := r.Outside.EchoTCP(r.Ctx, netip.AddrPort{}, on(r.Host.Addr, 8080), "by the published port"); err != nil {
				t.Error(err)
			}
			// The CHECK of this portmap requires rules for IPv6, which the plugin does
			// not make.
			if err := r.cni.CheckNetworkList(r.Ctx, r.list(t, "1.0.0", "podman", bridged(kind)+chain), ra); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			r.del(t, l, ra)
			r.del(t, l, rb)
			r.assertNoLeases(t, "podman")
		})
	}
	if len(seen) == 2 && seen[0] != seen[1] {
		t.Errorf("with the reference plugin:\n%s\nwith fastbr:\n%s", seen[0], seen[1])
	}
}

// inside is what a container sees of its network, without random values.
func inside(t *testing.T, r *runtime, c *lab.Namespace, res *current.Result) string {
	t.Helper()
	out := fmt.Sprintf("%d interfaces, the IP's %d, %s via %s\n", len(res.Interfaces), *res.IPs[0].Interface, res.IPs[0].Address.String(), res.IPs[0].Gateway)
	for _, argv := range [][]string{{"ip", "-o", "-4", "addr", "show", "eth0"}, {"ip", "route"}, {"sysctl", "net.core.somaxconn"}} {
		text, err := c.Run(r.Ctx, argv...)
		if err != nil {
			t.Fatal(err)
		}
		// The interface indexes of the device and its peer differ.
		_, text, _ = strings.Cut(text, "eth0")
		out += text
	}
	return out
}

// assertNoLeases fails if host-local still has an address given out.
func (r *runtime) assertNoLeases(t *testing.T, network string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.leases, network, "10.*"))
	if err != nil || len(files) != 0 {
		t.Errorf("leases are left: %v, %v", files, err)
	}
}

// TestE2ECNICheckFindsADetachedProgram: CHECK finds a program that was detached.
func TestE2ECNICheckFindsADetachedProgram(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 1})
	l := r.list(t, "1.1.0", "net", ownNetwork)
	rt := attachment(r.Containers[0], nil)
	res := r.add(t, l, r.Containers[0], rt)
	index, err := r.Host.Index(res.Interfaces[1].Name)
	if err != nil {
		t.Fatal(err)
	}
	pins, err := filepath.Glob(filepath.Join(r.BPFFS, "fastbr", "*", "links", fmt.Sprintf("%d-in", index)))
	if err != nil || len(pins) != 1 {
		t.Fatalf("pins of the port: %v, %v", pins, err)
	}
	pinned, err := link.LoadPinnedLink(pins[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer pinned.Close()
	if err := pinned.Detach(); err != nil {
		t.Fatal(err)
	}
	if err := r.cni.CheckNetworkList(r.Ctx, l, rt); err == nil || !strings.Contains(err.Error(), "not attached any more") {
		t.Errorf("CHECK = %v", err)
	}
	if got := code(t, r.cni.GetStatusNetworkList(r.Ctx, l)); got != types.ErrLimitedConnectivity {
		t.Errorf("STATUS = %d, want %d", got, types.ErrLimitedConnectivity)
	}
	r.del(t, l, rt)
}

// TestE2ECNIGarbage: GC removes the stale attachments of its own network. It removes
// nothing of another network, of another engine or of a user.
func TestE2ECNIGarbage(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 5})
	r.Must(t, "up")
	l, other := r.list(t, "1.1.0", "net", ownNetwork), r.list(t, "1.1.0", "other", ownNetwork)
	for i, c := range r.Containers[:4] {
		if i == 3 {
			r.add(t, other, c, attachment(c, nil))
		} else {
			r.add(t, l, c, attachment(c, nil))
		}
	}
	r.Attach(t, r.Containers[4], "mine")
	// libcni would send a DEL for each attachment that it remembers. GC is for a
	// runtime that has lost its memory.
	forgetful := libcni.NewCNIConfigWithCacheDir(r.cni.Path, t.TempDir(), r.exec)
	err := forgetful.GCNetworkList(r.Ctx, l, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: containerID(r.Containers[1]), IfName: "eth0"}}})
	if err != nil {
		t.Fatal(err)
	}
	left := r.ports(t)
	for i, want := range []bool{false, true, false, true} {
		if _, ok := left[containerID(r.Containers[i])]; ok != want {
			t.Errorf("container %d: there %v, want %v; all: %v", i+1, ok, want, left)
		}
	}
	if _, ok := left["mine"]; !ok {
		t.Error("GC removed a port that a user has made")
	}
	r.mustPing(t, r.Containers[1], r.Containers[4].Addr, lab.PingOptions{Count: 1})
}

// TestE2ECNIMany attaches and detaches a hundred containers at once, while a user does
// the same.
func TestE2ECNIMany(t *testing.T) {
	t.Parallel()
	many := sized(40, 100)
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: many + 1})
	l := r.list(t, "1.0.0", "many", bridged("fastbr"))
	all, user := r.Containers[:many], r.Containers[many]
	r.Must(t, "up")
	each := func(what string, f func(rt *libcni.RuntimeConf) error) {
		var wg sync.WaitGroup
		for _, c := range all {
			wg.Go(func() {
				if err := f(attachment(c, nil)); err != nil {
					t.Errorf("%s of %s: %v", what, c.Name, err)
				}
			})
		}
		wg.Go(func() {
			if what == "ADD" {
				r.Attach(t, user, "user")
			} else if got := r.Fastbr(t, "detach", "user"); got.Code != 0 {
				t.Errorf("detach: %s", got.Stderr)
			}
		})
		wg.Wait()
	}
	each("ADD", func(rt *libcni.RuntimeConf) error { _, err := r.cni.AddNetworkList(r.Ctx, l, rt); return err })
	addrs := map[string]bool{}
	for _, p := range r.ports(t) {
		if p.Network != "" {
			addrs[p.IP] = true
		}
	}
	if len(addrs) != many+1 {
		t.Errorf("%d different addresses, want %d", len(addrs), many+1)
	}
	r.mustPing(t, all[0], r.Outside.Addr, lab.PingOptions{Count: 1})
	each("DEL", func(rt *libcni.RuntimeConf) error { return r.cni.DelNetworkList(r.Ctx, l, rt) })
	if n := r.containers(t); n != 0 {
		t.Errorf("%d ports are left", n)
	}
	r.assertNoLeases(t, "many")
}

// TestE2ECNIKilled kills ADD after each of its steps. The runtime's DEL, or any other
// command, removes everything that it left.
func TestE2ECNIKilled(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 1})
	l := r.list(t, "1.0.0", "killed", `{"type": "fastbr", "bridge": "cni7", "isDefaultGateway": true, "ipMasq": true,
		"capabilities": {"portMappings": true, "bandwidth": true},
		"ipam": {"type": "host-local", "dataDir": "%L", "subnet": "10.88.0.0/16"}}`)
	rt := bandwidth(r.Containers[0])
	rt.CapabilityArgs["portMappings"] = []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}
	env := r.exec.Env
	for _, step := range []string{"bridge", "port-record", "port-veth", "port-programs", "port-shape", "port-inside", "port-publish", "port-done"} {
		r.exec.Env = append(env[:len(env):len(env)], "FASTBR_KILL_AT="+step)
		if _, err := r.cni.AddNetworkList(r.Ctx, l, rt); err == nil {
			t.Errorf("ADD was to die after %s", step)
		}
		r.exec.Env = env
		r.del(t, l, rt)
		if n := r.containers(t); n != 0 {
			t.Errorf("killed after %s: %d ports are left", step, n)
		}
		if out, err := r.Host.Run(r.Ctx, "ip", "-br", "link"); err != nil || strings.Contains(out, "ifb") || strings.Contains(out, "veth") {
			t.Errorf("killed after %s: devices are left: %s, %v", step, out, err)
		}
		r.assertNoLeases(t, "killed")
	}
	r.add(t, l, r.Containers[0], rt)
	s := r.ServeTCP(t, r.Containers[0], on(r.Containers[0].Addr, 80))
	defer s.Close()
	if err := r.Outside.EchoTCP(r.Ctx, netip.AddrPort{}, on(r.Host.Addr, 8080), "at last"); err != nil {
		t.Error(err)
	}
	r.del(t, l, rt)
}

// TestE2ECNIRefuses makes wrong calls. The error code says whose fault it is, and
// nothing is left, no address of host-local either.
func TestE2ECNIRefuses(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 1})
	c := r.Containers[0]
	own := func(key, value string) string {
		return strings.Replace(bridged("fastbr"), `"isGateway": true`, `"isGateway": true, "`+key+`": `+value, 1)
	}
	for name, x := range map[string]struct {
		plugin string
		caps   map[string]any
		netns  string
		want   uint
	}{
		"vlan":           {plugin: own("vlan", "7"), want: types.ErrUnsupportedField},
		"isolation":      {plugin: own("portIsolation", "true"), want: types.ErrUnsupportedField},
		"IPv6 alone":     {plugin: strings.Replace(bridged("fastbr"), `"10.88.0.0/16", "gateway": "10.88.0.1"`, `"fd00::/64"`, 1), want: types.ErrUnsupportedField},
		"no network":     {plugin: `{"type": "fastbr", "network": "nosuch"}`, want: types.ErrInvalidNetworkConfig},
		"nothing":        {plugin: `{"type": "fastbr"}`, want: types.ErrInvalidNetworkConfig},
		"both":           {plugin: own("network", `"default"`), want: types.ErrInvalidNetworkConfig},
		"own namespace":  {plugin: ownNetwork, netns: r.Host.Path(), want: types.ErrInvalidNetNS},
		"no namespace":   {plugin: ownNetwork, netns: "/run/netns/nosuch", want: types.ErrInvalidEnvironmentVariables},
		"protocol":       {plugin: ownNetwork, caps: map[string]any{"portMappings": []map[string]any{{"hostPort": 1, "containerPort": 1, "protocol": "gre"}}}, want: types.ErrUnsupportedField},
		"two addresses":  {plugin: ownNetwork, caps: map[string]any{"ips": []string{"172.30.0.9", "172.30.0.10"}}, want: types.ErrUnsupportedField},
		"burst alone":    {plugin: ownNetwork, caps: map[string]any{"bandwidth": map[string]any{"egressBurst": 1}}, want: types.ErrInvalidNetworkConfig},
		"address abroad": {plugin: ownNetwork, caps: map[string]any{"ips": []string{"192.0.2.9"}}, want: 100},
		"no IPAM plugin": {plugin: strings.Replace(bridged("fastbr"), "host-local", "nosuch", 1), want: 100},
	} {
		t.Run(name, func(t *testing.T) {
			rt := attachment(c, x.caps)
			if x.netns != "" {
				rt.NetNS = x.netns
			}
			l := r.list(t, "1.0.0", "wrong", x.plugin)
			_, err := r.cni.AddNetworkList(r.Ctx, l, rt)
			if got := code(t, err); got != x.want {
				t.Errorf("code %d, want %d: %v", got, x.want, err)
			}
			r.assertNoLeases(t, "wrong")
			if out := r.Must(t, "network", "ls"); strings.Contains(out, "cni7") {
				t.Errorf("the network that was brought up for it is left: %s", out)
			}
			if out, err := c.Run(r.Ctx, "ip", "-o", "link"); err != nil || strings.Contains(out, "eth0") {
				t.Errorf("the container has %s, %v", out, err)
			}
		})
	}
}

// TestE2ECNICapabilities: what a runtime may ask for one attachment.
func TestE2ECNICapabilities(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		r := newRuntime(t, m, lab.Options{Containers: 1})
		r.Must(t, append([]string{"up"}, m.Up...)...)
		l, c := r.list(t, "1.1.0", "net", ownNetwork), r.Containers[0]
		rt := attachment(c, map[string]any{
			"ips": []string{"172.30.7.7/16"}, "mac": "02:00:00:00:07:07",
			"dns": map[string]any{"servers": []string{"192.0.2.53"}, "searches": []string{"example.org"}},
			"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
				{"hostPort": 8081, "containerPort": 81, "protocol": "tcp"}, {"hostPort": 53, "containerPort": 53, "protocol": "udp"}},
		})
		rt.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "web"}}
		res := r.add(t, l, c, rt)
		if res.IPs[0].Address.String() != "172.30.7.7/16" || res.Interfaces[2].Mac != "02:00:00:00:07:07" || strings.Join(res.DNS.Nameservers, " ") != "192.0.2.53" {
			t.Errorf("result = %+v", res)
		}
		var pubs []struct {
			HostPort    int `json:"host_port"`
			HostPortEnd int `json:"host_port_end"`
			Name        string
		}
		if err := json.Unmarshal([]byte(r.Must(t, "publish", "ls", "-o", "json")), &pubs); err != nil || len(pubs) != 2 || pubs[1].HostPortEnd != 8081 || pubs[0].Name != "web" {
			t.Errorf("publications = %+v, %v", pubs, err)
		}
		for _, p := range []uint16{80, 81} {
			s := r.ServeTCP(t, c, on(c.Addr, p))
			defer s.Close()
			if err := r.Outside.EchoTCP(r.Ctx, on(r.Outside.Addr, 0), on(r.Host.Addr, 8000+p), "hello"); err != nil {
				t.Error(err)
			}
			assertPeers(t, s, r.Outside.Addr)
		}
		if err := r.cni.CheckNetworkList(r.Ctx, l, rt); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		r.Must(t, "publish", "rm", "8080-8081")
		if err := r.cni.CheckNetworkList(r.Ctx, l, rt); err == nil || !strings.Contains(err.Error(), "8080-8081/tcp is published no more") {
			t.Errorf("CHECK of what is published no more = %v", err)
		}
		r.del(t, l, rt)
		if out := r.Must(t, "publish", "ls", "-o", "json"); strings.TrimSpace(out) != "[]" {
			t.Errorf("published after DEL: %s", out)
		}
	})
}

// cniLimit is the limit of shaped ports, in bit/s.
const cniLimit = 20e6

// bandwidth asks for cniLimit in both directions.
func bandwidth(c *lab.Namespace) *libcni.RuntimeConf {
	return attachment(c, map[string]any{"bandwidth": map[string]any{
		"ingressRate": int(cniLimit), "ingressBurst": 800000, "egressRate": int(cniLimit), "egressBurst": 800000}})
}

// assertLimit sends in both directions between a container with a limit and another
// end. No direction exceeds the limit, and TCP gets most of it.
func (r *runtime) assertLimit(t *testing.T, other, shaped *lab.Namespace) {
	t.Helper()
	for direction, o := range map[string]lab.IperfOptions{"in": {Seconds: 2}, "out": {Seconds: 2, Reverse: true}} {
		client, server := other, shaped
		if other == r.Outside { // outside cannot be the client
			client, server, o.Reverse = shaped, other, !o.Reverse
		}
		got, err := lab.Iperf(r.Ctx, client, server, server.Addr, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.1f of %.0f Mbit/s", direction, got.BitsPerSecond/1e6, cniLimit/1e6)
		// The burst may exceed the rate.
		if got.BitsPerSecond > 1.05*cniLimit || got.BitsPerSecond < cniLimit/2 {
			t.Errorf("%s: %.1f Mbit/s pass, the limit is %.0f", direction, got.BitsPerSecond/1e6, cniLimit/1e6)
		}
	}
}

// TestE2ECNIBandwidth: the limits of the bandwidth capability hold in both directions,
// between containers and to outside. CHECK finds a limit that is gone, and DEL leaves
// nothing of them.
func TestE2ECNIBandwidth(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 2})
	before, err := r.Host.Run(r.Ctx, "ip", "-br", "link")
	if err != nil {
		t.Fatal(err)
	}
	shaped, free := r.Containers[0], r.Containers[1]
	l := r.list(t, "1.1.0", "net", ownNetwork)
	r.add(t, l, free, attachment(free, nil))
	rt := bandwidth(shaped)
	res := r.add(t, l, shaped, rt)
	r.assertLimit(t, free, shaped)
	r.assertLimit(t, r.Outside, shaped)
	if err := r.cni.CheckNetworkList(r.Ctx, l, rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if _, err := r.Host.Run(r.Ctx, "tc", "qdisc", "del", "dev", res.Interfaces[1].Name, "root"); err != nil {
		t.Fatal(err)
	}
	if err := r.cni.CheckNetworkList(r.Ctx, l, rt); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("CHECK without the limit = %v", err)
	}
	r.del(t, l, rt)

	// GC, and a DEL after the namespace is gone, clean up as well.
	r.add(t, l, shaped, rt)
	forgetful := libcni.NewCNIConfigWithCacheDir(r.cni.Path, t.TempDir(), r.exec)
	if err := forgetful.GCNetworkList(r.Ctx, l, &libcni.GCArgs{}); err != nil {
		t.Error(err)
	}
	r.Must(t, "down", "--all")
	if after, err := r.Host.Run(r.Ctx, "ip", "-br", "link"); err != nil || after != before {
		t.Errorf("devices before:\n%safter:\n%s%v", before, after, err)
	}
}

// TestE2ECNIShaped chains the bandwidth plugin. Its limit holds in both directions from
// the first packet on, also between two containers, where the fast path would pass by
// the shaper. Nobody has told fastbr about it.
func TestE2ECNIShaped(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 2})
	shaped, free := r.Containers[0], r.Containers[1]
	chained := strings.Replace(ownNetwork, `, "bandwidth": true`, "", 1)
	r.add(t, r.list(t, "1.0.0", "net", chained), free, attachment(free, nil))
	rt := bandwidth(shaped)
	l := r.list(t, "1.0.0", "net", chained+`, {"type": "bandwidth", "capabilities": {"bandwidth": true}}`)
	r.add(t, l, shaped, rt)
	r.assertLimit(t, free, shaped)
	r.assertLimit(t, r.Outside, shaped)
	r.del(t, l, rt)
}
