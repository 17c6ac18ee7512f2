package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

func newCheckCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say whether this host can run fastbr",
		Long: `Say whether this host can run fastbr, and what would be in the way. Exits with 1 if
something required is missing. Changes nothing.`,
		Example: `  fastbr check
  fastbr check -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				findings, able, err := c.Check(ctx)
				if err != nil {
					return err
				}
				err = e.print(findings, func(w io.Writer) {
					fmt.Fprintln(w, "NAME\tSTATE\tLINUX\tDETAIL")
					for _, f := range findings {
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Name, f.State, dash(f.Minimum), f.Detail)
					}
				})
				if err == nil && !able {
					err = errors.New("this host cannot run fastbr: something required is missing")
				}
				return err
			})
		},
	}
}
