//go:build !man

// Command fastbr builds container bridges with an eBPF datapath.
package main

import (
	"os"
	"runtime/debug"
)

// garbage is how much the heap may grow before a collection, in percent of what is
// in use. Most commands end before a collection would pay.
const garbage = 400

func main() {
	debug.SetGCPercent(garbage)
	os.Exit(run(newEnv()))
}
