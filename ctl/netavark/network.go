package netavark

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fastbr/fastbr/ctl"
)

// network is a network configuration as Podman keeps it.
type network struct {
	Name        string            `json:"name"`
	ID          string            `json:"id"`
	Interface   string            `json:"network_interface"`
	Subnets     []subnet          `json:"subnets"`
	Routes      []route           `json:"routes"`
	IPv6        bool              `json:"ipv6_enabled"`
	Internal    bool              `json:"internal"`
	Options     map[string]string `json:"options"`
	IPAMOptions map[string]string `json:"ipam_options"`
}

type subnet struct {
	Subnet     netip.Prefix    `json:"subnet"`
	Gateway    *netip.Addr     `json:"gateway,omitempty"`
	LeaseRange json.RawMessage `json:"lease_range,omitempty"` // for Podman, which gives out the addresses
}

type route struct {
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway"`
	Metric      int          `json:"metric"`
}

// hasIPv6 reports whether the network has IPv6, or is to get it.
func (n network) hasIPv6() bool {
	return n.IPv6 || slices.ContainsFunc(n.Subnets, func(s subnet) bool { return s.Subnet.Addr().Is6() })
}

// bridge returns the name of the network's bridge; it has a default.
func (n network) bridge() string {
	if n.Interface != "" {
		return n.Interface
	}
	return "fbr-" + n.ID[:min(len(n.ID), 10)]
}

// check refuses options that fastbr cannot honour and that change who can reach
// the containers.
func (n network) check() error {
	switch {
	case n.ID == "" && n.Interface == "":
		return fmt.Errorf("the network has no id")
	case n.IPAMOptions["driver"] != "" && n.IPAMOptions["driver"] != "host-local":
		return fmt.Errorf("network %s: IPAM driver %s is not supported: only host-local", n.Name, n.IPAMOptions["driver"])
	}
	known := []string{"mtu", "metric", "no_default_route", "isolate", "no_masquerade", "outbound_addr4", "outbound_addr6", "via", "nd_proxy", "allowed_address", "allowed_mac"}
	for key := range n.Options {
		if !slices.Contains(known, key) {
			return fmt.Errorf("network %s: option %s is not supported: %s", n.Name, key, strings.Join(known, ", "))
		}
	}
	_, errNetwork := n.request()
	_, errAllowed := n.allowed(nil)
	return cmp.Or(errNetwork, errAllowed)
}

// allowed returns what the containers may send with besides their own addresses: by the
// network's options and one container's own.
func (n network) allowed(own map[string]string) (ctl.Allowed, error) {
	list := func(key string) string { return n.Options[key] + " " + own[key] }
	a, err := ctl.ParseAllowedText(list("allowed_address"), list("allowed_mac"))
	if err != nil {
		return a, fmt.Errorf("network %s: %w", n.Name, err)
	}
	return a, nil
}

// request returns the fastbr network that the configuration describes.
func (n network) request() (r ctl.NetworkRequest, err error) {
	masquerade := !n.Internal
	r = ctl.NetworkRequest{Bridge: n.bridge(), Internal: &n.Internal, Masquerade: &masquerade, NoMasquerade: []netip.Prefix{}, Via: n.Options["via"]}
	if err := n.setSubnets(&r); err != nil {
		return r, err
	}
	if v := n.Options["mtu"]; v != "" && v != "0" {
		if r.MTU, err = strconv.Atoi(v); err != nil {
			return r, fmt.Errorf("network %s: option mtu %q: want a number", n.Name, v)
		}
	}
	for key, to := range map[string]*netip.Addr{"outbound_addr4": &r.SNATAddress, "outbound_addr6": &r.SNATAddress6} {
		if *to, err = option(n.Options[key], netip.ParseAddr); err != nil {
			return r, fmt.Errorf("network %s: option %s: %w", n.Name, key, err)
		}
	}
	if proxy, err := option(n.Options["nd_proxy"], strconv.ParseBool); err != nil {
		return r, fmt.Errorf("network %s: option nd_proxy: %w", n.Name, err)
	} else if proxy {
		routed := false
		r.NDProxy, r.Masquerade6 = &proxy, &routed
	}
	if v := n.Options["no_masquerade"]; v != "" {
		if r.NoMasquerade, err = ctl.ParsePrefixes(strings.Split(v, ",")); err != nil {
			return r, fmt.Errorf("network %s: option no_masquerade %q: %w", n.Name, v, err)
		}
	}
	return r, nil
}

