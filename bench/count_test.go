package bench

import (
	"strings"
	"testing"
)

func counts(fastbr, floor float64) *Counts {
	return &Counts{Schema: schema, Rows: []CountRow{
		{Workload: "pps-c2o", Title: "UDP", Per: "packet", Instructions: map[string]float64{"fastbr": fastbr, "floor": floor}},
		{Workload: attachCount, Title: "attach", Per: "command", Instructions: map[string]float64{"fastbr": 100 * fastbr}},
	}}
}

// ofIPv6 turns the first row into one of IPv6, whose contestants have other names.
func ofIPv6(c *Counts) *Counts {
	row := &c.Rows[0]
	row.Workload += ipv6
	row.Instructions = map[string]float64{"fastbr-ipv6": row.Instructions["fastbr"], "floor-ipv6": row.Instructions["floor"]}
	return c
}

func TestCompareCounts(t *testing.T) {
	golden := counts(1000, 800)
	elsewhere := func(c *Counts) *Counts { c.Kernel = "another"; return c }
	connections := func(fastbr float64) *Counts {
		c := counts(1000, 800)
		c.Rows = append(c.Rows, CountRow{Workload: "tcp-crr", Title: "TCP", Per: perConnection, Instructions: map[string]float64{"fastbr": fastbr, "floor": 800}})
		return c
	}
	for name, c := range map[string]struct {
		got  *Counts
		want string
	}{
		"the same":                      {counts(1000, 800), ""},
		"within the slack":              {counts(1019, 800), ""},
		"dearer":                        {counts(1021, 800), "UDP, fastbr: 1021 instructions per packet, +2.1 % of the 1000 on record"},
		"cheaper":                       {counts(979, 800), "UDP, fastbr: 979 instructions per packet, -2.1 % of the 1000 on record"},
		"another kernel":                {elsewhere(counts(1100, 880)), ""},
		"dearer on a kernel that is so": {elsewhere(counts(1130, 880)), "UDP, fastbr: 1130 instructions per packet, +2.7 % of the 1100 on record"},
		"the floor alone moved":         {counts(1000, 880), ""},
		"IPv6, dearer":                  {ofIPv6(counts(1021, 800)), "UDP, fastbr-ipv6: 1021 instructions per packet, +2.1 % of the 1000 on record"},
		"not counted":                   {&Counts{}, "UDP: not counted; attach: not counted"},
	} {
		on := golden
		if strings.HasPrefix(name, "IPv6") {
			on = ofIPv6(counts(1000, 800))
		}
		if got := strings.Join(c.got.Compare(on), "; "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	for got, want := range map[float64]string{
		1059: "", 941: "", 1061: "TCP, fastbr: 1061 instructions per connection, +6.1 % of the 1000 on record",
	} {
		if off := strings.Join(connections(got).Compare(connections(1000)), "; "); off != want {
			t.Errorf("%v instructions per connection: %q, want %q", got, off, want)
		}
	}
}

func TestRatesAreCounts(t *testing.T) {
	one := func(v float64) map[string][]Sample { return map[string][]Sample{"fastbr": {{Value: v}}} }
	c := newCounts(&Report{Results: []Result{
		{Workload: "pps", Unit: mpps, Samples: one(0.5)},
		{Workload: "tcp", Unit: gbits, Samples: one(8.192)},
		{Workload: "crr", Unit: connsPerSecond, Samples: one(2000)},
	}}, []Timing{
		{Contestant: "fastbr", Step: attachStep(1, countPorts), CPUMilliseconds: []float64{40, 50, 60}},
		{Contestant: "fastbr", Step: "down", CPUMilliseconds: []float64{1}},
	})
	for i, want := range []float64{1000, 500, 250_000, 25_000_000} {
		if got := c.Rows[i].Instructions["fastbr"]; got != want {
			t.Errorf("%s: %v instructions per %s, want %v", c.Rows[i].Workload, got, c.Rows[i].Per, want)
		}
	}
	if len(c.Rows) != 4 {
		t.Errorf("%d rows", len(c.Rows))
	}
}
