package firewall

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

func nftList(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "-n", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

// TestMasqueradeTable: the table has what the host has, is put back as a whole, and is
// not written when it is right.
func TestMasqueradeTable(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft")
	network := func(name, subnet string) Network {
		return Network{Name: name, Bridge: Device{Name: name}, Subnet: netip.MustParsePrefix(subnet), Masquerade: true}
	}
	h := Host{Family: IPv4, Networks: []Network{network("br-a", "172.30.0.0/16"), network("br-b", "172.31.0.0/16"), network("br-c", "10.1.2.128/25"),
		{Bridge: Device{Name: "br-d"}, Subnet: netip.MustParsePrefix("10.9.0.0/16")}, // routed
		{Bridge: Device{Name: "br-e"}, Subnet: netip.MustParsePrefix("10.8.0.0/16"), Masquerade: true, Internal: true}},
		Uplinks: []Device{{Name: "eth0"}, {Name: "eth1"}}, Others: true}
	testutil.NewNetns(t).Do(t, func() {
		ensure := func(h Host) string {
			t.Helper()
			if _, err := Masquerade(h); err != nil {
				t.Fatal(err)
			}
			return nftList(t)
		}
		all := ensure(h)
		for _, want := range []string{"10.1.2.128/25, 172.30.0.0/15", `"br-a", "br-b"`, `"br-d", "br-e"`, `"eth0", "eth1"`,
			"priority 110", "iif != 0 iifname != @inside return", `masquerade comment "other devices"`, `masquerade comment "other protocols"`,
			`ct status 0x2000 counter packets 0 bytes 0 masquerade`} {
			if !strings.Contains(all, want) {
				t.Errorf("no %s in\n%s", want, all)
			}
		}
		if strings.Contains(all, "10.9.0.0") || strings.Contains(all, "10.8.0.0") {
			t.Errorf("what is not translated is named:\n%s", all)
		}
		handles := func() string {
			out, _ := exec.Command("nft", "-a", "list", "ruleset").CombinedOutput()
			return string(out)
		}
		before := handles()
		if ensure(h); handles() != before {
			t.Errorf("the right table is written again")
		}
		for _, harm := range []string{"flush ruleset", "delete element ip fastbr uplinks { eth1 }", "flush chain ip fastbr postrouting",
			"add element ip fastbr subnets { 8.8.8.0/24 }", "insert rule ip fastbr postrouting accept"} {
			if out, err := exec.Command("nft", harm).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", harm, err, out)
			}
			if got := ensure(h); got != all {
				t.Errorf("after %s:\n%s", harm, got)
			}
		}
		h.Others, h.Uplinks = false, nil
		if got := ensure(h); strings.Contains(got, "other devices") || strings.Contains(got, "eth0") {
			t.Errorf("without other devices and uplinks:\n%s", got)
		}
		if out, err := exec.Command("nft", "add table ip mine").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		routed := Host{Family: IPv4, Networks: h.Networks[3:4], Published: []Publication{webPort}}
		if got := ensure(routed); !strings.Contains(got, "type nat hook postrouting") || strings.Contains(got, "masquerade") {
			t.Errorf("with a published port and no NAT:\n%s", got)
		}
		before = handles()
		if ensure(routed); handles() != before {
			t.Errorf("the right table is written again")
		}
		if got := ensure(Host{Family: IPv4}); got != "table ip mine { }" {
			t.Errorf("after the last network:\n%s", got)
		}
		if out, err := exec.Command("nft", "add table ip fastbr; add chain ip fastbr input").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		theirs := nftList(t)
		for _, h := range []Host{h, {Family: IPv4}} {
			if _, err := Masquerade(h); !errors.Is(err, ErrForeignTable) || nftList(t) != theirs {
				t.Errorf("beside somebody's table of that name: %v:\n%s", err, nftList(t))
			}
		}
	})
}
