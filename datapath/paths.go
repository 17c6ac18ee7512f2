package datapath

import (
	"fmt"
	"path/filepath"
)

const (
	progsDir = "progs"
	linksDir = "links"

	guardLink     = "guard"
	inputLink     = "input"
	defragLink    = "defrag"
	fragmentsLink = "fragments"

	neighboursLink = "neighbours"
)

// Names below bpffs must not contain dots.

// building returns the directory in which Create and Upgrade work before they
// rename it. What a killed one leaves there is worthless.
func building(dir string) string { return dir + "-new" }

// following returns the directory that holds the result of Upgrade once it
// begins to swap programs.
func following(dir string) string { return dir + "-next" }

// previous returns the directory that holds the old pins after an Upgrade,
// until they are removed.
func previous(dir string) string { return dir + "-old" }

func mapPath(dir, name string) string  { return filepath.Join(dir, name) }
func progPath(dir, name string) string { return filepath.Join(dir, progsDir, name) }
func linkPath(dir, name string) string { return filepath.Join(dir, linksDir, name) }

// deviceLink returns the name of the link on a device's hook, such as "12-in".
// bpffs allows no dots.
func deviceLink(ifindex int, hook string) string { return fmt.Sprintf("%d-%s", ifindex, hook) }
