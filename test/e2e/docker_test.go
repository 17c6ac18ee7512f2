package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// engine is a real dockerd on a lab's host, with directories of its own, and `fastbr
// serve` beside it. All labs share the machine's directory of plugin sockets, so the
// driver is named after the lab.
type engine struct {
	*e2e
	dir    string // short, since paths of sockets begin with it
	driver string
	pools  []string // flags of dockerd about the subnets that it chooses
	daemon *lab.Cmd
	log    *os.File
	serve  *exec.Cmd
}

const engineImage = "busybox"

// engineUp is how long a daemon may take to answer. It usually needs seconds.
const engineUp = time.Minute

func newEngine(t *testing.T, o lab.Options, pools ...string) *engine {
	t.Helper()
	testutil.RequireCommand(t, "dockerd", "docker", "busybox")
	d := &engine{e2e: newE2E(t, e2eModes()[0], o), pools: pools}
	d.driver = "fb" + d.ID
	var err error
	if d.dir, err = os.MkdirTemp("", "fbd"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(d.dir) })
	if d.log, err = os.Create(filepath.Join(t.TempDir(), "dockerd.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.log.Close() })
	d.startServe(t)
	t.Cleanup(func() { d.end(t) })
	d.startDaemon(t)
	cmd := d.client("import", "-", engineImage)
	cmd.Stdin = bytes.NewReader(harness.BusyboxTree(t))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v: %s", err, out)
	}
	return d
}

func (d *engine) startServe(t *testing.T) {
	t.Helper()
	d.serve = d.Cmd("serve", "--metrics", "", "--docker="+d.driver)
	d.serve.Stderr = d.log
	if err := d.serve.Start(); err != nil {
		t.Fatal(err)
	}
	socket := "/run/docker/plugins/" + d.driver + ".sock"
	waitFor(t, d.Ctx, "the driver's socket", func() bool {
		st, err := os.Stat(socket)
		return err == nil && st.Mode().Perm() == 0o600
	})
}

func (d *engine) startDaemon(t *testing.T) {
	t.Helper()
	d.daemon = d.Host.Exec(d.Ctx, append([]string{"dockerd", "--data-root", d.dir + "/data", "--exec-root", d.dir + "/exec", "-H", "unix://" + d.dir + "/sock",
		"-p", d.dir + "/pid", "--storage-driver", "vfs", "--live-restore"}, d.pools...)...)
	d.daemon.Stdout, d.daemon.Stderr = d.log, d.log
	if err := d.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.Ctx, engineUp)
	defer cancel()
	err := lab.Poll(ctx, func() (bool, error) { return d.client("version").Run() == nil, nil })
	if err != nil {
		t.Fatalf("dockerd does not answer: %v: %s", err, d.logged())
	}
}

func (d *engine) logged() string {
	b, _ := os.ReadFile(d.log.Name())
	return string(b)
}

// killDaemon crashes the engine: dockerd and containerd and, with all, also the shims
// and the containers.
func (d *engine) killDaemon(all bool) {
	_ = d.daemon.Process.Kill()
	_ = d.daemon.Wait()
	d.killRest(all)
	_ = os.Remove(d.dir + "/exec/containerd/containerd.pid")
	_ = os.Remove(d.dir + "/pid")
}

// killRest ends what a killed dockerd leaves behind: containerd and, with all, the
// shims and their children. It finds containerd and the shims by our directory in their
// arguments.
func (d *engine) killRest(all bool) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	ours := map[string]bool{}
	for _, p := range procs {
		line, err := os.ReadFile(p + "/cmdline")
		shim := bytes.Contains(line, []byte("containerd-shim"))
		if err == nil && bytes.Contains(line, []byte(d.dir+"/exec")) && (all || !shim) {
			ours[filepath.Base(p)] = true
		}
	}
	for _, p := range procs {
		if stat, err := os.ReadFile(p + "/stat"); all && err == nil {
			_, rest, _ := strings.Cut(string(stat), ") ") // state, parent
			if f := strings.Fields(rest); len(f) > 1 && ours[f[1]] {
				ours[filepath.Base(p)] = true
			}
		}
	}
	for pid := range ours {
		if n, err := strconv.Atoi(pid); err == nil {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
}

// end stops the engine and leaves nothing of it.
func (d *engine) end(t *testing.T) {
	if t.Failed() {
		t.Logf("dockerd and fastbr serve said:\n%s", d.logged())
	}
	if d.daemon != nil {
		if ids, err := d.client("ps", "-aq").Output(); err == nil && len(ids) > 0 {
			_ = d.client(append([]string{"rm", "-f"}, strings.Fields(string(ids))...)...).Run()
		}
		_ = d.daemon.Process.Signal(syscall.SIGTERM)
		_ = d.daemon.Wait()
	}
	d.killRest(true)
	_ = d.serve.Process.Signal(syscall.SIGTERM)
	_ = d.serve.Wait()
	if _, err := os.Stat("/run/docker/plugins/" + d.driver + ".sock"); err == nil {
		t.Error("serve has ended and left its socket")
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], d.dir) {
			_ = syscall.Unmount(f[4], syscall.MNT_DETACH)
		}
	}
}

