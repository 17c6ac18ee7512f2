package e2e

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
)

// TestE2EGuardOfPublishedPort: a rule that guards a published port behind a kernel
// bridge, and lets everybody in here, is named by every command that looks, and what
// these say to write instead keeps clients out.
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
			h := upE2E(t, e2eMode{name: "slow", up: []string{"--lease", "0"}}, lab.Options{Containers: 1})
			tool := func(args ...string) {
				t.Helper()
				if _, err := h.Host.Run(h.ctx, append([]string{c.tool, "-w"}, args...)...); err != nil {
					t.Fatal(err)
				}
			}
			tool("-N", "DOCKER-USER")
			tool("-A", "FORWARD", "-j", "DOCKER-USER")
			tool(c.rule...)
			s := h.serveTCP(t, h.Containers[0], on(h.Containers[0].Addr, 80))
			r := h.fastbr(t, "publish", "add", "8080:80", "c1")
			said := strings.Join(c.rule[len(c.rule)-2:], " ") + ") does not match what comes to published ports"
			if r.code != 0 || !strings.Contains(r.stderr, said) {
				t.Errorf("publish add: exit %d, %q, want %q", r.code, r.stderr, said)
			}
			reach := func() error {
				ctx, cancel := context.WithTimeout(h.ctx, 2*time.Second)
				defer cancel()
				return h.Outside.EchoTCP(ctx, netip.AddrPort{}, on(h.Host.Addr, 8080), "guarded?")
			}
			if err := reach(); err != nil {
				t.Fatalf("the rule does match (%v): nothing to warn of; %v", err, s.Addr)
			}
			check := h.fastbr(t, "check")
			for what, out := range map[string]string{"check": check.stdout, "status": h.must(t, "status"), "up": h.fastbr(t, "up").stderr} {
				if !strings.Contains(out, said) {
					t.Errorf("%s: %s, want %q", what, out, said)
				}
			}
			_, instead, ok := strings.Cut(r.stderr, "write instead, for port 8080/tcp: ")
			instead, _, _ = strings.Cut(instead, "\n")
			if !ok {
				t.Fatalf("no rule to write instead: %s", r.stderr)
			}
			if _, err := h.Host.Run(h.ctx, strings.Fields(instead)...); err != nil {
				t.Fatal(err)
			}
			if err := reach(); err == nil {
				t.Errorf("%s does not keep clients out", instead)
			}
		})
	}
}
