package e2e

import (
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

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// killed is a command that is killed with SIGKILL after each of its steps. It has a lab
// of its own, since most of the time is spent waiting for the kernel.
type killed struct {
	*e2e
	killedCommand
	before snapshot // after setup
	steps  []string
}

// killedCommand is a command that changes something. setup runs once, prepare before
// each run. undo reverts what the command may have done, and fails if there is nothing
// to revert.
type killedCommand struct {
	setup, prepare [][]string
	args, undo     []string
}

// killedCommands are all such commands, by name. c1 is a container.
func killedCommands(c1 *lab.Namespace) map[string]killedCommand {
	// on: so that the uplink also has something to restore.
	up, down, attach := []string{"up", "--big-tcp", "on"}, []string{"down", "--all"}, []string{"attach", c1.Path(), "--name", "c1"}
	create, remove := []string{"network", "create", "blue"}, []string{"network", "rm", "blue"}
	publish, unpublish := []string{"publish", "add", "8080:80", "c1"}, []string{"publish", "rm", "8080"}
	attached := [][]string{up, attach}
	up6 := append(up, "--ipv6")
	return map[string]killedCommand{
		"up": {args: up6, undo: down},
		// With the first port's carrier the kernel gives the bridge a route for groups, which stays.
		"attach":         {setup: [][]string{up6, attach, {"detach", "c1"}}, args: attach, undo: []string{"detach", "c1"}},
		"attach, down":   {prepare: [][]string{up6}, args: attach, undo: down},
		"down":           {prepare: [][]string{up6, attach}, args: down, undo: down},
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
		k.Must(t, args...)
	}
	k.before = k.snapshot(t)
	for _, args := range k.prepare {
		k.Must(t, args...)
	}
	if k.steps = k.announced(t, k.args); len(k.steps) < 2 {
		t.Fatalf("only these steps were announced: %v", k.steps)
	}
	k.Fastbr(t, k.undo...)
	k.assertAsBefore(t, k.before)
	return k
}

// eachKill kills the commands at steps of theirs and then runs repair. In the end
// everything must be as before. Each step loads the programs up to three times, so a run
// takes a third of the steps, another one each time; `make stress` takes all. (With a
// datapath that is not real, the tests of package ctl take all.)
func eachKill(t *testing.T, repair func(t *testing.T, k *killed), commands ...string) {
	first := testutil.Rand(t).IntN(3)
	for _, command := range commands {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			k := newKilled(t, command)
			for i, s := range k.steps {
				if stress() || i%3 == first {
					t.Run(s, func(t *testing.T) { k.at(t, s, repair) })
				}
			}
		})
	}
}

func (k *killed) at(t *testing.T, s string, repair func(t *testing.T, k *killed)) {
	k.Renew()
	t.Cleanup(func() { k.Fastbr(t, k.undo...) }) // a failure must not affect the next run
	for _, args := range k.prepare {
		k.Must(t, args...)
	}
	k.KillAt(t, s, k.args...)
	repair(t, k)
	k.Fastbr(t, k.undo...)
	k.assertAsBefore(t, k.before)
}

// TestE2EKilledThenUp runs `up` and the same command again. They must finish the work,
// and traffic must pass.
func TestE2EKilledThenUp(t *testing.T) {
	t.Parallel()
	eachKill(t, func(t *testing.T, k *killed) {
		k.Must(t, "up", "--big-tcp", "on")
		if _, there := k.ports(t)["c1"]; there && k.args[0] == "down" {
			t.Error("down was killed, and has left a port")
		}
		if k.args[0] != "down" { // exit status 1: it was killed after its last step
			if r := k.Fastbr(t, k.args...); r.Code > 1 || strings.Count(r.Stderr, "\n") > 1 {
				t.Errorf("fastbr %v again: exit %d: %s", k.args, r.Code, r.Stderr)
			}
		}
		if p, there := k.ports(t)["c1"]; !there {
			k.Attach(t, k.Containers[0], "c1")
		} else {
			k.Containers[0].SetAddr(netip.MustParsePrefix(p.IP).Addr())
		}
		k.mustPing(t, k.Containers[0], k.Outside.Addr, lab.PingOptions{Count: 1})
	}, "up", "attach", "down", "network create", "network rm", "publish add", "publish rm")
}

// TestE2EKilledThenDown runs `down` right after the kill. It must find everything.
func TestE2EKilledThenDown(t *testing.T) {
	t.Parallel()
	eachKill(t, func(*testing.T, *killed) {}, "up", "attach, down", "down")
}

// announced runs a command to its end and lists the steps that it announces.
func (h *e2e) announced(t *testing.T, args []string) (list []string) {
	t.Helper()
	c := h.Cmd(args...)
	c.Env = append(c.Env, "FASTBR_TRACE_STEPS=1")
	r := harness.Run(t, c)
	if r.Code != 0 {
		t.Fatalf("fastbr %v: exit %d: %s", args, r.Code, r.Stderr)
	}
	for line := range strings.Lines(r.Stderr) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "step: ")
		if ok && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// snapshot is what `down` must restore, one text per kind of thing.
