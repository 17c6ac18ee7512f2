package cni

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fastbr/fastbr/ctl"
)

// noVersion is the version of a configuration that has no cniVersion.
const noVersion = "0.1.0"

// defaultBridge is the default bridge name of the reference bridge plugin.
const defaultBridge = "cni0"

// config is a network configuration: the keys of the reference bridge plugin
// and fastbr's own.
type config struct {
	types.PluginConf

	// Network names the fastbr network that gives out the addresses.
	Network string `json:"network"`
	// Slow keeps all packets on the kernel path.
	Slow bool `json:"slow"`
	// NDProxy: the host answers on its uplinks for pods' IPv6 addresses, which are of an
	// uplink's own subnet.
	NDProxy bool `json:"ndProxy"`
	// What every container of this configuration may send with besides its own addresses.
	allowed

	Bridge           string `json:"bridge"`
	IsGateway        *bool  `json:"isGateway"`
	IsDefaultGateway *bool  `json:"isDefaultGateway"`
	ForceAddress     *bool  `json:"forceAddress"`
	IPMasq           *bool  `json:"ipMasq"`
	// SNATAddress and SNATAddress6 are the source addresses that ipMasq gives; "": the
	// route's.
	SNATAddress  string `json:"snatAddress"`
	SNATAddress6 string `json:"snatAddress6"`
	// Via is the only device that leads outside; "": every uplink does.
	Via string `json:"via"`
	// NoMasquerade are the destinations, CIDRs, that ipMasq excepts.
	NoMasquerade []string `json:"noMasquerade"`
	MTU          int      `json:"mtu"` // bytes
	HairpinMode  bool     `json:"hairpinMode"`
	// PromiscMode serves the same purpose as HairpinMode: a pod reaches itself by
	// a service's address.
	PromiscMode bool `json:"promiscMode"`
	// EnableDAD: the container asks whether anybody has its IPv6 addresses before it uses
	// them.
	EnableDAD bool `json:"enabledad"`

	VLAN                      int               `json:"vlan"`
	VLANTrunk                 []json.RawMessage `json:"vlanTrunk"`
	DisableContainerInterface bool              `json:"disableContainerInterface"`
	PortIsolation             bool              `json:"portIsolation"`

	Args struct {
		CNI struct {
			MAC string   `json:"mac"`
			IPs []string `json:"ips"`
			allowed
		} `json:"cni"`
	} `json:"args"`
	Runtime runtimeConfig `json:"runtimeConfig"`

	raw []byte            // the configuration as received, for an IPAM plugin
	env map[string]string // CNI_ARGS
}

// runtimeConfig holds what the runtime asks for one attachment, by capability.
type runtimeConfig struct {
	PortMappings []portMapping `json:"portMappings"`
	IPs          []string      `json:"ips"`
	MAC          string        `json:"mac"`
	Bandwidth    bandwidth     `json:"bandwidth"`
	allowed
	DNS *struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	} `json:"dns"`
}

// allowed are addresses or prefixes, and MAC addresses.
type allowed struct {
	Addresses []string `json:"allowedAddresses"`
	MACs      []string `json:"allowedMACs"`
}

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// bandwidth is in bits (burst) and bits per second (rate). Directions are the
// container's.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// parse reads a configuration and CNI_ARGS.
func parse(stdin []byte, args string) (*config, error) {
	c := &config{raw: stdin, env: map[string]string{}}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "reading the network configuration: "+err.Error(), "")
	}
	c.CNIVersion = cmp.Or(c.CNIVersion, noVersion)
	for pair := range strings.SplitSeq(args, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			c.env[key] = value
		}
	}
	return c, nil
}

// own reports whether fastbr gives out the addresses.
func (c *config) own() bool { return c.Network != "" }

