//go:build !man

// Command fastbr builds container bridges with an eBPF datapath.
package main

import (
	"os"
	"runtime/debug"
)

// garbage is how much of it, in percent of what is in use, is left to lie: most
// commands end before collecting it would pay.
const garbage = 400

func main() {
	debug.SetGCPercent(garbage)
	os.Exit(run(newEnv()))
}
