package kubernetes

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
)

// proxy writes a node's rules for services as one of kube-proxy's modes does.
type proxy struct {
	name    string
	install func(t *testing.T, cl *cluster, n *node)
}

// service is port 80 of a ClusterIP, for TCP and UDP.
type service struct {
	name      string
	addr      netip.Addr // ClusterIP
	nodePort  uint16     // 0: none
	local     bool       // externalTrafficPolicy: Local
	endpoints []*lab.Namespace
}

// Services of every cluster. Those of a client's own node, the other node and outside
// have their endpoint there.
const (
	svcSelf = iota // a
	svcNear        // b
	svcFar         // c
	svcOut         // outside
	svcOpen        // a, NodePort 30080
	svcShut        // a, NodePort 30081, of the node itself
	svcBoth        // a and c
)

const (
	openPort = 30080
	shutPort = 30081
)

func (cl *cluster) services() []service {
	out := []service{
		svcSelf: {name: "SELF", endpoints: []*lab.Namespace{cl.a}},
		svcNear: {name: "NEAR", endpoints: []*lab.Namespace{cl.b}},
		svcFar:  {name: "FAR", endpoints: []*lab.Namespace{cl.c}},
		svcOut:  {name: "OUT", endpoints: []*lab.Namespace{cl.Outside}},
		svcOpen: {name: "OPEN", endpoints: []*lab.Namespace{cl.a}, nodePort: openPort},
		svcShut: {name: "SHUT", endpoints: []*lab.Namespace{cl.a}, nodePort: shutPort, local: true},
		svcBoth: {name: "BOTH", endpoints: []*lab.Namespace{cl.a, cl.c}},
	}
	for i := range out {
		out[i].addr = clusterIP(i)
	}
	return out
}

func clusterIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, 0, byte(10 + i)}) }

var protocols = []string{"tcp", "udp"}

// serves tells whether a service has an endpoint on the node.
func (s service) serves(n *node) bool {
	for _, e := range s.endpoints {
		if n.subnet.Contains(e.Addr) {
			return true
		}
	}
	return false
}

