package kubernetes

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

const (
	// patience is how long an echo on an open path may take.
	patience = time.Minute
	// silence is how long a closed path is tried.
	silence = time.Second
)

// stress tells whether make stress runs the tests.
func stress() bool { return os.Getenv("FASTBR_STRESS") != "" }

// size is how much each row sends there and back, in bytes.
func size() int64 {
	if stress() {
		return 20 << 20
	}
	return 256 << 10
}

var (
	// kinds are the plugins that flannel hands over to: the reference first.
	kinds = []kind{
		{name: "bridge", delegate: `"delegate": {"type": "bridge", "hairpinMode": true, "isDefaultGateway": true}`},
		{name: "fastbr", delegate: `"delegate": {"type": "fastbr", "hairpinMode": true, "isDefaultGateway": true}`, up: []string{}},
		{name: "fastbr-slow", delegate: `"delegate": {"type": "fastbr", "hairpinMode": true, "isDefaultGateway": true}`, up: []string{"--lease", "0"}},
		{name: "fastbr-masq", delegate: `"delegate": {"type": "fastbr", "hairpinMode": true, "isDefaultGateway": true, "ipMasq": true, "noMasquerade": ["10.244.0.0/16", "198.51.100.1/32", "198.51.100.66/32"]}`, up: []string{}},
	}
)

// row is one way through the cluster.
type row struct {
	what   string
	from   *lab.Namespace
	to     netip.AddrPort
	server *lab.Namespace // who answers on port 80; nil: nobody may
	seen   netip.Addr     // whom the server sees
}

func on(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// rows are what a cluster must carry. The expectations are those of Kubernetes and do
// not depend on the plugin.
func (cl *cluster) rows() []row {
	n1, n2 := cl.nodes[0], cl.nodes[1]
	a, b, c, out := cl.a, cl.b, cl.c, cl.Outside
	client := cl.OutsideAddr(0)
	a2, c1 := n1.addr, n2.addr // whom the other node sees
	if cl.translates {
		a2, c1 = a.Addr, c.Addr
	}
	pod := func(to *lab.Namespace) netip.AddrPort { return on(to.Addr, 80) }
	svc := func(i int) netip.AddrPort { return on(clusterIP(i), 80) }
	return []row{
		{"pod to pod of the node", a, pod(b), b, a.Addr},
		{"pod to pod of the other node", a, pod(c), c, a.Addr},
		{"pod from the other node", c, pod(a), a, c.Addr},
		{"pod to outside", a, pod(out), out, n1.addr},
		{"ClusterIP on the node", a, svc(svcNear), b, a.Addr},
		{"ClusterIP on the other node", a, svc(svcFar), c, a.Addr},
		{"ClusterIP outside", a, svc(svcOut), out, n1.addr},
		{"ClusterIP to itself", a, svc(svcSelf), a, n1.gateway()},
		{"ClusterIP from the other node", c, svc(svcNear), b, c.Addr},
		{"ClusterIP by the node", n1.Host, svc(svcNear), b, n1.gateway()},
		{"ClusterIP on the other node by the node", n1.Host, svc(svcFar), c, n1.masked},
		{"NodePort from outside", out, on(n1.addr, openPort), a, n1.gateway()},
		{"NodePort of the other node from outside", out, on(n2.addr, openPort), a, n2.masked},
		{"NodePort from a pod of the node", b, on(n1.addr, openPort), a, n1.gateway()},
		{"NodePort to itself", a, on(n1.addr, openPort), a, n1.gateway()},
		{"NodePort from the other node's pod", c, on(n1.addr, openPort), a, n1.gateway()},
		{"NodePort of the other node from a pod", b, on(n2.addr, openPort), a, n2.masked},
		{"NodePort by the node", n1.Host, on(n1.addr, openPort), a, n1.gateway()},
		{"NodePort by the other node", n2.Host, on(n1.addr, openPort), a, n1.gateway()},
		{"local NodePort from outside", out, on(n1.addr, shutPort), a, client},
		{"local NodePort from a pod of the node", b, on(n1.addr, shutPort), a, b.Addr},
		{"local NodePort of its own node from a pod", c, on(n2.addr, shutPort), a, c.Addr},
		{"local NodePort of a node without the pod", out, on(n2.addr, shutPort), nil, netip.Addr{}},
		{"hostPort from outside", out, on(n1.addr, 8080), a, client},
		{"hostPort from the other node", n2.Host, on(n1.addr, 8080), a, n2.addr},
		{"hostPort from the other node's pod", c, on(n1.addr, 8080), a, c1},
		{"hostPort from a pod of the node", b, on(n1.addr, 8080), a, netip.Addr{}},
		{"hostPort to itself", a, on(n1.addr, 8080), a, netip.Addr{}},
		{"node to its pod, a probe", n1.Host, pod(a), a, n1.gateway()},
		{"node to a pod of the other node", n1.Host, pod(c), c, n1.masked},
		{"pod to its node", a, on(n1.addr, 80), n1.Host, a.Addr},
		{"pod to its node by the gateway", a, on(n1.gateway(), 80), n1.Host, a.Addr},
		{"pod to the other node", a, on(n2.addr, 80), n2.Host, a2},
	}
}

// TestKubernetes: what pods, nodes and clients outside reach, and whom the server sees,
// is as Kubernetes wants it and as behind the reference bridge plugin.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	for _, w := range []struct {
		proxy  proxy
		fabric fabric
		kinds  []kind
	}{{byIPTables, hostGW, kinds}, {byNFT, vxlan, kinds[:2]}} {
		for _, k := range w.kinds {
			t.Run(w.proxy.name+"/"+k.name, func(t *testing.T) {
				t.Parallel()
				cl := newCluster(t, k, w.fabric, w.proxy)
				for _, r := range cl.rows() {
					cl.assert(t, r)
				}
				cl.assertFast(t, k)
				cl.assertCalm(t, k)
				cl.assertBalanced(t)
				cl.assertPolicy(t)
			})
		}
	}
}

