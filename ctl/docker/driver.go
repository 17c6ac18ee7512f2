package docker

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/fastbr/fastbr/ctl"
)

// Core is the part of the control plane that the driver needs. ctl.Engine
// implements it.
type Core interface {
	NetworkCreate(ctx context.Context, name string, r ctl.NetworkRequest) (ctl.NetworkView, error)
	NetworkDiscard(ctx context.Context, name string) error
	EndpointCreate(ctx context.Context, r ctl.EndpointRequest) (ctl.EndpointView, error)
	EndpointJoin(ctx context.Context, network, name, netns string) (ctl.EndpointView, error)
	EndpointPublish(ctx context.Context, network, name string, requests func(options map[string]string) ([]ctl.PublishRequest, error)) error
	EndpointLeave(ctx context.Context, network, name string) error
	EndpointDelete(ctx context.Context, network, name string) error
}

// driver handles the calls. A handler must not call dockerd: dockerd may be
// waiting for the answer.
type driver struct{ core Core }

func (d driver) createNetwork(ctx context.Context, q createNetworkRequest) (any, error) {
	name, err := shortID("NetworkID", q.NetworkID)
	if err != nil {
		return nil, err
	}
	r, err := networkRequest(q)
	if err != nil {
		return nil, err
	}
	_, err = d.core.NetworkCreate(ctx, name, r)
	return nil, err
}

func (d driver) deleteNetwork(ctx context.Context, q networkID) (any, error) {
	name, err := shortID("NetworkID", q.NetworkID)
	if err != nil {
		return nil, err
	}
	return nil, d.core.NetworkDiscard(ctx, name)
}

func (d driver) createEndpoint(ctx context.Context, q createEndpointRequest) (any, error) {
	network, name, err := endpointID{q.NetworkID, q.EndpointID}.short()
	if err != nil {
		return nil, err
	}
	r := ctl.EndpointRequest{Network: network, Name: name, Ifname: q.Options.Ifname}
	if r.Allowed, err = ctl.ParseAllowedText(q.Options.AllowedAddresses, q.Options.AllowedMACs); err != nil {
		return nil, err
	}
	for _, of := range []struct {
		text string
		to   *netip.Addr
	}{{q.Interface.Address, &r.IP}, {q.Interface.AddressIPv6, &r.IP6}} {
		if of.text == "" {
			continue
		}
		p, err := netip.ParsePrefix(of.text)
		if err != nil {
			return nil, fmt.Errorf("%w: address: %w", errRequest, err)
		}
		*of.to = p.Addr()
	}
	if q.Interface.MacAddress != "" {
		if r.MAC, err = net.ParseMAC(q.Interface.MacAddress); err != nil {
			return nil, fmt.Errorf("%w: MAC address: %w", errRequest, err)
		}
	}
	v, err := d.core.EndpointCreate(ctx, r)
	if err != nil {
		return nil, err
	}
	var a createEndpointResponse
	if q.Interface.Address == "" {
		a.Interface.Address = v.IP.String()
	}
	if q.Interface.AddressIPv6 == "" && v.IP6.IsValid() {
		a.Interface.AddressIPv6 = v.IP6.String()
	}
	if q.Interface.MacAddress == "" {
		a.Interface.MacAddress = v.MAC
	}
	return a, nil
}

func (d driver) deleteEndpoint(ctx context.Context, q endpointID) (any, error) {
	return nil, q.with(ctx, d.core.EndpointDelete)
}

func (d driver) join(ctx context.Context, q joinRequest) (any, error) {
	network, name, err := endpointID{q.NetworkID, q.EndpointID}.short()
	if err != nil {
		return nil, err
	}
	v, err := d.core.EndpointJoin(ctx, network, name, q.SandboxKey)
	if err != nil {
		return nil, err
	}
	a := joinResponse{InterfaceName: interfaceName{SrcName: v.Peer, DstPrefix: ifacePrefix(v.Options), DstName: v.Ifname}}
	if v.Gateway.IsValid() {
		a.Gateway = v.Gateway.String()
	}
	if v.Gateway6.IsValid() {
		a.GatewayIPv6 = v.Gateway6.String()
	}
	return a, nil
}

func (d driver) leave(ctx context.Context, q endpointID) (any, error) {
	return nil, q.with(ctx, d.core.EndpointLeave)
}

// program makes the endpoint the container's way out. It alone publishes ports:
// Join and CreateEndpoint carry the port map too, but for every network of the
// container.
func (d driver) program(ctx context.Context, q programRequest) (any, error) {
	network, name, err := endpointID{q.NetworkID, q.EndpointID}.short()
	if err != nil {
		return nil, err
	}
	return nil, d.core.EndpointPublish(ctx, network, name, func(options map[string]string) ([]ctl.PublishRequest, error) {
		return publishRequests(q.Options.PortMap, options[optHostBinding])
	})
}

// leaveGateway undoes program. Newer dockerds do not call it after a restart,
// so leave and deleteEndpoint undo it as well.
func (d driver) leaveGateway(ctx context.Context, q endpointID) (any, error) {
	return d.leave(ctx, q)
}

func (q endpointID) short() (network, name string, err error) {
	if network, err = shortID("NetworkID", q.NetworkID); err != nil {
		return "", "", err
	}
	name, err = shortID("EndpointID", q.EndpointID)
	return network, name, err
}

func (q endpointID) with(ctx context.Context, f func(ctx context.Context, network, name string) error) error {
	network, name, err := q.short()
	if err != nil {
		return err
	}
	return f(ctx, network, name)
}
