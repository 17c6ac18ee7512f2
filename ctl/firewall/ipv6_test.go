package firewall

import (
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// web6 is web's IPv6.
var web6 = Network{Name: "default", Mark: "fastbr:default", Bridge: web.Bridge, Subnet: netip.MustParsePrefix("fd00:172:30::/64")}

// TestJudgeIPv6: rules are run on IPv6 packets as on those of IPv4, and those of IPv4 are
// nothing to them.
func TestJudgeIPv6(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "ip6tables", "ip6tables-legacy")
	h := Host{Family: IPv6, Networks: []Network{web6}, Uplinks: []Device{{Name: "eth0", Addr: netip.MustParseAddr("2001:db8:1::1")}}}
	const (
		sends   = "what network default sends by eth0"
		answers = "answers from eth0"
	)
	both := func(rule string) []string {
		return []string{"ip6tables-nft " + rule, "ip6tables-legacy " + rule}
	}
	for _, c := range []struct {
		rules []string
		cut   string
		tail  bool
	}{
		{rules: []string{nftForward("accept", "")}},
		{rules: []string{nftForward("drop", "")}, cut: sends, tail: true},
		{rules: []string{nftForward("accept", "meta nfproto ipv4 drop")}},
		{rules: []string{nftForward("accept", "meta nfproto ipv6 drop")}, cut: sends, tail: true},
		{rules: []string{nftForward("accept", "meta protocol ip6 iifname \"fastbr0\" drop")}, cut: sends},
		{rules: []string{nftForward("accept", "ip6 saddr fd00::/8 drop")}, cut: sends},
		{rules: []string{nftForward("accept", "ip6 saddr { fd00:172:30::/64, 2001:db8::/32 } drop")}, cut: sends},
		{rules: []string{nftForward("accept", "ip6 saddr { fd00:172:30::/80 } drop")}},
		{rules: []string{nftForward("accept", "ip6 daddr 2001:db8::/32 drop")}}, // some
		{rules: []string{nftForward("accept", "ip6 daddr fd00:172:30::/64 ct state established drop")}, cut: answers},
		{rules: []string{nftForward("accept", "ip6 nexthdr icmpv6 drop")}},
		{rules: []string{nftForward("accept", "ip6 nexthdr tcp drop")}, cut: sends},
		{rules: []string{nftForward("accept", "ct original ip6 saddr fd00:172:30::/64 drop")}, cut: sends},
		{rules: []string{"table ip x {\nchain f {\ntype filter hook forward priority 0; policy drop;\n}\n}\n"}},
		{rules: []string{"table ip6 x {\nchain f {\ntype filter hook forward priority 0; policy drop;\n}\n}\n"}, cut: sends, tail: true},
		{rules: []string{"iptables-nft -P FORWARD DROP", "iptables-legacy -P FORWARD DROP"}},
		{rules: both("-P FORWARD DROP"), cut: sends, tail: true},
		{rules: both("-A FORWARD -j REJECT"), cut: sends, tail: true},
		{rules: both("-A FORWARD -i fastbr+ -s fd00::/8 -j DROP"), cut: sends},
		{rules: both("-A FORWARD -p ipv6-icmp -j DROP")},
		{rules: both("-A FORWARD ! -i fastbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j DROP"), cut: answers},
		{rules: both("-A FORWARD -m conntrack --ctorigsrc fd00:172:30::/64 --ctstate NEW -j DROP")[:1], cut: sends},
		{rules: both("-t mangle -A PREROUTING -i fastbr0 -j DROP"), cut: sends},
	} {
		for _, rules := range c.rules {
			judge(t, h, strings.TrimPrefix(rules, " "), c.cut, c.tail)
		}
	}
}

// TestBothFamilies: the rules of one family do for both where a chain drops both at the same
// place. Where it drops them at different places, each has its own, and both are let
// through whatever the order of the commands. The last network takes all of them away.
func TestBothFamilies(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "ip6tables")
	for _, c := range []struct {
		rules string
		want  int // rules of ours
	}{
		{nftForward("drop", ""), 2},
		{nftForward("drop", "tcp dport 22 accept\nreject"), 2},
		{nftForward("drop", "meta nfproto ipv6 tcp dport 22 accept\nmeta nfproto ipv6 drop\ntcp dport 23 accept"), 4},
		{nftForward("accept", "meta nfproto ipv6 drop"), 2},
		{"iptables-nft -P FORWARD DROP", 2},
		{"iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP", 4},
		{"iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP", 4},
	} {
		testutil.NewNetns(t).Do(t, func() {
			load(t, c.rules)
			if said := ensure(t, web, web6); len(said) == 0 {
				t.Errorf("%s: nothing said", c.rules)
			}
			if again := ensure(t, web, web6); len(again) > 0 {
				t.Errorf("%s: once more: %q", c.rules, again)
			}
			n := 0
			for _, of := range []Network{web, web6} {
				rs, err := read(of.Family())
				if err != nil {
					t.Error(err)
					return
				}
				n += len(rs.tagged(of, forwarding))
				if found := rs.condemned(Host{Family: of.Family(), Networks: []Network{of}}); len(found) > 0 {
					t.Errorf("%s: %v", c.rules, found)
				}
			}
			if n != c.want {
				t.Errorf("%s: %d rules of ours, want %d", c.rules, n, c.want)
			}
			for _, of := range []Network{web, web6} {
				if err := Remove(of); err != nil {
					t.Error(err)
				}
			}
			if left, err := Rules([]Network{web, web6}); err != nil || len(left) > 0 {
				t.Errorf("%s: left %v (%v)", c.rules, left, err)
			}
		})
	}
}