// TestIPVS is the part of TestKubernetes about services, by a kernel that has IPVS.
func TestIPVS(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		t.Skipf("no IPVS here, see make kernels: %v", err)
	}
	testutil.RequireCommand(t, "ipvsadm")
	for _, k := range kinds[:2] {
		if k.up == nil && !stress() {
			continue // instructions are emulated, so each cluster takes a minute
		}
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			cl := newCluster(t, k, hostGW, byIPVS)
			for _, r := range cl.rows() {
				if strings.Contains(r.what, "ClusterIP") || strings.Contains(r.what, "NodePort") {
					cl.assert(t, r)
				}
			}
			cl.assertBalanced(t)
		})
	}
}

// assert tries one row by TCP, UDP and size.
func (cl *cluster) assert(t *testing.T, r row) {
	t.Helper()
	if r.server == nil {
		cl.assertShut(t, r.what, r.from, r.to)
		return
	}
	at := on(r.server.Addr, 80)
	if r.to == on(cl.nodes[0].gateway(), 80) {
		at = r.to // the node's other address
	}
	tcp, udp := cl.ServeTCP(t, r.server, at), cl.ServeUDP(t, r.server, at)
	defer tcp.Close()
	defer udp.Close()
	ctx, cancel := context.WithTimeout(cl.Ctx, patience)
	defer cancel()
	if err := r.from.EchoTCP(ctx, netip.AddrPort{}, r.to, "hello"); err != nil {
		t.Errorf("%s, TCP: %v", r.what, err)
		return
	}
	if err := r.from.EchoUDP(ctx, netip.AddrPort{}, r.to, "hello"); err != nil {
		t.Errorf("%s, UDP: %v", r.what, err)
	}
	if err := lab.EchoBulk(ctx, r.from, r.to, size()); err != nil {
		t.Errorf("%s, %d bytes both ways: %v", r.what, size(), err)
	}
	for _, s := range []*lab.Server{tcp, udp} {
		got := peers(s)
		if r.seen.IsValid() && !slices.Equal(got, []netip.Addr{r.seen}) {
			t.Errorf("%s: the server saw %v, want %v", r.what, got, r.seen)
		}
	}
}

// peers are the addresses of a server's clients.
func peers(s *lab.Server) (out []netip.Addr) {
	for p := range s.Peers() {
		if !slices.Contains(out, p.Addr()) {
			out = append(out, p.Addr())
		}
	}
	return out
}

func (cl *cluster) assertShut(t *testing.T, what string, from *lab.Namespace, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(cl.Ctx, silence)
	defer cancel()
	var wg sync.WaitGroup
	for name, echo := range map[string]func(context.Context, netip.AddrPort, netip.AddrPort, string) error{"TCP": from.EchoTCP, "UDP": from.EchoUDP} {
		wg.Go(func() {
			if err := echo(ctx, netip.AddrPort{}, to, "anybody?"); err == nil {
				t.Errorf("%s: %s was answered", what, name)
			}
		})
	}
	wg.Wait()
}

// assertFast: what the kernel does not translate takes the fast path, on a node and
// between nodes, although bridge-nf-call-iptables is on.
func (cl *cluster) assertFast(t *testing.T, k kind) {
	t.Helper()
	if k.up == nil {
		return
	}
	fast := func() (n uint64) {
		var ports []ctl.PortView
		cl.JSON(t, &ports, "port", "ls")
		for _, p := range ports {
			if p.Network != "" {
				n += p.FastPackets
			}
		}
		return n
	}
	for what, to := range map[string]*lab.Namespace{"a pod of the node": cl.b, "a pod of the other node": cl.c} {
		before := fast()
		if err := lab.Bulk(cl.Ctx, cl.a, to, to.Addr, 4<<20, false); err != nil {
			t.Errorf("to %s: %v", what, err)
		}
		if n := fast() - before; (n > 20) != (k.name != "fastbr-slow") {
			t.Errorf("to %s: %d packets took the fast path", what, n)
		}
	}
}

