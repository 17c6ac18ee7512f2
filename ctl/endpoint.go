package ctl

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl/link"
)

// An endpoint is a port whose container end an engine moves, names and
// configures. It is made in the host's namespace with both ends ready and the
// programs attached. The engine takes the container's end from there, and puts
// it back before it deletes the endpoint. Every command that knows ports knows
// an endpoint by its Network and Name.

// EndpointRequest asks for an endpoint.
type EndpointRequest struct {
	Network string
	Name    string
	IP      netip.Addr       // invalid: the lowest free one
	IP6     netip.Addr       // invalid: the lowest free one, if the network has an IPv6 subnet
	MAC     net.HardwareAddr // nil: 02:42 and the IPv4 address
	Ifname  string           // inside, kept for the engine; "": as the engine counts
	Allowed Allowed          // besides IP and MAC
}

// EndpointView is what an engine has to know to finish the container's end.
type EndpointView struct {
	Peer     string            // the container's end, in the host's namespace
	Ifname   string            // inside, "": as the engine counts
	IP       netip.Prefix      // with the network's length
	IP6      netip.Prefix      // likewise; invalid: the network has no IPv6 subnet
	MAC      string            //
	Gateway  netip.Addr        // invalid: the network is internal
	Gateway6 netip.Addr        // invalid: likewise, or it has no IPv6 subnet
	Options  map[string]string // of the network
}

// endpointPatience is how long a new container end may lie in the host's
// namespace without a word from the engine. An engine needs milliseconds between
// two calls; one that was killed in between never says another.
const endpointPatience = 2 * time.Minute

// EndpointCreate makes an endpoint, and brings its network up if that is only
// defined. One that has an address already is taken for forgotten. The error wraps
// ErrInvalid, ErrNoNetwork, ErrExists, or a sentinel of ipam.
func (e Engine) EndpointCreate(ctx context.Context, r EndpointRequest) (v EndpointView, err error) {
	a := AttachRequest{Network: r.Network, Name: r.Name, IP: r.IP, IP6: r.IP6, MAC: r.MAC, Ifname: r.Ifname, Allowed: r.Allowed}
	if err := a.check(); err != nil {
		return v, err
	}
	err = e.c.instance.mutate(ctx, func(op *operation) error {
		n, err := op.networks.raiseDefined(r.Network)
		if err != nil {
			return err
		}
		if err := op.endpoints.evict(n, r.IP, r.IP6); err != nil {
			return err
		}
		p, err := op.ports.create(n, a, link.NetnsID{})
		if err != nil {
			return err
		}
		p.Peer, p.Ifname, p.Touched = p.Port+"c", r.Ifname, sinceBoot()
		v = endpointView(n, p)
		return op.runner.run(ctx, op.ports.steps(n, &plug{}, p))
	})
	return v, err
}

// EndpointJoin notes which namespace an engine is about to move an endpoint
// into, and announces the addresses to the network: whoever knew them under another
// MAC learns the new one. The namespace may not exist yet. The error wraps
// ErrNotUp, ErrNoNetwork or ErrNoPort.
func (e Engine) EndpointJoin(ctx context.Context, networkName, name, netns string) (v EndpointView, err error) {
	err = e.c.instance.mutate(ctx, func(op *operation) error {
		n, p, err := op.ports.named(networkName, name)
		if err != nil {
			return err
		}
		if ns, err := link.OpenTarget(netns); err == nil {
			p.Netns = ns.ID()
			ns.Close()
		}
		p.Touched = sinceBoot()
		v = endpointView(n, p)
		for _, ip := range p.ips() {
			if err := link.Announce(n.Index, ip, p.MAC.HardwareAddr); err != nil {
				return err
			}
		}
		return op.save()
	})
	return v, err
}

// EndpointPublish makes ports of the host lead to an endpoint, all or none, in place
// of those that did before. requests says which, by the options of the network; their
// Network and Name are not read. Nothing leads into an internal network. The error is
// one of Publish's, or of requests.
func (e Engine) EndpointPublish(ctx context.Context, networkName, name string, requests func(options map[string]string) ([]PublishRequest, error)) error {
	return e.c.instance.mutate(ctx, func(op *operation) error {
		n, p, err := op.ports.named(networkName, name)
		if err != nil || n.Internal {
			return err
		}
		rs, err := requests(n.Options)
		if err != nil {
			return err
		}
		if err := checkAll(rs); err != nil {
			return err
		}
		if err := op.publications.remove(p, slices.Clone(p.Publications)...); err != nil || len(rs) == 0 {
			return err
		}
		pubs, err := op.publications.create(n, p, nil, rs)
		if err != nil {
			return err
		}
		return op.runner.run(ctx, op.publications.steps(p, pubs))
	})
}

