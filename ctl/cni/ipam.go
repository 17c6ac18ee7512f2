package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/fastbr/fastbr/ctl"
)

// allocation is what an IPAM plugin gave out.
type allocation struct {
	v4, v6   assignment // v6 has no address if the plugin gave none
	primary6 bool       // the address of IPv6 is the first
	routes   []*types.Route
	dns      types.DNS
}

// assignment is an address and its gateway.
type assignment struct {
	addr    netip.Prefix // with the prefix length of the subnet
	gateway netip.Addr   // invalid: none named
}

// of returns what there is of the family that an address is of.
func (a *allocation) of(ip netip.Addr) *assignment {
	if ip.Is4() {
		return &a.v4
	}
	return &a.v6
}

// assign takes over the addresses: one of IPv4, and at most one of IPv6.
func (a *allocation) assign(ips []*current.IPConfig) error {
	for _, ip := range ips {
		p := prefix(ip.Address)
		if own := a.of(p.Addr()); !own.addr.IsValid() {
			*own = assignment{p, address(ip.Gateway)}
			continue
		}
		return wantAddresses(ips)
	}
	if !a.v4.addr.IsValid() {
		return wantAddresses(ips)
	}
	a.primary6 = prefix(ips[0].Address).Addr().Is6()
	return nil
}

func wantAddresses(given []*current.IPConfig) error {
	return unsupported("ipam", "want one IPv4 address, and one IPv6 address or none; the plugin gave "+addresses(given))
}

// allocate asks the configured IPAM plugin for addresses. On any error it
// releases what the plugin gave.
func (c *config) allocate(ctx context.Context) (given allocation, err error) {
	var r types.Result
	err = c.delegate(ctx, func(raw []byte) (err error) {
		r, err = invoke.DelegateAdd(ctx, c.IPAM.Type, raw, nil)
		return err
	})
	if err != nil {
		return given, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.release(ctx))
		}
	}()
	res, err := current.NewResultFromResult(r)
	if err != nil {
		return given, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("result of IPAM plugin %s: %v", c.IPAM.Type, err), "")
	}
	given.routes, given.dns = res.Routes, res.DNS
	if err := given.assign(res.IPs); err != nil {
		return given, err
	}
	for _, r := range routes(given.routes) {
		if !given.of(r.Dst.Addr()).addr.IsValid() {
			return given, unsupported("ipam.routes", r.Dst.String()+", though the plugin gave no IPv6 address")
		}
	}
	if yes(c.IsDefaultGateway) {
		given.addDefaults()
	}
	return given, nil
}

// addDefaults adds a default route by each family's gateway, unless there is one.
func (a *allocation) addDefaults() {
	there := routes(a.routes)
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		dst := netip.PrefixFrom(any, 0)
		if a.of(any).addr.IsValid() && !slices.ContainsFunc(there, func(r ctl.Route) bool { return r.Dst == dst }) {
			a.routes = append(a.routes, &types.Route{Dst: ipNet(dst)})
		}
	}
}

// leadsOut reports whether a route leads out of a subnet by its gateway.
func (a *allocation) leadsOut() bool {
	for _, r := range routes(a.routes) {
		own := a.of(r.Dst.Addr())
		inside := own.addr.Contains(r.Dst.Addr()) && r.Dst.Bits() >= own.addr.Bits()
		if !inside && own.gateway.IsValid() && (!r.Gateway.IsValid() || r.Gateway == own.gateway) {
			return true
		}
	}
	return false
}

// release gives back the addresses of the attachment that the environment names.
func (c *config) release(ctx context.Context) error {
	return c.delegate(ctx, func(raw []byte) error { return invoke.DelegateDel(ctx, c.IPAM.Type, raw, nil) })
}

// checkAllocation asks whether the attachment that the environment names still has
// its addresses.
func (c *config) checkAllocation(ctx context.Context) error {
	return c.delegate(ctx, func(raw []byte) error { return invoke.DelegateCheck(ctx, c.IPAM.Type, raw, nil) })
}

