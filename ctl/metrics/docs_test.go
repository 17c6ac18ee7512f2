package metrics

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl"
)

const docs = "../../docs/"

// TestDocListsEveryMetric compares the table of docs/metrics.md with the
// catalogue. To render it again: go test ./ctl/metrics -run Doc -update.
func TestDocListsEveryMetric(t *testing.T) {
	const begin, end = "<!-- metrics: rendered by go test ./ctl/metrics -run Doc -update -->\n", "<!-- /metrics -->\n"
	page, err := os.ReadFile(docs + "metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(page), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatal("docs/metrics.md has lost its markers")
	}
	want := []byte(head + begin + table() + end + tail)
	if bytes.Equal(page, want) {
		return
	}
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(docs+"metrics.md", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Error("docs/metrics.md is not what the gatherer shows; run go test ./ctl/metrics -run Doc -update")
}

// TestDocExplainsEveryReason: every drop reason has its line.
func TestDocExplainsEveryReason(t *testing.T) {
	page, err := os.ReadFile(docs + "metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	reasons := ctl.DropReasons()
	for _, r := range reasons {
		if !strings.Contains(string(page), "\n| `"+r+"` |") {
			t.Errorf("docs/metrics.md does not explain the drop reason %s", r)
		}
	}
	for _, r := range refusals() {
		if !slices.Contains(reasons, r) {
			t.Errorf("refusals has %s, which is no drop reason", r)
		}
	}
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "rewrite docs/metrics.md")
	flag.Parse()
	os.Exit(m.Run())
}

func table() string {
	var b strings.Builder
	b.WriteString("| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n")
	for _, m := range Catalogue() {
		labels := "–"
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		help := m.Help
		if m.WhenDown {
			help += " Also when nothing is up."
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, strings.ToLower(m.Type.String()), labels, help)
	}
	return b.String()
}

func TestPromtoolAcceptsScrapeExample(t *testing.T) {
	promtool := tool(t, "promtool", "prometheus")
	if out, err := exec.Command(promtool, "check", "config", docs+"prometheus.yml").CombinedOutput(); err != nil {
		t.Errorf("promtool check config: %v\n%s", err, out)
	}
}

// dashboard is the part of a Grafana dashboard that this test reads.
type dashboard struct {
	Panels []struct {
		Title   string
		Targets []struct{ Expr string }
	}
	Templating struct {
		List []struct {
			Name       string
			Definition string
		}
	}
}

var (
	metricName  = regexp.MustCompile(`\bfastbr_[a-z_]+\b`)
	labelInUse  = regexp.MustCompile(`\b([a-z_]+)\s*(?:=|!=|=~|!~)\s*"`)
	labelsIn    = regexp.MustCompile(`\bby\s*\(([^)]*)\)`)
	variableUse = regexp.MustCompile(`\$([a-z_]+)`)
)

func TestDashboardUsesExistingMetrics(t *testing.T) {
	text, err := os.ReadFile(docs + "grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	known, labels := map[string]bool{}, []string{"instance", "job"}
	for _, m := range Catalogue() {
		known[m.Name] = true
		labels = append(labels, m.Labels...)
	}
	used := 0
	check := func(where, expr string) {
		names := metricName.FindAllString(expr, -1)
		if len(names) == 0 {
			t.Errorf("%s: no fastbr metric in %q", where, expr)
		}
		for _, n := range names {
			used++
			if !known[n] {
				t.Errorf("%s: no such metric: %s", where, n)
			}
		}
		for _, m := range labelInUse.FindAllStringSubmatch(expr, -1) {
			if !slices.Contains(labels, m[1]) {
				t.Errorf("%s: no such label: %s", where, m[1])
			}
		}
		for _, m := range labelsIn.FindAllStringSubmatch(expr, -1) {
			for l := range strings.SplitSeq(m[1], ",") {
				if !slices.Contains(labels, strings.TrimSpace(l)) {
					t.Errorf("%s: no such label: %s", where, l)
				}
			}
		}
	}
	variables := []string{"__rate_interval"}
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
		if v.Definition != "" {
			check("variable "+v.Name, v.Definition)
		}
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			check(p.Title, target.Expr)
			for _, m := range variableUse.FindAllStringSubmatch(target.Expr, -1) {
				if !slices.Contains(variables, m[1]) {
					t.Errorf("%s: no such variable: $%s", p.Title, m[1])
				}
			}
		}
	}
	if used == 0 {
		t.Error("the dashboard shows nothing")
	}
}

// TestPromtoolAcceptsDashboardQueries has promtool parse the dashboard's
// queries as recording rules.
func TestPromtoolAcceptsDashboardQueries(t *testing.T) {
	promtool := tool(t, "promtool", "prometheus")
	text, err := os.ReadFile(docs + "grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "1m")
			rules = append(rules, rule{fmt.Sprintf("panel:%d", len(rules)), expr})
		}
	}
	// JSON is YAML.
	file, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(path, file, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
}
