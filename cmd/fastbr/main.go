// Command fastbr builds container bridges with an eBPF datapath.
package main

import "os"

func main() {
	os.Exit(run(newEnv()))
}
