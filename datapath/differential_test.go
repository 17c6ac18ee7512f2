package datapath

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	nm "github.com/fastbr/fastbr/datapath/internal/natmodel"
	"github.com/fastbr/fastbr/internal/testutil"
)

// steps is how many random steps all walks make together.
func steps(t *testing.T) int {
	t.Helper()
	s := os.Getenv("FASTBR_MODEL_STEPS")
	if s == "" {
		return 200_000
	}
	n, err := strconv.Atoi(s)
	check(t, err)
	return n
}

// The programs do what the model does, packet by packet. The test compares the verdict
// and the bytes of each packet, and everything that both remember after each thousand
// steps. FASTBR_MODEL_STEPS sets the number of steps, FASTBR_TEST_SEED repeats a walk.
func TestProgramsEqualModel(t *testing.T) {
	worlds := map[string]Config{
		"room for all": {FlowsMax: 512, NATFirst: 10000, NATLast: 10999},
		"few slots":    {FlowsMax: 40, NATFirst: 10000, NATLast: 10255},
		"few ports":    {FlowsMax: 256, NATFirst: 10000, NATLast: 10015},
		"little":       {FlowsMax: 24, NATFirst: 10000, NATLast: 10015},
	}
	families := map[string]sights{"IPv4": walk4, "IPv6": walk6}
	seed, n := testutil.Rand(t).Uint64(), steps(t)/len(worlds)/len(families)
	met := map[string]*encounters{}
	t.Run("worlds", func(t *testing.T) {
		for family, what := range families {
			met[family] = newEncounters()
			for name, cfg := range worlds {
				t.Run(family+", "+name, func(t *testing.T) {
					t.Parallel()
					w := newWalk(t, what, cfg, rand.New(rand.NewPCG(seed, uint64(cfg.FlowsMax))))
					for range n {
						w.one()
						if w.step%1000 == 0 {
							w.compare()
							w.misdirect()
						}
					}
					_, err := w.FlushFlows()
					check(t, err)
					w.model.Flush(nil)
					w.compare()
					met[family].add(w)
				})
			}
		}
	})
	for family, met := range met {
		if !t.Failed() && n >= 25_000 {
			met.check(t, family)
		}
	}
}

// encounters are the cases that the walks have met together.
type encounters struct {
	sync.Mutex
	seen     map[string]int
	without  []string // programs that the family has not
	bits     nm.Bits
	counters nm.Counters
}

func newEncounters() *encounters { return &encounters{seen: map[string]int{}} }

func (e *encounters) add(w *walk) {
	e.Lock()
	defer e.Unlock()
	for prog, name := range map[*ebpf.Program]string{
		w.prog(tcProgFbrPortIn): "port_in", w.prog(tcProgFbrPortOut): "port_out", w.prog(tcProgFbrUplinkIn): "uplink_in", w.prog(tcProgFbrUplinkOut): "uplink_out",
		w.prog(tcProgFbrUplinkXdp): "uplink_xdp",
	} {
		if prog == nil {
			e.without = append(e.without, name)
		}
		for s, n := range w.seen {
			if s.prog == prog {
				e.seen[fmt.Sprintf("%s %d %s", name, s.action, s.reason)] += n
			}
		}
	}
	e.bits |= w.bits
	c := w.model.Counters
	e.counters.Overloads += c.Overloads
	e.counters.Remaps += c.Remaps
	e.counters.Reclaimed += c.Reclaimed
	e.counters.DroppedEarly += c.DroppedEarly
	for i, n := range c.Tries {
		e.counters.Tries[i] += n
	}
}

// check fails if the walks have missed a case, since they prove nothing about it.
func (e *encounters) check(t *testing.T, family string) {
	for _, what := range []string{
		"port_in 7 ", "port_in -1 ", "port_in 2 spoof_ip", "port_in 2 isolated", "port_out -1 ",
		"uplink_in 7 ", "uplink_in -1 ", "uplink_in 2 martian", "uplink_in 2 direct",
		"uplink_xdp 4 ", "uplink_xdp 2 ", "uplink_xdp 1 martian", "uplink_xdp 1 direct",
		"uplink_out -1 ", "uplink_out 2 spoof_ip", "uplink_out 2 unsupported", "uplink_out 2 foreign",
		"uplink_out 2 quota", "uplink_out 7 quota", "uplink_out 2 nat_full", "uplink_out 7 nat_full",
	} {
		program, _, _ := strings.Cut(what, " ")
		if e.seen[what] == 0 && !slices.Contains(e.without, program) {
			t.Errorf("%s: no walk has met %q", family, what)
		}
	}
	const every = nm.Replied | nm.Assured | nm.FinOut | nm.FinIn | nm.Reset | nm.Shared | nm.OfHost | nm.Inbound | nm.OutOnly | nm.Contacted | nm.HalfOpen |
		nm.Waiting | nm.ResetIn
	if e.bits != every {
		t.Errorf("%s: sessions had the bits %x, want %x", family, e.bits, every)
	}
	if e.counters.Overloads == 0 || e.counters.Remaps == 0 || e.counters.Reclaimed == 0 || e.counters.DroppedEarly == 0 || e.counters.Tries[0] == 0 || e.counters.Tries[2] == 0 {
		t.Errorf("%s: %+v", family, e.counters)
	}
	t.Logf("%s: %v %+v", family, e.seen, e.counters)
}
