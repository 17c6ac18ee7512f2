package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

// shortID is the number of digits of a network's id in a table.
const shortID = 12

func newNetworkCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "network",
		Short: "Define, list and remove networks",
		Long: `Networks as docker has them. A network that 'create' made outlives 'fastbr down'
and a reboot; 'fastbr up NAME' brings it up again.`,
		Example: `  fastbr network create lab
  fastbr network ls`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newNetworkCreateCmd(e), newNetworkLsCmd(e), newNetworkInspectCmd(e), newNetworkRmCmd(e))
	return cmd
}

func newNetworkCreateCmd(e *env) *cobra.Command {
	var f networkFlags
	cmd := &cobra.Command{
		Use:   "create NETWORK",
		Short: "Define a network and bring it up",
		Long: `Define a network and bring it up. Without --subnet it gets the next free /20 of
192.168.0.0/16, then of 172.16.0.0/12. With --ipv6 it also gets the next free /64 of
this host's own IPv6 prefix.`,
		Example: `  fastbr network create lab
  fastbr network create db --subnet 10.9.0.0/24 --internal
  fastbr network create six --ipv6`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := f.request(cmd)
			if err != nil {
				return err
			}
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				v, err := c.NetworkCreate(ctx, args[0], r)
				if err != nil {
					return err
				}
				return e.print(v, func(w io.Writer) { fmt.Fprintln(w, v.ID) })
			})
		},
	}
	f.define(cmd.Flags())
	return cmd
}

func newNetworkLsCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List networks",
		Long:    "List networks, those defined but not up included, and the modes host and none.",
		Example: `  fastbr network ls
  fastbr network ls -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				all, err := c.NetworkList(ctx)
				if err != nil {
					return err
				}
				return e.print(all, func(w io.Writer) {
					fmt.Fprintln(w, "NETWORK ID\tNAME\tDRIVER\tSCOPE")
					for _, n := range all {
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", n.ID[:shortID], n.Name, n.Driver, n.Scope)
					}
				})
			})
		},
	}
}

func newNetworkInspectCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect NETWORK",
		Short: "Show one network with its ports and totals",
		Long:  "Show one network, by name or by the start of its id, with its ports and totals.",
		Example: `  fastbr network inspect default
  fastbr network inspect lab -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeNetworks,
		RunE: func(_ *cobra.Command, args []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				v, err := c.NetworkInspect(ctx, args[0])
				if err != nil {
					return err
				}
				return e.print(v, func(w io.Writer) { inspectTable(w, v) })
			})
		},
	}
}

func inspectTable(w io.Writer, v ctl.NetworkView) {
	fmt.Fprintf(w, "Name\t%s\nID\t%s\nDriver\t%s\nScope\t%s\n", v.Name, v.ID, v.Driver, v.Scope)
	if v.Bridge == "" {
		return
	}
	fmt.Fprintf(w, "Up\t%s\nBridge\t%s\nSubnet\t%s\nGateway\t%s\nMTU\t%d\nMasquerade\t%s\nInternal\t%s\n", yesNo(v.Up), v.Bridge,
		v.Subnet, v.Gateway, v.MTU, yesNo(v.Masquerade), yesNo(v.Internal))
	switch {
	case v.Subnet6 != "":
		fmt.Fprintf(w, "IPv6 subnet\t%s\nIPv6 gateway\t%s\nIPv6 masquerade\t%s\n", v.Subnet6, v.Gateway6, yesNo(v.Masquerade6))
		if v.NDProxy {
			fmt.Fprintf(w, "Neighbour proxy\tyes\n")
		}
	case v.IPv6 == ctl.IPv6LinkLocal:
		fmt.Fprintf(w, "IPv6\tlink-local\n")
	}
	for _, a := range []string{v.SNATAddress, v.SNATAddress6} {
		if a != "" {
			fmt.Fprintf(w, "Source address\t%s\n", a)
		}
	}
	if v.Via != "" {
		fmt.Fprintf(w, "Only way out\t%s\n", v.Via)
	}
	if v.PublishedOnly {
		fmt.Fprintf(w, "Published ports only\tyes\n")
	}
	for _, p := range v.NoMasquerade {
		fmt.Fprintf(w, "Not masqueraded to\t%s\n", p)
	}
	fmt.Fprintf(w, "Names\t%s\n", yesNo(v.DNS))
	fmt.Fprintf(w, "NAT\t%s mapping, %s filtering, on exhaustion %s\n", v.NAT.Mapping, v.NAT.Filtering, v.NAT.OnExhaustion)
	for _, key := range slices.Sorted(maps.Keys(v.Options)) {
		fmt.Fprintf(w, "Option\t%s=%s\n", key, v.Options[key])
	}
	fmt.Fprintf(w, "Received\t%d packets, %s\nSent\t%d packets, %s\n", v.Totals.RXPackets, bytesText(v.Totals.RXBytes),
		v.Totals.TXPackets, bytesText(v.Totals.TXBytes))
	fmt.Fprintf(w, "Ports\t%d\n", len(v.Ports))
	for _, p := range v.Ports {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", p.Name, ips(p.IP, p.IP6), p.MAC, p.Port)
	}
}

func newNetworkRmCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:               "rm NETWORK...",
		Aliases:           []string{"remove"},
		Short:             "Take networks down and delete their definitions",
		Long:              "Take networks down and delete their definitions. A network that has ports is refused.",
		Example:           "  fastbr network rm lab",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: e.completeNetworks,
		RunE: func(_ *cobra.Command, args []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				for _, name := range args {
					if err := c.NetworkRemove(ctx, name); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
