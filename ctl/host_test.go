package ctl

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/datapath"
	"github.com/fastbr/fastbr/internal/testutil"
)

// host is a throw-away namespace that the test is in, with a fake datapath.
type host struct {
	ctx      context.Context
	opts     Options
	planes   fakePlanes
	messages *bytes.Buffer
	conn     *link.Conn
}

func newHost(t *testing.T) *host {
	t.Helper()
	testutil.NewNetns(t).Enter(t)
	dir := t.TempDir()
	h := &host{ctx: t.Context(), messages: &bytes.Buffer{}}
	h.opts = Options{BPFFS: filepath.Join(dir, "bpf"), StateDir: filepath.Join(dir, "run"), Messages: h.messages}
	h.planes.driver = datapath.ErrNotSupported
	var err error
	if h.conn, err = link.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.conn.Close)
	t.Cleanup(func() { // a mount would hinder the removal of what a test left up
		dirs, _ := filepath.Glob(filepath.Join(h.opts.BPFFS, "fastbr", "*"))
		for _, dir := range dirs {
			if err := removeFakeNetns(dir); err != nil {
				t.Error(err)
			}
		}
	})
	return h
}

// ctl opens a controller, as every command does anew. failAt breaks a step.
func (h *host) ctl(t *testing.T, failAt ...string) *Controller {
	t.Helper()
	opts := h.opts
	opts.planes = h.planes
	if len(failAt) > 0 {
		opts.failAt = failAt[0]
	}
	c, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (h *host) up(t *testing.T) NetworkView {
	t.Helper()
	v, _, err := h.ctl(t).Up(h.ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (h *host) attach(t *testing.T, target, name string) AttachResult {
	t.Helper()
	res, err := h.ctl(t).Attach(h.ctx, AttachRequest{Target: target, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func (h *host) downAll(t *testing.T) {
	t.Helper()
	if _, err := h.ctl(t).DownAll(h.ctx); err != nil {
		t.Fatal(err)
	}
}

// fake reads the datapath as it is pinned; nil if none is.
func (h *host) fake(t *testing.T) *fakeFile {
	t.Helper()
	p, err := h.planes.open(h.ctl(t).instance.pins)
	if err != nil {
		return nil
	}
	return p.(*fakeFile)
}

// traces is everything that fastbr may change, in words: devices, routes,
// sysctls, rules, files.
func (h *host) traces(t *testing.T) string {
	t.Helper()
	var out []string
	entries, err := h.conn.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, fmt.Sprintf("device %s %s master %d", e.Name, e.Alias, e.Master))
	}
	routes, err := h.conn.Routes(link.IPv4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		out = append(out, fmt.Sprintf("route %s table %d", r.Dst, r.Table))
	}
	conf, _ := filepath.Glob(hostconf.Conf + "*/forwarding")
	for _, p := range append(conf, hostconf.IPForward, hostconf.Reserved, hostconf.Liberal, hostconf.Conf+"all/accept_redirects") {
		v, _ := hostconf.Read(p)
		out = append(out, p+" "+v)
	}
	rules, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		t.Fatal(err)
	}
	out = append(out, string(rules))
	for _, root := range []string{h.opts.BPFFS, h.opts.StateDir} {
		_ = filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
			if err == nil && path != root {
				out = append(out, "file "+path)
			}
			return nil
		})
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// steps are the names that the trace of f shows.
func (h *host) steps(t *testing.T, f func(*Controller)) []string {
	t.Helper()
	c := h.ctl(t)
	var trace bytes.Buffer
	c.instance.runner.trace = &trace
	f(c)
	var names []string
	for line := range strings.Lines(trace.String()) {
		names = append(names, strings.TrimPrefix(strings.TrimSpace(line), "step: "))
	}
	if len(names) == 0 {
		t.Fatal("no steps traced")
	}
	return names
}

// assertSound brings up, attaches and takes down, and wants the host as before.
func (h *host) assertSound(t *testing.T, before, target string) {
	t.Helper()
	v := h.up(t)
	if !v.Up {
		t.Errorf("network is not up after up: %+v", v)
	}
	ports, err := h.ctl(t).Ports(h.ctx, DefaultNetwork)
	if err != nil {
		t.Fatal(err)
	}
	if len(ports) == 0 {
		h.attach(t, target, "sound")
	}
	f := h.fake(t)
	if f == nil || len(f.Networks) != 1 || len(f.Ports) != 1 {
		t.Errorf("the datapath knows %+v", f)
	}
	h.downAll(t)
	if after := h.traces(t); after != before {
		t.Errorf("host before:\n%s\nafter:\n%s", before, after)
	}
}

// TestMain is also the program that the kill tests run.
func TestMain(m *testing.M) {
	if op := os.Getenv("FASTBR_CTL_TEST_OP"); op != "" {
		os.Exit(testOperation(op))
	}
	// A subtest that forgot to enter its namespace must not work in the one the
	// tests were started in.
	start, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	os.Setenv("FASTBR_REFUSE_NETNS", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), start))
	os.Exit(m.Run())
}

// testOperation does one operation with the fake datapath in the namespace it
// was started in.
func testOperation(op string) int {
	args := strings.Fields(op)
	c, err := Open(Options{BPFFS: args[1], StateDir: args[2], planes: fakePlanes{}})
	ctx := context.Background()
	if err == nil {
		switch args[0] {
		case "up":
			_, _, err = c.Up(ctx, DefaultNetwork, NetworkRequest{}, InstanceRequest{})
		case "create":
			_, err = c.NetworkCreate(ctx, "lab", NetworkRequest{})
		case "down":
			_, err = c.DownAll(ctx)
		case "attach":
			_, err = c.Attach(ctx, AttachRequest{Target: args[3]})
		case "attach-owned":
			err = attachOwned(ctx, c, args[3])
		case "detach":
			_, err = c.Detach(ctx, args[3], "")
		case "endpoint":
			_, err = c.Engine().EndpointCreate(ctx, e1())
		case "endpoint-rm":
			err = c.Engine().EndpointDelete(ctx, e1().Network, e1().Name)
		case "publish":
			_, err = c.Publish(ctx, PublishRequest{First: 8080, Last: 8081, Port: 80, Proto: "tcp", Name: "c1"})
		case "unpublish":
			_, err = c.Unpublish(ctx, PublishRequest{First: 8080, Last: 8081})
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// process prepares an operation as a process of its own in the test's namespace.
func (h *host) process(t *testing.T, killAt, op string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	words := append([]string{op, h.opts.BPFFS, h.opts.StateDir}, args...)
	cmd.Env = append(os.Environ(), "FASTBR_CTL_TEST_OP="+strings.Join(words, " "), "FASTBR_KILL_AT="+killAt)
	cmd.Stderr = &bytes.Buffer{}
	return cmd
}

// addDevice makes a device of the host: one end of a pair whose other end is in
// a namespace of its own.
func (h *host) addDevice(t *testing.T, name string, addr string, up bool) int {
	t.Helper()
	peer, err := link.OpenTarget(testutil.NewNetns(t).Path())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	index, _, err := h.conn.CreateVeth(link.Veth{Name: name, PeerName: "peer", PeerNS: peer})
	if err != nil {
		t.Fatal(err)
	}
	if addr != "" {
		if err := h.conn.AddAddr(index, netip.MustParsePrefix(addr)); err != nil {
			t.Fatal(err)
		}
	}
	if up {
		if err := h.conn.SetUp(index, true); err != nil {
			t.Fatal(err)
		}
	}
	return index
}

var _ plane = (*datapath.Datapath)(nil)
