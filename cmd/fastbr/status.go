package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

func newStatusCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what is up and how",
		Long: `Show what is up and how: networks, uplinks, how the programs are attached, the
accept rules that fastbr added to the host's firewall, and what should be looked at.
If nothing is up, it fails with exit code 3 and names the settings that are kept.`,
		Example: `  fastbr status
  fastbr status -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				v, err := c.Status(ctx)
				if err != nil {
					return err
				}
				return e.print(v, func(w io.Writer) { statusTable(w, v) })
			})
		},
	}
}

func statusTable(w io.Writer, v ctl.StatusView) {
	var uplinks, xdp []string
	for _, u := range v.Uplinks {
		uplinks = append(uplinks, fmt.Sprintf("%s (%s, %s)", u.Device, u.Addr, u.Kind))
		xdp = append(xdp, fmt.Sprintf("%s on %s: %s", u.XDP, u.Device, u.XDPWhy))
	}
	fmt.Fprintf(w, "Instance\t%s\n", v.Instance)
	fmt.Fprintf(w, "Uplinks\t%s\n", dash(strings.Join(uplinks, ", ")))
	fmt.Fprintf(w, "Programs\t%s, XDP %s\n", v.Mechanism, v.XDP)
	for _, line := range xdp {
		fmt.Fprintf(w, "XDP\t%s\n", line)
	}
	fmt.Fprintf(w, "BIG TCP\t%s: super-packets of %d bytes: %s\n", v.BigTCP.Mode, v.BigTCP.Size, v.BigTCP.Why)
	fmt.Fprintf(w, "Fast path\tlease %s\n", v.Lease)
	fmt.Fprintf(w, "NAT\tports %s, %s\n", v.NATRange, flowsInUse(v))
	for _, n := range v.Networks {
		fmt.Fprintf(w, "Network %s\tup %s, bridge %s, %s, ports %d, MTU %d\n", n.Name, yesNo(n.Up), n.Bridge, ips(n.Subnet, n.Subnet6), len(n.Ports), n.MTU)
	}
	for _, r := range v.Accept {
		fmt.Fprintf(w, "Rules\taccept %s in %s: %s\n", r.Bridge, r.Where, r.What)
	}
	for _, f := range v.Features {
		if f.State != "ok" {
			fmt.Fprintf(w, "Kernel\t%s %s\n", f.Name, f.State)
		}
	}
	for _, note := range v.Notes {
		fmt.Fprintf(w, "Note\t%s\n", note)
	}
}

// flowsInUse says how many flows there are and may be, in each family's table.
func flowsInUse(v ctl.StatusView) string {
	six, ok := v.FlowsOf["ipv6"]
	if !ok {
		return fmt.Sprintf("%d of %d flows", v.Flows, v.FlowsMax)
	}
	return fmt.Sprintf("%d of %d flows by IPv4, %d of %d by IPv6", v.FlowsOf["ipv4"], v.FlowsMax, six, v.FlowsMax)
}
