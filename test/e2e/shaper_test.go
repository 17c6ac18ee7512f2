package e2e

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// tc runs tc in the host.
func (h *e2e) tc(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.Host.Run(h.Ctx, append([]string{"tc"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var sent = regexp.MustCompile(`Sent \d+ bytes (\d+) pkt`)

// tcSent is the number of packets that `tc -s` shows first.
func (h *e2e) tcSent(t *testing.T, args ...string) int {
	t.Helper()
	m := sent.FindStringSubmatch(h.tc(t, append([]string{"-s"}, args...)...))
	if m == nil {
		t.Fatalf("tc shows no counter: %v", args)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// toIfb leads what comes in by a device of the host through a new device, as SQM does.
func (h *e2e) toIfb(t *testing.T, dev, ifb string) {
	t.Helper()
	if _, err := h.Host.Run(h.Ctx, "ip", "link", "add", ifb, "type", "ifb"); err != nil {
		t.Fatal(err)
	}
	if err := h.Host.SetUp(ifb); err != nil {
		t.Fatal(err)
	}
	h.tc(t, "qdisc", "add", "dev", ifb, "root", "handle", "1:", "tbf", "rate", "1gbit", "burst", "1mb", "limit", "1mb")
	h.tc(t, "qdisc", "add", "dev", dev, "handle", "ffff:", "ingress")
	h.tc(t, "filter", "add", "dev", dev, "parent", "ffff:", "protocol", "ip", "u32", "match", "u32", "0", "0",
		"action", "mirred", "egress", "redirect", "dev", ifb)
}

// TestE2EShapersBeyondThePort puts shapers where a packet passes the host, other than at a
// port. Each sees every packet of a flow that had leases before. Once it is gone, the flow
// is fast again.
func TestE2EShapersBeyondThePort(t *testing.T) {
	t.Parallel()
	shapers := []struct {
		name string
		add  func(t *testing.T, h *e2e)
		seen func(t *testing.T, h *e2e) int
		del  func(t *testing.T, h *e2e)
		says string // by status
	}{
		{"mirred on the uplink", func(t *testing.T, h *e2e) { h.toIfb(t, "eth0", "ifb0") },
			func(t *testing.T, h *e2e) int { return h.tcSent(t, "qdisc", "show", "dev", "ifb0") },
			func(t *testing.T, h *e2e) { h.tc(t, "qdisc", "del", "dev", "eth0", "ingress") }, "uplink eth0 has ingress filter"},
		{"mirred on the bridge", func(t *testing.T, h *e2e) { h.toIfb(t, h.bridge(), "ifb1") },
			func(t *testing.T, h *e2e) int { return h.tcSent(t, "qdisc", "show", "dev", "ifb1") },
			func(t *testing.T, h *e2e) { h.tc(t, "qdisc", "del", "dev", h.bridge(), "ingress") }, "bridge fastbr0 has filter"},
		{"qdisc on the bridge",
			func(t *testing.T, h *e2e) {
				h.tc(t, "qdisc", "add", "dev", h.bridge(), "root", "handle", "1:", "tbf", "rate", "1gbit", "burst", "1mb", "limit", "1mb")
			},
			func(t *testing.T, h *e2e) int { return h.tcSent(t, "qdisc", "show", "dev", h.bridge()) },
			func(t *testing.T, h *e2e) { h.tc(t, "qdisc", "del", "dev", h.bridge(), "root") }, "bridge fastbr0 has tbf"},
		{"qdisc on the uplink",
			func(t *testing.T, h *e2e) {
				h.tc(t, "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "tbf", "rate", "1gbit", "burst", "1mb", "limit", "1mb")
			},
			func(t *testing.T, h *e2e) int { return h.tcSent(t, "qdisc", "show", "dev", "eth0") },
			func(t *testing.T, h *e2e) { h.tc(t, "qdisc", "del", "dev", "eth0", "root") }, ""},
		// The class is what a rule in FORWARD says.
		{"classes on the uplink",
			func(t *testing.T, h *e2e) {
				h.tc(t, "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "20")
				for _, id := range []string{"1:10", "1:20"} {
					h.tc(t, "class", "add", "dev", "eth0", "parent", "1:", "classid", id, "htb", "rate", "1gbit")
				}
				if err := h.Host.IPTables(h.Ctx, "-t", "mangle", "-A", "FORWARD", "-s", "172.30.0.0/16", "-j", "CLASSIFY", "--set-class", "1:10"); err != nil {
					t.Fatal(err)
				}
			},
			func(t *testing.T, h *e2e) int { return h.tcSent(t, "class", "show", "dev", "eth0", "classid", "1:10") },
			func(t *testing.T, h *e2e) { h.tc(t, "qdisc", "del", "dev", "eth0", "root") }, "uplink eth0 has htb"},
	}
	eachMode(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 1})
		h.shortLease(t)
		server := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 7))
		f := h.longFlow(t, server.Addr)
		for _, c := range shapers {
			t.Run(c.name, func(t *testing.T) {
				h.waitFast(t, f)
				c.add(t, h)
				const burst = 20
				waitFor(t, h.Ctx, "the shaper to see every packet", func() bool {
					before := c.seen(t, h)
					for range burst {
						if !f.answered() {
							return false
						}
					}
					return c.seen(t, h)-before >= burst
				})
				// A lease that comes after the first look would let packets past it.
				before := c.seen(t, h)
				for range 2 * burst {
					f.recovers(t, "with it")
				}
				if n := c.seen(t, h) - before; n < 2*burst {
					t.Errorf("it has seen %d of %d packets", n, 2*burst)
				}
				if !m.Plain {
					if n := h.notes(t); !strings.Contains(n, c.says) {
						t.Errorf("status says %q, not %q", n, c.says)
					}
				}
				c.del(t, h)
			})
		}
		h.waitFast(t, f)
	})
}

// waitFast waits until the packets of a flow of c1 are fast in both directions, where there
// is a fast path.
func (h *e2e) waitFast(t *testing.T, f longFlow) {
	t.Helper()
	if h.Mode.Name != "fast" {
		return
	}
	waitFor(t, h.Ctx, "the fast path", func() bool {
		before := h.ports(t)["c1"].FastPackets
		if !f.answered() { // renews the lease, which may be over on a busy machine
			return false
		}
		return f.answered() && h.ports(t)["c1"].FastPackets >= before+2
	})
}

// bridge is the bridge that the containers are at.
func (h *e2e) bridge() string {
	if h.Mode.Plain {
		return "br0"
	}
	return "fastbr0"
}
