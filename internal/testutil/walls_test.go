package testutil

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fastbr/fastbr"

// Dependencies that only some packages may import.
const (
	ebpf       = "github.com/cilium/ebpf"
	netlinkLib = "github.com/vishvananda/netlink"
	cobra      = "github.com/spf13/cobra"
	prometheus = "github.com/prometheus/client_golang"
	dbus       = "github.com/godbus/dbus"
)

// onlyIn are dependencies that only one package may import.
var onlyIn = map[string]string{dbus: "ctl/firewall"}

// wall says what a package may import. Facts flow down as plain values, and results
// come up, as docs/ARCHITECTURE.md describes under Rooms.
type wall struct {
	ours    []string // packages of this module that it may import; "x/..." includes all below
	never   []string // dependencies that it must not import
	stdOnly bool     // only the standard library
}

var walls = map[string]wall{
	"cmd/fastbr":                 {ours: []string{"ctl", "ctl/...", "bench", "internal/lab"}, never: []string{ebpf, netlinkLib}},
	"ctl":                        {ours: []string{"datapath", "ctl/link", "ctl/ipam", "ctl/firewall", "ctl/hostconf", "ctl/statedir"}, never: []string{ebpf, netlinkLib, cobra, prometheus}},
	"ctl/link":                   {never: []string{ebpf, cobra, prometheus}},
	"ctl/statedir":               {ours: []string{"ctl/link"}, never: []string{ebpf, netlinkLib, cobra, prometheus}},
	"ctl/watch":                  {ours: []string{"ctl/link"}, never: []string{ebpf, netlinkLib, cobra, prometheus}},
	"ctl/ipam":                   {stdOnly: true},
	"ctl/hostconf":               {stdOnly: true},
	"ctl/firewall":               {never: []string{ebpf, netlinkLib, cobra, prometheus}},
	"internal/lab":               {ours: []string{"ctl/link"}, never: []string{ebpf, cobra, prometheus}},
	"ctl/metrics":                {ours: []string{"ctl"}, never: []string{ebpf, netlinkLib, cobra}},
	"ctl/fair":                   {stdOnly: true},
	"ctl/dns":                    {ours: []string{"ctl", "ctl/fair"}, never: []string{ebpf, netlinkLib, cobra, prometheus}},
	"ctl/docker":                 {ours: []string{"ctl"}, never: []string{ebpf, netlinkLib, cobra}},
	"ctl/cni":                    {ours: []string{"ctl"}, never: []string{ebpf, netlinkLib, cobra}},
	"ctl/netavark":               {ours: []string{"ctl"}, never: []string{ebpf, netlinkLib, cobra}},
	"datapath":                   {ours: []string{"datapath/internal/..."}, never: []string{netlinkLib, cobra, prometheus}},
	"datapath/internal/clsact":   {never: []string{cobra, prometheus}},
	"datapath/internal/natmodel": {stdOnly: true},
	"bench":                      {ours: []string{"ctl", "ctl/link", "internal/lab"}, never: []string{netlinkLib, cobra}},
	"internal/manual":            {never: []string{ebpf, netlinkLib, prometheus}},
	"test/e2e":                   {},
	"test/rfc":                   {},
	"test/fuzz":                  {},
	"test/kubernetes":            {},
	"test/harness":               {ours: []string{"ctl", "internal/lab", "internal/testutil"}, never: []string{netlinkLib, cobra, prometheus}},
	"internal/testutil":          {never: []string{cobra, prometheus}},
}

type goPackage struct {
	ImportPath, Dir string
	Standard        bool
	GoFiles         []string
	Imports         []string
}

func modulePackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", module+"/...")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, errs.String())
	}
	var pkgs []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("reading go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestWallsHold(t *testing.T) {
	for _, p := range modulePackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		w, ok := walls[name]
		if !ok {
			t.Errorf("%s: no wall: say in walls_test.go what it may import", name)
			continue
		}
		for _, imp := range p.Imports {
			if !w.allows(imp) || !atHome(name, imp) {
				t.Errorf("%s must not import %s", name, imp)
			}
		}
	}
}

func (w wall) allows(imp string) bool {
	if own, ok := strings.CutPrefix(imp, module+"/"); ok {
		return slices.ContainsFunc(w.ours, func(o string) bool {
			below, tree := strings.CutSuffix(o, "...")
			return own == o || tree && strings.HasPrefix(own, below)
		})
	}
	if w.stdOnly {
		first, _, _ := strings.Cut(imp, "/")
		return !strings.Contains(first, ".")
	}
	return !slices.ContainsFunc(w.never, func(n string) bool {
		return imp == n || strings.HasPrefix(imp, n+"/")
	})
}

// atHome tells whether a package may import a dependency that onlyIn names.
func atHome(pkg, imp string) bool {
	for dependency, home := range onlyIn {
		if (imp == dependency || strings.HasPrefix(imp, dependency+"/")) && pkg != home {
			return false
		}
	}
	return true
}

func TestWallsAllowAndForbid(t *testing.T) {
	for _, c := range []struct {
		pkg, imp string
		ok       bool
	}{
		{"ctl", module + "/datapath", true},
		{"ctl", module + "/ctl/metrics", false},
		{"ctl", netlinkLib, false},
		{"ctl", netlinkLib + "/nl", false},
		{"ctl", "github.com/vishvananda/netns", true},
		{"ctl/ipam", "net/netip", true},
		{"ctl/ipam", "golang.org/x/sys/unix", false},
		{"cmd/fastbr", module + "/internal/lab", true},
		{"cmd/fastbr", module + "/datapath", false},
		{"datapath", module + "/datapath/internal/clsact", true},
		{"datapath", module + "/internal/testutil", false},
		{"ctl/firewall", dbus + "/v5", true},
		{"ctl", dbus + "/v5", false},
		{"test/e2e", dbus + "/v5/introspect", false},
	} {
		if (walls[c.pkg].allows(c.imp) && atHome(c.pkg, c.imp)) != c.ok {
			t.Errorf("%s importing %s: want allowed = %v", c.pkg, c.imp, c.ok)
		}
	}
}

// dumpCall matches the functions of vishvananda/netlink that dump a table. A dump may
// be interrupted and must then be repeated. ctl/link does that.
var dumpCall = regexp.MustCompile(`^(Link|Addr|Route|Neigh|Rule|Filter|Qdisc|Class|BridgeVlan|ConntrackTable|Socket|Xfrm\w+)\w*List\w*$|^LinkByAlias$`)

// mayDump are the packages that dump tables themselves, and the reason.
var mayDump = map[string]string{
	"ctl/link":                 "the wrapper that repeats interrupted dumps",
	"datapath/internal/clsact": "tc filters of one device; has its own loop",
}

func TestWallNoRawDumps(t *testing.T) {
	for _, p := range modulePackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if mayDump[name] != "" || !slices.Contains(p.Imports, netlinkLib) {
			continue
		}
		for _, file := range p.GoFiles {
			reportDumps(t, filepath.Join(p.Dir, file))
		}
	}
}

func reportDumps(t *testing.T, path string) {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok && dumpCall.MatchString(sel.Sel.Name) {
			t.Errorf("%v: %s dumps a netlink table: use ctl/link", fset.Position(call.Pos()), sel.Sel.Name)
		}
		return true
	})
}
