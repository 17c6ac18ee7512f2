package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/fastbr/fastbr/internal/lab"
)

// killed is a command that is killed with SIGKILL after each of its steps, in a
// lab of its own: most of the time is waiting for the kernel.
type killed struct {
	*e2e
	killedCommand
	before snapshot // after setup
	steps  []string
}

// killedCommand changes something. setup runs once, prepare before each time,
// and undo takes back what may have been done; it fails where there is nothing.
type killedCommand struct {
	setup, prepare [][]string
	args, undo     []string
}

// killedCommands are all of them, by name; c1 is a container.
func killedCommands(c1 *lab.Namespace) map[string]killedCommand {
	// on: so that the uplink is one of the things to put back.
	up, down, attach := []string{"up", "--big-tcp", "on"}, []string{"down", "--all"}, []string{"attach", c1.Path(), "--name", "c1"}
	create, remove := []string{"network", "create", "blue"}, []string{"network", "rm", "blue"}
	publish, unpublish := []string{"publish", "add", "8080:80", "c1"}, []string{"publish", "rm", "8080"}
	attached := [][]string{up, attach}
	return map[string]killedCommand{
		"up":             {args: up, undo: down},
		"attach":         {prepare: [][]string{up}, args: attach, undo: down},
		"down":           {prepare: attached, args: down, undo: down},
		"network create": {setup: attached, args: create, undo: remove},
		"network rm":     {setup: attached, prepare: [][]string{create}, args: remove, undo: remove},
		"publish add":    {setup: attached, args: publish, undo: unpublish},
		"publish rm":     {setup: attached, prepare: [][]string{publish}, args: unpublish, undo: unpublish},
	}
}

func newKilled(t *testing.T, command string) *killed {
	t.Helper()
	k := &killed{e2e: newE2E(t, e2eModes()[0], lab.Options{Containers: 1})}
	if err := k.Host.SetGSO("eth0", usualGSO); err != nil {
		t.Fatal(err)
	}
	k.killedCommand = killedCommands(k.Containers[0])[command]
	for _, args := range k.setup {
		k.must(t, args...)
	}
	k.before = k.snapshot(t)
	for _, args := range k.prepare {
		k.must(t, args...)
	}
	if k.steps = k.announced(t, k.args); len(k.steps) < 2 {
		t.Fatalf("only these steps were announced: %v", k.steps)
	}
	k.fastbr(t, k.undo...)
	k.assertAsBefore(t, k.before)
	return k
}

// eachKill kills the commands at every step, and then lets repair do its work. In
// the end all must be as before.
func eachKill(t *testing.T, repair func(t *testing.T, k *killed), commands ...string) {
	for _, command := range commands {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			k := newKilled(t, command)
			for _, s := range k.steps {
				t.Run(s, func(t *testing.T) { k.at(t, s, repair) })
			}
		})
	}
}

func (k *killed) at(t *testing.T, s string, repair func(t *testing.T, k *killed)) {
	k.renew()
	t.Cleanup(func() { k.fastbr(t, k.undo...) }) // a failure must not spoil the next
	for _, args := range k.prepare {
		k.must(t, args...)
	}
	k.killAt(t, s, k.args...)
	repair(t, k)
	k.fastbr(t, k.undo...)
	k.assertAsBefore(t, k.before)
}

// killAt runs a command with the order to die right after a step.
func (h *e2e) killAt(t *testing.T, step string, args ...string) {
	t.Helper()
	c := h.cmd(args...)
	c.Env = append(c.Env, "FASTBR_KILL_AT="+step)
	if r := run(t, c); r.code != -1 {
		t.Errorf("fastbr %v was to die after %s: exit %d: %s", args, step, r.code, r.stderr)
	}
}

// TestE2EKilledThenUp goes on with `up` and the same command: they must finish the
// work, and traffic must pass.
func TestE2EKilledThenUp(t *testing.T) {
	t.Parallel()
	eachKill(t, func(t *testing.T, k *killed) {
		k.must(t, "up", "--big-tcp", "on")
		if _, there := k.ports(t)["c1"]; there && k.args[0] == "down" {
			t.Error("down was killed, and has left a port")
		}
		if k.args[0] != "down" { // 1: it was killed after its last step
			if r := k.fastbr(t, k.args...); r.code > 1 || strings.Count(r.stderr, "\n") > 1 {
				t.Errorf("fastbr %v again: exit %d: %s", k.args, r.code, r.stderr)
			}
		}
		if p, there := k.ports(t)["c1"]; !there {
			k.attach(t, k.Containers[0], "c1")
		} else {
			k.Containers[0].SetAddr(netip.MustParsePrefix(p.IP).Addr())
		}
		k.mustPing(t, k.Containers[0], k.Outside.Addr, lab.PingOptions{Count: 1})
	}, "up", "attach", "down", "network create", "network rm", "publish add", "publish rm")
}

