package bench

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// starts is a report of three rounds.
func starts() *StartReport {
	r := &StartReport{Schema: schema, Rounds: 3}
	for i := range 3 {
		f := float64(i)
		r.note(Start{"docker", stepArrive, 0, []float64{400 + f}, 0})
		r.note(Start{"fastbr", stepArrive, 0, []float64{200 + f/2}, 0})
		r.note(Start{"fastbr", stepRun, 0, []float64{100 + f}, 1})
		r.note(Start{"docker", stepRun, 1, []float64{300}, 3})
		r.note(Start{"fastbr", stepRun, 1, []float64{110 + 1.1*f}, 1})
		r.note(Start{"fastbr", stepPublish, 1000, []float64{10}, 0})
	}
	return r
}

func TestStartTable(t *testing.T) {
	const want = `Median                                                                        docker               fastbr              fastbr / docker (95 % CI)   fastbr / without ports
docker run, until the container's first connection is accepted outside        401 ms               200 ms              0.50 (0.50–0.50)            –
docker run, no ports                                                          –                    101 ms, 1 process   –                           –
docker run, 1 port, beside 1                                                  300 ms, 3 processes   111 ms, 1 process   0.37 (0.37–0.37)            1.10 (1.10–1.10)
fastbr publish add, 1,000 ports, beside 1,000                                 –                    10 ms               –                           –
`
	if got := starts().Text(); !slices.Equal(words(got), words(want)) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func words(s string) []string { return strings.Fields(s) }

func TestDockerSitsOutWhatTakesItTooLong(t *testing.T) {
	docker, fast := entrants(0)[0], entrants(0)[1]
	if entrants(1)[0] != fast {
		t.Error("the same begins every round")
	}
	p := StartPlan{DockerMost: 1000}
	if p.skipped(docker, 100, 5) || p.skipped(docker, 1000, 0) || !p.skipped(docker, 1000, 1) || !p.skipped(docker, 10000, 0) || p.skipped(fast, 10000, 5) {
		t.Error("who sits which round out")
	}
}

// TestReadmeShowsNewestStarts: the page has markers for the results, and shows
// those that are stored.
func TestReadmeShowsNewestStarts(t *testing.T) {
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, name := starts(), "x.json"
	files, err := filepath.Glob("results/starts/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) > 0 {
		name = files[len(files)-1]
		if want, err = LoadStarts(name); err != nil {
			t.Fatal(err)
		}
	}
	text, err := insert(string(page), beginStart, endStart, want.Markdown(filepath.Base(name)))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) > 0 && text != string(page) {
		t.Errorf("README.md does not show %s; run sudo make bench-start, or remove the file", name)
	}
}
