package firewall

import "fmt"

// translatedBefore names the chains whose NAT translates what containers send before
// the datapath does.
func (rs *ruleset) translatedBefore(h Host) (out []Finding) {
	for _, n := range h.Networks {
		if !n.Masquerade || n.Internal {
			continue
		}
		for _, u := range h.Uplinks {
			if c := rs.translates(n, u); c != nil {
				out = append(out, Finding{"foreign-nat", true, fmt.Sprintf(
					"%s translates what network %s sends by %s before fastbr can: such flows have neither fast path nor fastbr's NAT; except %s there",
					c, n.Name, u, n.Subnet)})
			}
		}
	}
	return out
}

// translates returns the chain that translates everything a network sends by a device,
// or nil.
func (rs *ruleset) translates(n Network, u Device) *chain {
	p := sent(n, u)
	for _, c := range rs.base(postrouting, true) {
		w := walk{rs: rs, p: p}
		if w.base(c) == translated {
			return c
		}
	}
	return nil
}
