package firewall

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// asking is a network whose containers ask its gateway for names.
func asking() Network {
	n := web
	n.Resolver = netip.MustParseAddr("172.30.0.1")
	return n
}

// ensure runs Ensure and returns what it said.
func ensure(t *testing.T, networks ...Network) (said []string) {
	t.Helper()
	if err := Ensure(networks, func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }); err != nil {
		t.Error(err)
	}
	return said
}

func findings(t *testing.T, h Host) []Finding {
	t.Helper()
	found, err := Findings(h)
	if err != nil {
		t.Error(err)
	}
	var out []Finding
	for _, f := range found {
		if f.Warning {
			out = append(out, f)
		}
	}
	return out
}

// TestNames: where the host drops what is sent to itself, containers' questions for
// names get in, and nothing else does. A rule that drops them on purpose is named.
func TestNames(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "iptables", "iptables-legacy")
	n := asking()
	h := Host{Family: IPv4, Networks: []Network{n}, Uplinks: []Device{{Name: "eth0"}}}
	both := func(rules string) []string {
		return []string{strings.ReplaceAll("iptables "+rules, "iptables", "iptables-nft"), strings.ReplaceAll("iptables "+rules, "iptables", "iptables-legacy")}
	}
	nft := func(hook, policy, rules string) []string {
		return []string{"table inet fw {\nchain c {\ntype filter hook " + hook + " priority 0; policy " + policy + ";\n" + rules + "\n}\n}\n"}
	}
	const asks, answers = "drops questions for names that network default asks 172.30.0.1", "drops answers about names from 172.30.0.1"
	for _, c := range []struct {
		rules []string
		cut   string // "": names are answered
		opens bool   // Ensure lets the questions in
	}{
		{rules: nft("input", "accept", "")},
		{nft("input", "drop", "ct state established,related accept"), asks, true},
		{nft("input", "drop", "iifname \"lo\" accept\ntcp dport 22 accept\nlimit rate 3/minute log"), asks, true},
		{nft("input", "accept", "ct state established accept\nreject"), asks, true},
		{rules: nft("input", "drop", "iifname \"fastbr*\" meta l4proto { tcp, udp } th dport 53 accept"), opens: true},
		{nft("input", "accept", "iifname \"fastbr0\" drop"), asks, false},
		{nft("input", "accept", "udp dport 53 fib daddr type local drop"), asks, false},
		{rules: nft("input", "accept", "tcp dport 8080 drop")},
		{nft("input", "accept", "tcp dport 53 drop"), asks, false},
		{nft("prerouting", "accept", "ip daddr 172.30.0.1 drop"), asks, false},
		{nft("output", "drop", ""), answers, false},
		{rules: nft("output", "drop", "ct state established accept")},
		{both("-P INPUT DROP"), asks, true},
		{both("-A INPUT -i lo -j ACCEPT; iptables -A INPUT -m limit --limit 3/min -j LOG; iptables -A INPUT -j REJECT"), asks, true},
		{both("-P INPUT DROP; iptables -P FORWARD DROP"), asks, true},
		{both("-A INPUT ! -i eth0 -j DROP"), asks, false},
		{both("-t raw -A PREROUTING -i fastbr0 -p udp -m udp --dport 53 -j DROP"), asks, false},
	} {
		for _, rules := range c.rules {
			testutil.NewNetns(t).Do(t, func() {
				load(t, rules)
				if found := findings(t, h); (len(found) > 0) != (c.cut != "") || c.cut != "" && !strings.Contains(found[0].Detail, c.cut) {
					t.Errorf("%s: %v, want %q", rules, found, c.cut)
				}
				said := strings.Join(ensure(t, n), "\n")
				if c.opens != strings.Contains(said, `that accept questions for names from fastbr0 to 172.30.0.1 (comment "fastbr:default:dns")`) {
					t.Errorf("%s: said %q, want rules in INPUT: %v", rules, said, c.opens)
				}
				if again := ensure(t, n); len(again) > 0 {
					t.Errorf("%s: once more: %q", rules, again)
				}
				if found := findings(t, h); c.opens && len(found) > 0 {
					t.Errorf("%s: still %v", rules, found)
				}
				rs, err := read(IPv4)
				if err != nil {
					t.Error(err)
					return
				}
				ssh := question(n, protocols["tcp"])
				ssh.dport, ssh.origDstPort = port(22), port(22)
				if c.opens && !strings.Contains(rules, "dport 22") && rs.condemns(ssh, localIn) == nil {
					t.Errorf("%s: containers get in by other ports, too", rules)
				}
				if err := Remove(n); err != nil {
					t.Errorf("%s: %v", rules, err)
				}
				if after, err := Rules(h.Networks); err != nil || len(after) > 0 {
					t.Errorf("%s: left %v (%v)", rules, after, err)
				}
			})
		}
	}
}

