package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2ENoRuleLeadsOutOfInternal: nothing leads from an internal network to a container of
// another or outside: neither a published SCTP port, which the kernel translates, nor
// rules of the host that change both addresses.
func TestE2ENoRuleLeadsOutOfInternal(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 3})
	h.Must(t, "up")
	c1, inner, other := h.Containers[0], h.Containers[1], h.Containers[2]
	h.Attach(t, c1, "c1")
	h.Must(t, "network", "create", "inner", "--subnet", "192.168.7.0/24", "--internal")
	h.Attach(t, inner, "inner", "--network", "inner")
	h.Must(t, "network", "create", "other", "--subnet", "192.168.8.0/24")
	h.Attach(t, other, "other", "--network", "other")
	h.Must(t, "publish", "add", "8080:80/sctp", "c1")
	gateways := map[*lab.Namespace]netip.Addr{inner: netip.MustParseAddr("192.168.7.1"), other: netip.MustParseAddr("192.168.8.1")}
	if err := h.Host.NFT(h.Ctx, `table ip mine {
		chain to { type nat hook prerouting priority -100; tcp dport 7001 dnat to `+c1.Addr.String()+`:80; tcp dport 7002 dnat to `+h.OutsideAddr(0).String()+`:80; }
		chain from { type nat hook postrouting priority 100; ip saddr 192.168.0.0/16 tcp dport 80 masquerade; }
	}`); err != nil {
		t.Fatal(err)
	}
	h.ServeTCP(t, c1, on(c1.Addr, 80))
	h.ServeTCP(t, h.Outside, on(h.OutsideAddr(0), 80))
	server := rawSCTP(t, c1)
	before := h.drops(t, "isolated")
	for from, gateway := range gateways {
		w := sctpReach{how: from.Name, from: from, to: on(gateway, 8080)}
		if from == other {
			w.seen = h.gateway()
		}
		assertSCTP(t, rawSCTP(t, from), server, 40000, 80, w)
		for port, where := range map[uint16]string{7001: "another network", 7002: "outside"} {
			patience := passTime
			if from == inner {
				patience = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(h.Ctx, patience)
			if err := from.EchoTCP(ctx, netip.AddrPort{}, on(gateway, port), "in"); (err == nil) != (from == other) {
				t.Errorf("from %s by a rule to %s: %v", from.Name, where, err)
			}
			cancel()
		}
	}
	if h.drops(t, "isolated") == before {
		t.Error("what the internal network sends elsewhere is not counted")
	}
}
