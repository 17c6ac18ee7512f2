package ctl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl/link"
)

// An endpoint is a port whose container end an engine moves, names and
// configures. It is made in the host's namespace with both ends ready and the
// programs attached; the engine takes the container's end from there, and puts
// it back before it deletes the endpoint. Its port is known by Network and Name
// like any other, and every command that knows ports knows it.

// EndpointRequest asks for an endpoint.
type EndpointRequest struct {
	Network string
	Name    string
	IP      netip.Addr       // invalid: the lowest free one
	MAC     net.HardwareAddr // nil: 02:42 and the address
	Ifname  string           // inside, kept for the engine; "": as the engine counts
}

// EndpointView is what an engine has to know to finish the container's end.
type EndpointView struct {
	Peer    string            // the container's end, in the host's namespace
	Ifname  string            // inside, "": as the engine counts
	IP      netip.Prefix      // with the network's length
	MAC     string            //
	Gateway netip.Addr        // invalid: the network is internal
	Options map[string]string // of the network
}

// endpointPatience is how long a new container end may lie in the host's
// namespace without a word from the engine. An engine needs milliseconds between
// two calls; one that was killed in between never says another.
const endpointPatience = 2 * time.Minute

// EndpointCreate makes an endpoint, and brings its network up if that is only
// defined. One that has the address already is taken for forgotten. The error wraps ErrInvalid, ErrNoNetwork, ErrExists, or a sentinel of
// ipam.
func (c *Controller) EndpointCreate(ctx context.Context, r EndpointRequest) (v EndpointView, err error) {
	a := AttachRequest{Network: r.Network, Name: r.Name, IP: r.IP, MAC: r.MAC, Ifname: r.Ifname}
	if err := a.check(); err != nil {
		return v, err
	}
	err = c.mutate(ctx, func(op *operation) error {
		n, err := op.raised(r.Network)
		if err != nil {
			return err
		}
		if err := op.evict(n, r.IP); err != nil {
			return err
		}
		p, err := op.newPort(n, a, link.NetnsID{})
		if err != nil {
			return err
		}
		p.Peer, p.Ifname, p.Touched = p.Port+"c", r.Ifname, sinceBoot()
		v = endpointView(n, p)
		return op.runner.run(ctx, op.portSteps(n, p, &plug{}))
	})
	return v, err
}

// EndpointJoin notes which namespace an engine is about to move an endpoint
// into, and announces the address to the network: whoever knew it under another
// MAC learns the new one. The namespace may not exist yet. The error wraps
// ErrNotUp, ErrNoNetwork or ErrNoPort.
func (c *Controller) EndpointJoin(ctx context.Context, networkName, name, netns string) (v EndpointView, err error) {
	err = c.mutate(ctx, func(op *operation) error {
		n, p, err := op.portNamed(networkName, name)
		if err != nil {
			return err
		}
		if ns, err := link.OpenTarget(netns); err == nil {
			p.Netns = ns.ID()
			ns.Close()
		}
		p.Touched = sinceBoot()
		v = endpointView(n, p)
		mac, err := net.ParseMAC(p.MAC)
		if err != nil {
			return fmt.Errorf("reading the state: %w", err)
		}
		if err := link.AnnounceARP(n.Index, p.IP, mac); err != nil {
			return err
		}
		return op.save()
	})
	return v, err
}

// EndpointPublish makes ports of the host lead to an endpoint, all of rs or
// none, in place of those that did before. Network and Name of rs are not read.
// The error is one of Publish's.
func (c *Controller) EndpointPublish(ctx context.Context, networkName, name string, rs []PublishRequest) error {
	for _, r := range rs {
		if err := r.check(); err != nil {
			return err
		}
	}
	return c.mutate(ctx, func(op *operation) error {
		n, p, err := op.portNamed(networkName, name)
		if err != nil {
			return err
		}
		if err := op.unpublish(p, slices.Clone(p.Publications)...); err != nil || len(rs) == 0 {
			return err
		}
		pubs, err := op.newPublications(n, nil, rs)
		if err != nil {
			return err
		}
		return op.runner.run(ctx, op.publishSteps(p, pubs))
	})
}

