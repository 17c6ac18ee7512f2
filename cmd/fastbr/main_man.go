//go:build man

// With the tag "man" this program writes fastbr's manual pages instead of running
// fastbr: go run -tags man ./cmd/fastbr DIR.
package main

import (
	"fmt"
	"os"

	"github.com/fastbr/fastbr/internal/manual"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run -tags man ./cmd/fastbr DIR")
		os.Exit(exitUsage)
	}
	if err := manual.Write(newRootCmd(newEnv()), buildVersion().Version, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailed)
	}
}