// EndpointLeave takes an endpoint's published ports back: its engine is about to
// take it out of the container. One that is gone is no error.
func (e Engine) EndpointLeave(ctx context.Context, networkName, name string) error {
	return e.onEndpoint(ctx, networkName, name, func(op *operation, _ *network, p *port) error {
		p.Netns, p.Touched = link.NetnsID{}, sinceBoot()
		if err := op.publications.remove(p, slices.Clone(p.Publications)...); err != nil {
			return err
		}
		return op.save()
	})
}

// onEndpoint runs f on an endpoint if there is one.
func (e Engine) onEndpoint(ctx context.Context, networkName, name string, f func(*operation, *network, *port) error) error {
	return e.c.instance.mutate(ctx, func(op *operation) error {
		n, p, err := op.ports.named(networkName, name)
		if errors.Is(err, ErrNotUp) || errors.Is(err, ErrNoNetwork) || errors.Is(err, ErrNoPort) {
			return nil
		} else if err != nil {
			return err
		}
		return f(op, n, p)
	})
}

func endpointView(n *network, p *port) EndpointView {
	v := EndpointView{Peer: p.Peer, Ifname: p.Ifname, IP: netip.PrefixFrom(p.IP, n.Subnet.Bits()), MAC: p.MAC.String(), Options: n.Options}
	if p.IP6.IsValid() {
		v.IP6 = netip.PrefixFrom(p.IP6, n.Subnet6.Bits())
	}
	if !n.Internal {
		v.Gateway, v.Gateway6 = n.Gateway, n.Gateway6
	}
	return v
}

// sinceBoot is a clock in seconds that nobody sets.
func sinceBoot() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // never fails
	return ts.Sec
}

// EndpointDelete removes an endpoint, wherever its container end is. One that is
// gone is no error.
func (e Engine) EndpointDelete(ctx context.Context, networkName, name string) error {
	x := &departure{networkName, name, make(chan error, 1)}
	if e.c.departures.join(x) {
		e.seeOff(context.WithoutCancel(ctx)) // the others did not ask to be given up with this one
	}
	select {
	case err := <-x.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// departures are endpoints that an engine wants deleted. The first to ask takes
// the lock and deletes what others have asked for meanwhile, too: the kernel waits
// for its readers once for any number of devices, not once for each, and an engine
// that stops many containers asks for all of them at the same time.
type departures struct {
	mu      sync.Mutex
	waiting []*departure
}

type departure struct {
	network, name string
	done          chan error // has room for one
}

// join adds one and reports whether it is the first since take.
func (d *departures) join(x *departure) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = append(d.waiting, x)
	return len(d.waiting) == 1
}

func (d *departures) take() []*departure {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.waiting
	d.waiting = nil
	return all
}

// seeOff deletes all that wait for it, and tells them.
func (e Engine) seeOff(ctx context.Context) {
	var all []*departure
	err := e.c.instance.mutate(ctx, func(op *operation) error {
		all = e.c.departures.take()
		return op.endpoints.delete(all)
	})
	if all == nil {
		all = e.c.departures.take() // they, too, would have met what kept us from it
	}
	for _, x := range all {
		x.done <- err
	}
}

// endpoints removes those that their engine has forgotten or given back.
type endpoints struct{ op *operation }

func (es endpoints) delete(all []*departure) error {
	leaving := map[*network][]*port{}
	for _, x := range all {
		n, p, err := es.op.ports.named(x.network, x.name)
		if errors.Is(err, ErrNotUp) || errors.Is(err, ErrNoNetwork) || errors.Is(err, ErrNoPort) {
			continue // gone
		} else if err != nil {
			return err
		}
		if !slices.Contains(leaving[n], p) {
			leaving[n] = append(leaving[n], p)
		}
	}
	if len(leaving) == 0 {
		return nil
	}
	var errs []error
	for n, ports := range leaving {
		errs = append(errs, es.op.ports.detachAll(n, ports))
	}
	return errors.Join(errs...)
}

// evict removes the endpoints that have one of the addresses. The engine chooses addresses
// itself and gives none to two: it was killed, and has forgotten the first.
func (es endpoints) evict(n *network, addrs ...netip.Addr) error {
	has := func(ip netip.Addr) bool { return ip.IsValid() && slices.Contains(addrs, ip) }
	return es.op.ports.detachAll(n, slices.DeleteFunc(n.sortedPorts(), func(p *port) bool {
		return p.Peer == "" || !has(p.IP) && !has(p.IP6)
	}))
}

// abandoned reports whether nobody will come for the container end of an endpoint any
// more: the engine has given it back, whether or not it says so, or has never taken it.
// It notes those that are taken. here are the names of the host's devices.
func (es endpoints) abandoned(p *port, here map[string]bool) (bool, error) {
	switch {
	case p.Peer == "":
		return false, nil
	case here[p.Peer]:
		return p.Taken || time.Duration(sinceBoot()-p.Touched)*time.Second >= es.op.opts.patience, nil
	case p.Taken:
		return false, nil
	}
	p.Taken = true
	return false, es.op.save()
}
