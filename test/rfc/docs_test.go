package rfc

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

const (
	scorePage  = "../../docs/NAT.md"
	scoreBegin = "<!-- scoreboard: rendered by make score -->\n"
	scoreEnd   = "<!-- /scoreboard -->\n"
)

// TestScorePage compares docs/NAT.md with the recorded results.
func TestScorePage(t *testing.T) {
	page, err := os.ReadFile(scorePage)
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != renderScore(t) {
		t.Error("docs/NAT.md is not what the results say; run make score")
	}
}

// TestScoreIsComplete fails if a requirement has no check, a check has no requirement,
// or a column of either has no result.
func TestScoreIsComplete(t *testing.T) {
	var written results
	readJSON(t, resultsFile, &written)
	checks := scoreChecks()
	var ids []string
	for _, r := range readRequirements(t) {
		ids = append(ids, r.ID)
		c, ok := checks[r.ID]
		if !ok {
			t.Errorf("%s has no check", r.ID)
			continue
		}
		for _, column := range scoreBeds(c.small) {
			o, ok := written[r.ID][column]
			if !ok {
				t.Errorf("%s has no result for %s", r.ID, column)
			}
			if !o.Met && o.Why == "" && ok {
				t.Errorf("%s, %s: not met, and nobody says why", r.ID, column)
			}
		}
	}
	for _, have := range []int{len(checks), len(written)} {
		if have != len(ids) {
			t.Errorf("%d requirements, %d checks or results", len(ids), have)
		}
	}
	for id := range checks {
		if !slices.Contains(ids, id) {
			t.Errorf("%s is checked, but is no requirement", id)
		}
	}
	for _, id := range scoreLast() {
		if !slices.Contains(ids, id) {
			t.Errorf("%s is to be the last, but is no requirement", id)
		}
	}
}

// renderScore is the page with the tables of the recorded results.
func renderScore(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(scorePage)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(page), scoreBegin)
	_, tail, ok2 := strings.Cut(rest, scoreEnd)
	if !ok1 || !ok2 {
		t.Fatal("docs/NAT.md has lost its markers")
	}
	var written results
	readJSON(t, resultsFile, &written)
	return head + scoreBegin + scoreTables(readRequirements(t), written) + scoreEnd + tail
}

// scoreColumns are the columns of the page and their titles.
func scoreColumns() [][2]string {
	return [][2]string{{"default", "fastbr"}, {"slow", "`--lease 0`"}, {"strict", "`refuse`"}, {"kernel", "masquerade"}}
}

func scoreTables(list []requirement, written results) string {
	var b strings.Builder
	b.WriteString(scoreSummary(list, written))
	last := ""
	for _, r := range list {
		rfc, item, _ := strings.Cut(strings.TrimPrefix(r.ID, "rfc:"), "#")
		if rfc != last {
			fmt.Fprintf(&b, "\n### RFC %s\n\n| | Level | What is asked for |", rfc)
			for _, c := range scoreColumns() {
				b.WriteString(" " + c[1] + " |")
			}
			b.WriteString(" Remarks |\n|---|---|---|---|---|---|---|---|\n")
			last = rfc
		}
		fmt.Fprintf(&b, "| %s | %s | %s |", item, r.Level, r.Demand)
		for _, c := range scoreColumns() {
			b.WriteString(" " + mark(written[r.ID], c[0]) + " |")
		}
		fmt.Fprintf(&b, " %s |\n", remarks(r, written[r.ID]))
	}
	return b.String()
}

func mark(columns map[string]outcome, column string) string {
	o, ok := columns[column]
	switch {
	case !ok:
		return ""
	case !o.Met:
		return "**no**"
	case o.Waited:
		return "yes, waited"
	default:
		return "yes"
	}
}

// remarks say why a requirement is not met.
func remarks(r requirement, columns map[string]outcome) string {
	var parts []string
	switch o := columns["default"]; {
	case r.Deviation != "":
		parts = append(parts, r.Deviation)
	case !o.Met:
		parts = append(parts, "Not met: "+o.Why+".")
	}
	if o := columns["kernel"]; !o.Met {
		parts = append(parts, "Masquerade: "+o.Why+".")
	}
	return strings.ReplaceAll(strings.Join(parts, " "), "|", "\\|")
}

// scoreSummary counts the requirements that each column meets.
func scoreSummary(list []requirement, written results) string {
	var b strings.Builder
	b.WriteString("| | Met | of these MUST and MUST NOT |\n|---|---|---|\n")
	for _, c := range scoreColumns() {
		var met, all, mustMet, must int
		for _, r := range list {
			o, ok := written[r.ID][c[0]]
			if !ok {
				continue
			}
			all++
			hard := strings.HasPrefix(r.Level, "MUST")
			if hard {
				must++
			}
			if o.Met {
				met++
				if hard {
					mustMet++
				}
			}
		}
		fmt.Fprintf(&b, "| %s | %d of %d | %d of %d |\n", c[1], met, all, mustMet, must)
	}
	return b.String()
}
