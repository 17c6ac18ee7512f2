package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

func newDownCmd(e *env) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down [NETWORK]",
		Short: "Take a network down",
		Long: `Take a network down: detach its ports, remove its bridge and rules. With the last
network go the programs, the pins and the changed settings; the host is as it
was before 'up'. Definitions made by 'fastbr network create' stay. Settings made by
'fastbr up --no-network' stay until 'fastbr down --all'. A network that is not up
is no error.`,
		Example: `  fastbr down
  fastbr down lab
  fastbr down --all`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: e.completeNetworks,
		RunE: func(_ *cobra.Command, args []string) error {
			if all && len(args) > 0 {
				return usage("--all takes no network")
			}
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				if all {
					return e.downAll(ctx, c)
				}
				was, err := c.Down(ctx, networkArg(args))
				if err == nil && !was {
					e.note("network %s is not up", networkArg(args))
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every network, and the settings made by 'fastbr up --no-network'")
	return cmd
}

func (e *env) downAll(ctx context.Context, c *ctl.Controller) error {
	names, err := c.DownAll(ctx)
	if err == nil && len(names) == 0 {
		e.note("no network is up")
	}
	return err
}
