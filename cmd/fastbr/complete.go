package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

// complete attaches a completion to a flag that the same constructor defined.
func complete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // a misspelt flag name: the first test of the tree finds it
	}
}

// completeNetworks offers the names of networks that fastbr made.
func (e *env) completeNetworks(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return e.completion(cmd, func(c *ctl.Controller) (names []string, err error) {
		all, err := c.NetworkList(e.ctx)
		for _, n := range all {
			if n.Driver == "fastbr" {
				names = append(names, n.Name)
			}
		}
		return names, err
	})
}

// completePorts offers the names of ports.
func (e *env) completePorts(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return e.completion(cmd, func(c *ctl.Controller) (names []string, err error) {
		all, err := c.Ports(e.ctx, "")
		for _, p := range all {
			if p.Network != "" {
				names = append(names, p.Name)
			}
		}
		return names, err
	})
}

// completeBridges offers the bridges of the namespace.
func (e *env) completeBridges(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return e.completion(cmd, func(c *ctl.Controller) (names []string, err error) {
		all, err := c.Bridges()
		for _, b := range all {
			names = append(names, b.Name)
		}
		return names, err
	})
}

// completion runs a lookup. A failed lookup yields no suggestions.
func (e *env) completion(_ *cobra.Command, look func(*ctl.Controller) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	if e.enterNetns() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := e.controller()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, err := look(c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// initCompletion creates the library's own completion command before it runs, so
// that it refuses unknown shells and has examples.
func initCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	c, _, err := root.Find([]string{"completion"})
	if err != nil {
		return // no commands, no completion
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	c.Example = "  source <(fastbr completion bash)"
	for _, shell := range c.Commands() {
		shell.Example = "  " + shell.CommandPath() + " --no-descriptions"
	}
}

// initHelp makes `help` refuse an unknown command. The library would print the
// usage and exit with 0.
func initHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	c, _, err := root.Find([]string{"help"})
	if err != nil {
		return // no commands, no help
	}
	c.Example = "  fastbr help network create"
	c.Args = func(_ *cobra.Command, args []string) error {
		about, rest, err := root.Find(args)
		if err == nil && len(rest) > 0 {
			err = fmt.Errorf("unknown command %q for %q", rest[0], about.CommandPath())
		}
		return err
	}
}