// client is the docker command that came with dockerd, if there are two. A newer one
// refuses some requests to an older daemon.
func (d *engine) client(args ...string) *exec.Cmd {
	program := "/usr/bin/docker"
	if _, err := os.Stat(program); err != nil {
		program = "docker"
	}
	c := exec.CommandContext(d.Ctx, program, append([]string{"-H", "unix://" + d.dir + "/sock"}, args...)...)
	c.Env = append(os.Environ(), "DOCKER_CONFIG="+d.dir, "DOCKER_CONTEXT=", "DOCKER_HOST=")
	return c
}

// docker runs a command that has to succeed.
func (d *engine) docker(t *testing.T, args ...string) string {
	t.Helper()
	var errs bytes.Buffer
	c := d.client(args...)
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		t.Fatalf("docker %s: %v: %s%s", strings.Join(args, " "), err, out, &errs)
	}
	return strings.TrimSpace(string(out))
}

// refused runs a command that must fail with a message that contains why.
func (d *engine) refused(t *testing.T, why string, args ...string) {
	t.Helper()
	out, err := d.client(args...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), why) {
		t.Errorf("docker %s: %v: %s; want a refusal with %q", strings.Join(args, " "), err, out, why)
	}
}

// start runs a container that does nothing and returns its namespace.
func (d *engine) start(t *testing.T, name, network string, args ...string) *lab.Namespace {
	t.Helper()
	run := append([]string{"run", "-d", "--name", name, "--network", network}, args...)
	d.docker(t, append(run, engineImage, "/bin/busybox", "sleep", "86400")...)
	return d.adopt(t, name, network)
}