// assertCalm: fastbr has nothing to say against flannel's device, and finds its own state
// as it has left it, whatever has passed since.
func (cl *cluster) assertCalm(t *testing.T, k kind) {
	t.Helper()
	if k.up == nil {
		return
	}
	for _, n := range cl.nodes {
		if out := n.Must(t, "status"); strings.Contains(out, "lies in subnet") || strings.Contains(out, "detached") {
			t.Errorf("status says %s", out)
		}
	}
}

// TestBareDelegate: flannel asks for a gateway only if its delegate is called "bridge".
// The routes that it gives lead through one all the same.
func TestBareDelegate(t *testing.T) {
	t.Parallel()
	cl := newCluster(t, kind{name: "fastbr", delegate: `"delegate": {"type": "fastbr"}`, up: []string{}}, hostGW, byIPTables)
	for _, r := range cl.rows()[:3] {
		cl.assert(t, r)
	}
	cl.assert(t, row{"node to its pod", cl.nodes[0].Host, on(cl.a.Addr, 80), cl.a, cl.nodes[0].gateway()})
}

// assertBalanced: a service with an endpoint on each node reaches both.
func (cl *cluster) assertBalanced(t *testing.T) {
	t.Helper()
	near, far := cl.ServeTCP(t, cl.a, on(cl.a.Addr, 80)), cl.ServeTCP(t, cl.c, on(cl.c.Addr, 80))
	defer near.Close()
	defer far.Close()
	for i := 0; i < 100 && (len(near.Peers()) == 0 || len(far.Peers()) == 0); i++ {
		if err := cl.b.EchoTCP(cl.Ctx, netip.AddrPort{}, on(clusterIP(svcBoth), 80), "hello"); err != nil {
			t.Errorf("a service with two endpoints: %v", err)
		}
	}
	for _, s := range []*lab.Server{near, far} {
		if got := peers(s); !slices.Equal(got, []netip.Addr{cl.b.Addr}) {
			t.Errorf("endpoint %v of a service with two saw %v, want %v", s.Addr, got, cl.b.Addr)
		}
	}
}

// assertPolicy: a NetworkPolicy for a pod, written as rules of FORWARD, lets in what it
// names and nothing else, on the node as from the other node, by the pod's address as by
// a service. It holds for running flows, too. Probes of the node pass.
func (cl *cluster) assertPolicy(t *testing.T) {
	t.Helper()
	n1 := cl.nodes[0]
	s := cl.ServeTCP(t, cl.a, on(cl.a.Addr, 80))
	defer s.Close()
	u := cl.ServeUDP(t, cl.a, on(cl.a.Addr, 80))
	defer u.Close()
	running, err := cl.b.ListenUDP(on(cl.b.Addr, 5000))
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	for range 3 {
		if err := lab.EchoUDPOn(cl.Ctx, running, u.Addr, "before"); err != nil {
			t.Fatal(err)
		}
	}
	pod := cl.a.Addr.String()
	n1.run(t, "iptables", "-w", "-N", "POLICY")
	n1.run(t, "iptables", "-w", "-I", "FORWARD", "-d", pod, "-j", "POLICY")
	n1.run(t, "iptables", "-w", "-A", "POLICY", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-p", "tcp", "-j", "RETURN")
	n1.run(t, "iptables", "-w", "-A", "POLICY", "-s", cl.c.Addr.String(), "-p", "tcp", "--dport", "80", "-j", "RETURN")
	n1.run(t, "iptables", "-w", "-A", "POLICY", "-j", "DROP")
	cl.assertShut(t, "forbidden by a policy, on the node", cl.b, s.Addr)
	cl.assertShut(t, "forbidden by a policy, by a service", cl.b, on(clusterIP(svcSelf), 80))
	cl.assertShut(t, "forbidden by a policy, from outside", cl.Outside, on(n1.addr, openPort))
	ctx, cancel := context.WithTimeout(cl.Ctx, patience)
	defer cancel()
	for what, from := range map[string]*lab.Namespace{"allowed by a policy": cl.c, "a probe": n1.Host} {
		if err := from.EchoTCP(ctx, netip.AddrPort{}, s.Addr, "hello"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	err = lab.Poll(ctx, func() (bool, error) {
		short, stop := context.WithTimeout(ctx, silence)
		defer stop()
		return lab.EchoUDPOn(short, running, u.Addr, "after") != nil, nil
	})
	if err != nil {
		t.Errorf("a running flow goes on beside a policy that forbids it: %v", err)
	}
	n1.run(t, "iptables", "-w", "-D", "FORWARD", "-d", pod, "-j", "POLICY")
	if err := cl.b.EchoTCP(ctx, netip.AddrPort{}, s.Addr, "hello"); err != nil {
		t.Errorf("after the policy: %v", err)
	}
}
