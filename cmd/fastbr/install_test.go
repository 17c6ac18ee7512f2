package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/internal/manual"
)

// TestInstallIsWhole installs into an empty tree. Every command has a manual page,
// every unit starts an installed program with arguments that it knows, and uninstall
// removes everything.
func TestInstallIsWhole(t *testing.T) {
	pages := t.TempDir()
	if err := manual.Write(newRootCmd(&env{}), "0", pages); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"/usr", "/usr/local"} {
		t.Run(prefix, func(t *testing.T) {
			tree := t.TempDir()
			install(t, tree, prefix, "install", program(t), pages)
			for _, name := range manualPages(newRootCmd(&env{}), nil) {
				if _, err := os.Stat(filepath.Join(tree, prefix, "share/man/man8", name+".8.gz")); err != nil {
					t.Error(err)
				}
			}
			units, err := filepath.Glob(filepath.Join(tree, prefix, "lib/systemd/system/*.service"))
			if err != nil || len(units) == 0 {
				t.Fatalf("no units: %v", err)
			}
			for _, unit := range units {
				checkUnit(t, tree, unit)
			}
			install(t, tree, prefix, "uninstall")
			_ = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.IsDir() {
					t.Errorf("left behind: %s %v", path, err)
				}
				return nil
			})
		})
	}
}

func install(t *testing.T, tree, prefix, script string, args ...string) {
	t.Helper()
	c := exec.Command(filepath.Join("../../packaging", script), args...)
	c.Env = append(os.Environ(), "DESTDIR="+tree, "PREFIX="+prefix)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// manualPages returns the page names of a command and its subcommands.
func manualPages(c *cobra.Command, names []string) []string {
	if !c.IsAvailableCommand() && c.HasParent() {
		return names
	}
	names = append(names, strings.ReplaceAll(c.CommandPath(), " ", "-"))
	for _, sub := range c.Commands() {
		names = manualPages(sub, names)
	}
	return names
}

// checkUnit runs the unit's command with --help.
func checkUnit(t *testing.T, tree, unit string) {
	t.Helper()
	content, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	started := 0
	for line := range strings.Lines(string(content)) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart=")
		if !ok {
			continue
		}
		started++
		argv := strings.Fields(command)
		out, err := exec.Command(filepath.Join(tree, argv[0]), append(argv[1:], "--help")...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %s: %v: %s", filepath.Base(unit), command, err, out)
		}
	}
	if started != 1 {
		t.Errorf("%s starts %d programs", filepath.Base(unit), started)
	}
}
