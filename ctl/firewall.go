package ctl

import (
	"errors"
	"net/netip"

	"github.com/fastbr/fastbr/ctl/firewall"
)

// packetFilter is the host's: what it does to the networks' packets, and our rules in it.
type packetFilter struct{ op *operation }

// AcceptRule is where something of ours lets a network's packets through.
type AcceptRule struct {
	Where   string `json:"where"` // "iptables-nft filter FORWARD", "nft inet firewall fwd", "firewalld zone fastbr", …
	Bridge  string `json:"bridge"`
	Network string `json:"network"`
	What    string `json:"what"` // "what is forwarded", "questions for names", "everything"
}

// networks describes the networks of the instance in a family; nil: in both.
func (pf packetFilter) networks(f *firewall.Family) (out []firewall.Network) {
	for _, name := range pf.op.st.networkNames() {
		for _, n := range pf.op.st.Networks[name].filtered() {
			if f == nil || n.Family() == f {
				out = append(out, n)
			}
		}
	}
	return out
}

// exits describes the networks, their ways out and what is published, in IPv4: IPv6 is
// routed, by nothing but the host's routes, or it does not leave.
func (pf packetFilter) exits() firewall.Host {
	h := firewall.Host{Family: firewall.IPv4, Networks: pf.networks(firewall.IPv4), Others: pf.op.others.wanted(), Uplinks: devicesOf(pf.op.st.Uplinks)}
	for _, x := range pf.op.publications.all() {
		h.Published = append(h.Published, x.filtered())
	}
	return h
}

// hosts describe what the host's packet filter has to let pass, by family. What it does with
// packets by side uplinks is their owner's policy, as between any two networks of the host.
func (pf packetFilter) hosts() []firewall.Host {
	h := pf.exits()
	h.Uplinks = devicesOf(pf.op.st.mainUplinks())
	six := firewall.Host{Family: firewall.IPv6, Networks: pf.networks(firewall.IPv6)}
	for _, u := range pf.op.st.mainUplinks() {
		if u.Addr6.IsValid() {
			six.Uplinks = append(six.Uplinks, firewall.Device{Name: u.Name, Index: u.Index, Addr: u.Addr6})
		}
	}
	if len(six.Networks) == 0 {
		return []firewall.Host{h}
	}
	return []firewall.Host{h, six}
}

func devicesOf(uplinks []uplink) (out []firewall.Device) {
	for _, u := range uplinks {
		out = append(out, firewall.Device{Name: u.Name, Index: u.Index, Addr: u.Addr})
	}
	return out
}

func (x published) filtered() firewall.Publication {
	return firewall.Publication{Bridge: x.net.bridge(), HostIP: x.pub.address(x.port), First: x.pub.First, Last: x.pub.Last,
		Port: x.pub.Port, Proto: x.pub.Proto, Allow: x.pub.Allow, Container: x.port.IP, Name: x.port.Name}
}

// filtered is the network as a filter has to know it, in each of its families.
func (n *network) filtered() []firewall.Network {
	resolver := n.Gateway
	if n.NoDNS {
		resolver = netip.Addr{}
	}
	out := []firewall.Network{{Name: n.Name, Mark: ownerMark(n.Name), Bridge: n.bridge(), Subnet: n.Subnet, Allowed: n.beyond(n.sortedPorts()...),
		Internal: n.Internal, Masquerade: n.Masquerade, Plain: n.NoMasquerade, SNAT: n.SNATAddress, Via: n.Via, Resolver: resolver}}
	if n.hasIPv6() {
		// Its containers ask for names by IPv4. Unless it is routed, they reach only each other
		// and the host by IPv6.
		six := firewall.Network{Name: n.Name, Mark: ownerMark(n.Name), Bridge: n.bridge(), Subnet: n.Subnet6, Internal: !n.routed6()}
		if n.LinkLocal6 {
			six.Subnet = netip.MustParsePrefix("fe80::/64")
		}
		out = append(out, six)
	}
	return out
}

func (n *network) bridge() firewall.Device { return firewall.Device{Name: n.Bridge, Index: n.Index} }

// open lets the networks' packets through where the host drops what no rule
// accepts. dockerd, ufw and firewalld set that whenever they start, so every mutating
// command looks.
func (pf packetFilter) open() error { return firewall.Ensure(pf.networks(nil), pf.op.say) }

// leave takes back what lets a network's packets through.
func (pf packetFilter) leave(n *network) error {
	var errs []error
	for _, of := range n.filtered() {
		errs = append(errs, firewall.Remove(of))
	}
	return errors.Join(errs...)
}

// acceptRules lists what lets the networks' packets through now.
func (pf packetFilter) acceptRules() ([]AcceptRule, error) {
	rules, err := firewall.Rules(pf.networks(nil))
	out := []AcceptRule{}
	for _, r := range rules {
		out = append(out, AcceptRule(r))
	}
	return out, err
}

// findings say what the host's packet filter does to containers' traffic.
func (pf packetFilter) findings() (out []FeatureView) {
	var found []firewall.Finding
	for _, h := range pf.hosts() {
		of, err := firewall.Findings(h)
		if found = append(found, of...); err != nil {
			found = append(found, firewall.Finding{Name: "firewall", Warning: true, Detail: err.Error()})
		}
	}
	for _, f := range found {
		v := FeatureView{Name: f.Name, State: "ok", Detail: f.Detail}
		if f.Warning {
			v.State = "warning"
		}
		out = append(out, v)
	}
	return out
}

// warn says what is in the way, once for as long as it is so.
func (pf packetFilter) warn() {
	said := map[string]bool{}
	for _, f := range pf.findings() {
		if f.State != "warning" {
			continue
		}
		if said[f.Detail] = true; !pf.op.warned[f.Detail] {
			pf.op.say("warning: %s", f.Detail)
		}
	}
	pf.op.warned = said
}