// check refuses contradictory options, and those that fastbr cannot honour and
// that change who can reach what.
func (c *config) check() error {
	for _, f := range []struct {
		key   string
		asked bool
		value any
	}{
		{"vlan", c.VLAN != 0, c.VLAN},
		{"vlanTrunk", len(c.VLANTrunk) > 0, len(c.VLANTrunk)},
		{"disableContainerInterface", c.DisableContainerInterface, true},
		{"portIsolation", c.PortIsolation, true},
	} {
		if f.asked {
			return unsupported(f.key, f.value)
		}
	}
	if _, err := c.plain(); err != nil {
		return err
	}
	if len(c.NoMasquerade) > 0 && !c.own() && !yes(c.IPMasq) {
		return invalid("noMasquerade excepts destinations from ipMasq, which is not set")
	}
	for _, of := range []struct{ key, value string }{{"snatAddress", c.SNATAddress}, {"snatAddress6", c.SNATAddress6}} {
		if _, err := hostAddress(of.key, of.value); err != nil {
			return err
		}
		if of.value != "" && !c.own() && !yes(c.IPMasq) {
			return invalid(of.key + " is what ipMasq gives, which is not set")
		}
	}
	if c.NDProxy && !c.own() && yes(c.IPMasq) {
		return invalid("ndProxy is for addresses that are not translated: ipMasq is set")
	}
	if c.HairpinMode && c.PromiscMode {
		return invalid("hairpinMode and promiscMode are set: choose one")
	}
	if !c.own() && c.IPAM.Type == "" {
		return invalid("neither network nor ipam: set \"network\" to a fastbr network, or an \"ipam\" with its type")
	}
	if !c.own() {
		return nil
	}
	for _, f := range []struct {
		key   string
		asked bool
	}{
		{"ipam", c.IPAM.Type != ""}, {"bridge", c.Bridge != ""}, {"isGateway", c.IsGateway != nil},
		{"isDefaultGateway", c.IsDefaultGateway != nil}, {"forceAddress", c.ForceAddress != nil},
		{"ipMasq", c.IPMasq != nil}, {"noMasquerade", len(c.NoMasquerade) > 0}, {"snatAddress", c.SNATAddress != ""},
		{"snatAddress6", c.SNATAddress6 != ""}, {"via", c.Via != ""}, {"ndProxy", c.NDProxy}, {"mtu", c.MTU != 0},
	} {
		if f.asked {
			return invalid(fmt.Sprintf("%s and network exclude each other: network %s is already defined, by 'fastbr network create' or 'up'",
				f.key, c.Network))
		}
	}
	return nil
}

// plain returns the destinations that are excepted from ipMasq.
func (c *config) plain() ([]netip.Prefix, error) {
	out, err := ctl.ParsePrefixes(c.NoMasquerade)
	if err != nil {
		return nil, invalid("noMasquerade: " + err.Error())
	}
	return append([]netip.Prefix{}, out...), nil // none, not "whatever there is"
}

// hostAddress reads the value of a key; "" is the zero Addr.
func hostAddress(key, value string) (a netip.Addr, err error) {
	if value == "" {
		return a, nil
	}
	if a, err = netip.ParseAddr(value); err != nil {
		return a, invalid(fmt.Sprintf("%s %q: want an address", key, value))
	}
	return a, nil
}

// networkName returns the name of the fastbr network.
func (c *config) networkName() string {
	switch {
	case c.own():
		return c.Network
	case c.Bridge != "":
		return c.Bridge
	}
	return defaultBridge
}

// bandwidth returns the limits that the runtime asks for. CNI's directions are
// the container's.
func (c *config) bandwidth() ctl.Bandwidth {
	b := c.Runtime.Bandwidth
	return ctl.Bandwidth{In: ctl.Limit{Rate: b.IngressRate, Burst: b.IngressBurst}, Out: ctl.Limit{Rate: b.EgressRate, Burst: b.EgressBurst}}
}

// allowance returns what the container may send with besides its own addresses, whoever says
// so.
func (c *config) allowance() (ctl.Allowed, error) {
	a, err := ctl.ParseAllowed(slices.Concat(c.Addresses, c.Args.CNI.Addresses, c.Runtime.Addresses),
		slices.Concat(c.MACs, c.Args.CNI.MACs, c.Runtime.MACs))
	if err != nil {
		return a, invalid(err.Error())
	}
	return a, nil
}

