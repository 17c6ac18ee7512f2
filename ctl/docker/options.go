package docker

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/fastbr/fastbr/ctl"
)

// Keys of the options of CreateNetwork.
const (
	optGeneric  = "com.docker.network.generic" // options that the user gave with -o
	optInternal = "com.docker.network.internal"
	optIPv4     = "com.docker.network.enable_ipv4"
	optIPv6     = "com.docker.network.enable_ipv6"

	optMTU         = "com.docker.network.driver.mtu"
	optIfacePrefix = "com.docker.network.container_iface_prefix"
	optHostIPv4    = "com.docker.network.host_ipv4"
	optHostIPv6    = "com.docker.network.host_ipv6"
	optBridge      = "com.docker.network.bridge.name"
	optICC         = "com.docker.network.bridge.enable_icc"
	optMasquerade  = "com.docker.network.bridge.enable_ip_masquerade"
	optHostBinding = "com.docker.network.bridge.host_binding_ipv4"
	optMode4       = "com.docker.network.bridge.gateway_mode_ipv4"
	optMode6       = "com.docker.network.bridge.gateway_mode_ipv6"
	optInhibit4    = "com.docker.network.bridge.inhibit_ipv4"
	optTrusted     = "com.docker.network.bridge.trusted_host_interfaces"
	optDefault     = "com.docker.network.bridge.default_bridge"

	optMapping    = "fastbr.nat-mapping"
	optFiltering  = "fastbr.nat-filtering"
	optExhaustion = "fastbr.nat-on-exhaustion"
	optPlain      = "fastbr.no-masquerade"
	optVia        = "fastbr.via"
	optNDProxy    = "fastbr.nd-proxy"

	defaultIfacePrefix = "eth"
)

// auxGateways, with --aux-address, name a gateway other than the bridge.
var auxGateways = []string{"DefaultGatewayIPv4", "DefaultGatewayIPv6"}

var (
	errNoPool6 = errors.New("no IPv6 subnet from Docker: create the network with --ipv6, and with an IPv6 --subnet before Docker 27")
	errNoIPv4  = errors.New("fastbr's networks always have IPv4 addresses: create the network without --ipv4=false")
)

// networkRequest translates `docker network create`. It refuses unknown
// options, and those that fastbr cannot honour and that change who can reach
// whom.
func networkRequest(q createNetworkRequest) (ctl.NetworkRequest, error) {
	no := false
	r := ctl.NetworkRequest{ID: q.NetworkID, Bridge: "br-" + q.NetworkID[:12], DNS: &no} // Docker resolves names itself
	if err := setPools(&r, q); err != nil {
		return r, err
	}
	if v, ok := q.Options[optInternal]; ok {
		internal, err := boolOption(optInternal, fmt.Sprint(v))
		if err != nil {
			return r, err
		}
		r.Internal = &internal
	}
	user, _ := q.Options[optGeneric].(map[string]any)
	r.Options = map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(user)) {
		value := fmt.Sprint(user[key])
		if err := setOption(&r, key, value); err != nil {
			return r, err
		}
		r.Options[key] = value
	}
	return r, nil
}

// setPools takes over the addresses that dockerd's IPAM has chosen.
func setPools(r *ctl.NetworkRequest, q createNetworkRequest) (err error) {
	switch {
	case isFalse(q.Options[optIPv4]):
		return errNoIPv4
	case len(q.IPv4Data) != 1 || len(q.IPv6Data) > 1:
		return fmt.Errorf("%d IPv4 subnets and %d of IPv6: fastbr's networks have one of IPv4, and may have one of IPv6", len(q.IPv4Data), len(q.IPv6Data))
	case isTrue(q.Options[optIPv6]) && len(q.IPv6Data) == 0:
		return errNoPool6
	}
	if r.Subnet, r.Gateway, err = q.IPv4Data[0].addresses(); err != nil || len(q.IPv6Data) == 0 {
		return err
	}
	r.Subnet6, r.Gateway6, err = q.IPv6Data[0].addresses()
	return err
}

// addresses are the subnet and the gateway, which is invalid if there is none.
func (d ipamData) addresses() (subnet netip.Prefix, gateway netip.Addr, err error) {
	for _, name := range auxGateways {
		if _, ok := d.AuxAddresses[name]; ok {
			return subnet, gateway, fmt.Errorf("--aux-address %s: the gateway of fastbr's networks is the bridge", name)
		}
	}
	if subnet, err = netip.ParsePrefix(d.Pool); err != nil {
		return subnet, gateway, fmt.Errorf("%w: pool: %w", errRequest, err)
	}
	if d.Gateway != "" {
		p, err := netip.ParsePrefix(d.Gateway)
		if err != nil {
			return subnet, gateway, fmt.Errorf("%w: gateway: %w", errRequest, err)
		}
		gateway = p.Addr()
	}
	return subnet, gateway, nil
}

