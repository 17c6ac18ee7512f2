package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fastbr/fastbr/internal/lab"
)

// The lists that containerd and CRI-O ship, with a placeholder for the type, and with the
// directory of host-local's leases. portmap, which containerd's has, comes behind.
var shippedLists = map[string]string{
	"containerd": `{"type": "%s", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
		"ipam": {"type": "host-local", "dataDir": "%%L",
			"ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:4860:4860::/64"}]],
			"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
		{"type": "portmap", "capabilities": {"portMappings": true}, "externalSetMarkChain": "KUBE-MARK-MASQ"}`,
	"crio": `{"type": "%s", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": {"type": "host-local", "dataDir": "%%L", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
			"ranges": [[{"subnet": "10.85.0.0/16"}], [{"subnet": "1100:200::/24"}]]}}`,
}

// TestE2ECNIShippedLists runs the lists that containerd and CRI-O ship with the reference
// bridge plugin, and then with only the type changed. The container sees no difference.
func TestE2ECNIShippedLists(t *testing.T) {
	t.Parallel()
	for name, list := range shippedLists {
		var seen []string
		for _, kind := range []string{"bridge", "fastbr"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 2, IPv6: lab.Static})
				l := r.list(t, "1.0.0", name, fmt.Sprintf(list, kind))
				a, b := r.Containers[0], r.Containers[1]
				res := r.add(t, l, a, attachment(a, nil))
				r.add(t, l, b, attachment(b, nil))
				seen = append(seen, inside(t, r, a, res)+r.inside6(t, a, res))
				for _, to := range []netip.Addr{b.Addr, b.Addr6, r.Outside.Addr, r.Outside.Addr6} {
					r.mustPing(t, a, to, lab.PingOptions{Count: 1})
				}
				if err := r.cni.CheckNetworkList(r.Ctx, l, attachment(a, nil)); err != nil && name != "containerd" {
					t.Errorf("CHECK: %v", err) // of portmap, with IPv6, only where there are ports
				}
				r.del(t, l, attachment(a, nil))
				r.del(t, l, attachment(b, nil))
				r.assertNoLeases6(t, name)
			})
		}
		if len(seen) == 2 && seen[0] != seen[1] {
			t.Errorf("%s: with the reference plugin:\n%s\nwith fastbr:\n%s", name, seen[0], seen[1])
		}
	}
}