// TestIPv6FindingsHaveNames: `check` says of which family it speaks.
func TestIPv6Findings(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "ip6tables")
	testutil.NewNetns(t).Do(t, func() {
		load(t, "iptables -P INPUT DROP; ip6tables -P FORWARD DROP")
		found, err := Findings(Host{Family: IPv6, Networks: []Network{web6}})
		if err != nil {
			t.Fatal(err)
		}
		if len(found) < 2 || found[0].Name != "forward-policy-ipv6" || !strings.Contains(found[0].Detail, "dropped by default in ip6tables") ||
			found[1].Detail != "nothing drops what is sent to the host by IPv6 by default" {
			t.Errorf("findings %+v", found)
		}
		ensure(t, web, web6)
		rules, err := Rules([]Network{web, web6})
		if err != nil || len(rules) != 1 || !strings.HasPrefix(rules[0].Where, "ip6tables") {
			t.Errorf("rules %+v, %v", rules, err)
		}
	})
}

// TestMasqueradeTable6: the table of IPv6 is a table of its own, with all that the one of
// IPv4 has.
func TestMasqueradeTable6(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft")
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	h := Host{Family: IPv6, Others: true, Uplinks: []Device{{Name: "eth0"}}, Networks: []Network{
		{Name: "a", Bridge: Device{Name: "br-a"}, Subnet: prefix("fd00:1::/64"), Masquerade: true, Plain: []netip.Prefix{prefix("2001:db8:5::/48")}},
		{Name: "b", Bridge: Device{Name: "br-b"}, Subnet: prefix("fd00:1:0:1::/64"), Masquerade: true, SNAT: addr("2001:db8::25"), Via: "wg0"},
		{Name: "c", Bridge: Device{Name: "br-c"}, Subnet: prefix("2001:db8:c::/64")}, // routed
		{Name: "d", Bridge: Device{Name: "br-d"}, Subnet: prefix("fe80::/64"), Internal: true}},
		Published: []Publication{
			{First: 80, Last: 81, Port: 90, Proto: "sctp", Container: addr("fd00:1::2"), Allow: prefix("2001:db8:7::/48")},
			{First: 80, Last: 80, Port: 80, Proto: "sctp", Container: addr("fd00:1::3"), HostIP: addr("2001:db8::1")}}}
	testutil.NewNetns(t).Do(t, func() {
		ensure := func(h Host) []netip.AddrPort {
			t.Helper()
			gone, err := Masquerade(h)
			if err != nil {
				t.Fatal(err)
			}
			if right, err := Masquerades(h); !right || err != nil {
				t.Fatalf("not as it was written: %v\n%s", err, nftList(t))
			}
			return gone
		}
		four := Host{Family: IPv4, Networks: []Network{{Bridge: Device{Name: "br-a"}, Subnet: prefix("172.30.0.0/16"), Masquerade: true}}}
		ensure(four)
		ensure(h)
		all := nftList(t)
		for _, want := range []string{"table ip fastbr", "table ip6 fastbr", "elements = { fd00:1::/63 }", `"br-a", "br-b"`, "priority 110", "priority -90",
			"icmpv6 type 128 return", `masquerade comment "other devices"`, `masquerade comment "other protocols"`,
			"ip6 saddr fd00:1:0:1::/64 counter packets 0 bytes 0 snat to 2001:db8::25", "ip6 saddr fd00:1::/64 ip6 daddr 2001:db8:5::/48 return",
			`ip6 saddr fd00:1:0:1::/64 oifname != "wg0" return`, "81 : fd00:1::2 . 91", "2001:db8::1 . 80 : fd00:1::3 . 80", "ip6 daddr ::1 return",
			"dnat ip6 to sctp dport map @ports", "dnat ip6 to ip6 daddr . sctp dport map @sockets", "sctp dport 80-81 ip6 saddr != 2001:db8:7::/48 return"} {
			if !strings.Contains(all, want) {
				t.Errorf("no %s in\n%s", want, all)
			}
		}
		if strings.Contains(all, "2001:db8:c::") || strings.Contains(all, "fe80::") {
			t.Errorf("what is not translated is named:\n%s", all)
		}
		h.Published = h.Published[:1]
		if gone := ensure(h); !slices.Equal(gone, []netip.AddrPort{netip.MustParseAddrPort("[fd00:1::3]:80")}) {
			t.Errorf("led nowhere: %v", gone)
		}
		if out, err := exec.Command("nft", "flush chain ip6 fastbr postrouting").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		ensure(h)
		ensure(Host{Family: IPv6})
		if all := nftList(t); strings.Contains(all, "ip6") || !strings.Contains(all, "table ip fastbr") {
			t.Errorf("after the last network with IPv6:\n%s", all)
		}
		if out, err := exec.Command("nft", "add table ip6 fastbr; add chain ip6 fastbr input").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if _, err := Masquerade(h); !errors.Is(err, ErrForeignTable) || !strings.Contains(err.Error(), "ip6 fastbr") {
			t.Errorf("beside somebody's table of that name: %v", err)
		}
		ensure(four)
	})
}