var byIPTables = proxy{"iptables", func(t *testing.T, cl *cluster, n *node) {
	t.Helper()
	filter := `*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I FORWARD 2 -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I FORWARD 3 -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
`
	nat := `*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
`
	line := func(to *string, format string, args ...any) { *to += fmt.Sprintf(format, args...) + "\n" }
	for _, s := range cl.services() {
		for _, p := range protocols {
			id := s.name + "-" + strings.ToUpper(p)
			line(&nat, ":KUBE-SVC-%s - [0:0]", id)
			line(&nat, "-A KUBE-SERVICES -d %s/32 -p %s -m %[2]s --dport 80 -j KUBE-SVC-%[3]s", s.addr, p, id)
			line(&nat, "-A KUBE-SVC-%s ! -s %s -d %s/32 -p %s -m %[4]s --dport 80 -j KUBE-MARK-MASQ", id, podCIDR, s.addr, p)
			for i, e := range s.endpoints {
				sep := fmt.Sprintf("KUBE-SEP-%s-%d", id, i)
				line(&nat, ":%s - [0:0]", sep)
				chance := ""
				if left := len(s.endpoints) - i; left > 1 {
					chance = fmt.Sprintf("-m statistic --mode random --probability %.10f ", 1/float64(left))
				}
				line(&nat, "-A KUBE-SVC-%s %s-j %s", id, chance, sep)
				line(&nat, "-A %s -s %s/32 -j KUBE-MARK-MASQ", sep, e.Addr)
				line(&nat, "-A %s -p %s -m %[2]s -j DNAT --to-destination %s:80", sep, p, e.Addr)
			}
			if s.nodePort == 0 {
				continue
			}
			line(&nat, ":KUBE-EXT-%s - [0:0]", id)
			line(&nat, "-A KUBE-NODEPORTS -p %s -m %[1]s --dport %d -j KUBE-EXT-%s", p, s.nodePort, id)
			if !s.local {
				line(&nat, "-A KUBE-EXT-%s -j KUBE-MARK-MASQ", id)
				line(&nat, "-A KUBE-EXT-%s -j KUBE-SVC-%[1]s", id)
				continue
			}
			line(&nat, "-A KUBE-EXT-%s -s %s -j KUBE-SVC-%[1]s", id, podCIDR)
			line(&nat, "-A KUBE-EXT-%s -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ", id)
			line(&nat, "-A KUBE-EXT-%s -m addrtype --src-type LOCAL -j KUBE-SVC-%[1]s", id)
			if s.serves(n) {
				line(&nat, "-A KUBE-EXT-%s -j KUBE-SEP-%[1]s-0", id)
			} else {
				line(&filter, "-A KUBE-EXTERNAL-SERVICES -p %s -m addrtype --dst-type LOCAL -m %[1]s --dport %d -j DROP", p, s.nodePort)
			}
		}
	}
	line(&nat, "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
	n.restore(t, filter+"COMMIT\n"+nat+"COMMIT\n")
}}

var byNFT = proxy{"nftables", func(t *testing.T, cl *cluster, n *node) {
	t.Helper()
	var chains, ips, ports, none, byIP []string
	add := func(to *[]string, format string, args ...any) { *to = append(*to, fmt.Sprintf(format, args...)) }
	for _, s := range cl.services() {
		add(&byIP, "%s", s.addr)
		for _, p := range protocols {
			id := s.name + "-" + p
			add(&ips, "%s . %s . 80 : goto service-%s", s.addr, p, id)
			var pick []string
			for i, e := range s.endpoints {
				add(&pick, "%d : goto endpoint-%s-%d", i, id, i)
				add(&chains, "chain endpoint-%s-%d {\nip saddr %s jump mark-for-masquerade\nmeta l4proto %s dnat to %[3]s:80\n}", id, i, e.Addr, p)
			}
			choice := fmt.Sprintf("numgen random mod %d vmap { %s }", len(pick), strings.Join(pick, ", "))
			add(&chains, "chain service-%s {\nip daddr %s %s dport 80 ip saddr != %s jump mark-for-masquerade\n%s\n}", id, s.addr, p, podCIDR, choice)
			switch {
			case s.nodePort == 0:
			case !s.local:
				add(&ports, "%s . %d : goto external-%s", p, s.nodePort, id)
				add(&chains, "chain external-%s {\njump mark-for-masquerade\ngoto service-%[1]s\n}", id)
			default:
				last := "" // kube-proxy writes no choice where there is no local endpoint
				if s.serves(n) {
					last = choice
				} else {
					add(&none, "%s . %d : drop", p, s.nodePort)
				}
				add(&ports, "%s . %d : goto external-%s", p, s.nodePort, id)
				add(&chains, "chain external-%s {\nip saddr %s goto service-%[1]s\nfib saddr type local jump mark-for-masquerade\nfib saddr type local goto service-%[1]s\n%[3]s\n}", id, podCIDR, last)
			}
		}
	}
	elements := func(list []string) string {
		if len(list) == 0 {
			return ""
		}
		return "elements = { " + strings.Join(list, ", ") + " }\n"
	}
	rules := `table ip kube-proxy {
set cluster-ips {
type ipv4_addr
` + elements(byIP) + `}
set nodeport-ips {
type ipv4_addr
elements = { ` + n.addr.String() + ` }
}
map no-endpoint-nodeports {
type inet_proto . inet_service : verdict
` + elements(none) + `}
map service-ips {
type ipv4_addr . inet_proto . inet_service : verdict
` + elements(ips) + `}
map service-nodeports {
type inet_proto . inet_service : verdict
` + elements(ports) + `}
chain mark-for-masquerade {
meta mark set meta mark or 0x4000
}
chain masquerading {
meta mark & 0x4000 == 0 return
meta mark set meta mark xor 0x4000
masquerade fully-random
}
chain nodeport-endpoints-check {
ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
}
chain cluster-ips-check {
ip daddr @cluster-ips reject
ip daddr ` + services.String() + ` drop
}
chain services {
ip daddr . meta l4proto . th dport vmap @service-ips
ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}
` + strings.Join(chains, "\n") + `
chain filter-input {
type filter hook input priority -110; policy accept;
ct state new jump nodeport-endpoints-check
}
chain filter-forward {
type filter hook forward priority -110; policy accept;
ct state new jump cluster-ips-check
}
chain filter-output-post-dnat {
type filter hook output priority -90; policy accept;
ct state new jump cluster-ips-check
}
chain nat-prerouting {
type nat hook prerouting priority dstnat; policy accept;
jump services
}
chain nat-output {
type nat hook output priority -100; policy accept;
jump services
}
chain nat-postrouting {
type nat hook postrouting priority srcnat; policy accept;
jump masquerading
}
}
`
	if err := n.Host.NFT(n.Ctx, rules); err != nil {
		t.Fatalf("%v\n%s", err, rules)
	}
}}

// byIPVS needs IPVS of the kernel. kube-proxy's sets of addresses are single rules here.
var byIPVS = proxy{"ipvs", func(t *testing.T, cl *cluster, n *node) {
	t.Helper()
	for key, value := range map[string]string{"net.ipv4.vs.conntrack": "1", "net.ipv4.conf.all.arp_ignore": "1", "net.ipv4.conf.all.arp_announce": "2"} {
		if err := n.Host.SetSysctl(key, value); err != nil {
			t.Fatal(err)
		}
	}
	n.run(t, "ip", "link", "add", "kube-ipvs0", "type", "dummy")
	var servers, masq, ports, accept, loops strings.Builder
	for _, s := range cl.services() {
		n.run(t, "ip", "addr", "add", s.addr.String()+"/32", "dev", "kube-ipvs0")
		ends := s.endpoints
		if s.local && s.serves(n) {
			ends = slices.DeleteFunc(slices.Clone(ends), func(e *lab.Namespace) bool { return !n.subnet.Contains(e.Addr) })
		}
		for _, p := range protocols {
			at := []string{s.addr.String() + ":80"}
			if s.nodePort != 0 {
				at = append(at, fmt.Sprintf("%s:%d", n.addr, s.nodePort))
				target := "KUBE-MARK-MASQ"
				if s.local {
					target = "RETURN"
				}
				fmt.Fprintf(&ports, "-A KUBE-NODE-PORT -p %s -m %[1]s --dport %d -j %s\n", p, s.nodePort, target)
			}
			for _, server := range at {
				fmt.Fprintf(&servers, "-A -%c %s -s rr\n", p[0], server)
				for _, e := range ends {
					fmt.Fprintf(&servers, "-a -%c %s -r %s:80 -m\n", p[0], server, e.Addr)
				}
			}
			fmt.Fprintf(&masq, "-A KUBE-SERVICES ! -s %s -d %s -p %s -m %[3]s --dport 80 -j KUBE-MARK-MASQ\n", podCIDR, s.addr, p)
			fmt.Fprintf(&accept, "-A KUBE-SERVICES -d %s -p %s -m %[2]s --dport 80 -j ACCEPT\n", s.addr, p)
			for _, e := range s.endpoints {
				fmt.Fprintf(&loops, "-A KUBE-POSTROUTING -s %s -d %[1]s -p %s -m %[2]s --dport 80 -j MASQUERADE\n", e.Addr, p)
			}
		}
	}
	if _, err := n.Host.RunInput(n.Ctx, servers.String(), "ipvsadm", "-R"); err != nil {
		t.Fatalf("%v\n%s", err, servers.String())
	}
	n.restore(t, `*filter
:KUBE-FORWARD - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
`+masq.String()+`-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
`+accept.String()+ports.String()+loops.String()+`-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
`)
}}
