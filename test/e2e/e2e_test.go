package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// The end-to-end tests drive the real binary in labs. Each topic has its own
// file; this one holds what they share. Deadlines here are for hanging, not for
// speed: no test asserts how long something takes. Tests that need the machine
// to themselves (throughput, the kernel's one ARP table) are not parallel.

const (
	// e2eDeadline ends a test that hangs.
	e2eDeadline = 8 * time.Minute
	// pingPatience is for a reply that never comes.
	pingPatience = 15 * time.Second
	// arpRetry is after how long the kernel repeats an ARP request.
	arpRetry = time.Second
)

// e2eBinary is the program under test: what `make test` has built, else a build
// of its own in the user's cache directory.
var e2eBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("FASTBR_TEST_BINARY"); path != "" {
		return path, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	path := filepath.Join(cache, "fastbr-test", "fastbr")
	out, err := exec.Command("go", "build", "-o", path, "../../cmd/fastbr").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building fastbr: %w: %s", err, out)
	}
	return path, nil
})

// e2eMode is a way to forward that the same assertions hold for.
type e2eMode struct {
	name  string
	up    []string // flags of `fastbr up`
	plain bool     // a kernel bridge instead of fastbr, for comparison
	leaky bool     // what leaves is not watched: known to leak
}

func e2eModes() []e2eMode {
	return []e2eMode{
		{name: "fast"},
		{name: "slow", up: []string{"--lease", "0", "--l2-fast=false"}},
		{name: "plain", plain: true},
	}
}

// eachMode runs a test in every mode.
func eachMode(t *testing.T, test func(t *testing.T, m e2eMode)) {
	for _, m := range e2eModes() {
		t.Run(m.name, func(t *testing.T) { test(t, m) })
	}
}

// fastbrModes runs a test in every mode that has fastbr in it.
func fastbrModes(t *testing.T, test func(t *testing.T, m e2eMode)) {
	for _, m := range e2eModes() {
		if !m.plain {
			t.Run(m.name, func(t *testing.T) { test(t, m) })
		}
	}
}

// e2e is one lab with fastbr in its host.
type e2e struct {
	*lab.Lab
	ctx      context.Context
	cancel   context.CancelFunc
	bin      string
	bpffs    string
	stateDir string
	cgroup   string // of the host's processes
	mode     e2eMode
}

// newE2E builds a lab with nothing up. When the test ends, whatever is still up
// is taken down and the leak capture must be alive and empty.
func newE2E(t *testing.T, m e2eMode, o lab.Options) *e2e {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "iptables", "conntrack", "iperf3")
	bin, err := e2eBinary()
	if err != nil {
		t.Fatal(err)
	}
	h := &e2e{bin: bin, bpffs: testutil.BPFFS(t), stateDir: filepath.Join(t.TempDir(), "run"), cgroup: testutil.Cgroup(t), mode: m}
	h.renew()
	t.Cleanup(func() { h.cancel() })
	o.Plain = o.Plain || m.plain
	if m.leaky {
		o.Private = []netip.Prefix{}
	}
	if h.Lab, err = lab.New(h.ctx, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	t.Cleanup(func() {
		if m.leaky {
			return
		}
		h.assertNoLeak(t)
		if !m.plain {
			h.must(t, "down", "--all")
			h.assertNoLeak(t)
		}
	})
	return h
}

// renew gives a test of many parts the whole time again for the next.
func (h *e2e) renew() {
	if h.cancel != nil {
		h.cancel()
	}
	h.ctx, h.cancel = context.WithTimeout(context.Background(), e2eDeadline)
}

// upE2E builds a lab, brings the default network up in the given mode and
// attaches every container, under the names c1..cN.
func upE2E(t *testing.T, m e2eMode, o lab.Options, upArgs ...string) *e2e {
	t.Helper()
	h := newE2E(t, m, o)
	if m.plain {
		return h
	}
	h.must(t, append(append([]string{"up"}, m.up...), upArgs...)...)
	for i, c := range h.Containers {
		h.attach(t, c, fmt.Sprintf("c%d", i+1))
	}
	return h
}

// attach plugs a namespace in and notes its address.
func (h *e2e) attach(t *testing.T, c *lab.Namespace, name string, args ...string) ctl.AttachResult {
	t.Helper()
	out := h.must(t, append([]string{"attach", c.Path(), "--name", name, "-o", "json"}, args...)...)
	var r ctl.AttachResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("attach printed %q: %v", out, err)
	}
	p, err := netip.ParsePrefix(r.IP)
	if err != nil {
		t.Fatalf("attach printed %q: %v", out, err)
	}
	c.SetAddr(p.Addr())
	return r
}

// cmd prepares a fastbr command that works on the lab's host.
func (h *e2e) cmd(args ...string) *exec.Cmd {
	argv := append([]string{"--netns", h.Host.Path(), "--bpffs", h.bpffs, "--state-dir", h.stateDir}, args...)
	c := exec.CommandContext(h.ctx, h.bin, argv...)
	c.Env = append(os.Environ(), h.pluginEnv()...)
	return c
}

// pluginEnv is what leads fastbr to the lab where there are no arguments.
func (h *e2e) pluginEnv() []string {
	return []string{"FASTBR_BPFFS=" + h.bpffs, "FASTBR_STATE_DIR=" + h.stateDir, "FASTBR_REFUSE_NETNS=/proc/1/ns/net", "FASTBR_CGROUP=" + h.cgroup}
}

