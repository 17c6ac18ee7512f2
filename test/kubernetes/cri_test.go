package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

const (
	// pauseImage is what a sandbox runs.
	pauseImage = "fastbr.test/pause:1"
	// criUp is how long containerd may take to answer.
	criUp = 2 * time.Minute
	// criConfig is containerd's configuration. DIR is its directory.
	criConfig = `version = 2
root = "DIR/root"
state = "DIR/state"
[grpc]
  address = "DIR/sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "DIR/bin"
    conf_dir = "DIR/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
`
	// criList is the network's configuration.
	criList = `{"cniVersion": %q, "name": "pods", "plugins": [{"type": "fastbr", "bridge": "cni0",
	"isDefaultGateway": true, "ipMasq": true, "hairpinMode": true, "capabilities": {"portMappings": true, "bandwidth": true},
	"ipam": {"type": "host-local", "dataDir": "DIR/leases", "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:1::/64"}]]}}]}`
)

// kubelet is a node with a containerd of its own, driven as kubelet does.
type kubelet struct {
	*harness.Rig
	dir    string
	daemon *lab.Cmd
	client cri.RuntimeServiceClient
	images cri.ImageServiceClient
}

func newKubelet(t *testing.T) *kubelet {
	t.Helper()
	testutil.RequireCommand(t, "containerd", "ctr", "runc", filepath.Join(debianCNI, "host-local"))
	dir, err := os.MkdirTemp("", "fbk") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	k := &kubelet{Rig: harness.New(t, harness.Mode{Name: "fastbr"}, lab.Options{NFCall: true, IPv6: lab.Static}), dir: dir}
	for _, d := range []string{"bin", "net.d"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, path := range map[string]string{"fastbr": k.Bin, "host-local": debianCNI + "/host-local", "loopback": debianCNI + "/loopback"} {
		if err := os.Symlink(path, filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"config.toml": criConfig, "net.d/10-pods.conflist": k.conflist("1.0.0")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k.start(t)
	t.Cleanup(k.end)
	k.pullPause(t)
	return k
}

func (k *kubelet) conflist(version string) string {
	return strings.ReplaceAll(fmt.Sprintf(criList, version), "DIR", k.dir)
}

// start starts containerd and waits until its network is ready.
func (k *kubelet) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(k.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	k.daemon = k.Host.Exec(k.Ctx, "containerd", "--config", filepath.Join(k.dir, "config.toml"))
	k.daemon.Env = append(os.Environ(), k.PluginEnv()...)
	k.daemon.Stdout, k.daemon.Stderr = log, log
	if err := k.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+k.dir+"/sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	k.client, k.images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	ctx, cancel := context.WithTimeout(k.Ctx, criUp)
	defer cancel()
	var said error
	err = lab.Poll(ctx, func() (bool, error) {
		var s *cri.StatusResponse
		if s, said = k.client.Status(ctx, &cri.StatusRequest{}); said != nil {
			return false, nil
		}
		return !slices.ContainsFunc(s.Status.Conditions, func(c *cri.RuntimeCondition) bool { return !c.Status }), nil
	})
	if err != nil {
		log, _ := os.ReadFile(log.Name())
		t.Fatalf("containerd is not ready: %v, %v: %s", err, said, log)
	}
}

// kill crashes containerd. Sandboxes go on.
func (k *kubelet) kill() {
	_ = k.daemon.Process.Kill()
	_ = k.daemon.Wait()
}

// end removes what is left of the sandboxes, then containerd.
func (k *kubelet) end() {
	ctx, cancel := context.WithTimeout(context.Background(), criUp)
	defer cancel()
	if all, err := k.client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); err == nil {
		for _, s := range all.Items {
			_, _ = k.client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.Id})
			_, _ = k.client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.Id})
		}
	}
	k.kill()
}

