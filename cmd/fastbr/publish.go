package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

func newPublishCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Lead ports of the host to containers",
		Long: `Publish ports of containers on the host. Clients outside reach the container by
any address of the host, and the container sees the client's address. Containers
of every network that is not internal, and the host itself, reach it in the same
way; the container then sees the address that was asked for, or the gateway if
that was loopback. The host's firewall decides in FORWARD, as about all traffic
to the container. A port published on 127.0.0.1 or [::1] is for the host alone.`,
		Example: "  fastbr publish add 8080:80 web",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPublishAddCmd(e), newPublishLsCmd(e), newPublishRmCmd(e))
	return cmd
}

func newPublishAddCmd(e *env) *cobra.Command {
	var network string
	var allow []string
	cmd := &cobra.Command{
		Use:   "add [HOSTIP:]HOST[-END]:CONTAINER[/tcp|udp|sctp] NAME",
		Short: "Publish ports of the container NAME",
		Long: `Publish ports of the container NAME, as docker's -p does: one port of the host, or
a range. A host port that is published already, or that a socket of the host has,
is refused. Once a port is published, no process of the host can bind it (SCTP: no
process answers on it). SCTP is translated by the kernel's NAT, not on the fast path,
and cannot be published on loopback.

Without HOSTIP, clients by IPv4 and, if the container has an IPv6 address, by IPv6 use
any address of the host. HOSTIP 0.0.0.0 is every IPv4 address, and [::] every IPv6
address. IPv6 clients do not reach a container that has IPv4 only.`,
		Example: `  fastbr publish add 8080:80 web
  fastbr publish add '[2001:db8::1]:8080:80' web
  fastbr publish add 198.51.100.1:53:53/udp dns --allow 198.51.100.0/24
  fastbr publish add 443:443 web --allow 198.51.100.0/24 --allow 2001:db8::/32
  fastbr publish add 40000-40999:40000/udp rtp
  fastbr publish add 2905:2905/sctp sigtran`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := parsePublication(args[0])
			if err != nil {
				return err
			}
			if r.Port == 0 {
				return usage("publication %q: want [HOSTIP:]HOST[-END]:CONTAINER[/tcp|udp|sctp], such as 8080:80", args[0])
			}
			if r.Proto == "" {
				r.Proto = "tcp"
			}
			r.Name, r.Network = args[1], network
			if r.Allow, r.Allow6, err = ctl.ParseClients(allow); err != nil {
				return usage("%v", err)
			}
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				v, err := c.Publish(ctx, r)
				if err != nil {
					return err
				}
				return e.print(v, func(w io.Writer) { publicationTable(w, v) })
			})
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "`NETWORK` of the container (default whichever has one of that name)")
	cmd.Flags().StringSliceVar(&allow, "allow", nil, "clients that may use it, a `CIDR` for each family; one alone lets in nobody by the other (default all of both)")
	complete(cmd, "network", e.completeNetworks)
	return cmd
}

func newPublishLsCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List published ports",
		Long:    "List published ports: the host's, the container's, and who may use them.",
		Example: "  fastbr publish ls -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				all, err := c.Publications(ctx)
				if err != nil {
					return err
				}
				return e.print(all, func(w io.Writer) { publicationTable(w, all...) })
			})
		},
	}
}

func newPublishRmCmd(e *env) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:     "rm [HOSTIP:]HOST[-END][:CONTAINER][/tcp|udp|sctp] [NAME]",
		Aliases: []string{"remove"},
		Short:   "Take a publication back",
		Long: `Remove publications and end the flows through them. What is left out matches
anything: 'rm 8080' removes TCP and UDP port 8080 of whatever container.`,
		Example: `  fastbr publish rm 8080
  fastbr publish rm 53/udp dns`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := parsePublication(args[0])
			if err != nil {
				return err
			}
			if len(args) == 2 {
				r.Name = args[1]
			}
			r.Network = network
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				_, err := c.Unpublish(ctx, r)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "`NETWORK` of the container (default any)")
	complete(cmd, "network", e.completeNetworks)
	return cmd
}

func publicationTable(w io.Writer, all ...ctl.PublicationView) {
	fmt.Fprintln(w, "HOST\tCONTAINER\tPROTO\tNAME\tNETWORK\tALLOW")
	for _, v := range all {
		host, container := portRange(v.HostPort, v.HostPortEnd), portRange(v.ContainerPort, v.ContainerPortEnd)
		hosts := ips(hostPort(v.HostIP, v.IP, host, container), hostPort(v.HostIP6, v.IP6, host, container))
		containers := ips(hostPort(v.IP, "", container, ""), hostPort(v.IP6, "", container, ""))
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", hosts, containers, v.Proto, v.Name, v.Network, ips(v.Allow, v.Allow6))
	}
}

// hostPort is an address with its ports, "" if there is no address. Those of the container's
// own address are ownPorts.
func hostPort(addr, own, ports, ownPorts string) string {
	switch addr {
	case "":
		return ""
	case own:
		return net.JoinHostPort(addr, ownPorts)
	}
	return net.JoinHostPort(addr, ports)
}

func portRange(first, last int) string {
	if first == last {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// parsePublication parses [HOSTIP:]HOST[-END][:CONTAINER[-END]][/tcp|udp|sctp]. A missing
// container port or protocol stays zero.
func parsePublication(s string) (r ctl.PublishRequest, err error) {
	bad := usage("publication %q: want [HOSTIP:]HOST[-END]:CONTAINER[/tcp|udp|sctp], such as 8080:80 or [::1]:8080:80", s)
	ports, proto, hasProto := strings.Cut(s, "/")
	if hasProto && !ctl.CanPublish(proto) {
		return r, usage("publication %q: protocol %q: %s", s, proto, ctl.Protocols)
	}
	r.Proto = proto
	host, rest, hasHost := strings.Cut(ports, ":")
	if strings.HasPrefix(ports, "[") {
		host, rest, hasHost = strings.Cut(ports[1:], "]:")
		hasHost = hasHost && strings.Contains(host, ":")
	} else {
		hasHost = hasHost && strings.Contains(host, ".")
	}
	if hasHost {
		if r.HostIP, err = ctl.ParseHostIP(host); err != nil {
			return r, usage("publication %q: address %q: want an IPv4 address, or an IPv6 address in brackets", s, host)
		}
		ports = rest
	}
	f := strings.Split(ports, ":")
	if len(f) < 1 || len(f) > 2 {
		return r, bad
	}
	var ok bool
	if r.First, r.Last, ok = ports16(f[0]); !ok {
		return r, bad
	}
	if len(f) == 1 {
		return r, nil
	}
	first, last, ok := ports16(f[1])
	if !ok || last != first && last-first != r.Last-r.First {
		return r, bad
	}
	r.Port = first
	return r, nil
}

// ports16 parses "80" or "80-89".
func ports16(s string) (first, last uint16, ok bool) {
	a, b, isRange := strings.Cut(s, "-")
	x, err := strconv.ParseUint(a, 10, 16)
	y := x
	if err == nil && isRange {
		y, err = strconv.ParseUint(b, 10, 16)
	}
	return uint16(x), uint16(y), err == nil && x > 0 && x <= y
}