// EndpointLeave takes an endpoint's published ports back: its engine is about to
// take it out of the container. One that is gone is no error.
func (c *Controller) EndpointLeave(ctx context.Context, networkName, name string) error {
	return c.onEndpoint(ctx, networkName, name, func(op *operation, _ *network, p *port) error {
		p.Netns, p.Touched = link.NetnsID{}, sinceBoot()
		if err := op.unpublish(p, slices.Clone(p.Publications)...); err != nil {
			return err
		}
		return op.save()
	})
}

// NetworkDiscard is NetworkRemove for an engine, which knows that none of its
// containers is on the network any more: endpoints are left over, and go too.
// A network that is gone is no error. The error wraps ErrInUse while there are
// other ports.
func (c *Controller) NetworkDiscard(ctx context.Context, name string) error {
	if err := checkNetworkName(name); err != nil {
		return err
	}
	return c.mutateWith(ctx, mutation{looks: looksLast}, func(op *operation) error {
		if n := op.st.Networks[name]; n != nil {
			endpoints := slices.DeleteFunc(n.sortedPorts(), func(p *port) bool { return p.Peer == "" })
			if err := op.detachPorts(n, endpoints); err != nil {
				return err
			}
		}
		if err := op.removeNetwork(name); !errors.Is(err, ErrNoNetwork) {
			return err
		}
		return nil
	})
}

// onEndpoint runs f on an endpoint if there is one.
func (c *Controller) onEndpoint(ctx context.Context, networkName, name string, f func(*operation, *network, *port) error) error {
	return c.mutate(ctx, func(op *operation) error {
		n, p, err := op.portNamed(networkName, name)
		if errors.Is(err, ErrNotUp) || errors.Is(err, ErrNoNetwork) || errors.Is(err, ErrNoPort) {
			return nil
		} else if err != nil {
			return err
		}
		return f(op, n, p)
	})
}

// raised is a network that is up, brought up from its definition if need be.
func (op *operation) raised(name string) (*network, error) {
	n, notUp := op.upNetwork(name)
	if !errors.Is(notUp, ErrNotUp) {
		return n, notUp
	}
	def, err := op.definition(name)
	if err != nil {
		return nil, err
	}
	if def == nil {
		return nil, notUp
	}
	return op.upNew(name, def, NetworkRequest{}, InstanceRequest{}, false)
}

// evict removes the endpoint that has an address. The engine chooses addresses
// itself and gives none to two: it was killed, and has forgotten the first.
func (op *operation) evict(n *network, ip netip.Addr) error {
	for _, p := range n.sortedPorts() {
		if p.Peer != "" && p.IP == ip {
			return op.detachPort(n, p)
		}
	}
	return nil
}

// abandoned tells of an endpoint that nobody will come for its container end:
// given back, whether or not the engine still says so, or never taken. It notes
// those that are taken. here are the names of the host's devices.
func (op *operation) abandoned(p *port, here map[string]bool) (bool, error) {
	switch {
	case p.Peer == "":
		return false, nil
	case here[p.Peer]:
		return p.Taken || time.Duration(sinceBoot()-p.Touched)*time.Second >= op.opts.patience, nil
	case p.Taken:
		return false, nil
	}
	p.Taken = true
	return false, op.save()
}

func endpointView(n *network, p *port) EndpointView {
	v := EndpointView{Peer: p.Peer, Ifname: p.Ifname, IP: netip.PrefixFrom(p.IP, n.Subnet.Bits()), MAC: p.MAC, Gateway: n.Gateway, Options: n.Options}
	if n.Internal {
		v.Gateway = netip.Addr{}
	}
	return v
}

// sinceBoot is a clock in seconds that nobody sets.
func sinceBoot() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // never fails
	return ts.Sec
}
