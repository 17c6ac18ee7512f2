package ctl

import (
	"strings"

	"github.com/fastbr/fastbr/ctl/hostconf"
)

// routed reports whether a network wants the host to be a router.
func (st *state) routed() bool {
	for _, n := range st.Networks {
		if !n.Masquerade && !n.Internal {
			return true
		}
	}
	return false
}

// reserved are the ports that the kernel should give to no socket: those of the NAT
// range and the published ones, pending publications included.
func (st *state) reserved() hostconf.PortSet {
	set := hostconf.PortRange(st.Settings.NATFirst, st.Settings.NATLast)
	for _, n := range st.Networks {
		for _, p := range n.Ports {
			for _, pub := range p.Publications {
				set.AddRange(pub.First, pub.Last)
			}
		}
	}
	return set
}

// setHost brings the host's settings to what the networks need.
func (op *operation) setHost() error {
	return op.hostconf.Set(hostconf.Want{Router: op.st.routed(), Reserved: op.st.reserved()})
}

// forwardFinding says who wants this host to forward, and what.
func (op *operation) forwardFinding() FeatureView {
	v := FeatureView{Name: "ip_forward", State: "ok", Detail: "1: this host is a router, between all its networks"}
	now, err := hostconf.Read(hostconf.IPForward)
	switch {
	case err != nil:
		v.State, v.Detail = "warning", err.Error()
	case now == "1" && op.hostconf.Recorded(hostconf.IPForward):
		v.Detail += "; fastbr has set it for a network that is not translated"
	case now == "1":
	case len(op.st.Networks) == 0:
		v.Detail = now + ": 'fastbr up' opens only its bridges and uplinks, the last 'fastbr down' closes them"
	default:
		v.Detail = now + ": only containers' packets are forwarded, by " + strings.Join(op.opened(), ", ")
		if closed := op.closedDevices(); len(closed) > 0 {
			v.State = "warning"
			v.Detail = "forwarding of " + strings.Join(closed, ", ") + " is 0 again: containers do not get outside; the next command that changes something mends it"
		}
	}
	return v
}

// opened are our bridges and uplinks.
func (op *operation) opened() (out []string) {
	for _, name := range op.st.networkNames() {
		out = append(out, op.st.Networks[name].Bridge)
	}
	for _, u := range op.st.Uplinks {
		out = append(out, u.Name)
	}
	return out
}

// closedDevices are those of them by which the kernel forwards nothing.
func (op *operation) closedDevices() (out []string) {
	for _, device := range op.opened() {
		if now, err := hostconf.Read(hostconf.Forwarding(device)); err == nil && now != "1" {
			out = append(out, device)
		}
	}
	return out
}