// pullPause brings in the image of sandboxes; there is no registry.
func (k *kubelet) pullPause(t *testing.T) {
	t.Helper()
	layer := harness.BusyboxTree(t)
	config := fmt.Appendf(nil, `{"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/bin/busybox", "sleep", "86400"]},
		"rootfs": {"type": "layers", "diff_ids": ["sha256:%x"]}}`, sha256.Sum256(layer))
	manifest := fmt.Appendf(nil, `[{"Config": "config.json", "RepoTags": [%q], "Layers": ["layer.tar"]}]`, pauseImage)
	file := filepath.Join(k.dir, "pause.tar")
	if err := os.WriteFile(file, harness.Tar(t, "layer.tar", layer, "config.json", config, "manifest.json", manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := k.Host.Exec(k.Ctx, "ctr", "--address", k.dir+"/sock", "--namespace", "k8s.io", "images", "import", "--all-platforms", "--snapshotter", "native", file).CombinedOutput()
	if err != nil {
		t.Fatalf("ctr images import: %v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(k.Ctx, criUp)
	defer cancel()
	err = lab.Poll(ctx, func() (bool, error) {
		s, err := k.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: pauseImage}})
		return err == nil && s.Image != nil, nil
	})
	if err != nil {
		t.Fatalf("containerd does not know the image: %v", err)
	}
}

// pod is a sandbox.
type pod struct {
	id string
	*lab.Namespace
}

// run starts a sandbox.
func (k *kubelet) run(t *testing.T, name string, annotations map[string]string, ports ...*cri.PortMapping) pod {
	t.Helper()
	r, err := k.client.RunPodSandbox(k.Ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: name},
		Annotations:  annotations,
		PortMappings: ports,
		LogDirectory: k.dir,
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/" + filepath.Base(k.Cgroup)},
	}})
	if err != nil {
		t.Fatalf("RunPodSandbox %s: %v", name, err)
	}
	s, err := k.client.PodSandboxStatus(k.Ctx, &cri.PodSandboxStatusRequest{PodSandboxId: r.PodSandboxId, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if err := json.Unmarshal([]byte(s.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" {
			n, err := lab.Adopt(ns.Path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(n.Close)
			n.SetAddr(netip.MustParseAddr(s.Status.Network.Ip))
			for _, more := range s.Status.Network.AdditionalIps {
				n.SetAddr(netip.MustParseAddr(more.Ip))
			}
			return pod{r.PodSandboxId, n}
		}
	}
	t.Fatalf("sandbox %s has no network namespace: %s", name, s.Info["info"])
	return pod{}
}

// stop stops and removes a sandbox, twice each, as kubelet does when in doubt.
func (k *kubelet) stop(t *testing.T, p pod) {
	t.Helper()
	p.Close()
	for range 2 {
		if _, err := k.client.StopPodSandbox(k.Ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("StopPodSandbox: %v", err)
		}
	}
	for range 2 {
		if _, err := k.client.RemovePodSandbox(k.Ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("RemovePodSandbox: %v", err)
		}
	}
}

// ports are the names of the pods that fastbr has.
func (k *kubelet) ports(t *testing.T) map[string]ctl.PortView {
	t.Helper()
	var list []ctl.PortView
	k.JSON(t, &list, "port", "ls")
	m := map[string]ctl.PortView{}
	for _, p := range list {
		if p.Network != "" {
			m[p.Name] = p
		}
	}
	return m
}

func (k *kubelet) assertPorts(t *testing.T, want ...string) {
	t.Helper()
	if got := slices.Sorted(maps.Keys(k.ports(t))); !slices.Equal(got, want) {
		t.Errorf("pods on the network: %v, want %v", got, want)
	}
	for _, pattern := range []string{"10.*", "fd00:*"} {
		leases, err := filepath.Glob(k.dir + "/leases/pods/" + pattern)
		if err != nil || len(leases) != len(want) {
			t.Errorf("addresses given out: %v, %v; want %d", leases, err, len(want))
		}
	}
}

// TestCRI: containerd makes sandboxes on fastbr, with hostPort and bandwidth, crashes,
// and gives everything back, however often it asks.
func TestCRI(t *testing.T) {
	t.Parallel()
	k := newKubelet(t)
	web := k.run(t, "web", nil,
		&cri.PortMapping{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 8080},
		&cri.PortMapping{Protocol: cri.Protocol_UDP, ContainerPort: 80, HostPort: 8080})
	slow := k.run(t, "slow", map[string]string{"kubernetes.io/ingress-bandwidth": "100M", "kubernetes.io/egress-bandwidth": "50M"})
	k.assertPorts(t, "shop.slow", "shop.web")
	if v := k.ports(t); !slices.Contains(v["shop.slow"].Slow, "bandwidth") || len(v["shop.web"].Slow) > 0 {
		t.Errorf("slow: %v and %v, want bandwidth and nothing", v["shop.slow"].Slow, v["shop.web"].Slow)
	}
	k.assertReached(t, web, slow)

	// A runtime that has forgotten a pod has its attachment removed by GC.
	list, err := libcni.ConfListFromBytes([]byte(k.conflist("1.1.0")))
	if err != nil {
		t.Fatal(err)
	}
	lost, err := k.Add("lost")
	if err != nil {
		t.Fatal(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{filepath.Join(k.dir, "bin")}, t.TempDir(), k.PluginExec())
	if _, err := cni.AddNetworkList(k.Ctx, list, attachment(lost, nil)); err != nil {
		t.Fatal(err)
	}
	valid := []types.GCAttachment{{ContainerID: web.id, IfName: "eth0"}, {ContainerID: slow.id, IfName: "eth0"}}
	forgetful := libcni.NewCNIConfigWithCacheDir(cni.Path, t.TempDir(), k.PluginExec())
	if err := forgetful.GCNetworkList(k.Ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		t.Errorf("GC: %v", err)
	}
	k.assertPorts(t, "shop.slow", "shop.web")
	if err := forgetful.GetStatusNetworkList(k.Ctx, list); err != nil {
		t.Errorf("STATUS: %v", err)
	}

	k.kill()
	k.start(t)
	k.assertReached(t, web, slow)
	k.stop(t, slow)
	k.assertPorts(t, "shop.web")
	k.stop(t, web)
	k.assertPorts(t)
	ctx, cancel := context.WithTimeout(k.Ctx, silence)
	defer cancel()
	if err := k.Outside.EchoTCP(ctx, netip.AddrPort{}, on(k.Host.Addr, 8080), "anybody?"); err == nil {
		t.Error("the hostPort of a pod that is gone still answers")
	}
	if out := k.Must(t, "publish", "ls"); strings.Contains(out, "8080") {
		t.Errorf("publications are left: %s", out)
	}
}

// assertReached: by either family, the pod's hostPort is reached from outside, pods reach
// each other, the outside and themselves by the hostPort, and the node reaches them.
func (k *kubelet) assertReached(t *testing.T, web, slow pod) {
	t.Helper()
	k.assertReachedAt(t, web, slow, web.Addr, k.Host.Addr, k.Outside.Addr)
	k.assertReachedAt(t, web, slow, web.Addr6, k.HostAddr6(0), k.Outside.Addr6)
}

// assertReachedAt is assertReached by the addresses of one family: the pod's, the node's, and
// that of who is outside.
func (k *kubelet) assertReachedAt(t *testing.T, web, slow pod, at, node, outside netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(k.Ctx, patience)
	defer cancel()
	tcp, udp := k.ServeTCP(t, web.Namespace, on(at, 80)), k.ServeUDP(t, web.Namespace, on(at, 80))
	defer tcp.Close()
	defer udp.Close()
	out := k.ServeTCP(t, k.Outside, on(outside, 80))
	defer out.Close()
	host := on(node, 8080)
	for what, err := range map[string]error{
		"hostPort":                k.Outside.EchoTCP(ctx, on(outside, 0), host, "hello"),
		"hostPort, UDP":           k.Outside.EchoUDP(ctx, on(outside, 0), host, "hello"),
		"hostPort from a pod":     slow.EchoTCP(ctx, netip.AddrPort{}, host, "hello"),
		"hostPort from itself":    web.EchoTCP(ctx, netip.AddrPort{}, host, "hello"),
		"pod to pod":              lab.EchoBulk(ctx, slow.Namespace, tcp.Addr, size()),
		"pod to outside":          lab.EchoBulk(ctx, web.Namespace, out.Addr, size()),
		"limited pod to outside":  lab.EchoBulk(ctx, slow.Namespace, out.Addr, size()),
		"a probe of the node":     k.Host.EchoTCP(ctx, netip.AddrPort{}, tcp.Addr, "hello"),
		"the node's probe by UDP": k.Host.EchoUDP(ctx, netip.AddrPort{}, udp.Addr, "hello"),
	} {
		if err != nil {
			t.Errorf("%s, %s: %v", outside, what, err)
		}
	}
}