// setSubnets takes over the subnets: at most one of each family.
func (n network) setSubnets(r *ctl.NetworkRequest) error {
	r.IPv6 = ctl.IPv6Off
	if n.hasIPv6() {
		r.IPv6 = ctl.IPv6On
	}
	for _, s := range n.Subnets {
		to, gateway := &r.Subnet, &r.Gateway
		if s.Subnet.Addr().Is6() {
			to, gateway = &r.Subnet6, &r.Gateway6
		}
		if to.IsValid() {
			return fmt.Errorf("network %s: subnets %s and %s: one for each of IPv4 and IPv6", n.Name, *to, s.Subnet)
		}
		if *to = s.Subnet.Masked(); s.Gateway != nil {
			*gateway = *s.Gateway
		}
	}
	return nil
}

// complete fills in the subnets and gateways that the configuration leaves open. Those
// that it has stay in their order.
func (n *network) complete(def ctl.Definition) {
	for _, of := range []struct {
		subnet  netip.Prefix
		gateway netip.Addr
	}{{def.Subnet, def.Gateway}, {def.Subnet6, def.Gateway6}} {
		if !of.subnet.IsValid() {
			continue
		}
		at := slices.IndexFunc(n.Subnets, func(s subnet) bool { return s.Subnet.Masked() == of.subnet })
		if at < 0 {
			at = len(n.Subnets)
			n.Subnets = append(n.Subnets, subnet{})
		}
		n.Subnets[at].Subnet, n.Subnets[at].Gateway = of.subnet, &of.gateway
	}
}

// routes returns the routes inside a container, or nil for just default routes.
func (n network) routes() (out []ctl.Route, err error) {
	none, err := option(n.Options["no_default_route"], strconv.ParseBool)
	if err != nil {
		return nil, fmt.Errorf("network %s: option no_default_route: %w", n.Name, err)
	}
	metric, err := option(n.Options["metric"], strconv.Atoi)
	if err != nil {
		return nil, fmt.Errorf("network %s: option metric: %w", n.Name, err)
	}
	if !none && metric == 0 && len(n.Routes) == 0 {
		return nil, nil
	}
	out = []ctl.Route{}
	families := []netip.Addr{netip.IPv4Unspecified()}
	if n.hasIPv6() {
		families = append(families, netip.IPv6Unspecified())
	}
	for _, any := range families {
		if !none && !n.Internal {
			out = append(out, ctl.Route{Dst: netip.PrefixFrom(any, 0), Metric: metric})
		}
	}
	for _, r := range n.Routes {
		if r.Destination.Addr().Is4() != r.Gateway.Is4() {
			return nil, fmt.Errorf("network %s: route to %s by %s: want a gateway of the same family", n.Name, r.Destination, r.Gateway)
		}
		if r.Destination.Addr().Is6() && !n.hasIPv6() {
			return nil, fmt.Errorf("network %s: route to %s: the network has no IPv6", n.Name, r.Destination)
		}
		out = append(out, ctl.Route{Dst: r.Destination.Masked(), Gateway: r.Gateway, Metric: r.Metric})
	}
	return out, nil
}

// option parses an option that may be missing.
func option[T any](text string, parse func(string) (T, error)) (v T, err error) {
	if text == "" {
		return v, nil
	}
	return parse(text)
}
