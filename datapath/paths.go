package datapath

import (
	"fmt"
	"path/filepath"
)

const (
	progsDir = "progs"
	linksDir = "links"

	guardLink     = "guard"
	defragLink    = "defrag"
	fragmentsLink = "fragments"
)

// Names below bpffs must not contain dots.

// building is where Create works before it renames; whatever a killed Create
// leaves there is worthless.
func building(dir string) string { return dir + "-new" }

// replaced holds the programs of Upgrade until the old ones are let go.
func replaced(dir string) string { return filepath.Join(dir, progsDir+"-new") }

func mapPath(dir, name string) string  { return filepath.Join(dir, name) }
func progPath(dir, name string) string { return filepath.Join(dir, progsDir, name) }
func linkPath(dir, name string) string { return filepath.Join(dir, linksDir, name) }

// deviceLink names the link of a device's hook: "12-in" (bpffs allows no dots).
func deviceLink(ifindex int, hook string) string { return fmt.Sprintf("%d-%s", ifindex, hook) }
