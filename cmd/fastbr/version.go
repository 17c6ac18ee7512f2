package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

// versionView is `version -o json`.
type versionView struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Modified bool   `json:"modified"`
	Schema   int    `json:"schema"` // layout of the state file
	Go       string `json:"go"`
}

// commit returns the short revision, and whether the source differed from it.
func (v versionView) commit() string {
	c := fmt.Sprintf("%.12s", v.Revision)
	if v.Modified {
		c += "-dirty"
	}
	return c
}

// version and commit are set by the linker (Makefile), because the toolchain knows
// neither in a tarball. If they are empty, the values stamped by the toolchain count.
var version, commit string

// buildVersion returns what was built, and from which source.
func buildVersion() versionView {
	v := stampedVersion()
	if version != "" {
		v.Version = version
	}
	if commit != "" {
		v.Revision, v.Modified = strings.CutSuffix(commit, "-dirty")
	}
	return v
}

// stampedVersion reads what the Go toolchain stamped into the binary.
func stampedVersion() versionView {
	v := versionView{Version: "(devel)", Schema: ctl.StateVersion, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func newVersionCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version",
		Long:    "Show the version of the program and of the state it writes.",
		Example: "  fastbr version",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := buildVersion()
			return e.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "fastbr %s", v.Version)
				if v.Revision != "" {
					fmt.Fprintf(w, " (%.12s)", v.Revision)
				}
				fmt.Fprintf(w, ", state schema %d, %s\n", v.Schema, v.Go)
			})
		},
	}
}