// setOption parses one -o KEY=VALUE.
func setOption(r *ctl.NetworkRequest, key, value string) (err error) {
	switch key {
	case optBridge:
		r.Bridge = value
	case optMTU:
		if r.MTU, err = strconv.Atoi(value); err != nil {
			return fmt.Errorf("option %s=%s: want a number of bytes", key, value)
		}
	case optIfacePrefix:
		if len(value) > 12 || !regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]*$`).MatchString(value) {
			return fmt.Errorf("option %s=%s: want at most 12 letters, digits, '_', '.' or '-'", key, value)
		}
	case optHostBinding:
		_, err = hostAddr(value)
	case optMasquerade:
		var on bool
		on, err = boolOption(key, value)
		r.Masquerade = &on
		if r.Subnet6.IsValid() && !isInternal(r) {
			r.Masquerade6 = &on
		}
	case optICC:
		return only(key, value, "true", "containers of one network reach each other")
	case optInhibit4:
		return only(key, value, "false", "a bridge always has its gateway's address")
	case optMode4:
		if value == "routed" {
			masquerade, only := false, !isInternal(r) // nothing comes into an internal one
			r.Masquerade, r.PublishedOnly = &masquerade, &only
			return nil
		}
		return only(key, value, "nat", "or \"routed\"")
	case optMode6:
		if value == "routed" {
			if masquerade, only := false, true; r.Subnet6.IsValid() && !isInternal(r) {
				r.Masquerade6, r.PublishedOnly = &masquerade, &only
			}
			return nil
		}
		return only(key, value, "nat", "or \"routed\"")
	case optHostIPv6:
		if value == "" || !r.Subnet6.IsValid() { // there is no IPv6 to do it for
			return nil
		}
		if r.SNATAddress6, err = netip.ParseAddr(value); err != nil {
			return fmt.Errorf("option %s=%s: want an IPv6 address of the host", key, value)
		}
	case optNDProxy:
		var on bool
		on, err = boolOption(key, value)
		r.NDProxy = &on
	case optIPv6:
		if !isFalse(value) && !r.Subnet6.IsValid() {
			return errNoPool6
		}
	case optIPv4:
		if !isTrue(value) {
			return errNoIPv4
		}
	case optDefault:
		return only(key, value, "false", "Docker's default bridge is its own")
	case optTrusted:
		return only(key, value, "", "no device may reach containers directly")
	case optHostIPv4:
		if value == "" {
			return nil
		}
		if r.SNATAddress, err = netip.ParseAddr(value); err != nil {
			return fmt.Errorf("option %s=%s: want an IPv4 address of the host", key, value)
		}
	case optVia:
		r.Via = value
	case optMapping:
		r.NATMapping = value
	case optFiltering:
		r.NATFiltering = value
	case optExhaustion:
		r.NATOnExhaustion = value
	case optPlain:
		if r.NoMasquerade, err = ctl.ParsePrefixes(strings.Split(value, ",")); err != nil {
			return fmt.Errorf("option %s=%s: %w", key, value, err)
		}
	default:
		return fmt.Errorf("option %s is not known to fastbr", key)
	}
	return err
}

func isInternal(r *ctl.NetworkRequest) bool { return r.Internal != nil && *r.Internal }

// only refuses every value but one.
func only(key, value, want, why string) error {
	if value == want || want == "true" && isTrue(value) || want == "false" && isFalse(value) {
		return nil
	}
	return fmt.Errorf("option %s=%s: fastbr does only %q (%s)", key, value, want, why)
}

func boolOption(key, value string) (bool, error) {
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("option %s=%s: want true or false", key, value)
	}
	return on, nil
}

// isTrue accepts booleans and text.
func isTrue(v any) bool {
	on, err := strconv.ParseBool(fmt.Sprint(v))
	return err == nil && on
}

// isFalse accepts booleans and text. It reports false for an absent value.
func isFalse(v any) bool {
	on, err := strconv.ParseBool(fmt.Sprint(v))
	return err == nil && !on
}

// ifacePrefix returns the name, without the number, of devices inside the
// container.
func ifacePrefix(options map[string]string) string {
	return cmp.Or(options[optIfacePrefix], defaultIfacePrefix)
}
