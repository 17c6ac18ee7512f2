package ctl

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/fastbr/fastbr/ctl/firewall"
	"github.com/fastbr/fastbr/ctl/link"
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

// families are those that networks have.
func (pf packetFilter) families() []*firewall.Family {
	if pf.op.st.hasIPv6() {
		return []*firewall.Family{firewall.IPv4, firewall.IPv6}
	}
	return []*firewall.Family{firewall.IPv4}
}

// exits describes the networks, their ways out and what is published, in a family.
func (pf packetFilter) exits(f *firewall.Family) firewall.Host {
	h := firewall.Host{Family: f, Networks: pf.networks(f), Others: pf.op.others.wanted(), Uplinks: devicesOf(pf.op.st.Uplinks, f)}
	for _, x := range pf.op.publications.all() {
		h.Published = append(h.Published, x.filtered(f)...)
	}
	return h
}

// hosts describe what the host's packet filter has to let pass, by family. What it does with
// packets by side uplinks is their owner's policy, as between any two networks of the host.
func (pf packetFilter) hosts() (out []firewall.Host) {
	for _, f := range pf.families() {
		h := pf.exits(f)
		h.Uplinks = slices.DeleteFunc(devicesOf(pf.op.st.mainUplinks(), f), func(d firewall.Device) bool { return f == firewall.IPv6 && !d.Addr.IsValid() })
		out = append(out, h)
	}
	return out
}

// devicesOf are uplinks with their addresses of a family.
func devicesOf(uplinks []uplink, f *firewall.Family) (out []firewall.Device) {
	for _, u := range uplinks {
		addr := u.Addr
		if f == firewall.IPv6 {
			addr = u.Addr6
		}
		out = append(out, firewall.Device{Name: u.Name, Index: u.Index, Addr: addr})
	}
	return out
}

// filtered is the publication as a filter has to know it, if it is one by the family.
func (x published) filtered(f *firewall.Family) (out []firewall.Publication) {
	for _, l := range x.pub.leads(x.port) {
		if l.container.Is4() != (f == firewall.IPv4) {
			continue
		}
		out = append(out, firewall.Publication{Bridge: x.net.bridge(), HostIP: l.at(), First: l.first, Last: l.last,
			Port: x.pub.Port, Proto: x.pub.Proto, Allow: l.allow, Container: l.container, Name: x.port.Name})
	}
	return out
}

// filtered is the network as a filter has to know it, in each of its families.
func (n *network) filtered() []firewall.Network {
	resolver := n.Gateway
	if n.NoDNS {
		resolver = netip.Addr{}
	}
	out := []firewall.Network{{Name: n.Name, Mark: ownerMark(n.Name), Bridge: n.bridge(), Subnet: n.Subnet, Allowed: n.beyond(n.sortedPorts()...),
		Internal: n.Internal, Masquerade: n.Masquerade, Plain: n.plain(link.IPv4), SNAT: n.SNATAddress, Via: n.Via, Resolver: resolver}}
	if n.hasIPv6() {
		// Its containers ask for names by IPv4.
		six := firewall.Network{Name: n.Name, Mark: ownerMark(n.Name), Bridge: n.bridge(), Subnet: n.Subnet6,
			Internal: !n.leads6(), Masquerade: !n.Routed6, Plain: n.plain(link.IPv6), SNAT: n.SNATAddress6, Via: n.Via}
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
