package firewall

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// TestForeignNAT: which rules of other programs translate what containers send.
func TestForeignNAT(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "iptables")
	ns := testutil.NewNetns(t)
	n := Network{Subnet: netip.MustParsePrefix("172.30.0.0/16")}
	const base = "table ip x { chain post { type nat hook postrouting priority 100; }; chain more { masquerade; }; }\n"
	for rules, hit := range map[string]bool{
		"iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE":                                   true,
		"iptables -t nat -A POSTROUTING -m comment --comment all -j MASQUERADE":                  true,
		"iptables -t nat -A POSTROUTING -s 172.16.0.0/12 -j SNAT --to-source 198.51.100.1":       true,
		"iptables -t nat -A POSTROUTING ! -s 10.0.0.0/8 -o eth+ -j MASQUERADE":                   true,
		"iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE":             false,
		"iptables -t nat -A POSTROUTING -o eth1 -j MASQUERADE":                                   false,
		"iptables -t nat -A POSTROUTING ! -o eth0 -j MASQUERADE":                                 false,
		"iptables -t nat -A POSTROUTING -o eth0 -p tcp -j MASQUERADE":                            false,
		"iptables -t nat -A POSTROUTING ! -s 172.30.0.0/16 -o eth0 -j MASQUERADE":                false,
		base + `add rule ip x post oifname "eth0" masquerade`:                                    true,
		base + `add rule ip x post oifname "eth0" jump more`:                                     true,
		base + `add rule ip x post oifname "eth1" jump more`:                                     false,
		base + "add rule ip x post ip saddr 172.30.0.0/16 accept\nadd rule ip x post masquerade": false,
		base: false,
	} {
		ns.Do(t, func() {
			c := exec.Command("nft", "-f", "-")
			c.Stdin = strings.NewReader(rules)
			if strings.HasPrefix(rules, "iptables") {
				c = exec.Command("sh", "-c", rules)
			}
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", rules, err, out)
			}
			rs, err := read(IPv4)
			if err != nil {
				t.Fatal(err)
			}
			where := rs.translates(n, Device{Name: "eth0"})
			if rs.err != nil || (where != nil) != hit {
				t.Errorf("%s: %v, %v, want %v", rules, where, rs.err, hit)
			}
			if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		})
	}
}
