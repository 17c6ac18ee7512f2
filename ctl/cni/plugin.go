package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/fastbr/fastbr/ctl"
)

// engine marks attachments of CNI (ctl.Owner).
const engine = "cni"

// Called reports whether the process was started as a CNI plugin: a runtime
// passes no arguments and sets CNI_COMMAND.
func Called(args []string) bool { return len(args) == 0 && os.Getenv("CNI_COMMAND") != "" }

// Run executes the command that the environment names, and returns the exit
// code. It writes results and errors to standard output, as CNI requires.
func Run(ctx context.Context, opts ctl.Options) int {
	p := plugin{ctx: ctx, opts: opts}
	funcs := skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status}
	err := skel.PluginMainFuncsWithError(funcs, version.All, "CNI plugin fastbr")
	if err == nil {
		return 0
	}
	if err := err.Print(); err != nil {
		fmt.Fprintln(os.Stderr, "fastbr:", ctl.Line(err.Error()))
	}
	return 1
}

type plugin struct {
	ctx  context.Context
	opts ctl.Options
}

// start reads the configuration and opens the instance of this namespace.
func (p *plugin) start(args *skel.CmdArgs) (*config, *ctl.Controller, error) {
	conf, err := parse(args.StdinData, args.Args)
	if err != nil {
		return nil, nil, err
	}
	c, err := ctl.Open(p.opts)
	return conf, c, coded(err)
}

func (c *config) owner(args *skel.CmdArgs) ctl.Owner {
	return ctl.Owner{Engine: engine, Network: c.Name, Container: args.ContainerID, Ifname: args.IfName}
}

func (p *plugin) add(args *skel.CmdArgs) (err error) {
	conf, c, err := p.start(args)
	if err != nil {
		return err
	}
	if err := errors.Join(conf.check(), checkNetns(args)); err != nil {
		return err
	}
	r, err := conf.request(args)
	if err != nil {
		return err
	}
	var given allocation
	if !conf.own() {
		if given, err = conf.allocate(p.ctx); err != nil {
			return err
		}
		r.IP, r.IP6, r.Routes = given.v4.addr.Addr(), given.v6.addr.Addr(), routes(given.routes)
		r.Expect = conf.network(given)
	}
	res, err := c.Engine().Attach(p.ctx, r, conf.own())
	if err != nil {
		if !conf.own() {
			err = errors.Join(err, conf.release(context.WithoutCancel(p.ctx)))
		}
		return coded(err)
	}
	out, err := conf.result(args, res, given)
	if err != nil {
		return err
	}
	return types.PrintResult(out, conf.CNIVersion)
}

// checkNetns checks that the container's namespace can take a port. The CNI
// library looks only after ADD.
func checkNetns(args *skel.CmdArgs) error {
	ns, err := ctl.OpenNetns(args.Netns)
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: "+err.Error(), "")
	}
	defer ns.Close()
	if ns.Current() {
		return types.NewError(types.ErrInvalidNetNS, "CNI_NETNS "+args.Netns+" is the namespace that the bridge is in", "")
	}
	return nil
}

// request returns the attachment without what an IPAM plugin decides.
func (c *config) request(args *skel.CmdArgs) (r ctl.AttachRequest, err error) {
	o := c.owner(args)
	r = ctl.AttachRequest{Target: args.Netns, Network: c.networkName(), Name: c.portName(args.ContainerID), Ifname: args.IfName,
		Slow: c.Slow, DAD: c.EnableDAD, Hairpin: c.HairpinMode || c.PromiscMode, Bandwidth: c.bandwidth(), Owner: &o}
	if r.MAC, err = c.mac(); err != nil {
		return r, err
	}
	if r.Allowed, err = c.allowance(); err != nil {
		return r, err
	}
	if r.Publish, err = c.publications(); err != nil {
		return r, err
	}
	if c.own() {
		r.IP, r.IP6, err = c.ips()
	}
	return r, err
}

// network returns the fastbr network that a bridge configuration describes. A
// bridge that is no gateway leads nowhere: it becomes an internal network. A
// configuration that does not say what the bridge is, but whose IPAM plugin
// routes other networks through it, wants a gateway: flannel sets isGateway only
// for a delegate called "bridge".
func (c *config) network(given allocation) ctl.NetworkRequest {
	gateway := yes(c.IsGateway) || yes(c.IsDefaultGateway) || c.IsGateway == nil && given.leadsOut()
	masq, internal := yes(c.IPMasq) && gateway, !gateway
	plain, _ := c.plain() // check has read these
	snat, _ := hostAddress("snatAddress", c.SNATAddress)
	snat6, _ := hostAddress("snatAddress6", c.SNATAddress6)
	r := ctl.NetworkRequest{Bridge: c.networkName(), Subnet: given.v4.addr.Masked(), Gateway: given.v4.gateway, IPv6: ctl.IPv6Off, MTU: c.MTU,
		Masquerade: &masq, NoMasquerade: plain, SNATAddress: snat, SNATAddress6: snat6, Via: c.Via, Internal: &internal}
	if given.v6.addr.IsValid() {
		r.IPv6, r.Subnet6, r.Gateway6 = ctl.IPv6On, given.v6.addr.Masked(), given.v6.gateway
	}
	if r.Subnet6.IsValid() && gateway {
		r.Masquerade6, r.NDProxy = &masq, &c.NDProxy
	}
	return r
}

