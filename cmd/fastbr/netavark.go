package main

import (
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl/netavark"
)

// newNetavarkCmds returns the commands with which netavark starts the plugin. They
// are for Podman and hidden in the help.
func newNetavarkCmds(e *env) []*cobra.Command {
	call := func(use, short string, args cobra.PositionalArgs, f func(ctx context.Context, p netavark.Plugin, args []string) error) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Hidden: true, Args: args,
			Long:    short + ". A call of netavark, Podman's network stack: JSON in and out.",
			Example: "  podman network create -d fastbr net1",
			RunE: func(_ *cobra.Command, args []string) error {
				p := netavark.Plugin{Open: e.controller, Stdin: e.stdin, Stdout: e.stdout}
				err := f(e.ctx, p, args)
				if err == nil {
					return nil
				}
				// The caller reads errors from standard output.
				if err := json.NewEncoder(e.stdout).Encode(map[string]string{"error": err.Error()}); err != nil {
					return err
				}
				return exitError{exitFailed}
			},
		}
	}
	return []*cobra.Command{
		call("info", "Say which netavark plugin this is", cobra.NoArgs,
			func(_ context.Context, p netavark.Plugin, _ []string) error { return p.Info(buildVersion().Version) }),
		call("create", "Complete the configuration of a netavark network", cobra.NoArgs,
			func(ctx context.Context, p netavark.Plugin, _ []string) error { return p.Create(ctx) }),
		call("setup NETNS", "Plug a container of netavark's in", cobra.ExactArgs(1),
			func(ctx context.Context, p netavark.Plugin, args []string) error { return p.Setup(ctx, args[0]) }),
		call("teardown NETNS", "Unplug a container of netavark's", cobra.ExactArgs(1),
			func(ctx context.Context, p netavark.Plugin, _ []string) error { return p.Teardown(ctx) }),
	}
}
