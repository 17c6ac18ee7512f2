package bench

import (
	"strings"
	"testing"
)

func TestAttachSteps(t *testing.T) {
	for i, want := range map[int]string{1: "attach, up to port 20", 20: "attach, up to port 20", 21: "attach, in between",
		990: "attach, in between", 991: "attach, up to port 1,000", 1000: "attach, up to port 1,000"} {
		if got := attachStep(i, 1000); got != want {
			t.Errorf("port %d: %s, want %s", i, got, want)
		}
	}
}

func TestControlPlaneTable(t *testing.T) {
	r := small()
	r.Control = []Timing{{"fastbr", "up", []float64{3, 1, 2}, []float64{1, 1, 4}}}
	if got := r.Text(); !strings.Contains(got, "up                      fastbr       3       2.0 ms   1.0 ms") {
		t.Errorf("got\n%s", got)
	}
}
