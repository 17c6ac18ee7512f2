// Package kubernetes runs fastbr as the pod network of a cluster of two nodes, beside
// the reference bridge plugin in the same lab. What kube-proxy, flanneld and a network
// policy controller do to a node is done here by hand, as they do it; the CNI plugins
// are the real ones.
package kubernetes

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// debianCNI is where Debian keeps the reference plugins.
const debianCNI = "/usr/lib/cni"

// flannelModule has the last release of flannel's CNI plugin from before it moved to a
// repository of its own. It hands the same configuration to its delegate as today's.
const flannelModule = "github.com/containernetworking/plugins/plugins/meta/flannel@v0.9.1"

// flannelDir is the directory of flannel's CNI plugin: the one that `make` has built,
// else a build of its own in the user's cache directory.
var flannelDir = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("FASTBR_TEST_FLANNEL"); path != "" {
		return filepath.Dir(path), nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "fastbr-test", "flannel")
	c := exec.Command("go", "install", flannelModule)
	c.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building flannel's plugin: %w: %s", err, out)
	}
	return dir, nil
})

// Addresses of every cluster: kubeadm's services and flannel's pods.
var (
	podCIDR  = netip.MustParsePrefix("10.244.0.0/16")
	services = netip.MustParsePrefix("10.96.0.0/12")
)

// fabric is how packets get from node to node.
type fabric int

const (
	hostGW fabric = iota // routes by the nodes' own addresses
	vxlan                // in UDP, by a device
)

// cluster is two nodes on one link, with pods a and b on the first, c on the second,
// and a client outside.
type cluster struct {
	*harness.Rig
	nodes   [2]*node
	a, b, c *lab.Namespace
	// translates: fastbr masquerades, except towards pods and nodes; else flanneld
	// does.
	translates bool
}

// node is one machine of a cluster.
type node struct {
	*harness.Rig // its Host is this node
	addr         netip.Addr
	subnet       netip.Prefix // of its pods
	// masked is the source address of what is masqueraded towards the other node's
	// pods.
	masked netip.Addr
	cni    *libcni.CNIConfig
	list   *libcni.NetworkConfigList
}

// gateway is the node's address on its bridge.
func (n *node) gateway() netip.Addr { return n.subnet.Addr().Next() }

// kind is a plugin that makes the pod network.
type kind struct {
	name     string
	delegate string   // what flannel is told of it
	up       []string // settings of fastbr; nil: it is not fastbr
}

// newCluster builds a lab of two nodes, with flannel, kube-proxy's rules, and pods.
func newCluster(t *testing.T, k kind, f fabric, p proxy) *cluster {
	t.Helper()
	testutil.RequireCommand(t, filepath.Join(debianCNI, "host-local"))
	// By routes pods' addresses are meant to be seen between the nodes.
	r := harness.New(t, harness.Mode{Name: k.name, Leaky: f == hostGW}, lab.Options{Containers: 3, Router: true, NFCall: true})
	cl := &cluster{Rig: r, translates: strings.Contains(k.delegate, "ipMasq"), a: r.Containers[0], b: r.Containers[1], c: r.Containers[2]}
	for i, host := range []*lab.Namespace{r.Host, r.LAN} {
		cl.nodes[i] = &node{Rig: r.On(host), addr: host.Addr, masked: host.Addr,
			subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 0}), 24)}
	}
	if err := r.LAN.AddRoute(netip.Prefix{}, r.OutsideAddr(0)); err != nil {
		t.Fatal(err)
	}
	for i, n := range cl.nodes {
		n.prepare(t)
		n.connect(t, cl.nodes[1-i], f)
		if !cl.translates {
			n.masquerade(t)
		}
		n.plugins(t, k, f)
		if k.up == nil {
			continue
		}
		t.Cleanup(func() { n.Must(t, "down", "--all") })
		if len(k.up) > 0 {
			n.Must(t, append([]string{"up", "--no-network"}, k.up...)...)
		}
	}
	cl.nodes[0].add(t, cl.a, map[string]any{"portMappings": []map[string]any{
		{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 8080, "containerPort": 80, "protocol": "udp"}}})
	cl.nodes[0].add(t, cl.b, nil)
	cl.nodes[1].add(t, cl.c, nil)
	for _, n := range cl.nodes {
		p.install(t, cl, n)
	}
	return cl
}

