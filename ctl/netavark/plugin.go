package netavark

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"

	"github.com/fastbr/fastbr/ctl"
)

// apiVersion is the version of netavark's plugin interface.
const apiVersion = "1.0.0"

// Plugin answers one call.
type Plugin struct {
	Open   func() (*ctl.Controller, error)
	Stdin  io.Reader
	Stdout io.Writer
}

// Info prints which plugin this is.
func (p Plugin) Info(version string) error {
	return p.answer(map[string]string{"version": version, "api_version": apiVersion})
}

// Create fills in what a network configuration leaves open. It makes nothing:
// Podman keeps the configuration, and no call would remove what Create made.
func (p Plugin) Create(ctx context.Context) error {
	text, err := io.ReadAll(p.Stdin)
	if err != nil {
		return fmt.Errorf("reading the network: %w", err)
	}
	var n network
	whole := map[string]json.RawMessage{} // keeps unknown keys
	for _, to := range []any{&n, &whole} {
		if err := json.Unmarshal(text, to); err != nil {
			return fmt.Errorf("reading the network: %w", err)
		}
	}
	if err := n.check(); err != nil {
		return err
	}
	if _, err := n.routes(); err != nil {
		return err
	}
	n.Interface = n.bridge()
	c, err := p.Open()
	if err != nil {
		return err
	}
	r, err := n.request()
	if err != nil {
		return err
	}
	def, err := c.Engine().Propose(ctx, n.Interface, r)
	if err != nil {
		return err
	}
	n.complete(def)
	for key, v := range map[string]any{"network_interface": n.Interface, "subnets": n.Subnets, "ipv6_enabled": n.hasIPv6()} {
		if whole[key], err = json.Marshal(v); err != nil {
			return err
		}
	}
	return p.answer(whole)
}

// Setup plugs a container in. The first container brings its network up.
func (p Plugin) Setup(ctx context.Context, netns string) error {
	a, c, err := p.start()
	if err != nil {
		return err
	}
	if err := a.Network.check(); err != nil {
		return err
	}
	r, err := a.request(netns)
	if err != nil {
		return err
	}
	res, err := c.Engine().Attach(ctx, r, false)
	if err != nil {
		return err
	}
	var addrs []netAddress
	for _, of := range []struct{ ip, gateway string }{{res.IP, res.Gateway}, {res.IP6, res.Gateway6}} {
		if of.ip == "" {
			continue
		}
		addr := netAddress{IPNet: of.ip}
		if !res.Internal {
			addr.Gateway = &of.gateway
		}
		addrs = append(addrs, addr)
	}
	return p.answer(status{Interfaces: map[string]address{res.Ifname: {MAC: res.MAC, Subnets: addrs}},
		SearchDomains: []string{}, ServerIPs: []netip.Addr{}})
}

// Teardown unplugs a container. The last one takes the network down. It
// succeeds when the container is already unplugged.
func (p Plugin) Teardown(ctx context.Context) error {
	a, c, err := p.start()
	if err != nil {
		return err
	}
	o := a.owner()
	_, err = c.Engine().Detach(ctx, true, func(x ctl.Owner) bool { return x == o })
	return err
}

func (p Plugin) start() (a attachment, c *ctl.Controller, err error) {
	if err := json.NewDecoder(p.Stdin).Decode(&a); err != nil {
		return a, nil, fmt.Errorf("reading the attachment: %w", err)
	}
	if a.ContainerID == "" || a.Network.Name == "" || a.Options.Interface == "" {
		return a, nil, fmt.Errorf("the attachment lacks container_id, network.name or network_options.interface_name")
	}
	c, err = p.Open()
	return a, c, err
}

func (p Plugin) answer(v any) error { return json.NewEncoder(p.Stdout).Encode(v) }
