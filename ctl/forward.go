package ctl

import (
	"strings"

	"github.com/fastbr/fastbr/ctl/firewall"
)

// AcceptRule is where rules of ours let a bridge's packets through.
type AcceptRule struct {
	Where   string `json:"where"` // "iptables-nft filter FORWARD", "nft inet firewall fwd", …
	Bridge  string `json:"bridge"`
	Network string `json:"network"`
}

// filtered is what the host's packet filter has to do with.
func (op *operation) filtered() (h firewall.Host) {
	for _, name := range op.st.networkNames() {
		n := op.st.Networks[name]
		h.Networks = append(h.Networks, firewall.Network{Name: name, Mark: ownerMark(name), Bridge: n.bridge(),
			Subnet: n.Subnet, Internal: n.Internal, Masquerade: n.Masquerade})
	}
	for _, u := range op.st.Uplinks {
		h.Uplinks = append(h.Uplinks, firewall.Device{Name: u.Name, Index: u.Index, Addr: u.Addr})
	}
	for _, x := range op.publications() {
		h.Published = append(h.Published, firewall.Publication{Bridge: x.net.bridge(), HostIP: x.pub.HostIP, First: x.pub.First,
			Last: x.pub.Last, Port: x.pub.Port, Proto: x.pub.Proto, Container: x.port.IP, Name: x.port.Name})
	}
	return h
}

func (n *network) bridge() firewall.Device { return firewall.Device{Name: n.Bridge, Index: n.Index} }

// allowForwarding lets the networks' packets through where the host drops what it
// forwards, after the user's own rules. dockerd and ufw set that whenever they
// start, so every mutating command looks.
func (op *operation) allowForwarding() error { return firewall.Ensure(op.filtered().Networks, op.say) }

// acceptRules lists the rules that are there now.
func (op *operation) acceptRules() ([]AcceptRule, error) {
	rules, err := firewall.Rules(op.filtered().Networks)
	out := []AcceptRule{}
	for _, r := range rules {
		out = append(out, AcceptRule(r))
	}
	return out, err
}

// firewallFindings say what the host's packet filter does to containers' traffic.
func (op *operation) firewallFindings() []FeatureView {
	policy := FeatureView{Name: "forward-policy", State: "ok", Detail: "nothing drops what is forwarded by default"}
	defaults, err := firewall.Defaults()
	if err != nil {
		policy.State, policy.Detail = "warning", err.Error()
	} else if len(defaults) > 0 {
		policy.Detail = "dropped by default in " + strings.Join(defaults, ", ") + ": 'fastbr up' adds tagged accept rules"
	}
	out := []FeatureView{policy}
	found, err := op.inTheWay()
	if err != nil {
		out = append(out, FeatureView{Name: "forward", State: "warning", Detail: err.Error()})
	}
	for _, f := range found {
		out = append(out, FeatureView{Name: f.Name, State: "warning", Detail: f.Detail})
	}
	return out
}

// inTheWay is what the host's packet filter does to containers' traffic that
// somebody may not want.
func (op *operation) inTheWay() ([]firewall.Finding, error) { return firewall.Findings(op.filtered()) }

// warnOfFilter says what is in the way, once for as long as it is so.
func (op *operation) warnOfFilter() {
	found, err := op.inTheWay()
	if err != nil {
		found = append(found, firewall.Finding{Detail: err.Error()})
	}
	said := map[string]bool{}
	for _, f := range found {
		if said[f.Detail] = true; !op.warned[f.Detail] {
			op.say("warning: %s", f.Detail)
		}
	}
	op.Controller.warned = said
}
