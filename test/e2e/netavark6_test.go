package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
)

// TestE2ENetavark6: networks of both families, whose subnets the user names or the plugin
// chooses. Two that it chooses before either is up differ.
func TestE2ENetavark6(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 2, IPv6: lab.Static})
	before := h.snapshot(t)
	a, b := h.Containers[0], h.Containers[1]
	named := h.created(t, `{"name": "net1", "id": "aaaaaaaaaaaa", "internal": true, "ipv6_enabled": true, "options": {"metric": "77"},
		"subnets": [{"subnet": "fd00:89::/64"}, {"subnet": "10.89.0.0/24", "gateway": "10.89.0.9"}],
		"routes": [{"destination": "fd00:99::/64", "gateway": "fd00:89::5"}]}`)
	if got := fmt.Sprint(subnets(t, named)); got != "[{fd00:89::/64 fd00:89::1} {10.89.0.0/24 10.89.0.9}]" {
		t.Errorf("created %s", got)
	}
	chosen, last := map[netip.Prefix]bool{}, ""
	for _, id := range []string{"bbbbbbbbbbbb", "cccccccccccc"} {
		last = h.created(t, `{"name": "n", "id": "`+id+`", "ipv6_enabled": true, "subnets": null, "options": {"outbound_addr6": "`+h.HostAddr6(0).String()+`"}}`)
		s := subnets(t, last)
		if len(s) != 2 || !s[0].Subnet.Addr().Is4() {
			t.Fatalf("created %v, want a subnet of each family", s)
		}
		chosen[s[1].Subnet] = true
	}
	if len(chosen) != 2 {
		t.Errorf("two networks have the subnet %v", chosen)
	}
	var got struct {
		Interfaces map[string]struct {
			Subnets []struct{ IPNet, Gateway string }
		}
	}
	if err := h.netavark(t, alone(a, named, `, "static_ips": ["fd00:89::77", "10.89.0.77"]`), &got, "setup", a.Path()); err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprint(got.Interfaces["eth0"].Subnets); s != "[{10.89.0.77/24 } {fd00:89::77/64 }]" {
		t.Errorf("setup: %s", s)
	}
	if err := h.netavark(t, alone(b, named, ""), &got, "setup", b.Path()); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"10.89.0.77", "fd00:89::77", "fd00:89::1"} {
		h.mustPing(t, b, netip.MustParseAddr(to), lab.PingOptions{Count: 1})
	}
	routes, err := b.Run(h.Ctx, "ip", "-6", "route")
	if err != nil || !strings.Contains(routes, "fd00:99::/64 via fd00:89::5") || strings.Contains(routes, "default") {
		t.Errorf("routes inside: %s, %v", routes, err)
	}
	if err := h.netavark(t, alone(b, named, `, "static_ips": ["fd00:89::78", "fd00:89::79"]`), nil, "setup", b.Path()); err == nil || !strings.Contains(err.Error(), "one for each") {
		t.Errorf("two addresses of a family: %v", err)
	}
	second := strings.Replace(alone(a, last, ""), "eth0", "eth1", 1)
	if err := h.netavark(t, second, &got, "setup", a.Path()); err != nil {
		t.Fatal(err)
	}
	h.mustPing(t, a, h.Outside.Addr6, lab.PingOptions{Count: 1})
	if err := h.netavark(t, second, nil, "teardown", a.Path()); err != nil {
		t.Error(err)
	}
	for _, c := range []*lab.Namespace{a, b} {
		if err := h.netavark(t, alone(c, named, ""), nil, "teardown", c.Path()); err != nil {
			t.Error(err)
		}
	}
	h.assertAsBefore(t, before)
}

type netavarkSubnet struct {
	Subnet  netip.Prefix
	Gateway netip.Addr
}

// subnets are those of a network's configuration.
func subnets(t *testing.T, network string) []netavarkSubnet {
	t.Helper()
	var n struct{ Subnets []netavarkSubnet }
	if err := json.Unmarshal([]byte(network), &n); err != nil {
		t.Fatal(err)
	}
	return n.Subnets
}

// alone is joined, for a container without published ports.
func alone(c *lab.Namespace, network, options string) string {
	return fmt.Sprintf(`{"container_id": %q, "container_name": "web", "network": %s, "network_options": {"interface_name": "eth0" %s}}`, c.Name, network, options)
}
