// Package harness runs the real binary in throw-away hosts, for the test packages
// beside it. Deadlines here only catch what hangs: no test asserts how long something
// takes.
package harness

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

// Deadline ends a test that hangs.
const Deadline = 8 * time.Minute

// binary is the program under test: the one that `make test` has built, else a build of
// its own in the user's cache directory.
var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("FASTBR_TEST_BINARY"); path != "" {
		return path, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	path := filepath.Join(cache, "fastbr-test", "fastbr")
	out, err := exec.Command("go", "build", "-o", path, "github.com/fastbr/fastbr/cmd/fastbr").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building fastbr: %w: %s", err, out)
	}
	return path, nil
})

// Mode is a way of forwarding. The same assertions hold for each.
type Mode struct {
	Name  string
	Up    []string // flags of `fastbr up`
	Plain bool     // a kernel bridge instead of fastbr, for comparison
	Leaky bool     // what leaves is not watched, since this mode is known to leak
}

// Rig is one lab with fastbr in its host.
type Rig struct {
	*lab.Lab
	Ctx      context.Context
	cancel   context.CancelFunc
	Bin      string
	BPFFS    string
	StateDir string
	Cgroup   string // of the host's processes
	Mode     Mode
	Env      []string // of fastbr, besides
}

// New builds a lab with nothing up. When the test ends, whatever is still up
// is taken down and the leak capture must be alive and empty.
func New(t testing.TB, m Mode, o lab.Options) *Rig {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "iptables", "conntrack", "iperf3")
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	h := &Rig{Bin: bin, BPFFS: testutil.BPFFS(t), StateDir: filepath.Join(t.TempDir(), "run"), Cgroup: testutil.Cgroup(t), Mode: m}
	h.Renew()
	t.Cleanup(func() { h.cancel() })
	o.Plain = o.Plain || m.Plain
	if m.Leaky {
		o.Private = []netip.Prefix{}
	}
	if h.Lab, err = lab.New(h.Ctx, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	t.Cleanup(func() {
		if m.Leaky {
			return
		}
		h.AssertNoLeak(t)
		if !m.Plain {
			h.Must(t, "down", "--all")
			h.AssertNoLeak(t)
		}
	})
	return h
}

// On is the rig with another host of the lab. It has only what a host needs.
func (h *Rig) On(host *lab.Namespace) *Rig {
	other := *h
	other.Lab = &lab.Lab{Host: host}
	return &other
}

// Renew gives the next part of a long test the full deadline again.
func (h *Rig) Renew() {
	if h.cancel != nil {
		h.cancel()
	}
	h.Ctx, h.cancel = context.WithTimeout(context.Background(), Deadline)
}

// Up builds a lab, brings up the default network in the given mode, and attaches every
// container as c1 to cN.
func Up(t testing.TB, m Mode, o lab.Options, upArgs ...string) *Rig {
	t.Helper()
	h := New(t, m, o)
	if m.Plain {
		return h
	}
	h.Must(t, append(append([]string{"up"}, m.Up...), upArgs...)...)
	for i, c := range h.Containers {
		h.Attach(t, c, fmt.Sprintf("c%d", i+1))
	}
	return h
}

// Attach attaches a namespace and records its address.
func (h *Rig) Attach(t testing.TB, c *lab.Namespace, name string, args ...string) ctl.AttachResult {
	t.Helper()
	out := h.Must(t, append([]string{"attach", c.Path(), "--name", name, "-o", "json"}, args...)...)
	var r ctl.AttachResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("attach printed %q: %v", out, err)
	}
	p, err := netip.ParsePrefix(r.IP)
	if err != nil {
		t.Fatalf("attach printed %q: %v", out, err)
	}
	c.SetAddr(p.Addr())
	if r.IP6 != "" {
		p, err := netip.ParsePrefix(r.IP6)
		if err != nil {
			t.Fatalf("attach printed %q: %v", out, err)
		}
		c.SetAddr(p.Addr())
	}
	return r
}

// Cmd prepares a fastbr command that works on the lab's host.
func (h *Rig) Cmd(args ...string) *exec.Cmd {
	argv := append([]string{"--netns", h.Host.Path(), "--bpffs", h.BPFFS, "--state-dir", h.StateDir}, args...)
	c := exec.CommandContext(h.Ctx, h.Bin, argv...)
	c.Env = append(append(os.Environ(), h.PluginEnv()...), h.Env...)
	return c
}

// PluginEnv are the variables that lead a plugin to the lab: a plugin has no flags.
func (h *Rig) PluginEnv() []string {
	return []string{"FASTBR_BPFFS=" + h.BPFFS, "FASTBR_STATE_DIR=" + h.StateDir, "FASTBR_REFUSE_NETNS=/proc/1/ns/net", "FASTBR_CGROUP=" + h.Cgroup}
}

// Result is the outcome of one fastbr command.
type Result struct {
	Stdout, Stderr string
	Code           int // -1: killed by a signal
}

// Run runs a prepared command to its end, whatever its exit status is.
func Run(t testing.TB, c *exec.Cmd) Result {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("fastbr %s: %v", strings.Join(c.Args[1:], " "), err)
	}
	return Result{out.String(), errs.String(), c.ProcessState.ExitCode()}
}

// Fastbr runs a command to its end.
func (h *Rig) Fastbr(t testing.TB, args ...string) Result {
	t.Helper()
	return Run(t, h.Cmd(args...))
}

// Must runs a command that has to succeed, and returns its standard output.
func (h *Rig) Must(t testing.TB, args ...string) string {
	t.Helper()
	r := h.Fastbr(t, args...)
	if r.Code != 0 {
		t.Fatalf("fastbr %s: exit %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return r.Stdout
}

// Flows are what `flows ls` shows.
func (h *Rig) Flows(t testing.TB) []ctl.FlowView {
	t.Helper()
	var list []ctl.FlowView
	h.JSON(t, &list, "flows", "ls")
	return list
}

// JSON runs a command that has to succeed, and decodes what it prints.
func (h *Rig) JSON(t testing.TB, to any, args ...string) {
	t.Helper()
	out := h.Must(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), to); err != nil {
		t.Fatalf("fastbr %s printed %q: %v", strings.Join(args, " "), out, err)
	}
}

// AssertNoLeak fails for each packet that has left with an address of a container.
func (h *Rig) AssertNoLeak(t testing.TB) {
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

// ServeTCP starts a server that sends back what it receives.
func (h *Rig) ServeTCP(t testing.TB, n *lab.Namespace, at netip.AddrPort) *lab.Server {
	t.Helper()
	s, err := n.ServeTCPEcho(at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ServeUDP starts a server that sends back each datagram.
func (h *Rig) ServeUDP(t testing.TB, n *lab.Namespace, at netip.AddrPort) *lab.Server {
	t.Helper()
	s, err := n.ServeUDPEcho(at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Readdress replaces the address of the host's eth0, and the route with it.
func (h *Rig) Readdress(t testing.TB, old, addr netip.Prefix, gw netip.Addr) {
	t.Helper()
	err := errors.Join(h.Host.DelAddr("eth0", old), h.Host.AddAddr("eth0", addr), h.Host.AddRoute(netip.Prefix{}, gw))
	if err != nil {
		t.Fatal(err)
	}
}
