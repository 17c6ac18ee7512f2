package netavark

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/fastbr/fastbr/ctl"
)

// attachment is the input of setup and teardown.
type attachment struct {
	ContainerID   string        `json:"container_id"`
	ContainerName string        `json:"container_name"`
	PortMappings  []portMapping `json:"port_mappings"`
	Network       network       `json:"network"`
	Options       struct {
		Interface string       `json:"interface_name"`
		StaticIPs []netip.Addr `json:"static_ips"`
		StaticMAC string       `json:"static_mac"`
		// Options are the container's own, from Podman 5.
		Options map[string]string `json:"options"`
	} `json:"network_options"`
}

type portMapping struct {
	ContainerPort uint16 `json:"container_port"`
	HostIP        string `json:"host_ip"`
	HostPort      uint16 `json:"host_port"`
	Protocol      string `json:"protocol"` // "tcp", "tcp,udp"
	Range         uint16 `json:"range"`    // number of consecutive ports; 0 means 1
}

// status is the output of setup.
type status struct {
	Interfaces    map[string]address `json:"interfaces"`
	SearchDomains []string           `json:"dns_search_domains"`
	ServerIPs     []netip.Addr       `json:"dns_server_ips"`
}

type address struct {
	MAC     string       `json:"mac_address"`
	Subnets []netAddress `json:"subnets"`
}

type netAddress struct {
	IPNet   string  `json:"ipnet"`
	Gateway *string `json:"gateway,omitempty"`
}

func (a attachment) owner() ctl.Owner {
	return ctl.Owner{Engine: "netavark", Network: a.Network.Name, Container: a.ContainerID, Ifname: a.Options.Interface}
}

func (a attachment) request(netns string) (r ctl.AttachRequest, err error) {
	o := a.owner()
	r = ctl.AttachRequest{Target: netns, Network: a.Network.bridge(), Name: ctl.PortName(a.ContainerName, a.ContainerID), Ifname: a.Options.Interface, Owner: &o}
	if r.Expect, err = a.Network.request(); err != nil {
		return r, err
	}
	if r.Routes, err = a.Network.routes(); err != nil {
		return r, err
	}
	for _, ip := range a.Options.StaticIPs {
		to := &r.IP
		if ip.Is6() {
			to = &r.IP6
		}
		if to.IsValid() {
			return r, fmt.Errorf("container %s: addresses %s and %s: one for each of IPv4 and IPv6", a.ContainerID, *to, ip)
		}
		*to = ip
	}
	if a.Options.StaticMAC != "" {
		if r.MAC, err = net.ParseMAC(a.Options.StaticMAC); err != nil {
			return r, fmt.Errorf("container %s: %w", a.ContainerID, err)
		}
	}
	if r.Allowed, err = a.Network.allowed(a.Options.Options); err != nil {
		return r, fmt.Errorf("container %s: %w", a.ContainerID, err)
	}
	for _, m := range a.PortMappings {
		if a.Network.Internal {
			break // as netavark does: nobody outside could reach them
		}
		pubs, err := m.publications()
		if err != nil {
			return r, fmt.Errorf("container %s: %w", a.ContainerID, err)
		}
		r.Publish = append(r.Publish, pubs...)
	}
	return r, nil
}

func (m portMapping) publications() (out []ctl.PublishRequest, err error) {
	more := max(m.Range, 1) - 1
	r := ctl.PublishRequest{First: m.HostPort, Last: m.HostPort + more, Port: m.ContainerPort, Held: true}
	if r.Last < r.First {
		return nil, fmt.Errorf("host ports from %d: %d ports do not fit below 65536", m.HostPort, m.Range)
	}
	if r.HostIP, err = ctl.ParseHostIP(m.HostIP); err != nil {
		return nil, fmt.Errorf("host address %q: want an IPv4 or an IPv6 address", m.HostIP)
	}
	for proto := range strings.SplitSeq(m.Protocol, ",") {
		if !ctl.CanPublish(proto) {
			return nil, fmt.Errorf("host port %d: protocol %q is not supported: %s", m.HostPort, proto, ctl.Protocols)
		}
		r.Proto = proto
		out = append(out, r)
	}
	return out, nil
}
