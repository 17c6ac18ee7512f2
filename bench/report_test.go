package bench

import (
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func share(f float64) *float64 { return &f }

// small is a report of two rounds with one failed run.
func small() *Report {
	r := &Report{
		Schema: schema, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Rounds: 4, Seconds: 2,
		Environment: Environment{Kernel: "6.18.0 x86_64", CPU: "Test CPU", Cores: 2, MTU: 1500, Commit: "abc",
			Mitigations: map[string]string{"meltdown": "Mitigation: PTI", "bhi": "Vulnerable"}, NFCall: "0"},
		Entrants: []Entrant{{"bridge", "kernel bridge"}, {"fastbr", "fastbr"}},
		Results: []Result{
			{Workload: "tcp", Title: "TCP c → c", Unit: "Gbit/s", Samples: map[string][]Sample{
				"bridge": {{Value: 10, CPUSeconds: 4}, {Value: 10, CPUSeconds: 4}, {Value: 10, CPUSeconds: 4}, {Value: 10, CPUSeconds: 4}},
				"fastbr": {{Value: 12, CPUSeconds: 3, Retransmits: 50, Spurious: 50, FastShare: share(0.99999)}, {Value: 14, CPUSeconds: 3, Retransmits: 60, Spurious: 58, FastShare: share(0.9995)}, {Error: "broke"}, {Value: 13, CPUSeconds: 3}},
			}},
			{Workload: "pps-1k", Title: "UDP, 1,000 flows", Unit: mpps, OneFlow: "pps", Samples: map[string][]Sample{
				"fastbr": {{Round: 1, Value: 2, Seconds: 1, CPUSeconds: 1, Lost: share(0.00125)}, {Round: 3, Value: 2.4, Seconds: 1, CPUSeconds: 1, Lost: share(0)}},
			}},
			{Workload: "pps", Title: "UDP", Unit: mpps, Samples: map[string][]Sample{
				"bridge": {{Round: 1, Value: 2}, {Round: 2, Value: 2}, {Round: 3, Value: 2}},
				"fastbr": {{Round: 1, Value: 4}, {Round: 2, Value: 4}, {Round: 3, Value: 3}},
			}},
			{Workload: "conn", Title: "500/s", Unit: failures, Samples: map[string][]Sample{
				"bridge": {{Requests: 1000, P50: 0.5, P99: 2}},
				"fastbr": {{Requests: 1000, Value: 3, P50: 0.4, P99: 1, Failures: map[string]int{"no answer in time": 2, "connection refused": 1}}},
			}},
		},
	}
	r.summarise()
	return r
}

func TestTextComparesContestants(t *testing.T) {
	const want = `
Gbit/s      bridge   fastbr
TCP c → c   10.00    13.00 (1 of 4 runs failed)

fastbr / … (95 % CI)   bridge
TCP c → c              1.30 (1.20–1.40)

CPU s per Gbit   bridge   fastbr
TCP c → c        0.200    0.115

Mpps               bridge   fastbr
UDP, 1,000 flows   –        2.20
UDP                2.00     4.00

fastbr / … (95 % CI)   bridge
UDP                    2.00 (1.50–2.00)

CPU s per million packets   bridge   fastbr
UDP, 1,000 flows            –        0.458
UDP                         0.000    0.000

Many flows / one flow (95 % CI)   fastbr
UDP, 1,000 flows                  0.65 (too few rounds)

Workload   Contestant   Requests   Failed   p50        p99        p99.9   Why
500/s      bridge       1000       0        0.500 ms   2.000 ms   –       –
500/s      fastbr       1000       3        0.400 ms   1.000 ms   –       connection refused: 1; no answer in time: 2

Fast path, worst round   fastbr
TCP c → c                99.95 %

Lost, worst round   fastbr
UDP, 1,000 flows    0.125 %

TCP segments per run: sent again / got twice   bridge   fastbr
TCP c → c                                      0 / 0    50 / 50
`
	if got := small().Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPercentNeverRoundsUp(t *testing.T) {
	if got := Percent(0.99999); got != "99.99 %" {
		t.Errorf("got %s", got)
	}
	if got := Percent(1); got != "100.00 %" {
		t.Errorf("got %s", got)
	}
}

func TestSaveAndLoad(t *testing.T) {
	r := small()
	path, err := r.Save(filepath.Join(t.TempDir(), "new"))
	if err != nil {
		t.Fatal(err)
	}
	if got := filepath.Base(path); got != "20260102T030405Z-abc.json" {
		t.Errorf("named %s", got)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, r) {
		t.Errorf("loaded %+v, saved %+v", got, r)
	}
}

func TestLoadRefusesOtherSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.json")
	if err := os.WriteFile(path, []byte(`{"schema":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil {
		t.Error("no error")
	}
}

func TestRenderReadmeReplacesOnlyResults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(path, []byte("# Before\n"+beginMark+"old\n"+endMark+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // rendering again changes nothing
		if err := small().RenderReadme(path, "/somewhere/results/x.json"); err != nil {
			t.Fatal(err)
		}
		page, _ := os.ReadFile(path)
		text := string(page)
		if !strings.HasPrefix(text, "# Before\n"+beginMark) || !strings.HasSuffix(text, endMark+"after\n") || strings.Contains(text, "old") {
			t.Fatalf("page is now\n%s", text)
		}
		for _, want := range []string{
			"| TCP c → c | 10.00 | 13.00 (1 of 4 runs failed) |", "| TCP c → c | **1.30** (1.20–1.40) |",
			"[x.json](results/x.json)", "**bridge** (baseline)", "bhi: Vulnerable; meltdown: Mitigation: PTI",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is missing in\n%s", want, text)
			}
		}
	}
}

func TestRenderReadmeWantsMarkers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(path, []byte("# Before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := small().RenderReadme(path, "x.json"); !errors.Is(err, ErrNoMarkers) {
		t.Errorf("error %v", err)
	}
}

func TestChartsShowEveryWorkload(t *testing.T) {
	paths, err := small().Charts(filepath.Join(t.TempDir(), "new"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, path := range paths {
		names = append(names, filepath.Base(path))
		svg, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := xml.Unmarshal(svg, new(struct{})); err != nil {
			t.Errorf("%s is no XML: %v", path, err)
		}
		for _, want := range []string{"<svg ", ">fastbr<", ">bridge<"} {
			if !strings.Contains(string(svg), want) {
				t.Errorf("%s: no %q", path, want)
			}
		}
	}
	if got := strings.Join(names, " "); got != "tcp.svg pps.svg" {
		t.Errorf("charts %s", got)
	}
}

// TestChartIsSorted: the best contestant is on top, and no bar extends beyond
// the line of the limit.
func TestChartIsSorted(t *testing.T) {
	rates := func(v float64) []Sample { return []Sample{{Value: v}} }
	r := &Report{
		Entrants: []Entrant{{Name: "bridge"}, {Name: "floor"}, {Name: "fastbr"}},
		Results: []Result{
			{Title: "pps", Unit: "Mpps", Samples: map[string][]Sample{"bridge": rates(1), "floor": rates(4), "fastbr": rates(3)}},
			{Title: "rtt", Unit: micros, Samples: map[string][]Sample{"bridge": rates(20), "fastbr": rates(30)}},
		},
	}
	c := r.chart(r.Results[0])
	if len(c.Bars) != 2 || c.Bars[0].Name != "fastbr" || c.Bars[1].Name != "bridge" {
		t.Errorf("bars %+v", c.Bars)
	}
	if c.Limit == nil || c.Limit.Name != "floor" || c.Limit.End <= c.Bars[0].End {
		t.Errorf("limit %+v, fastbr ends at %d", c.Limit, c.Bars[0].End)
	}
	c = r.chart(r.Results[1])
	if len(c.Bars) != 2 || c.Bars[0].Name != "bridge" || c.Limit != nil {
		t.Errorf("less is better, but bars are %+v, limit %v", c.Bars, c.Limit)
	}
}

// TestReadmeShowsNewestResults: the page in the repository has markers for the
// results, and shows those that are stored.
func TestReadmeShowsNewestResults(t *testing.T) {
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("results/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		if _, err := insert(string(page), beginMark, endMark, ""); err != nil {
			t.Error(err)
		}
		return
	}
	newest := files[len(files)-1]
	r, err := Load(newest)
	if err != nil {
		t.Fatal(err)
	}
	want, err := insert(string(page), beginMark, endMark, r.Markdown(filepath.Base(newest)))
	if err != nil {
		t.Fatal(err)
	}
	for _, res := range r.charted() {
		if _, err := os.Stat(filepath.Join(chartsDir, chartName(res))); err != nil {
			t.Error(err)
		}
	}
	if want != string(page) {
		t.Errorf("README.md does not show %s; run sudo make bench, or remove the file", newest)
	}
}

func TestParseBusy(t *testing.T) {
	got, err := parseBusy("cpu  100 0 50 1000 200 0 25 25 0 0")
	if err != nil || got != 2 {
		t.Errorf("got %v %v, want 2", got, err)
	}
	for _, bad := range []string{"", "cpu0 1 2", "cpu a b c d e f g h"} {
		if _, err := parseBusy(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestCause(t *testing.T) {
	if got := cause(os.ErrDeadlineExceeded); got != "no answer in time" {
		t.Errorf("got %q", got)
	}
}

func TestCounter(t *testing.T) {
	const text = "TcpExt: A TCPDSACKRecv TCPDSACKRecvSegs\nTcpExt: 1 2 3\nIpExt: X\nIpExt: 9\n"
	if got, err := counter(text, "IpExt:", "X"); err != nil || got != 9 {
		t.Errorf("got %v %v, want 9", got, err)
	}
	if got, err := counter(text, "TcpExt:", "TCPDSACKRecvSegs"); err != nil || got != 3 {
		t.Errorf("got %v %v, want 3", got, err)
	}
	if _, err := counter(text, "TcpExt:", "X"); err == nil {
		t.Error("no error without the counter")
	}
}