// TestE2EKilledThenDown gives up at once: `down` must find everything.
func TestE2EKilledThenDown(t *testing.T) {
	t.Parallel()
	eachKill(t, func(*testing.T, *killed) {}, "up", "attach", "down")
}

// announced runs a command to its end and lists the steps it tells of.
func (h *e2e) announced(t *testing.T, args []string) (list []string) {
	t.Helper()
	c := h.cmd(args...)
	c.Env = append(c.Env, "FASTBR_TRACE_STEPS=1")
	r := run(t, c)
	if r.code != 0 {
		t.Fatalf("fastbr %v: exit %d: %s", args, r.code, r.stderr)
	}
	for line := range strings.Lines(r.stderr) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "step: ")
		if ok && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// upgrade replaces the programs as a newer build would, by an `up` that is killed
// on its way and another one.
func (h *e2e) upgrade(t *testing.T) {
	t.Helper()
	const build = 32 // offset of struct fbr_meta's build, 8 bytes
	pins, err := filepath.Glob(filepath.Join(h.bpffs, "fastbr", "*", "fbr_meta"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("the pins of one instance: %v, %v", pins, err)
	}
	m, err := ebpf.LoadPinnedMap(pins[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	recorded := func() (v []byte) {
		if err := m.Lookup(uint32(0), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	ours, other := recorded(), recorded()
	other[build]++
	if err := m.Put(uint32(0), other); err != nil {
		t.Fatal(err)
	}
	c := h.cmd("up")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	_ = c.Process.Kill() // wherever it is
	_ = c.Wait()
	h.must(t, "up")
	if now := recorded(); !bytes.Equal(now[build:], ours[build:]) {
		t.Errorf("after up the build is %x, want %x", now[build:], ours[build:])
	}
}

// snapshot is what `down` must restore, one text per kind of thing.
type snapshot map[string]string

// volatileSysctls change by themselves, or belong to a device.
func volatileSysctl(path string) bool {
	for _, part := range []string{"/conf/", "/neigh/", "nf_conntrack_count", "/random", "nf_log", "netdev_rss_key", "tcp_fastopen_key", "flush", "/core/"} {
		if strings.Contains(path, part) {
			return true
		}
	}
	return false
}

func (h *e2e) snapshot(t *testing.T) snapshot {
	t.Helper()
	s := snapshot{}
	for i, n := range append([]*lab.Namespace{h.Host}, h.Containers...) {
		for _, argv := range [][]string{
			{"ip", "-o", "link"}, {"ip", "-o", "addr"}, {"ip", "route", "show", "table", "all"}, {"ip", "rule"},
			{"ip", "neigh", "show", "nud", "permanent"}, {"nft", "list", "ruleset"}, {"tc", "qdisc"},
		} {
			out, err := n.Run(h.ctx, argv...)
			if err != nil {
				t.Fatal(err)
			}
			s[strings.Join(argv, " ")+" in "+[]string{"host", "c1", "c2"}[i]] = dropVolatile(out)
		}
		gso, err := n.GSO([]string{"eth0", "lo", "lo"}[i])
		if err != nil {
			t.Fatal(err)
		}
		s["super-packets in "+[]string{"host", "c1", "c2"}[i]] = fmt.Sprint(gso)
		s["sysctls in "+[]string{"host", "c1", "c2"}[i]] = sysctls(t, n)
	}
	s["pins"] = tree(t, h.bpffs)
	s["files"] = tree(t, h.stateDir)
	return s
}

// ruleCounter is what nft shows of the packets that met a rule.
var ruleCounter = regexp.MustCompile(`counter packets \d+ bytes \d+ ?`)

// linkState is what ip shows of a device's carrier, which takes its time.
var linkState = regexp.MustCompile(`NO-CARRIER,|,LOWER_UP|state \w+ `)

// dropVolatile leaves out lines about what nobody of us made, counters and carriers.
func dropVolatile(out string) string {
	var keep []string
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "#") {
			keep = append(keep, linkState.ReplaceAllString(ruleCounter.ReplaceAllString(line, ""), ""))
		}
	}
	return strings.Join(keep, "")
}

func sysctls(t *testing.T, n *lab.Namespace) string {
	t.Helper()
	var b strings.Builder
	err := n.Do(func() error {
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || volatileSysctl(path) {
				return nil //nolint:nilerr // what cannot be listed cannot be compared
			}
			if val, err := os.ReadFile(path); err == nil {
				b.WriteString(path + " = " + string(val))
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"net.ipv4.conf.all.forwarding", "net.ipv4.conf.all.send_redirects", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter", "net.ipv4.conf.eth0.rp_filter"} {
		val, _ := n.Sysctl(key)
		b.WriteString(key + " = " + val + "\n")
	}
	return b.String()
}

// tree lists files below dir; a missing dir is an empty one.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && path != dir {
			b.WriteString(strings.TrimPrefix(path, dir) + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (h *e2e) assertAsBefore(t *testing.T, before snapshot) {
	t.Helper()
	for kind, now := range h.snapshot(t) {
		if now != before[kind] {
			t.Errorf("%s differ from before:\n%s", kind, lineDiff(before[kind], now))
		}
	}
}

// lineDiff lists the lines that only one side has.
func lineDiff(a, b string) string {
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out []string
	for _, l := range la {
		if !slices.Contains(lb, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range lb {
		if !slices.Contains(la, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}

// TestE2EDownLeavesHostAsBefore is the same comparison without any crash, from
// the very first `up` of a namespace, and with `up` twice.
func TestE2EDownLeavesHostAsBefore(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	before := h.snapshot(t)
	h.must(t, "up")
	once := h.snapshot(t)
	r := h.fastbr(t, "up")
	if r.code != 0 || r.stderr == "" {
		t.Errorf("second up: exit %d, said %q; want 0 and a word", r.code, r.stderr)
	}
	h.assertAsBefore(t, once)
	h.attach(t, h.Containers[0], "c1")
	h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{Count: 1})
	h.must(t, "detach", "c1")
	h.must(t, "detach", "c1")
	h.must(t, "down")
	h.must(t, "down", "--all")
	after := h.snapshot(t)
	for kind, now := range after {
		if now != before[kind] {
			t.Errorf("%s differ from before:\n%s", kind, lineDiff(before[kind], now))
		}
	}
}

// TestE2EAttachTwiceAtOnce runs two `attach` at a time, many times: each gets an
// address and a name of its own, or a clear refusal where both want the same.
func TestE2EAttachTwiceAtOnce(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	h.must(t, "up")
	for round := range 50 {
		same := round%2 == 1
		names := []string{"a", "b"}
		if same {
			names = []string{"a", "a"}
		}
		cmds := make([]*exec.Cmd, 2)
		for i, c := range h.Containers {
			cmds[i] = h.cmd("attach", c.Path(), "--name", names[i])
			if err := cmds[i].Start(); err != nil {
				t.Fatal(err)
			}
		}
		ok := 0
		for _, c := range cmds {
			if c.Wait() == nil {
				ok++
			}
		}
		want := 2
		if same {
			want = 1
		}
		ports := h.ports(t)
		delete(ports, "eth0") // the uplink
		if ok != want || len(ports) != want {
			t.Fatalf("round %d, names %v: %d succeeded, %d ports; want %d", round, names, ok, len(ports), want)
		}
		if !same && ports["a"].IP == ports["b"].IP {
			t.Fatalf("round %d: both got %s", round, ports["a"].IP)
		}
		for name := range ports {
			h.must(t, "detach", name)
		}
	}
}

// TestE2EAttachDuringDown runs `down` beside `attach`: whoever wins, the state is sound.
func TestE2EAttachDuringDown(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	before := h.snapshot(t)
	for range 10 {
		h.must(t, "up")
		attach := h.cmd("attach", h.Containers[0].Path())
		if err := attach.Start(); err != nil {
			t.Fatal(err)
		}
		h.must(t, "down", "--all")
		_ = attach.Wait() // may have come too late
		h.must(t, "down", "--all")
	}
	h.assertAsBefore(t, before)
}

// TestE2EContainerVanishes deletes namespaces under fastbr's hands.
func TestE2EContainerVanishes(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	h.Containers[1].Close()
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	err := lab.Poll(ctx, func() (bool, error) { // the kernel takes its time
		_, gone := h.ports(t)["c2"]
		return !gone, nil
	})
	if err != nil {
		t.Error(err)
	}
	c3, err := h.Add("c3")
	if err != nil {
		t.Fatal(err)
	}
	h.attach(t, c3, "c2")
	h.mustPing(t, c3, h.Containers[0].Addr, lab.PingOptions{})
	h.mustPing(t, c3, h.Outside.Addr, lab.PingOptions{})
}
