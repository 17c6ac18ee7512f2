package firewall

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// TestUnmetRules: rules that guard published ports behind a kernel bridge but not here
// are named, with a rule that does. Other rules are not named.
func TestUnmetRules(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "iptables", "iptables-legacy")
	h := Host{Networks: []Network{web}, Uplinks: []Device{{Name: "eth0", Addr: netip.MustParseAddr("198.51.100.1")}}, Published: []Publication{webPort}}
	bare := h
	bare.Published = nil
	both := func(rule string) []string {
		return []string{"iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft " + rule,
			"iptables-legacy -N DOCKER-USER; iptables-legacy -A FORWARD -j DOCKER-USER; iptables-legacy " + rule}
	}
	nftIn := func(hook, priority, rule string) []string {
		return []string{"table inet fw {\nchain c {\ntype filter hook " + hook + " priority " + priority + ";\n" + rule + "\n}\n}\n"}
	}
	for _, c := range []struct {
		rules   []string
		instead string // "": not named
		bare    bool   // named also while nothing is published
	}{
		{both("-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 8080 -j DROP"), "-I DOCKER-USER 1 -p tcp -d 172.30.0.2 --dport 80 -j DROP", true},
		{both("-A DOCKER-USER ! -s 10.0.0.0/8 -p tcp -m conntrack --ctorigdstport 8000:9000 --ctdir ORIGINAL -j DROP"), " ! -s 10.0.0.0/8 -p tcp -m conntrack --ctdir ORIGINAL -d 172.30.0.2 --dport 80 -j DROP", true},
		{both("-A DOCKER-USER -i eth0 -m conntrack --ctorigdst 198.51.100.1 -j DROP"), "-I DOCKER-USER 1 -i eth0 -p tcp -d 172.30.0.2 --dport 80 -j DROP", true},
		{both("-A DOCKER-USER -i eth0 -m conntrack --ctstate DNAT -j DROP"), "-I DOCKER-USER 1 -i eth0 -p tcp -d 172.30.0.2 --dport 80 -j DROP", true},
		{both("-A DOCKER-USER -m conntrack --ctstate DNAT -j RETURN"), "--dport 80 -j RETURN", true},
		{both("-t mangle -A FORWARD -m conntrack --ctorigdstport 8080 -j DROP"), "-t mangle -I FORWARD 1 -p tcp -d 172.30.0.2 --dport 80 -j DROP", true},
		{both("-t raw -A PREROUTING -p tcp -m tcp --dport 8080 -j DROP"), "-t raw -I PREROUTING 1 -p tcp -d 172.30.0.2 --dport 80 -j DROP", false},
		{both("-t mangle -A PREROUTING -i eth0 -p tcp -m multiport --dports 22,8000:8100 -j DROP"), "-t mangle -I PREROUTING 1 -i eth0 -p tcp -d 172.30.0.2 --dport 80 -j DROP", false},
		{both("-t mangle -A PREROUTING -d 198.51.100.1 -j DROP"), "-t mangle -I PREROUTING 1 -p tcp -d 172.30.0.2 --dport 80 -j DROP", false},
		{both("-t mangle -A PREROUTING -p tcp -m tcp --dport 8080 -m conntrack --ctorigdstport 8080 -j DROP"), "-d 172.30.0.2 --dport 80 -j DROP", true},
		{nftIn("forward", "0", "ct status dnat counter drop"), "nft insert rule inet fw c handle 2 ip daddr 172.30.0.2 tcp dport 80 counter drop", true},
		{nftIn("forward", "0", "meta l4proto tcp ct original proto-dst 8080 drop"), " handle 2 ip daddr 172.30.0.2 tcp dport 80 meta l4proto tcp drop", true},
		{nftIn("forward", "0", "ip saddr != 10.0.0.0/8 meta l4proto tcp ct original proto-dst { 22, 8080 } drop"), "ip daddr 172.30.0.2 tcp dport 80 ip saddr != 10.0.0.0/8 meta l4proto tcp drop", true},
		{nftIn("forward", "0", "ct original ip daddr 198.51.100.1 drop"), "ip daddr 172.30.0.2 tcp dport 80 drop", true},
		{nftIn("prerouting", "-300", "iifname \"eth0\" tcp dport 8080 drop"), "ip daddr 172.30.0.2 tcp dport 80 iifname \"eth0\" drop", false},
		{nftIn("prerouting", "-150", "fib daddr type local drop"), "ip daddr 172.30.0.2 tcp dport 80 drop", false},

		{rules: both("-A DOCKER-USER -d 172.30.0.2 -p tcp -m tcp --dport 80 -j DROP")},
		{rules: both("-A DOCKER-USER -o docker0 -m conntrack --ctorigdstport 8080 -j DROP")},
		{rules: both("-A DOCKER-USER -d 172.17.0.0/16 -m conntrack --ctstate DNAT -j DROP")},
		{rules: both("-A DOCKER-USER -m conntrack --ctstate NEW,DNAT -j DROP")},
		{rules: both("-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT")},
		{rules: both("-A DOCKER-USER ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP")},
		{rules: both("-A INPUT -p tcp -m tcp --dport 8080 -j DROP")},
		{rules: both("-t raw -A PREROUTING -p tcp -m tcp --dport 22 -j DROP")},
		{rules: both("-t raw -A PREROUTING -d 172.17.0.2 ! -i docker0 -j DROP")},
		{rules: both("-t mangle -A PREROUTING -p tcp -m tcp --dport 8080 -j MARK --set-mark 1")},
		{rules: nftIn("forward", "0", "ct state new drop")},
		{rules: nftIn("prerouting", "0", "tcp dport 8080 drop")}, // behind the kernel's DNAT: blind there, too
	} {
		for _, rules := range c.rules {
			testutil.NewNetns(t).Do(t, func() {
				load(t, rules)
				rs, err := read()
				if err != nil {
					t.Error(err)
					return
				}
				found, early := rs.unmet(h), rs.unmet(bare)
				if rs.err != nil {
					t.Errorf("%s: %v", rules, rs.err)
				}
				if c.instead == "" && len(found)+len(early) > 0 {
					t.Errorf("%s: %v %v, want nothing", rules, found, early)
				}
				if c.instead == "" {
					return
				}
				if len(found) != 1 || !strings.Contains(found[0].Detail, c.instead) {
					t.Errorf("%s: %v, want %q", rules, found, c.instead)
					return
				}
				if (len(early) > 0) != c.bare {
					t.Errorf("%s: nothing is published: %v, want %v", rules, early, c.bare)
				}
				// The rule to write instead matches, and is not named itself.
				_, command, _ := strings.Cut(found[0].Detail, "8080/tcp: ")
				if strings.HasPrefix(command, "nft ") {
					load(t, strings.TrimPrefix(command, "nft "))
				} else {
					load(t, command)
				}
				if rs, err = read(); err != nil {
					t.Error(err)
					return
				}
				if again := rs.unmet(h); len(again) != 1 {
					t.Errorf("%s: after %s: %v, want the first rule alone", rules, command, again)
				}
				if !strings.Contains(command, "RETURN") && !strings.Contains(command, "10.0.0.0/8") && len(rs.condemned(h)) != 1 {
					t.Errorf("%s: %s does not stop clients", rules, command)
				}
			})
		}
	}
}
