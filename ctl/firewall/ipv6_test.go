package firewall

import (
	"net/netip"
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
