// Package manual writes the manual pages of a command tree. It is not linked into
// fastbr itself: its dependencies would make every command start later.
package manual

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// section is that of commands for the administrator.
const section = "8"

// Write writes the pages of root and of all commands below it into dir, which is
// made if need be. The date in them is that of SOURCE_DATE_EPOCH, if set.
func Write(root *cobra.Command, version, dir string) error {
	date, err := sourceDate()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	return doc.GenManTree(root, &doc.GenManHeader{Title: "FASTBR", Section: section, Date: date,
		Source: "fastbr " + version, Manual: "fastbr"}, dir)
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
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH=%s: want seconds since 1970", epoch)
	}
	now = time.Unix(seconds, 0).UTC()
	return &now, nil
}
