package e2e

import (
	"net/netip"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EBridgeIsHeard: if the kernel's bridge stops carrying frames between two ports,
// the fast path stops within a lease, whoever has changed the bridge.
func TestE2EBridgeIsHeard(t *testing.T) {
	t.Parallel()
	for _, m := range []harness.Mode{{Name: "fast"}, {Name: "slow", Up: []string{"--lease", "0"}}} {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			h := upE2E(t, m, lab.Options{Containers: 2})
			h.shortLease(t)
			c1, c2 := h.Containers[0], h.Containers[1]
			s := h.ServeUDP(t, c2, on(c2.Addr, 9090))
			sock, err := c1.ListenUDP(on(netip.IPv4Unspecified(), 0))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sock.Close() }()
			p1, p2 := h.ports(t)["c1"].Port, h.ports(t)["c2"].Port
			run := func(argv ...string) func() error {
				return func() error { _, err := h.Host.Run(h.Ctx, argv...); return err }
			}
			nft := func(ruleset string) func() error { return func() error { return h.Host.NFT(h.Ctx, ruleset) } }
			for _, x := range []struct {
				name      string
				put, take []func() error
			}{
				{"isolated ports",
					[]func() error{run("bridge", "link", "set", "dev", p1, "isolated", "on"), run("bridge", "link", "set", "dev", p2, "isolated", "on")},
					[]func() error{run("bridge", "link", "set", "dev", p1, "isolated", "off")}},
				{"a port that has left the bridge",
					[]func() error{run("ip", "link", "set", p2, "nomaster")},
					[]func() error{run("ip", "link", "set", p2, "master", "fastbr0")}},
				{"a bridge that is down",
					[]func() error{run("ip", "link", "set", "fastbr0", "down")},
					[]func() error{run("ip", "link", "set", "fastbr0", "up")}},
				{"a chain of nft's bridge family",
					[]func() error{nft("table bridge t {\nchain c {\ntype filter hook forward priority 0;\nudp dport 9090 drop\n}\n}")},
					[]func() error{nft(`delete table bridge t`)}},
				{"an ingress chain of the port",
					[]func() error{nft("table netdev t {\nchain c {\ntype filter hook ingress device " + p1 + " priority 0;\nudp dport 9090 drop\n}\n}")},
					[]func() error{nft(`delete table netdev t`)}},
			} {
				do := func(steps []func() error) {
					t.Helper()
					for _, step := range steps {
						if err := step(); err != nil {
							t.Fatalf("%s: %v", x.name, err)
						}
					}
				}
				h.becomesFast(t, m, "c1", func() { h.comesToPass(t, sock, s.Addr, true) })
				do(x.put)
				h.comesToPass(t, sock, s.Addr, false)
				do(x.take)
				h.comesToPass(t, sock, s.Addr, true)
			}
		})
	}
}
