package e2e

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// lastLayout is the commit of the last release whose maps had another layout.
const lastLayout = "b8fe80d"

// lastBinary is fastbr built from that commit, once.
var lastBinary = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	path := filepath.Join(cache, "fastbr-test", "fastbr-"+lastLayout)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "fastbr-last-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	script := fmt.Sprintf(`set -o pipefail; git -C ../.. -c safe.directory='*' archive %s | tar -x -C %s && cd %s &&
		CGO_ENABLED=0 go build -buildvcs=false -o %s.next ./cmd/fastbr && mv %s.next %s`, lastLayout, dir, dir, path, path, path)
	if out, err := exec.Command("bash", "-c", script).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building fastbr of %s from the history: %w: %s", lastLayout, err, out)
	}
	return path, nil
})

// upgradable is a host that fastbr of the last layout has brought up. It has traffic on
// every kind of path, which an upgrade must not disturb.
type upgradable struct {
	*e2e
	old, new string
	streams  []*stream
}

func newUpgradable(t *testing.T, m harness.Mode, containers int) *upgradable {
	t.Helper()
	if out, err := exec.Command("git", "-C", "../..", "-c", "safe.directory=*", "cat-file", "-t", lastLayout).CombinedOutput(); err != nil {
		t.Skipf("### NOT TESTED: no upgrade from the last layout: commit %s is not in the history of this tree: %s", lastLayout, out)
	}
	old, err := lastBinary()
	if err != nil {
		t.Fatal(err)
	}
	h := newE2E(t, m, lab.Options{Containers: containers})
	u := &upgradable{e2e: h, old: old, new: h.Bin}
	h.Bin = old
	h.Must(t, append([]string{"up"}, m.Up...)...)
	for i, c := range h.Containers[:2] {
		h.Attach(t, c, fmt.Sprintf("c%d", i+1))
	}
	h.Must(t, "publish", "add", "8080:80", "c1")
	h.Must(t, "publish", "add", "8080:53/udp", "c1")
	h.ServeTCP(t, h.Containers[0], on(h.Containers[0].Addr, 80))
	h.ServeUDP(t, h.Containers[0], on(h.Containers[0].Addr, 53))
	h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
	h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
	u.startTraffic(t)
	return u
}

func (u *upgradable) startTraffic(t *testing.T) {
	t.Helper()
	c1, c2, host := u.Containers[0], u.Containers[1], u.HostAddr(0)
	for name, x := range map[string]struct {
		from *lab.Namespace
		to   netip.AddrPort
	}{
		"out":           {c1, on(u.Outside.Addr, 7)},
		"out, UDP":      {c2, on(u.Outside.Addr, 7)},
		"published":     {u.Outside, on(host, 8080)},
		"published UDP": {u.Outside, on(host, 8080)},
		"bridge":        {c2, on(c1.Addr, 80)},
		"hairpin":       {c2, on(host, 8080)},
	} {
		u.streams = append(u.streams, u.startStream(t, name, strings.HasSuffix(name, "UDP"), x.from, x.to))
	}
}

// goOn waits until every stream has received more answers.
func (u *upgradable) goOn(t *testing.T, when string) {
	t.Helper()
	for _, s := range u.streams {
		from := s.n.Load()
		waitFor(t, u.Ctx, s.name+" to go on "+when, func() bool {
			select {
			case <-s.done:
				t.Fatalf("%s: %s has ended: %v", when, s.name, s.err)
			default:
			}
			return s.n.Load() > from+10
		})
	}
}

// connections are short connections, opened one after another until stop is closed.
// Some fall into every moment of an upgrade.
type connections struct {
	stop, done chan struct{}
	n          int
	err        error
}

func (u *upgradable) connect(from *lab.Namespace, to netip.AddrPort) *connections {
	c := &connections{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for {
			select {
			case <-c.stop:
				return
			default:
			}
			if c.err = u.ask(from, to, fmt.Sprint("connection ", c.n)); c.err != nil {
				return
			}
			c.n++
		}
	}()
	return c
}

// ask opens a connection, asks twice and closes it.
func (u *upgradable) ask(from *lab.Namespace, to netip.AddrPort, text string) error {
	sock, err := from.DialTCP(u.Ctx, netip.AddrPort{}, to)
	if err != nil {
		return err
	}
	defer sock.Close()
	if err := sock.SetDeadline(time.Now().Add(churnPatience)); err != nil {
		return err
	}
	for range 2 {
		if _, err := io.WriteString(sock, text); err != nil {
			return err
		}
		if _, err := io.ReadFull(sock, make([]byte, len(text))); err != nil {
			return err
		}
	}
	return nil
}

func (c *connections) end(t *testing.T, what string) {
	t.Helper()
	close(c.stop)
	<-c.done
	if c.err != nil {
		t.Errorf("%s: connection %d: %v", what, c.n, c.err)
	}
	t.Logf("%s: %d connections", what, c.n)
}

// TestE2EUpgradeFromTheLastLayout: a new build meets a running instance of the last
// layout. The first command, whichever it is, upgrades it. Every stream goes on, and so
// does every connection that begins meanwhile. Nothing has to be detached.
func TestE2EUpgradeFromTheLastLayout(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		u := newUpgradable(t, m, 3)
		before := u.Flows(t)
		beforePorts := u.ports(t)
		out := u.connect(u.Containers[1], on(u.Outside.Addr, 7))
		in := u.connect(u.Outside, on(u.HostAddr(0), 8080))
		u.goOn(t, "before")

		u.Bin = u.new
		if r := u.Fastbr(t, "status"); r.Code == 0 || !strings.Contains(r.Stderr, "made by an older fastbr: 'fastbr up' upgrades it") {
			t.Errorf("status before the upgrade: %d, %s", r.Code, r.Stderr)
		}
		u.Attach(t, u.Containers[2], "c3")
		u.goOn(t, "after")
		out.end(t, "from a container")
		in.end(t, "to a published port")
		for _, s := range u.streams {
			s.end(t)
		}

		after := u.Flows(t)
		for _, f := range before {
			if f.Proto == "tcp" && f.State != "established" {
				continue // one of the short connections
			}
			if !slices.ContainsFunc(after, func(g ctl.FlowView) bool {
				return f.Proto == g.Proto && f.Src == g.Src && f.Dst == g.Dst && f.NAT == g.NAT
			}) {
				t.Errorf("the flow %+v is not there any more", f)
			}
		}
		for name, p := range u.ports(t) {
			if was := beforePorts[name]; p.RXPackets < was.RXPackets || p.TXBytes < was.TXBytes {
				t.Errorf("%s has counted %+v, before %+v", name, p, was)
			}
		}
		u.mustPing(t, u.Containers[2], u.Outside.Addr, lab.PingOptions{})
		u.Must(t, "up")
		// The old build sees that it is too old and changes nothing.
		u.Bin = u.old
		if r := u.Fastbr(t, "up"); r.Code == 0 || !strings.Contains(r.Stderr, "newer") {
			t.Errorf("the old build's up: %d, %s", r.Code, r.Stderr)
		}
		u.Bin = u.new
	})
}

// TestE2EUpgradeKilled kills an upgrade after every step, one after the other, and lets
// the next command go on. Streams go on all the time, on old programs or new, and new
// connections can be opened.
func TestE2EUpgradeKilled(t *testing.T) {
	t.Parallel()
	u := newUpgradable(t, e2eModes()[0], 3)
	u.Must(t, "network", "create", "routed", "--subnet", "100.64.7.0/24", "--masquerade=false")
	routed := u.Containers[2]
	u.Attach(t, routed, "c3", "--network", "routed")
	if err := u.Outside.AddRoute(netip.MustParsePrefix("100.64.7.0/24"), u.HostAddr(0)); err != nil {
		t.Fatal(err)
	}
	u.streams = append(u.streams, u.startStream(t, "routed", false, u.Outside, u.ServeTCP(t, routed, on(routed.Addr, 80)).Addr))
	u.Bin = u.new
	for _, step := range []string{"upgrade-load", "upgrade-copy", "upgrade-publish", "upgrade-uplinks", "upgrade-ports", "upgrade-sessions",
		"upgrade-guard", "upgrade-settle", "upgrade-links", "upgrade-aside", "upgrade-commit"} {
		u.KillAt(t, step, "up")
		u.goOn(t, "killed at "+step)
	}
	u.Must(t, "up")
	u.goOn(t, "in the end")
	if err := u.ask(u.Containers[1], on(u.Outside.Addr, 7), "a new connection"); err != nil {
		t.Error(err)
	}
	for _, s := range u.streams {
		s.end(t)
	}
	if left, _ := filepath.Glob(filepath.Join(u.BPFFS, "fastbr", "*-*")); left != nil {
		t.Errorf("left: %v", left)
	}
}
