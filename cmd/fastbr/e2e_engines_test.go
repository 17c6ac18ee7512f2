package main_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fastbr/fastbr/ctl/lab"
)

// TestE2EHeldPorts: a port that the runtime holds for its container is given to
// it, one that anybody else listens on is not.
func TestE2EHeldPorts(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 1})
	c := r.Containers[0]
	rt := attachment(c, map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}})
	l := r.list(t, "1.0.0", "net", ownNetwork)
	r.must(t, "up")

	stranger := r.serveTCP(t, r.Host, on(r.Host.Addr, 8080)) // the test's own: not one that it has started for the container
	if _, err := r.cni.AddNetworkList(r.ctx, l, rt); err == nil || !strings.Contains(err.Error(), "8080/tcp is in use by a socket of the host") {
		t.Errorf("ADD beside a stranger's listener: %v", err)
	}
	stranger.Close()

	holder := r.Host.Exec(r.ctx, "busybox", "nc", "-ll", "-p", "8080", "-e", "/bin/true")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	}()
	waitFor(t, r.ctx, "the holder to listen", func() bool {
		out, err := r.Host.Run(r.ctx, "ss", "-Hltn", "sport", "8080")
		return err == nil && out != ""
	})
	r.add(t, l, c, rt)
	s := r.serveTCP(t, c, on(c.Addr, 80))
	defer s.Close()
	if err := r.Outside.EchoTCP(r.ctx, on(r.Outside.Addr, 0), on(r.Host.Addr, 8080), "hello"); err != nil {
		t.Error(err)
	}
	assertPeers(t, s, r.Outside.Addr)
	r.del(t, l, rt)
}

// TestE2ECNIOldVersions: with lists of before 0.3.1 (and of no version) the
// reference plugin's results come, with either kind of configuration.
func TestE2ECNIOldVersions(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 1})
	c := r.Containers[0]
	for _, v := range []string{"", "0.1.0", "0.2.0", "0.3.0"} {
		for kind, plugin := range map[string]string{"own": ownNetwork, "bridged": strings.Replace(bridged("fastbr"), `"hairpinMode"`, `"promiscMode"`, 1)} {
			l, rt := r.list(t, v, "net", plugin), attachment(c, nil)
			r.must(t, "up")
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

// TestE2ECNIEmptyNetworkFollows: another subnet or MTU in the list, as after the
// node got another podCIDR, makes a network without containers anew. One with
// containers is left as it is.
func TestE2ECNIEmptyNetworkFollows(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 2})
	a, b := r.Containers[0], r.Containers[1]
	before := r.list(t, "1.0.0", "pods", bridged("fastbr"))
	moved := r.list(t, "1.0.0", "pods", strings.NewReplacer("10.88.", "10.99.", `"isGateway"`, `"mtu": 1400, "isGateway"`).Replace(bridged("fastbr")))
	r.add(t, before, a, attachment(a, nil))
	if _, err := r.cni.AddNetworkList(r.ctx, moved, attachment(b, nil)); code(t, err) != types.ErrInvalidNetworkConfig {
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

// TestE2ECNIOlderIPAMPlugin: a list of 1.1.0 with an IPAM plugin that knows 1.0.0
// lives its whole life, and GC leaves no address.
func TestE2ECNIOlderIPAMPlugin(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 2})
	a, b := r.Containers[0], r.Containers[1]
	if out, err := r.exec.RawExec.ExecPlugin(r.ctx, filepath.Join(debianCNI, "host-local"), []byte(`{"cniVersion": "1.1.0"}`), []string{"CNI_COMMAND=VERSION"}); err != nil || strings.Contains(string(out), "1.1.0") {
		t.Skipf("host-local knows more than 1.0.0: %s, %v", out, err)
	}
	l := r.list(t, "1.1.0", "pods", bridged("fastbr"))
	r.add(t, l, a, attachment(a, nil))
	r.add(t, l, b, attachment(b, nil))
	for what, err := range map[string]error{
		"CHECK":  r.cni.CheckNetworkList(r.ctx, l, attachment(a, nil)),
		"STATUS": r.cni.GetStatusNetworkList(r.ctx, l),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	forgetful := libcni.NewCNIConfigWithCacheDir(r.cni.Path, t.TempDir(), r.exec)
	valid := []types.GCAttachment{{ContainerID: containerID(b), IfName: "eth0"}}
	if err := forgetful.GCNetworkList(r.ctx, l, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		t.Errorf("GC: %v", err)
	}
	leases, err := filepath.Glob(filepath.Join(r.leases, "pods", "10.*"))
	if n := r.containers(t); err != nil || n != 1 || len(leases) != 1 {
		t.Errorf("after GC: %d ports, leases %v, %v; want the one that is valid", n, leases, err)
	}
	r.del(t, l, attachment(b, nil))
	r.assertNoLeases(t, "pods")
}

// TestE2EPublishedAddress: a port is published on an address by which somebody
// can reach it, or the command says why not.
func TestE2EPublishedAddress(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	for _, argv := range [][]string{
		{"ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1"}, {"ip", "link", "set", "lan0", "up"},
		{"ip", "addr", "add", "10.5.0.1/24", "dev", "lan0"}, {"ip", "addr", "add", "10.6.0.1/32", "dev", "lo"},
	} {
		if _, err := h.Host.Run(h.ctx, argv...); err != nil {
			t.Fatal(err)
		}
	}
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "10.6.0.1", h.Host.Addr.String(), "172.30.0.1"} {
		h.must(t, "publish", "add", host+":8080:80", "c1")
		h.must(t, "publish", "rm", host+":8080")
	}
	r := h.fastbr(t, "publish", "add", "10.5.0.1:8080:80", "c1")
	want := "fastbr: host address 10.5.0.1 is that of lan0, which is no uplink: nobody would reach the port by it: " +
		"publish on another, or run 'fastbr up --uplink eth0 --uplink lan0'\n"
	if r.code == 0 || r.stderr != want {
		t.Errorf("exit %d: %q, want %q", r.code, r.stderr, want)
	}
	h.must(t, "up", "--uplink", "eth0", "--uplink", "lan0")
	h.must(t, "publish", "add", "10.5.0.1:8080:80", "c1")
}
