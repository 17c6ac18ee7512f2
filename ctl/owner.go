package ctl

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/netip"
	"slices"

	"github.com/fastbr/fastbr/ctl/ipam"
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
func (op *operation) owned(o Owner) (*network, *port) {
	for _, n := range op.st.Networks {
		for _, p := range n.Ports {
			if p.Owner != nil && *p.Owner == o {
				return n, p
			}
		}
	}
	return nil, nil
}

// notYetPublished leaves out what another port of the same container leads to
// already: an engine asks it of each network that a container joins.
func (op *operation) notYetPublished(o *Owner, rs []PublishRequest) []PublishRequest {
	if o == nil {
		return rs
	}
	return slices.DeleteFunc(slices.Clone(rs), func(r PublishRequest) bool {
		return slices.ContainsFunc(op.publications(), func(x published) bool { return r.madeFor(*o, x) })
	})
}

// madeFor tells whether a publication is what a container of an engine's asked
// for with r, by whichever port of its.
func (r PublishRequest) madeFor(o Owner, x published) bool {
	same := x.port.Owner != nil && x.port.Owner.Engine == o.Engine && x.port.Owner.Container == o.Container
	return same && x.pub.HostIP == r.HostIP && x.pub.First == r.First && x.pub.Last == r.Last && x.pub.Port == r.Port && x.pub.Proto == r.Proto
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

// raiseTries bounds how often a network is brought up that somebody takes down
// again before the port is on it, the first time included that it is made anew.
const raiseTries = 4

// AttachRaising is Attach for an engine: a network that is not up is brought up
// first, and goes down again if the port then cannot be. With known it must have
// been defined, and stays up; else r.Expect describes it, and a network without
// ports that is not so any more is made anew.
func (c *Controller) AttachRaising(ctx context.Context, r AttachRequest, known bool) (res AttachResult, err error) {
	raised := false
	for range raiseTries {
		res, err = c.Attach(ctx, r)
		if errors.Is(err, ErrDiffers) && !known {
			lowered, lowering := c.lower(ctx, r.Network)
			if lowering != nil {
				return res, lowering
			}
			if !lowered {
				break
			}
			continue
		}
		if !errors.Is(err, ErrNotUp) && (known || !errors.Is(err, ErrNoNetwork)) {
			break
		}
		_, created, err := c.Up(ctx, r.Network, r.Expect, InstanceRequest{})
		if err != nil {
			return res, err
		}
		raised = raised || created
	}
	if err != nil && raised {
		if _, lowering := c.lower(context.WithoutCancel(ctx), r.Network); lowering != nil {
			err = errors.Join(err, lowering)
		}
	}
	return res, err
}

// lower takes a network down that has no ports and was never defined, and reports
// whether it is down now.
func (c *Controller) lower(ctx context.Context, name string) (down bool, err error) {
	err = c.mutateWith(ctx, mutation{looks: looksLast}, func(op *operation) error {
		n := op.st.Networks[name]
		if n != nil && len(n.Ports) == 0 {
			if err := op.downUndefined(n); err != nil {
				return err
			}
		}
		down = op.st.Networks[name] == nil
		return nil
	})
	return down, err
}

// PortName is what an engine's port is called in statistics: the container's name
// if a port may be called so, else the short form of its id.
func PortName(container, id string) string {
	if checkName("port", container) == nil {
		return container
	}
	return id[:min(len(id), 12)]
}

// Propose is what a network would be if it were defined now; nothing is made.
// Which free subnet it gets depends on its name, so that two that are proposed
// before either is up get different ones.
func (c *Controller) Propose(ctx context.Context, name string, r NetworkRequest) (def Definition, err error) {
	if err := errors.Join(checkNetworkName(name), r.check()); err != nil {
		return def, firstLine(err)
	}
	err = c.read(ctx, func(op *operation) error {
		used, err := op.usedAddrs(name)
		if err != nil {
			return err
		}
		if !r.Subnet.IsValid() && !r.Gateway.IsValid() {
			pools := slices.Collect(ipam.Pools())
			h := fnv.New32a()
			io.WriteString(h, name)
			at := int(h.Sum32() % uint32(len(pools)))
			if r.Subnet, err = ipam.Next(used.all(), append(pools[at:], pools[:at]...)...); err != nil {
				return fmt.Errorf("%w: choose one with --subnet", err)
			}
		}
		def, _, err = define(name, r, used)
		return err
	})
	return def, err
}

// DetachOwned unplugs the ports whose owner matches and returns what was
// unplugged. It goes on past errors. With last, a network that loses its last
// port by this goes down, if no `network create` made it.
func (c *Controller) DetachOwned(ctx context.Context, last bool, match func(Owner) bool) (gone []Owner, err error) {
	err = c.mutate(ctx, func(op *operation) error {
		var errs []error
		for _, name := range op.st.networkNames() {
			n := op.st.Networks[name]
			found := false
			for _, p := range n.sortedPorts() {
				if p.Owner == nil || !match(*p.Owner) {
					continue
				}
				found = true
				if err := op.detachPort(n, p); err != nil {
					errs = append(errs, err)
					continue
				}
				gone = append(gone, *p.Owner)
			}
			if last && found && len(n.Ports) == 0 {
				errs = append(errs, op.downUndefined(n))
			}
		}
		return errors.Join(errs...)
	})
	return gone, err
}

// downUndefined takes a network down that nobody has defined to stay.
func (op *operation) downUndefined(n *network) error {
	def, err := op.definition(n.Name)
	if err != nil || def != nil || n.Name == DefaultNetwork {
		return err
	}
	return op.downNetwork(n)
}