// inside6 is what inside leaves out.
func (r *runtime) inside6(t *testing.T, c *lab.Namespace, res *current.Result) string {
	t.Helper()
	out := ""
	for _, ip := range res.IPs {
		out += fmt.Sprintf("%s via %s, interface %d\n", ip.Address.String(), ip.Gateway, *ip.Interface)
	}
	for _, route := range res.Routes {
		out += fmt.Sprintf("%s via %s\n", route.Dst.String(), route.GW)
	}
	text, err := c.Run(r.Ctx, "sh", "-c", "ip -o -6 addr show eth0 scope global | sed 's/.*inet6 //; s/ nodad//'; ip -6 route; cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
	if err != nil {
		t.Fatal(err)
	}
	return out + text
}

// assertNoLeases6 fails if host-local still has an address given out.
func (r *runtime) assertNoLeases6(t *testing.T, network string) {
	t.Helper()
	r.assertNoLeases(t, network)
	files, err := filepath.Glob(filepath.Join(r.leases, network, "*:*"))
	if err != nil || len(files) != 0 {
		t.Errorf("leases of IPv6 are left: %v, %v", files, err)
	}
}

// TestE2ECNI6 leads attachments of both families through their life: as IPv6's first, with
// the detection of duplicates, on a fastbr network with addresses of the runtime's choice.
func TestE2ECNI6(t *testing.T) {
	t.Parallel()
	r := newRuntime(t, e2eModes()[0], lab.Options{Containers: 3, IPv6: lab.Static})
	a, b, c := r.Containers[0], r.Containers[1], r.Containers[2]
	const routed = `{"type": "fastbr", "bridge": "cni7", "isDefaultGateway": true, "enabledad": true,
		"ipam": {"type": "host-local", "dataDir": "%L", "ranges": [[{"subnet": "2001:db8:c::/64"}], [{"subnet": "10.88.0.0/16"}]]}}`
	if _, err := r.Outside.Run(r.Ctx, "ip", "-6", "route", "add", "2001:db8:c::/64", "via", r.HostAddr6(0).String()); err != nil {
		t.Fatal(err)
	}
	l := r.list(t, "1.1.0", "pods", routed)
	res := r.add(t, l, a, attachment(a, nil))
	if got := fmt.Sprint(res.IPs[0].Address.String(), " ", res.IPs[1].Address.String(), " ", len(res.Routes)); got != "2001:db8:c::2/64 10.88.0.2/16 2" {
		t.Errorf("addresses, and number of routes: %s", got)
	}
	r.add(t, l, b, attachment(b, nil))
	if out, err := a.Run(r.Ctx, "ip", "-6", "addr", "show", "eth0", "scope", "global"); err != nil || strings.Contains(out, "nodad") || strings.Contains(out, "tentative") {
		t.Errorf("with enabledad the container has %s, %v", out, err)
	}
	r.mustPing(t, a, b.Addr6, lab.PingOptions{Count: 1})
	r.mustPing(t, r.Outside, a.Addr6, lab.PingOptions{Count: 1})
	if err := r.cni.CheckNetworkList(r.Ctx, l, attachment(a, nil)); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	r.inside(t, a, "ip -6 addr del "+a.Addr6.String()+"/64 dev eth0")
	if err := r.cni.CheckNetworkList(r.Ctx, l, attachment(a, nil)); err == nil || !strings.Contains(err.Error(), a.Addr6.String()) {
		t.Errorf("CHECK of a container that has lost its IPv6 address: %v", err)
	}
	// Another subnet of IPv6, or none, is another network.
	for _, to := range []string{`"2001:db8:d::/64"`, ""} {
		changed := strings.Replace(routed, `"2001:db8:c::/64"`, to, 1)
		if to == "" {
			changed = strings.Replace(routed, `[{"subnet": "2001:db8:c::/64"}], `, "", 1)
		}
		if _, err := r.cni.AddNetworkList(r.Ctx, r.list(t, "1.1.0", "pods", changed), attachment(c, nil)); code(t, err) != types.ErrInvalidNetworkConfig {
			t.Errorf("IPv6 subnet %q beside containers with another: %v", to, err)
		}
	}
	forgetful := libcni.NewCNIConfigWithCacheDir(r.cni.Path, t.TempDir(), r.exec)
	if err := forgetful.GCNetworkList(r.Ctx, l, &libcni.GCArgs{}); err != nil {
		t.Errorf("GC: %v", err)
	}
	if n := r.containers(t); n != 0 {
		t.Errorf("%d ports are left", n)
	}
	r.assertNoLeases6(t, "pods")
	r.assertOwn6(t, c)
}

// assertOwn6: a fastbr network gives an address of each family, and takes the runtime's.
func (r *runtime) assertOwn6(t *testing.T, c *lab.Namespace) {
	t.Helper()
	r.Must(t, "up", "--subnet", "fd00:84::/64")
	l := r.list(t, "1.1.0", "net", ownNetwork)
	rt := attachment(c, map[string]any{"ips": []string{"fd00:84::77/64", "172.30.7.7/16"}, "portMappings": []map[string]any{
		{"hostPort": 8080, "containerPort": 80}, {"hostPort": 8081, "containerPort": 81, "hostIP": "::"}}})
	res := r.add(t, l, c, rt)
	b, err := json.Marshal(res.IPs)
	if err != nil || len(res.IPs) != 2 || c.Addr.String() != "172.30.7.7" || c.Addr6.String() != "fd00:84::77" || len(res.Routes) != 2 {
		t.Errorf("addresses %s, routes %v, %v", b, res.Routes, err)
	}
	r.mustPing(t, c, netip.MustParseAddr("fd00:84::1"), lab.PingOptions{Count: 1})
	r.reached6(t, c, 80, on(r.HostAddr6(0), 8080))
	r.reached6(t, c, 81, on(r.HostAddr6(0), 8081))
	for what, err := range map[string]error{"STATUS": r.cni.GetStatusNetworkList(r.Ctx, l), "CHECK": r.cni.CheckNetworkList(r.Ctx, l, rt)} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	r.del(t, l, rt)

	// A mapping on an IPv6 address is left out of a container without IPv6.
	r.Must(t, "network", "create", "four")
	l = r.list(t, "1.1.0", "four", strings.Replace(ownNetwork, "default", "four", 1))
	rt = attachment(c, map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "hostIP": "::"}}})
	r.add(t, l, c, rt)
	if err := r.cni.CheckNetworkList(r.Ctx, l, rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	r.del(t, l, rt)
}
