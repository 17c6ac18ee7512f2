package firewall

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// TestStrayRulesMove: when somebody puts a rule that drops before ours, ours go before
// it, those behind it go, and nobody else's rule does. So it is in nft, where rules have
// handles, and in iptables, where they have numbers.
func TestStrayRulesMove(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft", "iptables", "iptables-legacy")
	for _, c := range []struct{ rules, drop, behind, list string }{
		{nftForward("drop", ""), "nft insert rule inet fw forward drop", "nft add rule inet fw forward tcp dport %d counter", "nft list ruleset"},
		{nftForward("drop", "tcp dport 21 counter"), "nft insert rule inet fw forward drop", "nft add rule inet fw forward tcp dport %d counter", "nft list ruleset"},
		{"iptables-nft -P FORWARD DROP", "iptables-nft -I FORWARD -j DROP", "iptables-nft -A FORWARD -p tcp --dport %d", "iptables-nft -S FORWARD"},
		{"iptables-legacy -P FORWARD DROP", "iptables-legacy -I FORWARD -j DROP", "iptables-legacy -A FORWARD -p tcp --dport %d", "iptables-legacy -S FORWARD"},
	} {
		for _, behind := range []int{0, 3} {
			testutil.NewNetns(t).Do(t, func() {
				load(t, c.rules)
				ensure(t, web)
				theirs := []string{"8001", "8002", "8003"}[:behind]
				for _, dport := range theirs {
					shell(t, strings.ReplaceAll(c.behind, "%d", dport))
				}
				shell(t, c.drop)
				if said := ensure(t, web); len(said) == 0 {
					t.Errorf("%s: nothing said of rules that are behind %q", c.rules, c.drop)
				}
				if ours := settled(t, c.rules); len(ours) != 2 || ours[0].at > ours[1].at || ours[1].at+1 >= len(ours[0].chain.rules) {
					t.Errorf("%s: ours are %v, want two before %q", c.rules, ours, c.drop)
				}
				out, err := exec.Command("sh", "-c", c.list).CombinedOutput()
				if err != nil || slices.ContainsFunc(theirs, func(dport string) bool { return !strings.Contains(string(out), dport) }) {
					t.Errorf("%s: %v, somebody else's rule is gone:\n%s", c.rules, err, out)
				}
			})
		}
	}
}

// settled are the rules of web's that Ensure has put in FORWARD. Ensure has nothing to say
// when it is asked again.
func settled(t *testing.T, rules string) []place {
	t.Helper()
	if again := ensure(t, web); len(again) > 0 {
		t.Errorf("%s: once more: %q", rules, again)
	}
	rs, err := read(IPv4)
	if err != nil {
		t.Error(err)
		return nil
	}
	return rs.tagged(web, forwarding)
}

// shell runs a command in the namespace.
func shell(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", command, err, out)
	}
}