func (d *engine) adopt(t *testing.T, name, network string) *lab.Namespace {
	t.Helper()
	n, err := lab.Adopt(d.docker(t, "inspect", "-f", "{{.NetworkSettings.SandboxKey}}", name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	n.SetAddr(d.address(t, name, network))
	return n
}

// address is the address of a container on one of its networks.
func (d *engine) address(t *testing.T, name, network string) netip.Addr {
	t.Helper()
	text := d.docker(t, "inspect", "-f", "{{.NetworkSettings.Networks."+network+".IPAddress}}", name)
	a, err := netip.ParseAddr(text)
	if err != nil {
		t.Fatalf("address of %s on %s: %v", name, network, err)
	}
	return a
}

// assertNoGwbridge: dockerd silently makes docker_gwbridge if it misses a gateway.
func (d *engine) assertNoGwbridge(t *testing.T) {
	t.Helper()
	if names := d.docker(t, "network", "ls", "--format", "{{.Name}}"); strings.Contains(names, "docker_gwbridge") {
		t.Errorf("there is a docker_gwbridge: %q", names)
	}
}

// TestE2EDocker leads a dockerd with fastbr's networks through a typical day.
func TestE2EDocker(t *testing.T) {
	t.Parallel()
	d := newEngine(t, lab.Options{})
	before := d.snapshot(t)
	d.docker(t, "network", "create", "-d", d.driver, "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.1",
		"-o", "com.docker.network.driver.mtu=1450",
		"-o", "com.docker.network.bridge.name=lab0", "web")
	d.refused(t, "enable_icc", "network", "create", "-d", d.driver, "-o", "com.docker.network.bridge.enable_icc=false", "x")
	d.refused(t, "not known", "network", "create", "-d", d.driver, "-o", "fastbr.typo=1", "x")

	c1 := d.start(t, "c1", "web", "-p", "8080:80", "-p", "8080:80", "-p", "5300:53/udp", "-p", "9000-9009:9000-9009")
	c2 := d.start(t, "c2", "web", "--ip", "10.77.0.9", "--mac-address", "02:00:00:00:00:09")
	d.assertInspect(t)
	d.assertWorld(t, c1, c2)
	d.assertPublished(t, c1)
	d.assertGuarded(t, c1)
	d.assertAllowed(t, c2)
	d.refused(t, "lo", "network", "create", "-d", d.driver, "-o", "fastbr.via=lo", "x")
	d.docker(t, "network", "create", "-d", d.driver, "--subnet", "10.79.0.0/24", "-o", "fastbr.via=eth0", "other")
	far := d.start(t, "far", "other")
	d.assertOneWayOut(t, far)
	d.assertReach(t, c1, c2, far)
	d.assertMovesOut(t, c1, far)
	d.docker(t, "rm", "-f", "far")
	d.refused(t, "published already", "run", "--rm", "--network", "web", "-p", "9005:80", engineImage, "/bin/busybox", "true")
	d.assertSecondNetwork(t, c1)
	d.assertNoGwbridge(t)
	d.assertServeMayDie(t, c1)
	d.assertRules(t)

	d.docker(t, "rm", "-f", "c2")
	if ports := d.ports(t); len(ports) != 5 { // c1 twice, c3, eth0, docker0
		t.Errorf("ports after c2 has gone: %v", ports)
	}
	d.killDaemon(false) // the containers stay up
	d.startDaemon(t)
	d.assertPublished(t, c1)
	d.docker(t, "rm", "-f", "c3")
	d.killDaemon(true)
	d.startDaemon(t)
	d.docker(t, "start", "c1")
	d.assertPublished(t, d.adopt(t, "c1", "web"))
	d.assertNoGwbridge(t)

	d.docker(t, "rm", "-f", "c1")
	d.docker(t, "network", "rm", "web", "other", "inner")
	for kind, now := range d.snapshot(t) {
		// A restarted dockerd writes its own rules in another order.
		if diff := lineDiff(before[kind], now); diff != "" {
			t.Errorf("%s differ from before:\n%s", kind, diff)
		}
	}
}

// assertInspect checks that Docker tells the truth, and that fastbr says the same.
func (d *engine) assertInspect(t *testing.T) {
	t.Helper()
	got := d.docker(t, "network", "inspect", "-f", "{{.Driver}} {{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}", "web")
	if want := d.driver + " 10.77.0.0/24 10.77.0.1"; got != want {
		t.Errorf("docker network inspect: %q, want %q", got, want)
	}
	id := d.docker(t, "network", "inspect", "-f", "{{.ID}}", "web")
	var n ctl.NetworkView
	d.JSON(t, &n, "network", "inspect", id)
	if n.ID != id || n.Bridge != "lab0" || n.MTU != 1450 || n.Gateway != "10.77.0.1" || len(n.Ports) != 2 || n.DNS {
		t.Errorf("fastbr network inspect: %+v", n)
	}
	for _, p := range n.Ports {
		got := d.docker(t, "network", "inspect", "-f", "{{range .Containers}}{{.MacAddress}} {{.IPv4Address}}\n{{end}}", "web")
		if !strings.Contains(got, p.MAC+" "+p.IP) {
			t.Errorf("docker knows %q, fastbr %s %s", got, p.MAC, p.IP)
		}
	}
	inside := d.docker(t, "exec", "c2", "/bin/busybox", "ip", "addr", "show", "eth0")
	for _, want := range []string{"mtu 1450", "02:00:00:00:00:09", "10.77.0.9/24"} {
		if !strings.Contains(inside, want) {
			t.Errorf("eth0 of c2 lacks %q: %s", want, inside)
		}
	}
}

// assertOneWayOut checks that the only way out of the network "other" is known, and leads.
func (d *engine) assertOneWayOut(t *testing.T, far *lab.Namespace) {
	t.Helper()
	var n ctl.NetworkView
	d.JSON(t, &n, "network", "inspect", d.docker(t, "network", "inspect", "-f", "{{.ID}}", "other"))
	if n.Via != "eth0" {
		t.Errorf("the only way out is %q, want eth0", n.Via)
	}
	d.mustPing(t, far, d.OutsideAddr(0), lab.PingOptions{})
}

// assertWorld checks that names, other containers and the outside are reached.
func (d *engine) assertWorld(t *testing.T, c1, c2 *lab.Namespace) {
	t.Helper()
	if out := d.docker(t, "exec", "c1", "/bin/busybox", "nslookup", "c2"); !strings.Contains(out, "127.0.0.11") || !strings.Contains(out, "10.77.0.9") {
		t.Errorf("nslookup c2: %s", out)
	}
	d.mustPing(t, c1, c2.Addr, lab.PingOptions{})
	out := d.ServeTCP(t, d.Outside, on(d.Outside.Addr, 7))
	defer out.Close()
	for _, c := range []*lab.Namespace{c1, c2} {
		if err := c.EchoTCP(d.Ctx, netip.AddrPort{}, out.Addr, "hello, world"); err != nil {
			t.Errorf("from %v: %v", c.Addr, err)
		}
	}
	assertPeers(t, out, d.HostAddr(0))
}

// assertPublished reaches the ports of a container from outside, with the
// client's own address.
func (d *engine) assertPublished(t *testing.T, c *lab.Namespace) {
	t.Helper()
	ctx, cancel := context.WithTimeout(d.Ctx, engineUp)
	defer cancel()
	for inside, outside := range map[uint16]uint16{80: 8080, 9007: 9007} {
		s := d.ServeTCP(t, c, on(c.Addr, inside))
		if err := d.Outside.EchoTCP(ctx, on(d.Outside.Addr, 0), on(d.HostAddr(0), outside), "hello"); err != nil {
			t.Errorf("TCP port %d: %v", outside, err)
		}
		assertPeers(t, s, d.Outside.Addr)
		s.Close()
	}
	s := d.ServeUDP(t, c, on(c.Addr, 53))
	defer s.Close()
	if err := d.Outside.EchoUDP(ctx, on(d.Outside.Addr, 0), on(d.HostAddr(0), 5300), "hello"); err != nil {
		t.Errorf("UDP port 5300: %v", err)
	}
	assertPeers(t, s, d.Outside.Addr)
}

// assertSecondNetwork connects a running container to an internal network. Nothing is
// published there, and nothing leads outside.
// assertAllowed: an endpoint's options allow a container more than its own addresses, but not
// another's.
func (d *engine) assertAllowed(t *testing.T, c2 *lab.Namespace) {
	t.Helper()
	allow := "name=web,driver-opt=fastbr.allowed-address="
	d.refused(t, "allowed address", "run", "--rm", "--network", allow+c2.Addr.String(), engineImage, "/bin/busybox", "true")
	floating := netip.MustParseAddr("10.77.0.100")
	d.docker(t, "run", "-d", "--name", "vip", "--network", allow+floating.String(), engineImage, "/bin/busybox", "sleep", "86400")
	d.inside(t, d.adopt(t, "vip", "web"), "ip addr add 10.77.0.100/32 dev eth0")
	d.mustPing(t, c2, floating, lab.PingOptions{})
	d.docker(t, "rm", "-f", "vip")
}

func (d *engine) assertSecondNetwork(t *testing.T, c1 *lab.Namespace) {
	t.Helper()
	d.docker(t, "network", "create", "-d", d.driver, "--internal", "--subnet", "10.78.0.0/24", "inner")
	c3 := d.start(t, "c3", "inner", "-p", "8083:80")
	d.docker(t, "network", "connect", "inner", "c1")
	d.mustPing(t, c3, d.address(t, "c1", "inner"), lab.PingOptions{})
	d.noPing(t, c3, c1.Addr)
	if routes := d.docker(t, "exec", "c3", "/bin/busybox", "ip", "route"); strings.Contains(routes, "default") {
		t.Errorf("an internal network leads outside: %s", routes)
	}
	var pubs []ctl.PublicationView
	d.JSON(t, &pubs, "publish", "ls")
	if len(pubs) != 3 {
		t.Errorf("publications %+v, want c1's three", pubs)
	}
	d.docker(t, "network", "disconnect", "inner", "c1")
	d.docker(t, "network", "connect", "inner", "c1")
	d.assertPublished(t, c1)
}

// assertServeMayDie kills the driver while two connections are open, one of them to a
// published port. Both go on. A new driver takes over from the stale socket.
func (d *engine) assertServeMayDie(t *testing.T, c1 *lab.Namespace) {
	t.Helper()
	s := d.ServeTCP(t, d.Outside, on(d.Outside.Addr, 9))
	defer s.Close()
	conn, err := c1.DialTCP(d.Ctx, netip.AddrPort{}, s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	web := d.ServeTCP(t, c1, on(c1.Addr, 80))
	in, err := d.Outside.DialTCP(d.Ctx, netip.AddrPort{}, on(d.HostAddr(0), 8080))
	if err != nil {
		t.Fatal(err)
	}
	_ = d.serve.Process.Kill()
	_ = d.serve.Wait()
	for i := range 50 {
		for _, c := range []*net.TCPConn{conn, in} {
			if err := lab.Echo(d.Ctx, c, fmt.Sprint("without serve ", i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = in.Close()
	web.Close()
	d.assertPublished(t, c1)
	d.startServe(t)
	d.start(t, "c4", "web")
	d.docker(t, "rm", "-f", "c4")
}

// assertRules: fastbr has no rules in the firewall but the accept rules that dockerd's
// FORWARD policy makes necessary.
func (d *engine) assertRules(t *testing.T) {
	t.Helper()
	out, err := d.Host.Run(d.Ctx, "iptables-save")
	if err != nil {
		t.Fatal(err)
	}
	accepts := 0
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "fastbr") && !strings.Contains(line, "lab0") && !strings.Contains(line, "10.7") {
			continue
		}
		if accepts++; !strings.HasPrefix(line, "-A FORWARD") || !strings.HasSuffix(line, "-j ACCEPT\n") {
			t.Errorf("a rule for fastbr: %s", line)
		}
	}
	if accepts == 0 {
		t.Errorf("no accept rule, though dockerd set FORWARD to DROP:\n%s", out)
	}
}
