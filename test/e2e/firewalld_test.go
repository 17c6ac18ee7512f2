package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// busConfig is a D-Bus on which everybody may do everything.
const busConfig = `<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="false"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
</policy></busconfig>`

// firewalld starts the real daemon in the lab's host, on a bus and with a
// configuration of its own, and returns what its commands need in the environment.
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
		waitFor(t, h.Ctx, "the bus", func() bool { _, err := os.Stat(bus); return err == nil })
	}
	waitFor(t, h.Ctx, "firewalld", func() bool {
		_, err := h.Host.Run(h.Ctx, "env", env, "firewall-cmd", "--state")
		return err == nil
	})
	return env
}

// TestE2EFirewalld: firewalld's default zone cuts containers off. Every command that
// looks says so, and what they say to run lets containers out and clients in.
func TestE2EFirewalld(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 1})
	env := h.firewalld(t)
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
	h.Attach(t, c1, "c1")
	h.Must(t, "publish", "add", "8080:80", "c1")
	for _, command := range []string{"check", "status"} {
		if out := h.Fastbr(t, command).Stdout; !strings.Contains(out, said) {
			t.Errorf("%s: %s, want %q", command, out, said)
		}
	}
	server := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7))
	h.ServeTCP(t, c1, on(c1.Addr, 80))
	try := func(from *lab.Namespace, to netip.AddrPort) error {
		ctx, cancel := context.WithTimeout(h.Ctx, 2*time.Second)
		defer cancel()
		return from.EchoTCP(ctx, netip.AddrPort{}, to, "zone?")
	}
	if try(c1, server.Addr) == nil || try(h.Outside, on(h.Host.Addr, 8080)) == nil {
		t.Fatal("firewalld lets containers through: nothing to mend")
	}
	if _, err := h.Host.Run(h.Ctx, "env", env, "sh", "-ec", commands); err != nil {
		t.Fatal(err)
	}
	if err := try(c1, server.Addr); err != nil {
		t.Errorf("out: %v", err)
	}
	if err := try(h.Outside, on(h.Host.Addr, 8080)); err != nil {
		t.Errorf("to the published port: %v", err)
	}
	if out := h.Must(t, "status"); strings.Contains(out, said) {
		t.Errorf("status still: %s", out)
	}
}
