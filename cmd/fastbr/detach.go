package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

func newDetachCmd(e *env) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:   "detach NAME|TARGET",
		Short: "Unplug a port",
		Long: `Unplug a port, named by its name, its device on the host, or the namespace that
was attached. A port that is already gone is no error.`,
		Example: `  fastbr detach web
  fastbr detach netns:web`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completePorts,
		RunE: func(_ *cobra.Command, args []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				detached, err := c.Detach(ctx, args[0], network)
				if err == nil && len(detached) == 0 {
					e.note("%s is not attached", args[0])
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "`NETWORK` to unplug from (default any)")
	complete(cmd, "network", e.completeNetworks)
	return cmd
}