// result of one fastbr command.
type result struct {
	stdout, stderr string
	code           int // -1: killed by a signal
}

func run(t *testing.T, c *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("fastbr %s: %v", strings.Join(c.Args[1:], " "), err)
	}
	return result{out.String(), errs.String(), c.ProcessState.ExitCode()}
}

// fastbr runs a command to its end.
func (h *e2e) fastbr(t *testing.T, args ...string) result {
	t.Helper()
	return run(t, h.cmd(args...))
}

// must runs a command that has to succeed, and returns its standard output.
func (h *e2e) must(t *testing.T, args ...string) string {
	t.Helper()
	r := h.fastbr(t, args...)
	if r.code != 0 {
		t.Fatalf("fastbr %s: exit %d: %s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r.stdout
}

// ports are what `port ls` shows, by name.
func (h *e2e) ports(t *testing.T) map[string]ctl.PortView {
	t.Helper()
	var list []ctl.PortView
	h.json(t, &list, "port", "ls")
	m := map[string]ctl.PortView{}
	for _, p := range list {
		m[p.Name] = p
	}
	return m
}

func (h *e2e) flows(t *testing.T) []ctl.FlowView {
	t.Helper()
	var list []ctl.FlowView
	h.json(t, &list, "flows", "ls")
	return list
}

func (h *e2e) json(t *testing.T, to any, args ...string) {
	t.Helper()
	out := h.must(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), to); err != nil {
		t.Fatalf("fastbr %s printed %q: %v", strings.Join(args, " "), out, err)
	}
}

// drops counts the dropped packets of one reason over all ports and uplinks.
func (h *e2e) drops(t *testing.T, reason string) (n uint64) {
	t.Helper()
	for _, p := range h.ports(t) {
		n += p.Drops[reason]
	}
	return n
}

// waitDrops waits until a reason was counted at least n times more than before.
func (h *e2e) waitDrops(t *testing.T, reason string, before, n uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(h.ctx, 10*time.Second)
	defer cancel()
	var now uint64
	err := lab.Poll(ctx, func() (bool, error) {
		now = h.drops(t, reason)
		return now >= before+n, nil
	})
	if err != nil {
		t.Errorf("%s counted %d drops, want %d; all: %v", reason, now-before, n, h.allDrops(t))
	}
}

func (h *e2e) allDrops(t *testing.T) map[string]map[string]uint64 {
	t.Helper()
	m := map[string]map[string]uint64{}
	for name, p := range h.ports(t) {
		if len(p.Drops) > 0 {
			m[name] = p.Drops
		}
	}
	return m
}

func (h *e2e) assertNoLeak(t *testing.T) {
	t.Helper()
	leaks, err := h.Leaks()
	if err != nil {
		t.Errorf("leak check: %v", err)
	}
	for i, k := range leaks {
		if i == 5 {
			t.Errorf("… and %d more", len(leaks)-i)
			break
		}
		t.Errorf("leak: %v", k)
	}
}

// gateway is the address of the default network's bridge, whichever mode.
func (h *e2e) gateway() netip.Addr {
	return netip.PrefixFrom(h.Containers[0].Addr, 16).Masked().Addr().Next()
}

// mustPing expects a reply to each request, however long a loaded machine takes.
// One that took as long as a repeated ARP request is told of: the first may have
// been lost.
func (h *e2e) mustPing(t *testing.T, from *lab.Namespace, to netip.Addr, o lab.PingOptions) {
	t.Helper()
	if o.Wait == 0 {
		o.Wait = pingPatience
	}
	r, err := from.Ping(h.ctx, to, o)
	for _, rtt := range r.RTT {
		if rtt >= arpRetry {
			t.Logf("ping %v from %s: a reply took %v", to, from.Name, rtt)
		}
	}
	if err != nil || r.Received != r.Sent {
		t.Errorf("ping %v from %s: %d of %d, ICMP errors from %v, %v", to, from.Name, r.Received, r.Sent, r.Errors, err)
	}
}

// noPing expects that nothing comes back.
func (h *e2e) noPing(t *testing.T, from *lab.Namespace, to netip.Addr) {
	t.Helper()
	r, err := from.Ping(h.ctx, to, lab.PingOptions{Count: 1})
	if err == nil && r.Received > 0 {
		t.Errorf("ping %v from %s was answered", to, from.Name)
	}
}

func (h *e2e) serveTCP(t *testing.T, n *lab.Namespace, at netip.AddrPort) *lab.Server {
	t.Helper()
	s, err := n.ServeTCPEcho(at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (h *e2e) serveUDP(t *testing.T, n *lab.Namespace, at netip.AddrPort) *lab.Server {
	t.Helper()
	s, err := n.ServeUDPEcho(at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// assertPeers fails if a server saw a client at any address but these.
func assertPeers(t *testing.T, s *lab.Server, only ...netip.Addr) {
	t.Helper()
	if len(s.Peers()) == 0 {
		t.Errorf("server %v saw nobody", s.Addr)
	}
next:
	for p := range s.Peers() {
		for _, o := range only {
			if p.Addr() == o {
				continue next
			}
		}
		t.Errorf("server %v saw %v, want only %v", s.Addr, p, only)
	}
}

// port makes an address without a host: a source port, or a listener anywhere.
func port(p uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, p) }

func on(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }
