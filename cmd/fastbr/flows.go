package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

func newFlowsCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "List and flush NAT flows",
		Long: `A flow is a translated connection between a container and the outside, or between
two containers by an address of the host.`,
		Example: "  fastbr flows ls",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newFlowsLsCmd(e), newFlowsFlushCmd(e))
	return cmd
}

func newFlowsLsCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List live NAT flows",
		Long: `List live NAT flows: the container's address, the external one, the remote one,
the time until the flow expires, and the time for which its outbound packets may
still take the fast path. IPv6 addresses stand in brackets: [ADDRESS]:PORT.`,
		Example: `  fastbr flows ls
  fastbr flows ls -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				flows, err := c.Flows(ctx)
				if err != nil {
					return err
				}
				return e.print(flows, func(w io.Writer) {
					fmt.Fprintln(w, "PROTO\tSRC\tNAT\tDST\tSTATE\tEXPIRES\tLEASE")
					for _, f := range flows {
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%ds\t%ds\n", f.Proto, f.Src, f.NAT, f.Dst, f.State, f.ExpiresS, f.LeaseS)
					}
				})
			})
		},
	}
}

func newFlowsFlushCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "flush",
		Short:   "End every NAT flow",
		Long:    "End every NAT flow. Connections through them break.",
		Example: "  fastbr flows flush",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				n, err := c.FlushFlows(ctx)
				if err == nil {
					e.note("%d flows ended", n)
				}
				return err
			})
		},
	}
}