// portName returns the port's name in statistics: the name of the pod or
// container if the runtime gives one, otherwise the short container id.
func (c *config) portName(containerID string) string {
	name := c.env["K8S_POD_NAME"]
	if space := c.env["K8S_POD_NAMESPACE"]; space != "" && name != "" {
		name = space + "." + name
	}
	return ctl.PortName(name, containerID)
}

// mac returns the requested MAC address, or nil.
func (c *config) mac() (net.HardwareAddr, error) {
	for _, s := range []string{c.Runtime.MAC, c.Args.CNI.MAC, c.env["MAC"]} {
		if s == "" {
			continue
		}
		mac, err := net.ParseMAC(s)
		if err != nil {
			return nil, invalid(fmt.Sprintf("MAC address %q: want six bytes such as 02:42:ac:1e:00:02", s))
		}
		return mac, nil
	}
	return nil, nil
}

// ips returns the addresses requested from a fastbr network, or zero ones.
func (c *config) ips() (v4, v6 netip.Addr, err error) {
	asked := c.Runtime.IPs
	if len(asked) == 0 {
		asked = c.Args.CNI.IPs
	}
	if len(asked) == 0 && c.env["IP"] != "" {
		asked = []string{c.env["IP"]}
	}
	var plain []string
	for _, text := range asked {
		addr, _, _ := strings.Cut(text, "/")
		if _, err := netip.ParseAddr(addr); err != nil {
			return v4, v6, invalid(fmt.Sprintf("address %q: want an IPv4 or an IPv6 address", text))
		}
		plain = append(plain, addr)
	}
	if v4, v6, err = ctl.ParseAddrs("address", plain); err != nil {
		return v4, v6, unsupported("ips", err)
	}
	return v4, v6, nil
}

// publications returns the port mappings as ranges. Runtimes pass a range as
// one mapping per port, so neighbours are joined and duplicates count once. A
// mapping on an IPv6 address is left out of a pod without IPv6, which still starts.
func (c *config) publications() (out []ctl.PublishRequest, err error) {
	seen := map[ctl.PublishRequest]bool{}
	for _, m := range c.Runtime.PortMappings {
		r, err := m.publication()
		if err != nil {
			return nil, err
		}
		if r.First == 0 || seen[r] {
			continue
		}
		seen[r] = true
		if n := len(out); n > 0 {
			last := &out[n-1]
			if last.HostIP == r.HostIP && last.Proto == r.Proto && last.Last+1 == r.First && last.Port+(r.First-last.First) == r.Port {
				last.Last = r.First
				continue
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// publication translates a mapping. A mapping without a host port publishes
// nothing: it yields the zero value.
func (m portMapping) publication() (r ctl.PublishRequest, err error) {
	if m.HostPort == 0 {
		return r, nil
	}
	r = ctl.PublishRequest{First: uint16(m.HostPort), Last: uint16(m.HostPort), Port: uint16(m.ContainerPort), Proto: strings.ToLower(m.Protocol), Held: true, Lenient: true}
	if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
		return r, invalid(fmt.Sprintf("port mapping %d:%d: want ports from 1 to 65535", m.HostPort, m.ContainerPort))
	}
	if r.Proto == "" {
		r.Proto = "tcp"
	}
	if !ctl.CanPublish(r.Proto) {
		return r, unsupported("portMappings.protocol", m.Protocol)
	}
	if r.HostIP, err = ctl.ParseHostIP(m.HostIP); err != nil {
		return r, invalid(fmt.Sprintf("port mapping: address %q is not an IP address", m.HostIP))
	}
	return r, nil
}

// dns returns the DNS part of the result: the first non-empty one of the
// runtime's, the configuration's and the IPAM plugin's.
func (c *config) dns(ipam types.DNS) types.DNS {
	if d := c.Runtime.DNS; d != nil && len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		return types.DNS{Nameservers: d.Servers, Search: d.Searches, Options: d.Options}
	}
	if !c.DNS.IsEmpty() {
		return c.DNS
	}
	return ipam
}

func yes(b *bool) bool { return b != nil && *b }