// TestNoResolver: a network whose gateway answers nobody gets no rule in INPUT.
func TestNoResolver(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft")
	testutil.NewNetns(t).Do(t, func() {
		load(t, "table inet fw {\nchain c {\ntype filter hook input priority 0; policy drop;\n}\n}\n")
		if said := ensure(t, web); len(said) > 0 {
			t.Errorf("said %q, want nothing", said)
		}
	})
}

// TestRoomBeforeLogs: no rule logs as blocked what our rules then accept.
func TestRoomBeforeLogs(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "iptables", "iptables-legacy")
	for _, c := range []struct {
		rules string
		where string // the rule that follows ours
	}{
		{nftForward("drop", "tcp dport 22 accept\nlimit rate 3/minute log prefix \"blocked \"\ncounter"), "limit"},
		{nftForward("drop", "log\nct mark set 7"), ""}, // it changes packets, so our rules must not come before it
		{nftForward("accept", "tcp dport 22 drop\nlog\nreject"), "log"},
		{"iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -p tcp --dport 22 -j DROP; iptables-nft -A FORWARD -m limit --limit 3/min -j LOG", "limit"},
		{"iptables-legacy -A FORWARD -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix x; iptables-legacy -A FORWARD -j DROP", "LOG"},
		{"iptables-nft -P FORWARD DROP; iptables-nft -N logs; iptables-nft -A logs -j LOG; iptables-nft -A FORWARD -j logs", "logs"},
	} {
		testutil.NewNetns(t).Do(t, func() {
			load(t, c.rules)
			ensure(t, web)
			ours := settled(t, c.rules)
			if len(ours) != 2 {
				t.Errorf("%s: %d rules of ours, want 2", c.rules, len(ours))
				return
			}
			next := place{ours[1].chain, ours[1].at + 1}
			if last := next.at == len(next.chain.rules); last != (c.where == "") || !last && !strings.Contains(next.text(), c.where) {
				t.Errorf("%s: ours are before %s, want %q", c.rules, next, c.where)
			}
		})
	}
}

// TestRemedy: the commands that findings suggest let the packets through.
func TestRemedy(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "iptables", "iptables-legacy")
	h := Host{Family: IPv4, Networks: []Network{asking()}, Uplinks: []Device{{Name: "eth0"}}, Published: []Publication{webPort}}
	nft := func(hook, rules string) string {
		return "table inet fw {\nchain c {\ntype filter hook " + hook + " priority 0;\n" + rules + "\n}\n}\n"
	}
	for _, rules := range []string{
		nft("forward", "iifname \"fastbr0\" reject"),
		nft("forward", "oifname \"fastbr0\" drop"),
		nft("forward", "tcp dport 80 drop"),
		nft("prerouting", "ip saddr 172.30.0.0/16 drop"),
		nft("postrouting", "ip saddr 172.30.0.0/16 drop"),
		nft("prerouting", "ip daddr 172.30.0.0/16 drop"),
		nft("input", "iifname \"fastbr0\" drop"),
		nft("input", "udp dport 53 drop"),
		nft("output", "oifname \"fastbr0\" drop"),
		"iptables-nft -A FORWARD -i fastbr+ -j DROP",
		"iptables-legacy -A FORWARD ! -i fastbr0 -j DROP",
		"iptables-nft -A FORWARD -p tcp --dport 80 -j DROP",
		"iptables-legacy -t raw -A PREROUTING -s 172.30.0.0/16 -j DROP",
		"iptables-nft -t mangle -A POSTROUTING -s 172.30.0.0/16 -j DROP",
		"iptables-nft -A INPUT -i fastbr+ -j DROP",
	} {
		testutil.NewNetns(t).Do(t, func() {
			load(t, rules)
			found := findings(t, h)
			for i := 0; len(found) > 0; i++ {
				_, command, ok := strings.Cut(found[0].Detail, "unless that is meant: ")
				if !ok || i == 4 {
					t.Errorf("%s: %v is not mended", rules, found)
					return
				}
				load(t, strings.TrimPrefix(command, "nft "))
				found = findings(t, h)
			}
		})
	}
}
