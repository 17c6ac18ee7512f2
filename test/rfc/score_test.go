package rfc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// The scoreboard. Each requirement of the NAT RFCs (testdata/requirements.json) has a
// check. The checks run against fastbr and against the kernel's bridge with
// masquerade. testdata/results.json records the outcomes, and docs/NAT.md is rendered
// from them.
//
//	go test ./test/rfc -run TestScore       compares: an outcome that differs from the
//	                                          recorded one is a failure
//	make score                                also runs the checks that wait for
//	                                          minutes, and rewrites results and page

const (
	requirementsFile = "testdata/requirements.json"
	resultsFile      = "testdata/results.json"
)

// requirement is a row of the scoreboard, in the user's words.
type requirement struct {
	ID     string `json:"id"`
	Level  string `json:"level"`
	Demand string `json:"demand"`
	// Deviation says why fastbr does not meet it by default, where that is accepted.
	Deviation string `json:"deviation,omitempty"`
}

// outcome is the result of one check in one column.
type outcome struct {
	Met bool   `json:"met"`
	Why string `json:"why,omitempty"` // if it is not met
	// Waited: the check has waited for the timeouts, and not only read what the
	// implementation says about them.
	Waited bool `json:"waited,omitempty"`
}

// results are outcomes by requirement and column.
type results map[string]map[string]outcome

func readRequirements(t *testing.T) (list []requirement) {
	t.Helper()
	readJSON(t, requirementsFile, &list)
	return list
}

func readJSON(t *testing.T, path string, to any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, to); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// scoreBeds are the columns in which the checks run, in large beds and in small ones.
func scoreBeds(small bool) []string {
	if small {
		return []string{"default", "slow", "strict", "kernel"}
	}
	return []string{"default", "slow", "kernel"}
}

// fullScore reports whether this is `make score`.
func fullScore() bool { return os.Getenv("FASTBR_SCORE") == "write" }

// scoring collects outcomes.
type scoring struct {
	mu  sync.Mutex
	got results
}

func (s *scoring) add(id, column string, o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.got[id] == nil {
		s.got[id] = map[string]outcome{}
	}
	if was, ok := s.got[id][column]; ok { // it was read and waited for: both must be right
		o.Waited = o.Waited || was.Waited
		if !was.Met {
			o.Met, o.Why = false, was.Why
		}
	}
	s.got[id][column] = o
}

func (s *scoring) of(id, column string) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[id][column]
}

func TestScore(t *testing.T) {
	testutil.RequireRoot(t)
	t.Parallel()
	s := &scoring{got: results{}}
	t.Run("beds", func(t *testing.T) {
		// All at once: they wait more than they compute.
		var wg sync.WaitGroup
		defer wg.Wait()
		for _, small := range []bool{false, true} {
			for _, column := range scoreBeds(small) {
				wg.Go(func() {
					t.Run(fmt.Sprintf("%s/small=%v", column, small), func(t *testing.T) { s.run(t, column, small) })
				})
			}
		}
		if !fullScore() {
			return
		}
		for _, column := range scoreBeds(false) {
			wg.Go(func() { t.Run(column+"/long", func(t *testing.T) { s.runLong(t, column) }) })
		}
	})
	if t.Failed() {
		return
	}
	if fullScore() {
		writeResults(t, s.got)
		return
	}
	compareResults(t, s.got)
}

// run makes one bed and runs its checks, one after another.
func (s *scoring) run(t *testing.T, column string, small bool) {
	b := scoreBed(t, column, small)
	checks := scoreChecks()
	var written results
	readJSON(t, resultsFile, &written)
	var ids []string
	for _, r := range readRequirements(t) {
		if checks[r.ID].small == small && !slices.Contains(scoreLast(), r.ID) {
			ids = append(ids, r.ID)
		}
	}
	for _, id := range scoreLast() {
		if checks[id].small == small {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		t.Run(strings.ReplaceAll(id, "/", "."), func(t *testing.T) {
			c := *b
			c.t = t
			o := s.of(checks[id].like, column)
			for tries := 0; checks[id].check != nil; tries++ {
				o = judge(checks[id].check(&c))
				t.Logf("met: %v %s", o.Met, o.Why)
				// A packet may be late on a loaded machine, so an unexpected outcome is
				// checked a second time.
				if fullScore() || tries == 1 || o.Met == written[id][column].Met {
					break
				}
			}
			s.add(id, column, o)
		})
	}
}

func judge(err error) outcome {
	if err == nil {
		return outcome{Met: true}
	}
	return outcome{Why: strings.ReplaceAll(err.Error(), "\n", "; ")}
}

func scoreBed(t *testing.T, column string, small bool) *bed {
	t.Helper()
	if small {
		args := []string{"--nat-range", fmt.Sprintf("%d-%d", smallFirst, smallLast), "--nat-flows", "512"}
		if column == "kernel" {
			args = nil
		}
		b := newBed(t, column, 3, args...)
		if b.plain() {
			b.masqueradeInRange()
		}
		return b
	}
	var args []string
	if column != "kernel" {
		args = []string{"--nat-flows", "8192"} // quicker to list
	}
	b := newBed(t, column, 2, args...)
	if !b.plain() {
		b.filters[0] = b.network("adf", "--nat-filtering", "adf")
		b.filters[1] = b.network("eif", "--nat-filtering", "eif")
		b.edm = b.network("edm", "--nat-mapping", "endpoint-dependent")
	}
	return b
}

// compareResults fails for each check whose outcome differs from the recorded one.
func compareResults(t *testing.T, got results) {
	t.Helper()
	var want results
	readJSON(t, resultsFile, &want)
	for id, columns := range got {
		for column, o := range columns {
			w, ok := want[id][column]
			switch {
			case !ok:
				t.Errorf("%s, %s: no result is written down; run make score", id, column)
			case w.Met && !o.Met:
				t.Errorf("%s, %s: was met, now: %s", id, column, o.Why)
			case !w.Met && o.Met:
				t.Errorf("%s, %s: is met now, and docs/NAT.md does not say so; run make score", id, column)
			}
		}
	}
}

// writeResults writes what was checked, and the page. Requirements that were not checked
// (-run) keep their results.
func writeResults(t *testing.T, got results) {
	t.Helper()
	var written results
	readJSON(t, resultsFile, &written)
	for _, r := range readRequirements(t) {
		if _, checked := got[r.ID]; !checked && written[r.ID] != nil {
			got[r.ID] = written[r.ID]
		}
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "\t")
	if err := errors.Join(enc.Encode(got), os.WriteFile(resultsFile, text.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(scorePage, []byte(renderScore(t)), 0o644); err != nil {
		t.Fatal(err)
	}
}
