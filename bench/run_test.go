package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
)

// fakeLoad records where it ran and measures nothing.
type fakeLoad struct{ ran *[]string }

func (f fakeLoad) Name() string  { return "fake" }
func (f fakeLoad) Title() string { return "fake" }
func (f fakeLoad) Unit() string  { return "Gbit/s" }
func (f fakeLoad) Run(_ context.Context, l *lab.Lab, _ time.Duration, start func() error) (Sample, error) {
	*f.ran = append(*f.ran, l.ID)
	return Sample{Value: float64(len(*f.ran))}, start()
}

// named is a plain bridge under another name.
type named struct {
	Bridge
	name string
}

func (n named) Name() string { return n.name }

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: needs root")
	}
	for _, tool := range []string{"nft", "iptables"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED, NOT TESTED: %s is missing", tool)
		}
	}
}

func TestPlanInterleaves(t *testing.T) {
	needRoot(t)
	var ran, order []string
	p := Plan{
		Contestants: []Contestant{named{Bridge{}, "a"}, named{Bridge{NAT: IPTables}, "b"}},
		Heats:       []Heat{{Workload: fakeLoad{&ran}}},
		Rounds:      3, Seconds: 1,
		Progress: func(round int, _ Workload, c Contestant, s Sample) {
			order = append(order, fmt.Sprint(round, c.Name()))
		},
	}
	r, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(order), "[1a 1b 2b 2a 3a 3b]"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
	if got := len(r.Results[0].Samples["a"]); got != 3 {
		t.Errorf("%d samples, want 3", got)
	}
	if ran[0] == ran[1] || ran[0] != ran[3] {
		t.Errorf("labs %v: each contestant keeps one of its own", ran)
	}
	if r.Environment.Kernel == "" || r.Environment.MTU != 1500 {
		t.Errorf("environment %+v", r.Environment)
	}
	if _, ok := r.Results[0].Ratios["b"]; !ok {
		t.Error("no ratio")
	}
}

// TestConnRateCountsFailures: nothing fails through the plain bridge; the same
// workload judges fastbr.
func TestConnRateCountsFailures(t *testing.T) {
	needRoot(t)
	l, err := Build(t.Context(), Bridge{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = Close(Bridge{}, l) }()
	s := Measure(t.Context(), Bridge{}, ConnRate{PerSecond: 100}, l, time.Second)
	if s.Error != "" || s.Value != 0 || s.Requests < 180 {
		t.Errorf("sample %+v, want 200 requests and no failure", s)
	}
	// Now nobody outside answers.
	if err := l.Outside.SetDown("eth0"); err != nil {
		t.Fatal(err)
	}
	err = askOnce(l.Containers[0], netip.AddrPortFrom(l.Outside.Addr, 9))
	if err == nil {
		t.Error("an answer from nobody")
	}
}

func TestConnMaxCountsConnections(t *testing.T) {
	needRoot(t)
	l, err := Build(t.Context(), Direct{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = Close(Direct{}, l) }()
	s := Measure(t.Context(), Direct{}, ConnMax{}, l, 200*time.Millisecond)
	if s.Error != "" || s.Value == 0 || s.Requests == 0 || len(s.Failures) > 0 || s.P50 == 0 {
		t.Errorf("sample %+v", s)
	}
	// There is no server: each connection is refused and counted.
	tally := newTally()
	to := &unix.SockaddrInet4{Addr: l.Outside.Addr.As4(), Port: connPort}
	tally.connect(t.Context(), l.Containers[0], to, time.Now().Add(10*time.Millisecond))
	if tally.failures["TCP, connection refused"] == 0 {
		t.Errorf("failures %v", tally.failures)
	}
}