type snapshot map[string]string

// volatileSysctl reports whether a sysctl changes by itself or belongs to a device.
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
		where, dev := fmt.Sprint("c", i), "lo"
		if n == h.Host {
			where, dev = "host", "eth0"
		}
		for _, argv := range [][]string{{"ip", "-o", "-batch", "-"}, {"nft", "list", "ruleset"}, {"tc", "qdisc"}} {
			out, err := n.RunInput(h.Ctx, "link\naddr\nroute show table all\nrule\nneigh show nud permanent\n", argv...)
			if err != nil {
				t.Fatal(err)
			}
			s[strings.Join(argv, " ")+" in "+where] = dropVolatile(out)
		}
		gso, err := n.GSO(dev)
		if err != nil {
			t.Fatal(err)
		}
		s["super-packets in "+where] = fmt.Sprint(gso)
		s["sysctls in "+where] = sysctls(t, n)
	}
	s["pins"] = tree(t, h.BPFFS)
	s["files"] = tree(t, h.StateDir)
	return s
}

// ruleCounter is how nft prints the counter of a rule.
var ruleCounter = regexp.MustCompile(`counter packets \d+ bytes \d+ ?`)

// linkState is how ip prints a device's carrier, which changes with a delay.
var linkState = regexp.MustCompile(`NO-CARRIER,|,LOWER_UP|state \w+ |linkdown `)

// lifetime is how ip prints how long something advertised is valid.
var lifetime = regexp.MustCompile(`(valid_lft|preferred_lft|expires) \d+sec`)

// dropVolatile removes lines that no command of ours causes, counters, carriers and lifetimes.
func dropVolatile(out string) string {
	var keep []string
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "#") {
			line = lifetime.ReplaceAllString(line, "$1")
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
			if err == nil && d.IsDir() && volatileSysctl(path+"/") {
				return fs.SkipDir
			}
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

// tree lists the files below dir. A missing dir counts as empty.
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

// TestE2EDownLeavesHostAsBefore makes the same comparison without a crash. It begins
// with the very first `up` of a namespace, and runs `up` twice.
func TestE2EDownLeavesHostAsBefore(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	before := h.snapshot(t)
	h.Must(t, "up")
	once := h.snapshot(t)
	r := h.Fastbr(t, "up")
	if r.Code != 0 || r.Stderr == "" {
		t.Errorf("second up: exit %d, said %q; want 0 and a word", r.Code, r.Stderr)
	}
	h.assertAsBefore(t, once)
	h.Attach(t, h.Containers[0], "c1")
	h.mustPing(t, h.Containers[0], h.Outside.Addr, lab.PingOptions{Count: 1})
	h.Must(t, "detach", "c1")
	h.Must(t, "detach", "c1")
	h.Must(t, "down")
	h.Must(t, "down", "--all")
	after := h.snapshot(t)
	for kind, now := range after {
		if now != before[kind] {
			t.Errorf("%s differ from before:\n%s", kind, lineDiff(before[kind], now))
		}
	}
}

// TestE2EAttachTwiceAtOnce runs two `attach` at a time, many times. Each gets an
// address and a name of its own. Where both want the same name, one gets a clear
// refusal.
func TestE2EAttachTwiceAtOnce(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	h.Must(t, "up")
	for round := range sized(14, 50) {
		same := round%2 == 1
		names := []string{"a", "b"}
		if same {
			names = []string{"a", "a"}
		}
		cmds := make([]*exec.Cmd, 2)
		for i, c := range h.Containers {
			cmds[i] = h.Cmd("attach", c.Path(), "--name", names[i])
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
			h.Must(t, "detach", name)
		}
	}
}

// TestE2EAttachDuringDown runs `down` beside `attach`. Whichever wins, the state is
// sound.
func TestE2EAttachDuringDown(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	before := h.snapshot(t)
	for range sized(4, 10) {
		h.Must(t, "up")
		attach := h.Cmd("attach", h.Containers[0].Path())
		if err := attach.Start(); err != nil {
			t.Fatal(err)
		}
		h.Must(t, "down", "--all")
		_ = attach.Wait() // it may have come too late
		h.Must(t, "down", "--all")
	}
	h.assertAsBefore(t, before)
}

// TestE2EContainerVanishes deletes namespaces while their containers are attached.
func TestE2EContainerVanishes(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	h.Containers[1].Close()
	ctx, cancel := context.WithCancel(h.Ctx)
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
	h.Attach(t, c3, "c2")
	h.mustPing(t, c3, h.Containers[0].Addr, lab.PingOptions{})
	h.mustPing(t, c3, h.Outside.Addr, lab.PingOptions{})
}