func (n *node) run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := n.Host.Exec(n.Ctx, argv...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// prepare sets what kubeadm asks of a node.
func (n *node) prepare(t *testing.T) {
	t.Helper()
	for _, key := range []string{"net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"} {
		if err := n.Host.SetSysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
}

// connect leads to the pods of another node, as flanneld does.
func (n *node) connect(t *testing.T, peer *node, f fabric) {
	t.Helper()
	if f == hostGW {
		n.run(t, "ip", "route", "add", peer.subnet.String(), "via", peer.addr.String(), "dev", "eth0", "onlink")
		return
	}
	mac := func(of *node) string { return fmt.Sprintf("02:f1:00:00:00:%02x", of.subnet.Addr().As4()[2]) }
	n.masked = n.subnet.Addr()
	for _, argv := range []string{
		"ip link add flannel.1 mtu 1450 address " + mac(n) + " type vxlan id 1 local " + n.addr.String() + " dev eth0 dstport 8472 nolearning",
		"ip addr add " + n.subnet.Addr().String() + "/32 dev flannel.1",
		"ip link set flannel.1 up",
		"ip neigh add " + peer.subnet.Addr().String() + " lladdr " + mac(peer) + " dev flannel.1 nud permanent",
		"bridge fdb append " + mac(peer) + " dev flannel.1 dst " + peer.addr.String(),
		"ip route add " + peer.subnet.String() + " via " + peer.subnet.Addr().String() + " dev flannel.1 onlink",
	} {
		n.run(t, strings.Fields(argv)...)
	}
}

// masquerade writes flanneld's rules. Its delegate translates nothing.
func (n *node) masquerade(t *testing.T) {
	t.Helper()
	n.restore(t, strings.NewReplacer("PODS", podCIDR.String(), "NODE", n.subnet.String()).Replace(`*filter
:FLANNEL-FWD - [0:0]
:FORWARD DROP [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s PODS -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d PODS -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s NODE -d PODS -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s PODS -d NODE -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s PODS -d NODE -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s PODS ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s PODS -d PODS -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
`))
}

// restore adds rules by iptables-restore.
func (n *node) restore(t *testing.T, rules string) {
	t.Helper()
	if _, err := n.Host.RunInput(n.Ctx, rules, "iptables-restore", "-w", "--noflush"); err != nil {
		t.Fatalf("%v\n%s", err, rules)
	}
}

// plugins installs the CNI plugins and the configuration that kube-flannel brings, with
// another delegate. Across vxlan fastbr publishes hostPorts itself, else portmap does.
func (n *node) plugins(t *testing.T, k kind, f fabric) {
	t.Helper()
	flannel, err := flannelDir()
	if err != nil {
		t.Fatal(err)
	}
	bin, dir := t.TempDir(), t.TempDir()
	if err := os.Symlink(n.Bin, filepath.Join(bin, "fastbr")); err != nil {
		t.Fatal(err)
	}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{bin, flannel, debianCNI}, t.TempDir(), n.PluginExec())
	mtu, own, chain := 1500, "", `, {"type": "portmap", "capabilities": {"portMappings": true}}`
	if f == vxlan {
		mtu = 1450
		if k.up != nil {
			own, chain = `"capabilities": {"portMappings": true}, `, ""
		}
	}
	env := filepath.Join(dir, "subnet.env")
	err = os.WriteFile(env, fmt.Appendf(nil, "FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s/24\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=true\n", podCIDR, n.gateway(), mtu), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	n.list, err = libcni.ConfListFromBytes(fmt.Appendf(nil, `{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
		{"type": "flannel", "subnetFile": %q, "dataDir": %q, "ipam": {"dataDir": %q}, %s%s}%s]}`,
		env, filepath.Join(dir, "flannel"), filepath.Join(dir, "leases"), own, k.delegate, chain))
	if err != nil {
		t.Fatal(err)
	}
}

// add attaches a pod.
func (n *node) add(t *testing.T, pod *lab.Namespace, capabilities map[string]any) {
	t.Helper()
	rt := attachment(pod, capabilities)
	raw, err := n.cni.AddNetworkList(n.Ctx, n.list, rt)
	if err != nil {
		t.Fatalf("ADD of %s: %v", pod.Name, err)
	}
	t.Cleanup(func() {
		if err := n.cni.DelNetworkList(n.Ctx, n.list, rt); err != nil {
			t.Errorf("DEL of %s: %v", pod.Name, err)
		}
	})
	res, err := current.NewResultFromResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := netip.AddrFromSlice(res.IPs[0].Address.IP.To4())
	pod.SetAddr(addr)
}

func attachment(pod *lab.Namespace, capabilities map[string]any) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: pod.Name, NetNS: pod.Path(), IfName: "eth0", CapabilityArgs: capabilities}
}
