package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

func newShowCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "show [BRIDGE]...",
		Short: "Show bridges and their ports as brctl does",
		Long:  "Show the bridges of the namespace and their ports, in the very layout of 'brctl show'.",
		Example: `  fastbr show
  fastbr show fastbr0`,
		ValidArgsFunction: e.completeBridges,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := e.controller()
			if err != nil {
				return err
			}
			all, err := c.Bridges()
			if err != nil {
				return err
			}
			chosen, missing := chooseBridges(all, args)
			if e.json() {
				err = e.print(chosen, nil)
			} else {
				_, err = io.WriteString(e.stdout, brctlTable(chosen))
			}
			if err == nil && missing != "" {
				err = fmt.Errorf("bridge %s does not exist", missing)
			}
			return err
		},
	}
}

// chooseBridges returns the named bridges, or all if no name is given. missing is
// the first name that is not a bridge.
func chooseBridges(all []ctl.BridgeView, names []string) (chosen []ctl.BridgeView, missing string) {
	if len(names) == 0 {
		return all, ""
	}
	chosen = []ctl.BridgeView{}
	for _, name := range names {
		found := false
		for _, b := range all {
			if b.Name == name {
				chosen, found = append(chosen, b), true
			}
		}
		if !found && missing == "" {
			missing = name
		}
	}
	return chosen, missing
}

// brctlTable is the output of `brctl show`, byte for byte.
func brctlTable(bridges []ctl.BridgeView) string {
	var b strings.Builder
	b.WriteString("bridge name\tbridge id\t\tSTP enabled\tinterfaces\n")
	for _, br := range bridges {
		fmt.Fprintf(&b, "%s\t\t%s\t%s\t\t%s\n", br.Name, br.ID, yesNo(br.STP), strings.Join(br.Interfaces, "\n\t\t\t\t\t\t\t"))
	}
	return b.String()
}