// result has the layout of the reference plugin's, on which later plugins in
// the chain rely: the bridge, the host end, the container end, in this order.
func (c *config) result(args *skel.CmdArgs, res ctl.AttachResult, given allocation) (*current.Result, error) {
	out := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: res.Bridge, Mac: res.BridgeMAC, Mtu: res.MTU},
			{Name: res.Port, Mac: res.PortMAC, Mtu: res.MTU},
			{Name: res.Ifname, Mac: res.MAC, Mtu: res.MTU, Sandbox: args.Netns},
		},
		Routes: given.routes,
		DNS:    c.dns(given.dns),
	}
	families := []struct{ ip, gateway string }{{res.IP, res.Gateway}, {res.IP6, res.Gateway6}}
	if given.primary6 {
		slices.Reverse(families)
	}
	for _, of := range families {
		if of.ip == "" {
			continue
		}
		addr, err := netip.ParsePrefix(of.ip)
		if err != nil {
			return nil, coded(err)
		}
		gateway, inside, bits := net.ParseIP(of.gateway), 2, addr.Addr().BitLen()
		out.IPs = append(out.IPs, &current.IPConfig{Interface: &inside, Gateway: gateway, Address: ipNet(addr)})
		if c.own() && !res.Internal {
			out.Routes = append(out.Routes, &types.Route{Dst: net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}, GW: gateway})
		}
	}
	return out, nil
}

// del succeeds whatever is left of the attachment. It releases the addresses
// last, when nothing uses it any more.
func (p *plugin) del(args *skel.CmdArgs) error {
	conf, c, err := p.start(args)
	if err != nil {
		return err
	}
	o := conf.owner(args)
	_, err = c.Engine().Detach(p.ctx, false, func(x ctl.Owner) bool { return x == o })
	if !conf.own() && conf.IPAM.Type != "" && err == nil {
		err = conf.release(p.ctx)
	}
	return coded(err)
}

func (p *plugin) check(args *skel.CmdArgs) error {
	conf, c, err := p.start(args)
	if err != nil {
		return err
	}
	if err := version.ParsePrevResult(&conf.PluginConf); err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if conf.PrevResult == nil {
		return invalid("CHECK needs the result of ADD in prevResult")
	}
	prev, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	want := ctl.Expectation{Target: args.Netns, Routes: destinations(prev.Routes), Bandwidth: conf.bandwidth()}
	if want.Publish, err = conf.publications(); err != nil {
		return err
	}
	if want.Allowed, err = conf.allowance(); err != nil {
		return err
	}
	res, err := c.Engine().Verify(p.ctx, conf.owner(args), want)
	if err != nil {
		return coded(err)
	}
	if err := agree(prev, res, args.Netns); err != nil {
		return err
	}
	if !conf.own() {
		if err := conf.checkAllocation(p.ctx); err != nil {
			return err
		}
	}
	// A later plugin in the chain may have shaped the port since ADD.
	return coded(c.Reconcile(p.ctx))
}

// destinations returns only the routes' destinations: a later plugin may have
// changed the gateways.
func destinations(in []*types.Route) []ctl.Route {
	out := routes(in)
	for i := range out {
		out[i].Gateway = netip.Addr{}
	}
	return slices.DeleteFunc(out, func(r ctl.Route) bool { return !r.Dst.IsValid() })
}

// agree compares the result of ADD with the present state.
func agree(prev *current.Result, res ctl.AttachResult, netns string) error {
	named := func(name, mac, sandbox string) bool {
		return slices.ContainsFunc(prev.Interfaces, func(i *current.Interface) bool {
			return i.Name == name && (i.Mac == "" || i.Mac == mac) && i.Sandbox == sandbox
		})
	}
	switch {
	case !named(res.Ifname, res.MAC, netns):
		return types.NewError(errFailed, fmt.Sprintf("prevResult does not have %s with MAC address %s", res.Ifname, res.MAC), "")
	case !named(res.Port, res.PortMAC, ""):
		return types.NewError(errFailed, fmt.Sprintf("prevResult does not have %s with MAC address %s", res.Port, res.PortMAC), "")
	}
	for _, addr := range []string{res.IP, res.IP6} {
		if addr != "" && !slices.ContainsFunc(prev.IPs, func(ip *current.IPConfig) bool { return ip.Address.String() == addr }) {
			return types.NewError(errFailed, "prevResult does not have the address "+addr, "")
		}
	}
	return nil
}

// gc removes this network's attachments that the runtime no longer names. It
// calls the IPAM plugin's DEL for each, and then its GC if it knows the
// command.
func (p *plugin) gc(args *skel.CmdArgs) error {
	conf, c, err := p.start(args)
	if err != nil {
		return err
	}
	valid := func(o ctl.Owner) bool {
		return slices.Contains(conf.ValidAttachments, types.GCAttachment{ContainerID: o.Container, IfName: o.Ifname})
	}
	gone, err := c.Engine().Detach(p.ctx, false, func(o ctl.Owner) bool {
		return o.Engine == engine && o.Network == conf.Name && !valid(o)
	})
	errs := []error{err}
	if !conf.own() && conf.IPAM.Type != "" {
		for _, o := range gone {
			errs = append(errs, conf.releaseOf(p.ctx, o))
		}
		errs = append(errs, conf.pass(p.ctx, "GC"))
	}
	return coded(errors.Join(errs...))
}

func (p *plugin) status(args *skel.CmdArgs) error {
	conf, c, err := p.start(args)
	if err != nil {
		return err
	}
	if err := conf.check(); err != nil {
		return err
	}
	switch err := c.Engine().Healthy(p.ctx, conf.networkName()); {
	case errors.Is(err, ctl.ErrBroken):
		return types.NewError(types.ErrLimitedConnectivity, err.Error(), "")
	case err != nil:
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	if conf.own() {
		return nil
	}
	return conf.pass(p.ctx, "STATUS")
}
