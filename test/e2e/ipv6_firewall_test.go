package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EIPv6Firewall: where frames between ports meet ip6tables, and that drops what no rule
// accepts, containers still reach each other, whoever sets the policy and when. `check` says
// so, and nothing of ours is left behind.
func TestE2EIPv6Firewall(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		h := newE2E(t, m, lab.Options{Containers: 2, IPv6: lab.Static, NFCall: true})
		ip6tables := func(args ...string) string {
			t.Helper()
			out, err := h.Host.Run(h.Ctx, append([]string{"ip6tables", "-w"}, args...)...)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		stops := func() { // within a lease
			t.Helper()
			err := lab.Poll(h.Ctx, func() (bool, error) {
				r, err := h.Containers[0].Ping(h.Ctx, h.Containers[1].Addr6, lab.PingOptions{Count: 1, Wait: 300 * time.Millisecond})
				return r.Received == 0, err
			})
			if err != nil {
				t.Errorf("a rule that drops does not hold: %v", err)
			}
		}
		before := ip6tables("-S")
		h.Must(t, append([]string{"up", "--ipv6"}, m.Up...)...)
		c1, c2 := h.Containers[0], h.Containers[1]
		h.Attach(t, c1, "c1")
		h.Attach(t, c2, "c2")
		h.mustPing(t, c1, c2.Addr6, lab.PingOptions{})

		ip6tables("-P", "FORWARD", "DROP") // as dockerd does whenever it starts
		out := h.Must(t, "check")
		if !strings.Contains(out, "forward-policy-ipv6") || !strings.Contains(out, "bridge-nf-call-ip6tables is 1") {
			t.Errorf("check says %s", out)
		}
		h.Must(t, "up")
		h.mustPing(t, c1, c2.Addr6, lab.PingOptions{})
		if rules := ip6tables("-S", "FORWARD"); strings.Count(rules, "fastbr:default") != 2 {
			t.Errorf("rules of ours: %s", rules)
		}
		s := h.ServeTCP(t, c2, on(c2.Addr6, 7))
		if err := c1.EchoTCP(h.Ctx, netip.AddrPort{}, s.Addr, "let through"); err != nil {
			t.Error(err)
		}
		if err := lab.Bulk(h.Ctx, c1, c2, c2.Addr6, 4<<20, false); err != nil {
			t.Error(err)
		}

		ip6tables("-I", "FORWARD", "-j", "DROP") // somebody else's, before ours
		stops()
		h.Must(t, "up")
		h.mustPing(t, c1, c2.Addr6, lab.PingOptions{})
		ip6tables("-D", "FORWARD", "-j", "DROP")

		ip6tables("-I", "FORWARD", "-d", c2.Addr6.String(), "-j", "DROP") // on purpose
		stops()
		ip6tables("-D", "FORWARD", "-d", c2.Addr6.String(), "-j", "DROP")
		h.mustPing(t, c1, c2.Addr6, lab.PingOptions{})

		h.Must(t, "down", "--all")
		ip6tables("-P", "FORWARD", "ACCEPT")
		if after := ip6tables("-S"); after != before {
			t.Errorf("left behind: %s, before: %s", after, before)
		}
	})
}
