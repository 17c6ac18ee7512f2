package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

func newPortCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "port",
		Short:   "List ports, and change them",
		Long:    "Ports are the namespaces that are attached, and the uplinks.",
		Example: "  fastbr port ls",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPortLsCmd(e), newPortSetCmd(e))
	return cmd
}

func newPortLsCmd(e *env) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List ports with their counters",
		Long: `List ports with their counters. RX is what the host received from the port, as in
'ip -s link' of its device. SLOW says why a port always takes the kernel's path:
"asked" (--slow), "bandwidth" (a limit of an engine's), a queueing discipline such
as tbf or a "filter" on its device, "no carrier".`,
		Example: `  fastbr port ls
  fastbr port ls --network lab -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				ports, err := c.Ports(ctx, network)
				if err != nil {
					return err
				}
				return e.print(ports, func(w io.Writer) { portTable(w, ports) })
			})
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "only ports of this `NETWORK`")
	complete(cmd, "network", e.completeNetworks)
	return cmd
}

// ips are the addresses of both families in one column.
func ips(v4, v6 string) string {
	if v4 == "" || v6 == "" {
		return v4 + v6
	}
	return v4 + "," + v6
}

func portTable(w io.Writer, ports []ctl.PortView) {
	fmt.Fprintln(w, "NAME\tPORT\tNETWORK\tIP\tMAC\tRX\tTX\tFAST\tDROPS\tSLOW")
	for _, p := range ports {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, p.Port, dash(p.Network), ips(p.IP, p.IP6), p.MAC,
			bytesText(p.RXBytes), bytesText(p.TXBytes), share(p), dropsText(p.Drops), dash(strings.Join(p.Slow, ", ")))
	}
}

func newPortSetCmd(e *env) *cobra.Command {
	var network string
	var slow bool
	var want ctl.PortSettings
	var allowed allowedFlags
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change a port",
		Long: `Change a port while it is attached. NAME is its name, or its device on the host.
With --slow all its packets take the kernel's path from now on, with --slow=false
only those that must. A port that 'port ls' calls slow for other reasons stays slow.

--allowed-address and --allowed-mac add to what the container may send with, as for
'attach'. --no-allowed-address and --no-allowed-mac take back what it may until now,
and end the translated flows of those addresses.`,
		Example: `  fastbr port set web --slow
  fastbr port set web --slow=false
  fastbr port set vpn --allowed-address 10.8.0.0/24
  fastbr port set vpn --no-allowed-address --allowed-address 10.9.0.0/24`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completePorts,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("slow") {
				want.Slow = &slow
			}
			var err error
			if want.Allow, err = allowed.parse(); err != nil {
				return err
			}
			if want.Slow == nil && !want.ForgetAddrs && !want.ForgetMACs && len(want.Allow.Addrs)+len(want.Allow.MACs) == 0 {
				return usage("nothing to set: give --slow, --slow=false, or what is allowed")
			}
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				return c.SetPort(ctx, network, args[0], want)
			})
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "`NETWORK` of the port (default any)")
	cmd.Flags().BoolVar(&slow, "slow", false, "always take the kernel's path")
	allowed.add(cmd.Flags())
	cmd.Flags().BoolVar(&want.ForgetAddrs, "no-allowed-address", false, "take back the allowed addresses")
	cmd.Flags().BoolVar(&want.ForgetMACs, "no-allowed-mac", false, "take back the allowed MAC addresses")
	complete(cmd, "network", e.completeNetworks)
	return cmd
}
