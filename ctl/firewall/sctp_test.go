package firewall

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// TestPublishedSCTPTable: the maps have each port once, however many, and the caller is
// told which containers' ports are led to no longer.
func TestPublishedSCTPTable(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "nft")
	addr := netip.MustParseAddr
	h := Host{Family: IPv4, Networks: []Network{{Bridge: Device{Name: "br-a"}, Subnet: netip.MustParsePrefix("172.30.0.0/16")}}, // routed
		Uplinks: []Device{{Name: "eth0"}},
		Published: []Publication{
			{First: 1000, Last: 5999, Port: 2000, Proto: "sctp", Container: addr("172.30.0.2"), Allow: netip.MustParsePrefix("192.0.2.0/24")},
			{First: 80, Last: 80, Port: 80, Proto: "sctp", Container: addr("172.30.0.3"), HostIP: addr("198.51.100.1")},
			{First: 80, Last: 80, Port: 80, Proto: "tcp", Container: addr("172.30.0.4")},
		}}
	testutil.NewNetns(t).Do(t, func() {
		ensure := func() []netip.AddrPort {
			t.Helper()
			gone, err := Masquerade(h)
			if err != nil {
				t.Fatal(err)
			}
			if right, err := Masquerades(h); !right || err != nil {
				t.Fatalf("not as it was written: %v\n%.2000s", err, nftList(t))
			}
			return gone
		}
		ensure()
		all := nftList(t)
		for _, want := range []string{"1000 : 172.30.0.2 . 2000", "5999 : 172.30.0.2 . 6999", "198.51.100.1 . 80 : 172.30.0.3 . 80", "priority -90",
			"dnat ip to sctp dport map @ports", "dnat ip to ip daddr . sctp dport map @sockets", "fib daddr type != 2 return", "ip daddr 127.0.0.0/8 return",
			"sctp dport 1000-5999 ip saddr != 192.0.2.0/24 return", `iifname != @uplinks iifname != @inside return comment "by no uplink"`} {
			if !strings.Contains(all, want) {
				t.Errorf("no %s in\n%.3000s", want, all[strings.Index(all, "chain"):])
			}
		}
		if strings.Contains(all, "172.30.0.4") {
			t.Error("TCP is led by the table")
		}
		h.Published = h.Published[1:]
		if gone := ensure(); len(gone) != 5000 || !slices.Contains(gone, netip.MustParseAddrPort("172.30.0.2:6999")) {
			t.Errorf("%d led nowhere: %v", len(gone), gone[:min(3, len(gone))])
		}
		for _, harm := range []string{"flush map ip fastbr sockets", "flush chain ip fastbr output", "delete table ip fastbr"} {
			if out, err := exec.Command("nft", harm).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", harm, err, out)
			}
			if ensure(); !strings.Contains(nftList(t), "198.51.100.1 . 80 : 172.30.0.3 . 80") {
				t.Errorf("after %s:\n%s", harm, nftList(t))
			}
		}
		// More than a message holds that the kernel takes by default.
		one := h.Published
		h.Published = []Publication{{First: 1, Last: 20000, Port: 1, Proto: "sctp", Container: addr("172.30.0.2")}}
		for i := range 2000 {
			h.Networks[0].Plain = append(h.Networks[0].Plain, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
		}
		ensure()
		h.Networks[0].Plain, h.Published = nil, one
		ensure()
		h.Published = nil
		if gone := ensure(); len(gone) != 1 || nftList(t) != "" {
			t.Errorf("after the last: %v\n%s", gone, nftList(t))
		}
	})
}
