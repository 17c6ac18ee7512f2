package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manSection is that of commands for the administrator.
const manSection = "8"

func newManCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the manual pages",
		Long: `Write the manual pages of all commands into DIR, which is made if need be. The
date in them is that of SOURCE_DATE_EPOCH, if set.`,
		Example: "  fastbr man /usr/local/share/man/man8",
		Hidden:  true, // for packaging
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			date, err := sourceDate()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := newRootCmd(e)
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Title: "FASTBR", Section: manSection, Date: date,
				Source: "fastbr " + buildVersion().Version, Manual: "fastbr"}, args[0])
		},
	}
}

// sourceDate is when the sources were changed (reproducible-builds.org), else now.
func sourceDate() (*time.Time, error) {
	now := time.Now()
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		return &now, nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH=%s: seconds since 1970 are wanted", epoch)
	}
	now = time.Unix(seconds, 0).UTC()
	return &now, nil
}