// releaseOf gives back the addresses of another attachment.
func (c *config) releaseOf(ctx context.Context, o ctl.Owner) error {
	path, err := c.ipamPath()
	if err != nil {
		return err
	}
	args := &invoke.Args{Command: "DEL", ContainerID: o.Container, IfName: o.Ifname, Path: os.Getenv("CNI_PATH")}
	return c.delegate(ctx, func(raw []byte) error { return invoke.ExecPluginWithoutResult(ctx, path, raw, args, nil) })
}

// delegate calls the IPAM plugin with the configuration. If the plugin does not
// know the configuration's version, delegate calls it again with the latest
// version that it knows. A list's version only has to suit the plugins that it
// names, and allocations must not leak when it is raised.
func (c *config) delegate(ctx context.Context, call func(raw []byte) error) error {
	err := call(c.raw)
	var e *types.Error
	if errors.As(err, &e) && e.Code == types.ErrIncompatibleCNIVersion {
		older, converting := c.older(ctx)
		if converting != nil {
			return errors.Join(c.ipamFailed(err), converting)
		}
		err = call(older)
	}
	return c.ipamFailed(err)
}

// older returns the configuration, with the prevResult in it, in the latest
// version before its own that the IPAM plugin knows.
func (c *config) older(ctx context.Context) ([]byte, error) {
	path, err := c.ipamPath()
	if err != nil {
		return nil, err
	}
	info, err := invoke.GetVersionInfo(ctx, path, nil)
	if err != nil {
		return nil, c.ipamFailed(err)
	}
	best := noVersion
	for _, v := range info.SupportedVersions() {
		newer, err1 := version.GreaterThan(v, c.CNIVersion)
		better, err2 := version.GreaterThan(v, best)
		if err1 == nil && err2 == nil && !newer && better {
			best = v
		}
	}
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(c.raw, &whole); err != nil {
		return nil, err
	}
	if whole["cniVersion"], err = json.Marshal(best); err != nil {
		return nil, err
	}
	if prev, ok := whole["prevResult"]; ok {
		r, err := version.NewResult(c.CNIVersion, prev)
		if err == nil {
			r, err = r.GetAsVersion(best)
		}
		if err == nil {
			whole["prevResult"], err = json.Marshal(r)
		}
		if err != nil {
			return nil, err
		}
	}
	return json.Marshal(whole)
}

// pass hands GC or STATUS on to the IPAM plugin if it knows the command. Both
// came with CNI 1.1.0.
func (c *config) pass(ctx context.Context, command string) error {
	path, err := c.ipamPath()
	if err != nil {
		return err
	}
	info, err := invoke.GetVersionInfo(ctx, path, nil)
	if err != nil {
		return c.ipamFailed(err)
	}
	if !slices.Contains(info.SupportedVersions(), "1.1.0") {
		return nil
	}
	return c.ipamFailed(invoke.ExecPluginWithoutResult(ctx, path, c.raw, &invoke.DelegateArgs{Command: command}, nil))
}

func (c *config) ipamPath() (string, error) {
	path, err := invoke.FindInPath(c.IPAM.Type, filepath.SplitList(os.Getenv("CNI_PATH")))
	return path, c.ipamFailed(err)
}

// ipamFailed names the IPAM plugin in an error. The code stays.
func (c *config) ipamFailed(err error) error {
	if err == nil {
		return nil
	}
	out := types.Error{Code: errFailed, Msg: err.Error()}
	var e *types.Error
	if errors.As(err, &e) {
		out = *e
	}
	out.Msg = fmt.Sprintf("IPAM plugin %s: %s", c.IPAM.Type, out.Msg)
	return &out
}

func addresses(ips []*current.IPConfig) string {
	s := fmt.Sprint(len(ips))
	for _, ip := range ips {
		s += " " + ip.Address.String()
	}
	return s
}

func prefix(n net.IPNet) netip.Prefix {
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(address(n.IP), ones)
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// address is invalid for nil.
func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// routes converts CNI routes to ctl's. The result is never nil.
func routes(in []*types.Route) []ctl.Route {
	out := []ctl.Route{}
	for _, r := range in {
		route := ctl.Route{Dst: prefix(r.Dst).Masked(), Metric: r.Priority, MTU: r.MTU, AdvMSS: r.AdvMSS}
		route.Gateway = address(r.GW)
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = *r.Scope
		}
		out = append(out, route)
	}
	return out
}
