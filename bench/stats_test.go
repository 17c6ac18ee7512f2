package bench

import (
	"math"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{
		{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{5, 1, 3}, 3}, {[]float64{4, 1, 3, 2}, 2.5},
	} {
		before := append([]float64(nil), c.in...)
		if got := Median(c.in); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.in, got, c.want)
		}
		for i := range before {
			if c.in[i] != before[i] {
				t.Fatalf("Median changed its argument to %v", c.in)
			}
		}
	}
}

func TestBootstrap(t *testing.T) {
	if got := Bootstrap(nil); got != (Interval{}) {
		t.Errorf("of nothing: %v", got)
	}
	if got := Bootstrap([]float64{2, 2, 2}); got != (Interval{2, 2, 2, 3}) {
		t.Errorf("of equal values: %v", got)
	}
	v := []float64{1.00, 1.02, 1.04, 1.06, 1.08, 1.10, 1.12, 1.14, 1.16}
	got := Bootstrap(v)
	if got.Median != 1.08 || got.Low < v[0] || got.Low >= 1.08 || got.High <= 1.08 || got.High > v[8] {
		t.Errorf("of %v: %v", v, got)
	}
	if again := Bootstrap(v); again != got {
		t.Errorf("the same numbers gave %v and %v", got, again)
	}
	// A single outlier moves the mean but must not move the median.
	if out := Bootstrap([]float64{1, 1, 1, 1, 100}); out.Median != 1 {
		t.Errorf("with an outlier: %v", out)
	}
}

func TestPairedRatiosSkipsFailedRounds(t *testing.T) {
	a := []Sample{{Value: 20}, {Value: 10, Error: "no route"}, {Value: 30}, {Value: 5}}
	b := []Sample{{Value: 10}, {Value: 10}, {Value: 0}}
	got := PairedRatios(a, b)
	if len(got) != 1 || math.Abs(got[0]-2) > 1e-9 {
		t.Errorf("got %v, want [2]", got)
	}
}

func TestFastShare(t *testing.T) {
	share, ok := Paths{Fast: 1099, Slow: 11}.FastShare(Paths{Fast: 100, Slow: 10})
	if !ok || share != 0.999 {
		t.Errorf("got %v %v, want 0.999", share, ok)
	}
	if _, ok := (Paths{Fast: 1}).FastShare(Paths{Fast: 1}); ok {
		t.Error("a share of no packets")
	}
}
