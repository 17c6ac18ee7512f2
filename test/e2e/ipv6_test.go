package e2e

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EIPv6: containers of a network with IPv6 reach each other and the host by it, fast
// and slow, and know each other's names. Nobody outside reaches them, and nothing stays.
func TestE2EIPv6(t *testing.T) {
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := newE2E(t, m, lab.Options{Containers: 3, IPv6: lab.Static})
		before := h.snapshot(t)
		h.Must(t, append([]string{"up", "--ipv6"}, m.Up...)...)
		c1, c2 := h.Containers[0], h.Containers[1]
		gateway := netip.MustParseAddr(h.Attach(t, c1, "c1").Gateway6)
		h.Attach(t, c2, "c2")
		for _, to := range []netip.Addr{c2.Addr6, gateway, c2.Addr} {
			h.mustPing(t, c1, to, lab.PingOptions{})
			h.mustPing(t, c1, to, lab.PingOptions{Size: 1400})
		}
		h.mustPing(t, h.Host, c1.Addr6, lab.PingOptions{})
		h.testIPv6Share(t, c1, c2)
		h.testIPv6UDP(t, c1, c2)
		h.testIPv6Names(t, c1, c2)
		if drops := h.allDrops(t); len(drops) > 0 {
			t.Errorf("drops %v", drops)
		}
		h.testIPv6Moves(t, c1, c2)
		h.noPing(t, h.Outside, c1.Addr6)
		h.Must(t, "down", "--all")
		h.assertAsBefore(t, before)
	})
}

// testIPv6Share checks which path the segments of a connection take.
func (h *e2e) testIPv6Share(t *testing.T, c1, c2 *lab.Namespace) {
	t.Helper()
	was := h.ports(t)["c1"]
	for _, reverse := range []bool{false, true} {
		if err := lab.Bulk(h.Ctx, c1, c2, c2.Addr6, 128<<20, reverse); err != nil {
			t.Errorf("reverse %v: %v", reverse, err)
		}
	}
	now := h.ports(t)["c1"]
	fast, slow := now.FastPackets-was.FastPackets, now.SlowPackets-was.SlowPackets
	if share := float64(fast) / float64(fast+slow); h.Mode.Name == "fast" && share < 0.999 {
		t.Errorf("fast share %.5f (%d fast, %d slow), want 0.999", share, fast, slow)
	}
	if h.Mode.Name == "slow" && fast > 0 {
		t.Errorf("%d packets took the fast path that is switched off", fast)
	}
}

func (h *e2e) testIPv6UDP(t *testing.T, c1, c2 *lab.Namespace) {
	t.Helper()
	s := h.ServeUDP(t, c2, on(c2.Addr6, 7))
	defer s.Close()
	sock, err := c1.ListenUDP(on(netip.IPv6Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	was := h.ports(t)["c1"]
	for i := range 200 {
		if err := lab.EchoUDPOn(h.Ctx, sock, s.Addr, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	assertPeers(t, s, c1.Addr6)
	now := h.ports(t)["c1"]
	if fast, slow := now.FastPackets-was.FastPackets, now.SlowPackets-was.SlowPackets; (fast > 10*slow) != (h.Mode.Name == "fast") {
		t.Errorf("%d datagrams were fast, %d slow", fast, slow)
	}
}

func (h *e2e) testIPv6Names(t *testing.T, c1, c2 *lab.Namespace) {
	t.Helper()
	h.serve(t)
	ask := func(name string, kind uint16) (answer string, err error) {
		err = c1.Do(func() error {
			reply, err := dns.Exchange(new(dns.Msg).SetQuestion(name, kind), on(h.gateway(), 53).String())
			for _, rr := range replyOf(reply) {
				answer += strings.TrimPrefix(rr.String(), rr.Header().String())
			}
			return err
		})
		return answer, err
	}
	h.eventually(t, "an answer", func() error { _, err := ask("c2.", dns.TypeA); return err })
	reverse, err := dns.ReverseAddr(c2.Addr6.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct {
		name string
		kind uint16
		want string
	}{{"c2.", dns.TypeAAAA, c2.Addr6.String()}, {"c2.default.", dns.TypeA, c2.Addr.String()}, {reverse, dns.TypePTR, "c2.default."}} {
		if got, err := ask(q.name, q.kind); err != nil || got != q.want {
			t.Errorf("%s is %q, %v, want %q", q.name, got, err, q.want)
		}
	}
}

func replyOf(m *dns.Msg) []dns.RR {
	if m == nil {
		return nil
	}
	return m.Answer
}

// testIPv6Moves gives the address of a container to another, which its peers must learn.
func (h *e2e) testIPv6Moves(t *testing.T, c1, c2 *lab.Namespace) {
	t.Helper()
	c3, taken := h.Containers[2], c2.Addr6
	h.Must(t, "detach", "c2")
	if r := h.Attach(t, c3, "c3", "--ip", taken.String(), "--ip", "172.30.0.99"); r.IP != "172.30.0.99/16" || c3.Addr6 != taken {
		t.Errorf("attach: %+v", r)
	}
	h.mustPing(t, c1, taken, lab.PingOptions{})
	h.mustPing(t, h.Host, taken, lab.PingOptions{})
}

// TestE2EIPv6OnLinksOnly: with --ipv6=link-local containers have IPv6 among themselves, and
// without --ipv6 none at all, whatever they configure inside.
func TestE2EIPv6OnLinksOnly(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 2, IPv6: lab.Static})
	c1, c2 := h.Containers[0], h.Containers[1]
	reach := func(mac string) error {
		s := h.ServeTCP(t, c2, on(netip.IPv6Unspecified(), 7))
		defer s.Close()
		index, err := c1.Index("eth0")
		if err != nil {
			t.Fatal(err)
		}
		to := netip.MustParseAddr("fe80::42:acff:fe1e:" + mac).WithZone(strconv.Itoa(index))
		return h.reaches(c1, on(to, 7), passTime)
	}
	h.Must(t, "up", "--ipv6=link-local")
	for i, c := range h.Containers {
		if r := h.Attach(t, c, fmt.Sprintf("c%d", i+1)); r.IP6 != "" || r.Gateway6 != "" {
			t.Errorf("attach: %+v", r)
		}
	}
	if err := reach("3"); err != nil {
		t.Errorf("by link-local addresses: %v", err)
	}
	h.Must(t, "down")

	h.Must(t, "up")
	for i, c := range h.Containers {
		h.Attach(t, c, fmt.Sprintf("c%d", i+1))
		if err := c.SetSysctl("net.ipv6.conf.eth0.disable_ipv6", "0"); err != nil {
			t.Fatal(err)
		}
		addr := netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:9::%d", i+1)), 64)
		if err := c.AddAddr("eth0", addr); err != nil {
			t.Fatal(err)
		}
	}
	before := h.drops(t, "l2_proto")
	h.noPing(t, c1, netip.MustParseAddr("2001:db8:9::2"))
	h.waitDrops(t, "l2_proto", before, 1)
	h.mustPing(t, c1, c2.Addr, lab.PingOptions{})
	var v ctl.NetworkView
	if h.JSON(t, &v, "network", "inspect", "default"); v.IPv6 != ctl.IPv6Off || v.Subnet6 != "" || v.Gateway6 != "" {
		t.Errorf("network %+v", v)
	}
}
