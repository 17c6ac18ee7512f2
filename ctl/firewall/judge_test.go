package firewall

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// load runs the rules, as iptables commands or as input of nft, in the namespace of the
// calling thread.
func load(t *testing.T, rules string) {
	t.Helper()
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(rules)
	if strings.HasPrefix(rules, "iptables") || strings.HasPrefix(rules, "ip6tables") {
		c = exec.Command("sh", "-ec", rules)
	}
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", rules, err, out)
	}
}

func nftForward(policy, rules string) string {
	return "table inet fw {\nchain forward {\ntype filter hook forward priority 0; policy " + policy + ";\n" + rules + "\n}\n}\n"
}

var (
	web     = Network{Name: "default", Mark: "fastbr:default", Bridge: Device{Name: "fastbr0"}, Subnet: netip.MustParsePrefix("172.30.0.0/16"), Masquerade: true}
	webPort = Publication{Bridge: web.Bridge, First: 8080, Last: 8080, Port: 80, Proto: "tcp", Container: netip.MustParseAddr("172.30.0.2"), Name: "c1"}
)

// TestJudge: what the host's filters do with containers' traffic, whichever tool wrote
// them.
func TestJudge(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "iptables", "iptables-legacy")
	h := Host{Family: IPv4, Networks: []Network{web}, Uplinks: []Device{{Name: "eth0", Addr: netip.MustParseAddr("198.51.100.1")}}, Published: []Publication{webPort}}
	const (
		sends   = "what network default sends by eth0"
		answers = "answers from eth0"
		clients = "what clients send by eth0 to the published port 8080/tcp of c1"
	)
	both := func(rule string) []string {
		return []string{"iptables-nft " + rule, "iptables-legacy " + rule}
	}
	for _, c := range []struct {
		rules []string // alternatives
		cut   string   // what is cut off; "": nothing
		tail  bool     // what no rule accepts is dropped
	}{
		{rules: []string{nftForward("accept", "")}},
		{rules: []string{nftForward("drop", "")}, cut: sends, tail: true},
		{rules: []string{nftForward("accept", "reject")}, cut: sends, tail: true},
		{rules: []string{nftForward("accept", "ct state established accept\niifname { \"lan0\", \"fastbr0\" } accept\nreject")}, cut: clients, tail: true},
		{rules: []string{nftForward("accept", "ct state vmap { established : accept, invalid : drop }\niifname vmap { \"fastbr0\" : accept, \"eth0\" : drop }")}, cut: clients},
		{rules: []string{nftForward("accept", "iifname \"fastbr0\" reject")}, cut: sends},
		{rules: []string{nftForward("accept", "iifname \"fast*\" ip saddr 172.16.0.0/12 drop")}, cut: sends},
		{rules: []string{nftForward("accept", "ip saddr { 10.0.0.0/8, 172.30.0.0-172.30.255.255 } drop")}, cut: sends},
		{rules: []string{nftForward("accept", "ip saddr { 10.0.0.0/8, 172.30.0.0/24 } drop")}},
		{rules: []string{nftForward("accept", "iifname . oifname { \"fastbr0\" . \"eth0\" } drop")}, cut: sends},
		{rules: []string{nftForward("accept", "iifname . oifname { \"fastbr1\" . \"eth0\" } drop")}},
		{rules: []string{nftForward("accept", "oifname \"fastbr0\" ct state != { established, related } drop")}, cut: clients},
		{rules: []string{nftForward("accept", "tcp dport 80 drop")}, cut: clients},
		{rules: []string{nftForward("accept", "tcp dport { 1-79, 81-100 } drop")}},
		{rules: []string{nftForward("accept", "tcp dport 8080 drop")}},
		{rules: []string{nftForward("accept", "ct status dnat drop")}, cut: clients},
		{rules: []string{nftForward("accept", "meta l4proto tcp ct original proto-dst 8080 drop")}, cut: clients},
		{rules: []string{nftForward("accept", "meta l4proto tcp ct original proto-dst 80 drop")}},
		{rules: []string{nftForward("accept", "iifname \"fastbr0\" accept\nct state established accept\nct status dnat accept\ndrop")}, tail: true},
		{rules: []string{nftForward("accept", "ip daddr 172.30.0.2 tcp dport 70-90 drop")}, cut: clients},
		{rules: []string{nftForward("accept", "ip daddr 203.0.113.0/24 drop")}},
		{rules: []string{nftForward("accept", "limit rate 1/second accept\nreject")}, tail: true}, // some pass
		{rules: []string{"table ip raw {\nchain pre {\ntype filter hook prerouting priority -300;\niifname \"fastbr0\" drop\n}\n}\n"}, cut: sends},
		{rules: []string{"table ip6 x {\nchain f {\ntype filter hook forward priority 0; policy drop;\n}\n}\n"}},
		{rules: []string{"table inet fw {\nchain rest {\nct state established accept\niifname \"fastbr0\" accept\ndrop\n}\nchain forward {\ntype filter hook forward priority 0;\njump rest\n}\n}\n"},
			cut: clients, tail: true},
		{rules: []string{"table inet fw {\nchain rest {\ndrop\n}\nchain forward {\ntype filter hook forward priority 0;\niifname \"fastbr0\" goto rest\n}\n}\n"}, cut: sends},
		{rules: both("-P FORWARD DROP"), cut: sends, tail: true},
		{rules: both("-A FORWARD -j REJECT"), cut: sends, tail: true},
		{rules: both("-A FORWARD -i fastbr+ -s 172.16.0.0/12 -j DROP"), cut: sends},
		{rules: both("-A FORWARD ! -i eth0 -j DROP"), cut: sends},
		{rules: both("-A FORWARD ! -i fastbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j DROP"), cut: answers},
		{rules: both("-A FORWARD -i fastbr0 -p udp -j DROP")},
		{rules: both("-A FORWARD -o fastbr0 -m conntrack ! --ctstate RELATED,ESTABLISHED -j REJECT --reject-with icmp-host-prohibited"), cut: clients},
		{rules: both("-A FORWARD -p tcp -m tcp --dport 80 -m comment --comment \"no web\" -j DROP"), cut: clients},
		{rules: both("-A FORWARD -p tcp -m multiport --dports 22,70:90 -j DROP"), cut: clients},
		{rules: both("-A FORWARD -p tcp -m multiport ! --dports 22,70:90 -j DROP")},
		{rules: both("-A FORWARD -m mark --mark 7 -j DROP")},
		{rules: both("-t mangle -A PREROUTING -i fastbr0 -j DROP"), cut: sends},
		{rules: both("-t raw -A PREROUTING -p tcp --dport 8080 -j DROP"), cut: clients},
		{rules: both("-t raw -A PREROUTING -p tcp -d 172.30.0.2 --dport 80 -j DROP")},
		{rules: both("-A FORWARD -m conntrack --ctorigdstport 8080 -j DROP"), cut: clients},
		{rules: both("-A FORWARD -m conntrack --ctorigdst 198.51.100.1 --ctstate DNAT -j DROP"), cut: clients},
	} {
		for _, rules := range c.rules {
			judge(t, h, rules, c.cut, c.tail)
		}
	}
}

