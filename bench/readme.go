package bench

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The parts of README.md between these markers are rendered and never edited.
const (
	beginMark  = "<!-- results: rendered by fastbr bench -->\n"
	endMark    = "<!-- /results -->\n"
	beginStart = "<!-- starts: rendered by fastbr bench start -->\n"
	endStart   = "<!-- /starts -->\n"
)

// ErrNoMarkers: the page has no place for the results.
var ErrNoMarkers = errors.New("no markers for the results")

// Markdown returns the report for README.md. file is the name of the raw
// results.
func (r *Report) Markdown(file string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Run of %s, raw results in [%s](results/%s). %d rounds of %d s.\n\n",
		r.Started.Format("2006-01-02"), file, file, r.Rounds, r.Seconds)
	for _, res := range r.charted() {
		fmt.Fprintf(&b, "![%s, %s](%s/%s)\n\n", res.Title, res.Unit, chartsDir, chartName(res))
	}
	r.tables(func(t table) { b.WriteString(t.markdown() + "\n") })
	for i, e := range r.Entrants {
		role := ""
		if i == 0 {
			role = " (baseline)"
		}
		fmt.Fprintf(&b, "* **%s**%s: %s\n", e.Name, role, e.Description)
	}
	b.WriteString("\n" + r.Environment.markdown())
	return b.String()
}

func (e Environment) markdown() string {
	virtual := ""
	if e.Hypervisor {
		virtual = ", virtual machine"
	}
	list := func(m map[string]string) string {
		var items []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			items = append(items, k+": "+m[k])
		}
		if items == nil {
			return none
		}
		return strings.Join(items, "; ")
	}
	rows := [][]string{
		{"Kernel", e.Kernel},
		{"CPU", fmt.Sprintf("%s, %d cores%s, %.1f GiB", e.CPU, e.Cores, virtual, e.MemoryGiB)},
		{"Mitigations", list(e.Mitigations)},
		{"MTU, nf-call, TCP", fmt.Sprintf("%d, bridge-nf-call-iptables=%s, %s", e.MTU, orNone(e.NFCall), orNone(e.Congestion))},
		{"Offloads of eth0 in a container", list(e.Offloads)},
		{"BPF", fmt.Sprintf("JIT %s, run-time statistics %s", orNone(e.BPFJIT), orNone(e.BPFStats))},
		{"Load before", fmt.Sprintf("%.2f", e.LoadBefore)},
		{"Versions", fmt.Sprintf("fastbr %s, commit %s, %s, %s", orNone(e.Fastbr), orNone(e.Commit), e.Go, orNone(e.Iperf))},
	}
	return table{head: []string{"Environment", ""}, rows: rows}.markdown()
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

// RenderReadme puts the report between the markers in the page at path, and its
// charts into a directory beside it. The error wraps ErrNoMarkers if the page
// has no markers, and os.ErrNotExist if there is no page.
func (r *Report) RenderReadme(path, results string) error {
	if err := rewrite(path, beginMark, endMark, r.Markdown(filepath.Base(results))); err != nil {
		return err
	}
	dir := filepath.Join(filepath.Dir(path), chartsDir)
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	for _, chart := range old {
		err = errors.Join(err, os.Remove(chart))
	}
	if err != nil {
		return fmt.Errorf("removing old charts: %w", err)
	}
	_, err = r.Charts(dir)
	return err
}

// rewrite replaces the text between two markers in the page at path.
func rewrite(path, begin, end, text string) error {
	page, err := os.ReadFile(path)
	if err == nil {
		text, err = insert(string(page), begin, end, text)
	}
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		return fmt.Errorf("rendering %s: %w", path, err)
	}
	return nil
}

func insert(page, begin, end, text string) (string, error) {
	head, rest, ok := strings.Cut(page, begin)
	if !ok {
		return "", ErrNoMarkers
	}
	_, tail, ok := strings.Cut(rest, end)
	if !ok {
		return "", ErrNoMarkers
	}
	return head + begin + text + end + tail, nil
}
