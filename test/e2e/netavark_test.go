package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
)

// netavark calls the plugin as netavark does: with a command and a namespace as
// arguments, and JSON on standard input and output. It decodes the answer into to,
// unless that is nil.
func (h *e2e) netavark(t *testing.T, stdin string, to any, args ...string) error {
	t.Helper()
	c := h.Host.Exec(h.Ctx, append([]string{h.Bin}, args...)...)
	c.Env = append(os.Environ(), h.PluginEnv()...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.Output()
	if err != nil {
		var failed struct{ Error string }
		if json.Unmarshal(out, &failed) != nil || failed.Error == "" {
			t.Errorf("%v: %v, and no reason on standard output: %q", args, err, out)
		}
		return fmt.Errorf("%s", failed.Error)
	}
	if to == nil {
		if len(out) != 0 {
			t.Errorf("%v printed %q", args, out)
		}
		return nil
	}
	return json.Unmarshal(out, to)
}

// created is a network's configuration after `podman network create -d fastbr`: the
// user's, completed by the plugin.
func (h *e2e) created(t *testing.T, text string) string {
	t.Helper()
	var all map[string]any
	if err := h.netavark(t, text, &all, "create"); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// joined is the input of setup and teardown for a container.
func joined(c *lab.Namespace, network, ifname, options string) string {
	return fmt.Sprintf(`{"container_id": %q, "container_name": "web", "network": %s,
		"port_mappings": [{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 3}],
		"network_options": {"aliases": null, "interface_name": %q %s}}`, c.Name, network, ifname, options)
}

// TestE2ENetavark leads a container through its life as Podman does.
func TestE2ENetavark(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	before := h.snapshot(t)
	other, err := h.Add("other")
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Version    string
		APIVersion string `json:"api_version"`
	}
	if err := h.netavark(t, "", &info, "info"); err != nil || info.APIVersion != "1.0.0" || info.Version == "" {
		t.Errorf("info = %+v, %v", info, err)
	}
	one := h.created(t, `{"name": "net1", "id": "aaaaaaaaaaaaaaaa", "driver": "fastbr", "created": "today", "dns_enabled": false,
		"ipv6_enabled": false, "internal": false, "subnets": null, "options": null, "ipam_options": {"driver": "host-local"}}`)
	two := h.created(t, `{"name": "net2", "id": "bbbbbbbbbbbbbbbb", "driver": "fastbr", "internal": true, "network_interface": "podman7",
		"subnets": [{"subnet": "10.89.0.0/24"}], "options": {"mtu": "1400", "allowed_address": "10.89.0.100"}}`)
	if !strings.Contains(one, `"created":"today"`) || !strings.Contains(one, `"network_interface":"fbr-aaaaaaaaaa"`) || !strings.Contains(two, `"gateway":"10.89.0.1"`) {
		t.Errorf("created: %s and %s", one, two)
	}
	c := h.Containers[0]
	var got struct {
		Interfaces map[string]struct {
			MAC     string `json:"mac_address"`
			Subnets []struct{ IPNet, Gateway string }
		}
	}
	if err := h.netavark(t, joined(c, one, "eth0", ""), &got, "setup", c.Path()); err != nil {
		t.Fatal(err)
	}
	eth0 := got.Interfaces["eth0"]
	addr, err := netip.ParsePrefix(eth0.Subnets[0].IPNet)
	if err != nil || eth0.MAC == "" || addr.Masked().Addr().Next().String() != eth0.Subnets[0].Gateway {
		t.Fatalf("setup = %+v, %v", got, err)
	}
	c.SetAddr(addr.Addr())
	h.mustPing(t, c, h.Outside.Addr, lab.PingOptions{Count: 1})
	s := h.ServeTCP(t, c, on(c.Addr, 82))
	defer s.Close()
	if err := h.Outside.EchoTCP(h.Ctx, netip.AddrPort{}, on(h.Host.Addr, 8082), "the last of the range"); err != nil {
		t.Error(err)
	}
	// A second network of the same container. Podman asks for the same ports there.
	second := joined(c, two, "eth1", `, "static_ips": ["10.89.0.9"], "static_mac": "02:00:00:00:00:09", "options": {"allowed_mac": "00:00:5e:00:01:33"}`)
	second = strings.Replace(second, `"web"`, `"`+strings.Repeat("long", 30)+`"`, 1) // too long as the name of a port
	if err := h.netavark(t, second, &got, "setup", c.Path()); err != nil || got.Interfaces["eth1"].Subnets[0].IPNet != "10.89.0.9/24" {
		t.Errorf("second network: %+v, %v", got, err)
	}
	if !slices.ContainsFunc(slices.Collect(maps.Values(h.ports(t))), func(p ctl.PortView) bool {
		return slices.Equal(p.AllowedAddresses, []string{"10.89.0.100/32"}) && slices.Equal(p.AllowedMACs, []string{"00:00:5e:00:01:33"})
	}) {
		t.Errorf("no port has the allowed addresses: %+v", h.ports(t))
	}
	if err := h.netavark(t, joined(other, one, "eth0", ""), nil, "setup", other.Path()); err == nil || !strings.Contains(err.Error(), "published already") {
		t.Errorf("ports of another container = %v", err)
	}
	for range 2 { // a second teardown is no error
		for _, text := range []string{second, joined(c, one, "eth0", "")} {
			if err := h.netavark(t, text, nil, "teardown", c.Path()); err != nil {
				t.Error(err)
			}
		}
	}
	h.assertAsBefore(t, before) // the networks went with their last containers
}

// TestE2ENetavarkRefuses: the reason is on standard output, and nothing is made.
func TestE2ENetavarkRefuses(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	before := h.snapshot(t)
	for text, want := range map[string]string{
		`{"name": "n", "id": "aaaaaaaaaaaa", "subnets": [{"subnet": "fe80::/64"}]}`:                              "not unicast",
		`{"name": "n", "id": "aaaaaaaaaaaa", "subnets": [{"subnet": "10.1.0.0/24"}, {"subnet": "10.2.0.0/24"}]}`: "one for each of IPv4 and IPv6",
		`{"name": "n", "id": "aaaaaaaaaaaa", "subnets": [{"subnet": "fd00::/64"}, {"subnet": "fd01::/64"}]}`:     "one for each of IPv4 and IPv6",
		`{"name": "n", "id": "aaaaaaaaaaaa", "routes": [{"destination": "fd01::/64", "gateway": "fd00::9"}]}`:    "the network has no IPv6",
		`{"name": "n", "id": "aaaaaaaaaaaa", "routes": [{"destination": "fd01::/64", "gateway": "10.1.0.9"}]}`:   "same family",
		`{"name": "n", "id": "aaaaaaaaaaaa", "options": {"nd_proxy": "perhaps"}}`:                                "nd_proxy",
		`{"name": "n", "id": "aaaaaaaaaaaa", "options": {"vlan": "7"}}`:                                          "option vlan",
		`{"name": "n", "id": "aaaaaaaaaaaa", "options": {"mtu": "big"}}`:                                         "mtu",
		`{"name": "n", "id": "aaaaaaaaaaaa", "options": {"allowed_address": "x"}}`:                               "allowed address",
		`{"name": "n", "id": "aaaaaaaaaaaa", "ipam_options": {"driver": "dhcp"}}`:                                "IPAM driver dhcp",
		`{"name": "n", "id": "aaaaaaaaaaaa", "subnets": [{"subnet": "198.51.100.0/25"}]}`:                        "overlaps",
		`{"name": "n", "id": "aaaaaaaaaaaa", "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}]}`:     "gateway",
		`no JSON`: "reading the network",
	} {
		if err := h.netavark(t, text, nil, "create"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if err := h.netavark(t, `{}`, nil, "setup", h.Containers[0].Path()); err == nil {
		t.Error("an empty attachment was set up")
	}
	abroad := joined(h.Containers[0], `{"name": "n", "id": "aaaaaaaaaaaa", "subnets": [{"subnet": "10.1.0.0/24"}]}`, "eth0", `, "static_ips": ["10.2.0.9"]`)
	if err := h.netavark(t, abroad, nil, "setup", h.Containers[0].Path()); err == nil || !strings.Contains(err.Error(), "not in the subnet") {
		t.Errorf("an address abroad = %v", err)
	}
	h.assertAsBefore(t, before)
}
