package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// podmanList is the default network of Debian's Podman, with a placeholder for the
// type.
const podmanList = `{"cniVersion": "0.4.0", "name": "podman", "plugins": [
	{"type": "%s", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": {"type": "host-local", "dataDir": "%s", "routes": [{"dst": "0.0.0.0/0"}],
			"ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]]}},
	{"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "firewall"}, {"type": "tuning"}]}`

// podmanPatience is how long a server in a new container may take to listen.
const podmanPatience = time.Minute

// podman is a real Podman with CNI on the host of a lab. Everything that it keeps is in
// a directory of the test.
type podman struct {
	*runtime
	dir    string
	rootfs string
}

func newPodman(t *testing.T, kind string) *podman {
	t.Helper()
	testutil.RequireCommand(t, "podman", "runc", "busybox")
	p := &podman{runtime: newRuntime(t, e2eModes()[0], lab.Options{}), dir: t.TempDir()}
	p.rootfs = filepath.Join(p.dir, "rootfs")
	for _, d := range []string{"rootfs/bin", "rootfs/etc", "rootfs/proc", "rootfs/sys", "rootfs/dev", "rootfs/tmp", "rootfs/run", "net.d"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.write(t, "net.d/87-podman.conflist", fmt.Sprintf(podmanList, kind, p.leases))
	p.write(t, "containers.conf", fmt.Sprintf(`
		[containers]
		default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
		[network]
		network_backend = "cni"
		cni_plugin_dirs = [%q, %q]
		network_config_dir = %q
		[engine]
		runtime = "runc"
		cgroup_manager = "cgroupfs"
		events_logger = "none"
		lock_type = "file"
		`, p.cni.Path[0], debianCNI, filepath.Join(p.dir, "net.d")))
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.rootfs, "bin", "busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *podman) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// must runs podman on the lab's host, in the cgroup of the host's processes, since
// podman itself binds published ports.
func (p *podman) must(t *testing.T, args ...string) string {
	t.Helper()
	store := filepath.Join(p.dir, "store")
	c := p.Host.Exec(p.Ctx, append([]string{"podman", "--root", store + "/root", "--runroot", store + "/run", "--tmpdir", store + "/tmp",
		"--storage-driver", "vfs"}, args...)...)
	c.Env = append(os.Environ(), append(p.exec.Env, "CONTAINERS_CONF="+filepath.Join(p.dir, "containers.conf"))...)
	p.inCgroup(t, c.Cmd)
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestE2EPodman runs real containers on Podman's default network: first with the plugin
// that Podman brings, then with only the type changed.
func TestE2EPodman(t *testing.T) {
	t.Parallel()
	var seen []string
	for _, kind := range []string{"bridge", "fastbr"} {
		t.Run(kind, func(t *testing.T) {
			p := newPodman(t, kind)
			out := p.must(t, "run", "--rm", "--network", "podman", "--ip", "10.88.7.7", "--rootfs", p.rootfs, "/bin/busybox", "sh", "-c",
				fmt.Sprintf("busybox ip -4 addr show dev eth0 | busybox grep inet; busybox ip route; busybox ping -c 1 -W 15 %s >/dev/null && echo outside reached", p.Outside.Addr))
			seen = append(seen, out)
			if !strings.Contains(out, "outside reached") || !strings.Contains(out, "10.88.7.7/16") {
				t.Errorf("the container printed:\n%s", out)
			}
			if kind == "fastbr" {
				p.publishes(t, "podman") // by portmap, as in the list
				p.runtime.Must(t, "up")
				p.runtime.Must(t, "cni", "install", "--bin-dir", p.cni.Path[0], "--conf-dir", filepath.Join(p.dir, "net.d"))
				p.publishes(t, "fastbr") // by fastbr itself
			}
			p.assertNoLeases(t, "podman")
		})
	}
	if len(seen) == 2 && seen[0] != seen[1] {
		t.Errorf("with the reference plugin:\n%s\nwith fastbr:\n%s", seen[0], seen[1])
	}
}

// publishes runs a server, reaches it from outside and from the host, and removes it.
func (p *podman) publishes(t *testing.T, network string) {
	t.Helper()
	p.must(t, "run", "-d", "--name", "web", "--network", network, "-p", "8080:80", "--rootfs", p.rootfs,
		"/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/busybox", "cat")
	t.Cleanup(func() { p.must(t, "rm", "-f", "-t", "0", "--ignore", "web") })
	ports := p.ports(t)
	if _, ok := ports["web"]; !ok {
		t.Errorf("no port has the container's name: %v", ports)
	}
	p.assertReached(t)
	if network == "fastbr" {
		// Podman's monitor holds the port while the network is reloaded.
		p.must(t, "network", "reload", "web")
		p.assertReached(t)
		p.must(t, "network", "disconnect", network, "web")
		p.must(t, "network", "connect", network, "web")
		p.assertReached(t)
	}
	p.must(t, "rm", "-f", "-t", "0", "web")
	if n := p.containers(t); n != 0 {
		t.Errorf("%d ports are left", n)
	}
}

// assertReached reaches the server from outside and from the host.
func (p *podman) assertReached(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.Ctx, podmanPatience)
	defer cancel()
	err := lab.Poll(ctx, func() (bool, error) { // until it listens
		return p.Outside.EchoTCP(ctx, netip.AddrPort{}, on(p.Host.Addr, 8080), "hello") == nil, nil
	})
	if err != nil {
		t.Errorf("the published port does not answer: %v", err)
	}
	// The host's processes reach the container, not Podman's own socket on the port.
	for _, to := range []string{"127.0.0.1:8080", p.Host.Addr.String() + ":8080"} {
		if s := p.hostSocket(t, p.Host, "tcp", "4", "connect", "-", to); s.Echo != "hello" {
			t.Errorf("from the host by %s: %+v", to, s)
		}
	}
}