// judge compares what is found of rules with what is expected: what they cut off ("":
// nothing), and whether they drop what no rule accepts. Then Ensure and Remove have to do
// their work.
func judge(t *testing.T, h Host, rules, cut string, tail bool) {
	t.Helper()
	testutil.NewNetns(t).Do(t, func() {
		load(t, rules)
		rs, err := read(h.Family)
		if err != nil {
			t.Error(err)
			return
		}
		found := rs.condemned(h)
		if rs.err != nil {
			t.Errorf("%s: %v", rules, rs.err)
		}
		switch {
		case cut == "" && len(found) > 0:
			t.Errorf("%s: %v, want nothing", rules, found)
		case cut != "" && (len(found) != 1 || !strings.Contains(found[0].Detail, cut)):
			t.Errorf("%s: %v, want %q", rules, found, cut)
		}
		if policy := rs.byDefault("", "", forwarding).Detail; strings.Contains(policy, "dropped by default in") != tail {
			t.Errorf("%s: %s, want that what comes to the end is dropped: %v", rules, policy, tail)
		}
		if err := Ensure(h.Networks, func(string, ...any) {}); err != nil {
			t.Errorf("%s: %v", rules, err)
		}
		if rs, err = read(h.Family); err != nil {
			t.Error(err)
			return
		}
		if found := rs.condemned(h); tail && len(found) > 0 {
			t.Errorf("%s: still %v behind the accept rules", rules, found)
		}
		if err := Remove(h.Networks[0]); err != nil {
			t.Errorf("%s: %v", rules, err)
		}
		if after, err := Rules(h.Networks); err != nil || len(after) > 0 {
			t.Errorf("%s: left %v (%v)", rules, after, err)
		}
	})
}
