package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// schema of the result files. It is raised when the meaning of a field changes.
const schema = 1

// Report is one whole benchmark, as stored in results/.
type Report struct {
	Schema      int         `json:"schema"`
	Started     time.Time   `json:"started"`
	Environment Environment `json:"environment"`
	Rounds      int         `json:"rounds"`
	Seconds     int         `json:"seconds"`      // of each run, without the omitted ones
	Omit        int         `json:"omit_seconds"` // at the start of a bulk transfer, which do not count
	Entrants    []Entrant   `json:"contestants"`
	Results     []Result    `json:"results"`
	Control     []Timing    `json:"control_plane,omitempty"`
}

// Entrant is a contestant in a report. The first one is the baseline.
type Entrant struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

// Result is one workload with the samples of every contestant.
type Result struct {
	Workload string `json:"workload"`
	Title    string `json:"title"`
	Unit     string `json:"unit"`
	// OneFlow names the workload that differs only in having a single flow.
	OneFlow string `json:"one_flow,omitempty"`
	// Samples by contestant. The index counts the rounds in which it ran.
	Samples map[string][]Sample `json:"samples"`
	// Ratios to the baseline by contestant, for workloads that measure a rate.
	Ratios map[string]Interval `json:"ratios_to_baseline,omitempty"`
}

func newResult(w Workload) Result {
	r := Result{Workload: w.Name(), Title: w.Title(), Unit: w.Unit(), Samples: map[string][]Sample{}}
	if p, ok := w.(PPS); ok && p.Flows > 1 {
		r.OneFlow = PPS{Direction: p.Direction}.Name()
	}
	return r
}

// failures is the unit of workloads that count failures. Less is better, and
// there are no ratios.
const failures = "failures"

// summarise fills in what follows from the samples.
func (r *Report) summarise() {
	for i := range r.Results {
		res := &r.Results[i]
		if res.Unit == failures {
			continue
		}
		ratios := map[string]Interval{}
		base := res.Samples[r.Entrants[0].Name]
		for _, e := range r.Entrants[1:] {
			if paired := PairedRatios(res.Samples[e.Name], base); len(paired) > 0 {
				ratios[e.Name] = Bootstrap(paired)
			}
		}
		if len(ratios) > 0 {
			res.Ratios = ratios
		}
	}
}

// Failed returns the number of runs without a value, and of all runs.
func (r *Report) Failed() (failed, all int) {
	for _, res := range r.Results {
		for _, samples := range res.Samples {
			all += len(samples)
			for _, s := range samples {
				if s.Error != "" {
					failed++
				}
			}
		}
	}
	return failed, all
}

// FileName returns the file's name, which sorts by time:
// 20260102T150405Z-COMMIT.json.
func (r *Report) FileName() string { return fileName(r.Started, r.Environment.Commit) }

func fileName(started time.Time, commit string) string {
	name := started.UTC().Format("20060102T150405Z")
	if commit != "" {
		name += "-" + commit
	}
	return name + ".json"
}

// Save writes the report into dir and returns the file's path. It makes dir if
// it does not exist.
func (r *Report) Save(dir string) (string, error) { return save(r, dir, r.FileName()) }

func save(r any, dir, name string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the directory of the results: %w", err)
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", fmt.Errorf("writing the results: %w", err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return "", fmt.Errorf("writing the results: %w", err)
	}
	return path, nil
}

// Load reads a report that Save wrote.
func Load(path string) (*Report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("reading results from %s: %w", path, err)
	}
	if r.Schema != schema || len(r.Entrants) == 0 {
		return nil, fmt.Errorf("reading results from %s: schema %d, want %d", path, r.Schema, schema)
	}
	return &r, nil
}

// column collects one figure of the successful runs.
func column(samples []Sample, figure func(Sample) (float64, bool)) []float64 {
	var v []float64
	for _, s := range samples {
		if s.Error != "" {
			continue
		}
		if f, ok := figure(s); ok {
			v = append(v, f)
		}
	}
	return v
}

func value(s Sample) (float64, bool) { return s.Value, true }

func fastShare(s Sample) (float64, bool) {
	if s.FastShare == nil {
		return 0, false
	}
	return *s.FastShare, true
}

// cpuPerUnit returns the machine's busy time, in seconds, per gigabit, million
// packets and so on.
func (r *Report) cpuPerUnit(s Sample) (float64, bool) {
	seconds := s.Seconds
	if seconds == 0 { // an older file: use the whole run
		seconds = float64(r.Seconds + r.Omit)
	}
	if s.Value == 0 || seconds == 0 {
		return 0, false
	}
	return s.CPUSeconds / (s.Value * seconds), true
}

// lowest returns the lowest of some numbers: the figure to show for a share
// that should be 1.
func lowest(v []float64) (float64, bool) {
	if len(v) == 0 {
		return 0, false
	}
	return slices.Min(v), true
}
