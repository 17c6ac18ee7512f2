package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// StartReport is the result of StartPlan.Run, as stored in results/starts.
type StartReport struct {
	Schema      int         `json:"schema"`
	Started     time.Time   `json:"started"`
	Environment Environment `json:"environment"`
	Rounds      int         `json:"rounds"`
	Starts      []Start     `json:"starts"`
}

// note adds a time to its step.
func (r *StartReport) note(s Start) {
	if at := r.find(s.Contestant, s.Step, s.Ports); at != nil {
		at.Milliseconds, at.Processes = append(at.Milliseconds, s.Milliseconds...), s.Processes
		return
	}
	r.Starts = append(r.Starts, s)
}

// find returns the start of a contestant, or nil if it took no part.
func (r *StartReport) find(contestant, step string, ports int) *Start {
	i := slices.IndexFunc(r.Starts, func(s Start) bool { return s.Contestant == contestant && s.Step == step && s.Ports == ports })
	if i < 0 {
		return nil
	}
	return &r.Starts[i]
}

// table returns a row for each step.
func (r *StartReport) table() table {
	docker, fast := Docker{}.Name(), Fastbr{}.Name()
	t := table{head: []string{"Median", docker, fast, fast + " / " + docker + " (95 % CI)", fast + " / without ports"}}
	for _, s := range r.Starts {
		d, f := r.find(docker, s.Step, s.Ports), r.find(fast, s.Step, s.Ports)
		row := []string{s.title(), d.text(), f.text(), f.over(d), none}
		if s.Ports > 0 {
			row[4] = f.over(r.find(fast, s.Step, 0))
		}
		if !slices.ContainsFunc(t.rows, func(other []string) bool { return other[0] == row[0] }) {
			t.rows = append(t.rows, row)
		}
	}
	return t
}

func (s *Start) title() string {
	switch {
	case s.Ports == 0 && s.Step == stepRun:
		return s.Step + ", no ports"
	case s.Ports == 0:
		return s.Step
	case s.Ports == 1:
		return s.Step + ", 1 port, beside 1"
	}
	return fmt.Sprintf("%s, %s ports, beside %s", s.Step, thousands(s.Ports), thousands(s.Ports))
}

// text returns the median, with the number of processes if they were counted.
func (s *Start) text() string {
	if s == nil {
		return none
	}
	text := fmt.Sprintf("%.0f ms", Median(s.Milliseconds))
	if s.Processes > 0 {
		text += fmt.Sprintf(", %s processes", thousands(s.Processes))
	}
	return strings.Replace(text, ", 1 processes", ", 1 process", 1)
}

// over returns the ratio to another start, round by round.
func (s *Start) over(other *Start) string {
	if s == nil || other == nil {
		return none
	}
	var ratios []float64
	for i := range min(len(s.Milliseconds), len(other.Milliseconds)) {
		ratios = append(ratios, s.Milliseconds[i]/other.Milliseconds[i])
	}
	return Bootstrap(ratios).String()
}

// Text returns the report for a terminal.
func (r *StartReport) Text() string { return r.table().text() }

// Markdown returns the report for README.md. file is the name of the raw
// results.
func (r *StartReport) Markdown(file string) string {
	return fmt.Sprintf("Run of %s, raw results in [%s](results/starts/%s). %d rounds, load before %.2f, commit %s.\n\n%s",
		r.Started.Format("2006-01-02"), file, file, r.Rounds, r.Environment.LoadBefore, orNone(r.Environment.Commit), r.table().markdown())
}

// Save writes the report into dir and returns the file's path. It makes dir if
// it does not exist.
func (r *StartReport) Save(dir string) (string, error) {
	return save(r, dir, fileName(r.Started, r.Environment.Commit))
}

// RenderReadme puts the report between its markers in the page at path. The
// error wraps ErrNoMarkers if the page has no markers, and os.ErrNotExist if
// there is no page.
func (r *StartReport) RenderReadme(path, results string) error {
	return rewrite(path, beginStart, endStart, r.Markdown(filepath.Base(results)))
}

// LoadStarts reads a report that Save wrote.
func LoadStarts(path string) (*StartReport, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	var r StartReport
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("reading results from %s: %w", path, err)
	}
	if r.Schema != schema || len(r.Starts) == 0 {
		return nil, fmt.Errorf("reading results from %s: schema %d with %d starts, want %d and some", path, r.Schema, len(r.Starts), schema)
	}
	return &r, nil
}
