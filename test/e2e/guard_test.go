package e2e

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EGuardOfPublishedPort: a rule that guards a published port behind a kernel
// bridge lets everybody in here. Every command that looks names it, and the rule that
// they suggest keeps clients out.
func TestE2EGuardOfPublishedPort(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, tool string
		rule       []string
	}{
		{"DOCKER-USER", "iptables-nft", []string{"-A", "DOCKER-USER", "-p", "tcp", "-m", "conntrack", "--ctorigdstport", "8080", "-j", "DROP"}},
		{"legacy", "iptables-legacy", []string{"-A", "DOCKER-USER", "-m", "conntrack", "--ctstate", "DNAT", "-j", "DROP"}},
		{"raw", "iptables-nft", []string{"-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", "8080", "-j", "DROP"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := upE2E(t, harness.Mode{Name: "slow", Up: []string{"--lease", "0"}}, lab.Options{Containers: 1})
			tool := func(args ...string) {
				t.Helper()
				if _, err := h.Host.Run(h.Ctx, append([]string{c.tool, "-w"}, args...)...); err != nil {
					t.Fatal(err)
				}
			}
			tool("-N", "DOCKER-USER")
			tool("-A", "FORWARD", "-j", "DOCKER-USER")
			tool(c.rule...)
			s := h.ServeTCP(t, h.Containers[0], on(h.Containers[0].Addr, 80))
			r := h.Fastbr(t, "publish", "add", "8080:80", "c1")
			said := strings.Join(c.rule[len(c.rule)-2:], " ") + ") does not match what comes to published ports"
			if r.Code != 0 || !strings.Contains(r.Stderr, said) {
				t.Errorf("publish add: exit %d, %q, want %q", r.Code, r.Stderr, said)
			}
			reach := func() error {
				ctx, cancel := context.WithTimeout(h.Ctx, 2*time.Second)
				defer cancel()
				return h.Outside.EchoTCP(ctx, netip.AddrPort{}, on(h.Host.Addr, 8080), "guarded?")
			}
			if err := reach(); err != nil {
				t.Fatalf("the rule does match (%v): nothing to warn of; %v", err, s.Addr)
			}
			check := h.Fastbr(t, "check")
			for what, out := range map[string]string{"check": check.Stdout, "status": h.Must(t, "status"), "up": h.Fastbr(t, "up").Stderr} {
				if !strings.Contains(out, said) {
					t.Errorf("%s: %s, want %q", what, out, said)
				}
			}
			_, instead, ok := strings.Cut(r.Stderr, "write instead, for port 8080/tcp: ")
			instead, _, _ = strings.Cut(instead, "\n")
			if !ok {
				t.Fatalf("no rule to write instead: %s", r.Stderr)
			}
			if _, err := h.Host.Run(h.Ctx, strings.Fields(instead)...); err != nil {
				t.Fatal(err)
			}
			if err := reach(); err == nil {
				t.Errorf("%s does not keep clients out", instead)
			}
		})
	}
}
