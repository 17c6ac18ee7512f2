package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// unitSetting is the value of a setting in one of our systemd units.
func unitSetting(t *testing.T, unit, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "packaging", "systemd", unit))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("%s has no %s", unit, name)
	return ""
}

// TestE2EUnitsHaveWhatTheyNeed runs the units' commands with only the units'
// capabilities, and without a way to get more.
func TestE2EUnitsHaveWhatTheyNeed(t *testing.T) {
	t.Parallel()
	testutil.RequireCommand(t, "setpriv")
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	confined := func(unit string, args ...string) {
		t.Helper()
		if v := unitSetting(t, unit, "NoNewPrivileges"); v != "yes" {
			t.Errorf("%s: NoNewPrivileges=%s", unit, v)
		}
		set := "-all"
		for _, c := range strings.Fields(unitSetting(t, unit, "CapabilityBoundingSet")) {
			set += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
		}
		c := h.Cmd(args...)
		c.Args = append([]string{"setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=" + set, "--"}, c.Args...)
		path, err := exec.LookPath("setpriv")
		if err != nil {
			t.Fatal(err)
		}
		c.Path = path
		if r := harness.Run(t, c); r.Code != 0 {
			t.Fatalf("%s: %v: exit %d: %s", unit, args, r.Code, r.Stderr)
		}
	}
	confined("fastbr.service", "up")
	confined("fastbr@.service", "network", "create", "lab")
	confined("fastbr-serve.service", "attach", h.Containers[0].Path(), "--name", "c1")
	confined("fastbr-serve.service", "publish", "add", "8080:80", "c1")
	confined("fastbr-serve.service", "detach", "c1")
	confined("fastbr.service", "down", "--all")
	for _, unit := range []string{"fastbr.service", "fastbr@.service"} {
		if v := unitSetting(t, unit, "Wants"); v != "fastbr-serve.service" {
			t.Errorf("%s wants %s: who adds an uplink that appears later?", unit, v)
		}
	}
}
