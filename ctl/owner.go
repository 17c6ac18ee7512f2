package ctl

import (
	"context"
	"errors"
	"net/netip"

	"github.com/fastbr/fastbr/ctl/link"
)

// Owner is how the engine that asked for a port knows it.
type Owner struct {
	Engine    string `json:"engine"`    // "cni", "netavark"
	Network   string `json:"network"`   // the engine's name for the network
	Container string `json:"container"` // the engine's id
	Ifname    string `json:"ifname"`    // inside, as asked for
}

// Route is one inside a container.
type Route struct {
	Dst         netip.Prefix
	Gateway     netip.Addr // invalid: the network's
	Metric      int
	MTU, AdvMSS int // bytes, 0: the kernel's choice
	Table       int // 0: main
	Scope       int // 0: universe
}

// owned finds the port that an engine knows by this name; nil if there is none.
func (s *session) owned(o Owner) (*network, *port) {
	for _, n := range s.st.Networks {
		for _, p := range n.Ports {
			if p.Owner != nil && *p.Owner == o {
				return n, p
			}
		}
	}
	return nil, nil
}

func addRoutes(inside *link.Conn, index int, gateway netip.Addr, routes []Route) error {
	for _, r := range routes {
		if !r.Gateway.IsValid() {
			r.Gateway = gateway
		}
		err := inside.AddRoute(link.Route{Dst: r.Dst, Index: index, Gateway: r.Gateway, Metric: r.Metric,
			MTU: r.MTU, AdvMSS: r.AdvMSS, Table: r.Table, Scope: r.Scope})
		if err != nil {
			return err
		}
	}
	return nil
}

// DetachOwned unplugs the ports whose owner matches and returns what was
// unplugged. It goes on past errors. With last, a network that loses its last
// port by this goes down, if no `network create` made it.
func (c *Controller) DetachOwned(ctx context.Context, last bool, match func(Owner) bool) (gone []Owner, err error) {
	err = c.mutate(ctx, func(s *session) error {
		var errs []error
		for _, name := range s.st.networkNames() {
			n := s.st.Networks[name]
			found := false
			for _, p := range n.sortedPorts() {
				if p.Owner == nil || !match(*p.Owner) {
					continue
				}
				found = true
				if err := s.detachPort(n, p); err != nil {
					errs = append(errs, err)
					continue
				}
				gone = append(gone, *p.Owner)
			}
			if last && found && len(n.Ports) == 0 {
				errs = append(errs, s.downUndefined(n))
			}
		}
		return errors.Join(append(errs, s.refresh(true))...)
	})
	return gone, err
}

// downUndefined takes a network down that nobody has defined to stay.
func (s *session) downUndefined(n *network) error {
	def, err := s.defs.get(n.Name)
	if err != nil || def != nil || n.Name == DefaultNetwork {
		return err
	}
	return s.downNetwork(n)
}
