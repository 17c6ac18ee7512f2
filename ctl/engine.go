package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

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

// AttachRaising is Attach for an engine: a network that is not up comes up with it,
// and goes down again if the port cannot be. With known it must have been defined,
// and stays up; else r.Expect describes it, and a network without ports that differs
// is made anew.
func (c *Controller) AttachRaising(ctx context.Context, r AttachRequest, known bool) (AttachResult, error) {
	return c.attach(ctx, r, func(op *operation, r AttachRequest) (*network, bool, error) {
		n, _, err := op.asExpected(r)
		if errors.Is(err, ErrDiffers) && !known && len(n.Ports) == 0 {
			err = errors.Join(op.downUndefined(n), err)
			if op.st.Networks[r.Network] == nil {
				err = tagged(ErrNotUp, "it has just gone down")
			}
		}
		if !errors.Is(err, ErrNotUp) && (known || !errors.Is(err, ErrNoNetwork)) {
			return n, false, err
		}
		n, err = op.raised(r.Network, r.Expect)
		return n, true, err
	})
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
		used, err := op.networks.usedAddrs(name)
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
	return op.networks.down(n)
}

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
// defined. One that has the address already is taken for forgotten. The error wraps
// ErrInvalid, ErrNoNetwork, ErrExists, or a sentinel of ipam.
func (c *Controller) EndpointCreate(ctx context.Context, r EndpointRequest) (v EndpointView, err error) {
	a := AttachRequest{Network: r.Network, Name: r.Name, IP: r.IP, MAC: r.MAC, Ifname: r.Ifname}
	if err := a.check(); err != nil {
		return v, err
	}
	err = c.mutate(ctx, func(op *operation) error {
		n, err := op.raisedDefined(r.Network)
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
		return op.runner.run(ctx, op.portSteps(n, &plug{}, p))
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

// EndpointPublish makes ports of the host lead to an endpoint, all or none, in place
// of those that did before. requests says which, by the options of the network; their
// Network and Name are not read. Nothing leads into an internal network. The error is
// one of Publish's, or of requests.
func (c *Controller) EndpointPublish(ctx context.Context, networkName, name string, requests func(options map[string]string) ([]PublishRequest, error)) error {
	return c.mutate(ctx, func(op *operation) error {
		n, p, err := op.portNamed(networkName, name)
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
		if err := op.networks.remove(name); !errors.Is(err, ErrNoNetwork) {
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

// raised brings a network up that is not, from its definition or as nr describes it.
func (op *operation) raised(name string, nr NetworkRequest) (*network, error) {
	def, err := op.definition(name)
	if err != nil {
		return nil, err
	}
	n, err := op.networks.raise(name, def, nr, InstanceRequest{}, false)
	if err == nil {
		op.warnOfFilter()
	}
	return n, err
}

// raisedDefined is a network that is up, brought up if it is only defined.
func (op *operation) raisedDefined(name string) (*network, error) {
	n, err := op.upNetwork(name)
	if !errors.Is(err, ErrNotUp) {
		return n, err
	}
	if def, defErr := op.definition(name); defErr != nil || def == nil {
		return nil, cmp.Or(defErr, err)
	}
	return op.raised(name, NetworkRequest{})
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
