package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// busConfig is the configuration of a D-Bus on which everybody may do everything.
const busConfig = `<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="false"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
</policy></busconfig>`

// firewalld starts the real daemon in the lab's host, with a bus and a configuration of
// its own. It returns the environment that its commands need.
func (h *e2e) firewalld(t *testing.T) (env string) {
	t.Helper()
	testutil.RequireCommand(t, "firewall-cmd", "firewalld", "dbus-daemon")
	dir := t.TempDir()
	bus := filepath.Join(dir, "bus")
	conf := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, busConfig, bus), 0o600); err != nil {
		t.Fatal(err)
	}
	etc := filepath.Join(dir, "etc")
	if err := os.CopyFS(etc, os.DirFS("/etc/firewalld")); err != nil {
		t.Fatal(err)
	}
	env = "DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + bus
	for _, argv := range [][]string{{"dbus-daemon", "--config-file=" + conf, "--nofork", "--nosyslog"},
		{"firewalld", "--nofork", "--nopid", "--system-config", etc, "--log-file", filepath.Join(dir, "log")}} {
		c := h.Host.Exec(h.Ctx, argv...)
		c.Env = append(os.Environ(), env)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { _ = c.Wait() }() // killed with the lab
		h.eventually(t, "the bus", func() error { _, err := os.Stat(bus); return err })
	}
	h.eventually(t, "firewalld", func() error {
		_, err := h.Host.Run(h.Ctx, "env", env, "firewall-cmd", "--state")
		return err
	})
	return env
}

// TestE2EFirewalld: firewalld's default zone cuts containers off, but not the clients of
// published ports, which pass by its rule for DNAT. After fastbr has told
// firewalld by the bus, containers reach the outside and the gateway's names, and
// clients reach published ports. That holds after a reload or a change of the zone,
// until `down`. Where the bus cannot be reached, every command that looks prints
// commands that do the same.
func TestE2EFirewalld(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 1})
	env := h.firewalld(t)
	bus := func(args ...string) *exec.Cmd {
		c := h.Cmd(args...)
		c.Env = append(c.Env, env)
		return c
	}
	shell := func(commands string) string {
		t.Helper()
		out, err := h.Host.Run(h.Ctx, "env", env, "sh", "-ec", commands)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := h.Fastbr(t, "check").Stdout; strings.Contains(out, "adds tagged accept rules") {
		t.Errorf("check promises rules that firewalld would throw away: %s", out)
	}
	up := h.Fastbr(t, "up")
	const said = "nft inet firewalld filter_FWD_public"
	_, commands, ok := strings.Cut(up.Stderr, "give firewalld a zone for it: ")
	commands, _, _ = strings.Cut(commands, "\n")
	if up.Code != 0 || !ok {
		t.Fatalf("up: exit %d, %q, want commands for firewalld", up.Code, up.Stderr)
	}
	c1 := h.Containers[0]
	prepare := func() {
		h.Attach(t, c1, "c1")
		h.Must(t, "publish", "add", "8080:80", "c1")
	}
	prepare()
	for _, command := range []string{"check", "status"} {
		if out := h.Fastbr(t, command).Stdout; !strings.Contains(out, said) {
			t.Errorf("%s: %s, want %q", command, out, said)
		}
	}
	if out := harness.Run(t, bus("status")).Stdout; !strings.Contains(out, said) || !strings.Contains(out, "the next command that changes something lets it through") {
		t.Errorf("status, with the bus: %s", out)
	}
	server, published := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7)), on(h.Host.Addr, 8080)
	h.ServeTCP(t, c1, on(c1.Addr, 80))
	if !h.blocked(c1, server.Addr) {
		t.Fatal("firewalld lets containers through: nothing to mend")
	}
	if err := h.reaches(h.Outside, published, passTime); err != nil {
		t.Errorf("firewalld's own rule for DNAT does not let clients through: %v", err)
	}
	through := func(when string) { t.Helper(); h.through(t, when, c1, server.Addr, published) }
	h.serve(t) // serve answers questions for names. It has no bus, so it cannot tell firewalld again
	mend := func() {
		t.Helper()
		if r := harness.Run(t, bus("up")); r.Code != 0 || !strings.Contains(r.Stderr, "firewalld: put fastbr0 in the zone fastbr") {
			t.Errorf("up: exit %d, %q, want a word about the zone", r.Code, r.Stderr)
		}
	}
	mend()
	through("with the zone")
	if out := harness.Run(t, bus("status")).Stdout; !strings.Contains(out, "accept fastbr0 in firewalld zone fastbr: everything") || strings.Contains(out, "Note") {
		t.Errorf("status, in the zone: %s", out)
	}
	shell("firewall-cmd --reload")
	through("after a reload")
	if r := harness.Run(t, bus("up")); r.Code != 0 || strings.Contains(r.Stderr, "firewalld") {
		t.Errorf("up again: exit %d, %q, want no word about firewalld", r.Code, r.Stderr)
	}
	// A bridge that somebody has put in another zone stays there.
	shell("firewall-cmd --zone=public --change-interface=fastbr0")
	_, back, ok := strings.Cut(harness.Run(t, bus("up")).Stderr, "it is in the zone public; to have it in fastbr's: ")
	back, _, _ = strings.Cut(back, " && fastbr up")
	if !ok {
		t.Fatal("up says nothing of the zone public")
	}
	shell(back)
	mend()
	through("put back")
	if r := harness.Run(t, bus("down", "--all")); r.Code != 0 {
		t.Errorf("down: %s", r.Stderr)
	}
	if out := shell("firewall-cmd --permanent --get-zones; firewall-cmd --permanent --get-policies; firewall-cmd --zone=fastbr --list-interfaces"); strings.Contains(out, "fastbr") {
		t.Errorf("down left of zone, policy and binding: %s", out)
	}

	h.Must(t, "up")
	prepare()
	if !h.blocked(c1, server.Addr) {
		t.Error("firewalld lets containers through after down")
	}
	shell(commands)
	if out, in := h.reaches(c1, server.Addr, passTime), h.reaches(h.Outside, published, passTime); out != nil || in != nil {
		t.Errorf("after the commands: out %v, in %v", out, in)
	}
	if out := h.Must(t, "status"); strings.Contains(out, said) {
		t.Errorf("status still: %s", out)
	}
	if r := harness.Run(t, bus("down", "--all")); r.Code != 0 {
		t.Errorf("down: %s", r.Stderr)
	}
	if out := shell("firewall-cmd --permanent --zone=fastbr --list-interfaces"); strings.TrimSpace(out) != "fastbr0" {
		t.Errorf("down took away what the user has made: %s", out)
	}
}
