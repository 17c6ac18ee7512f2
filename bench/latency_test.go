package bench

import "testing"

func TestParseSockperf(t *testing.T) {
	const out = "sockperf: # dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0\n" +
		"sockperf: \x1b[2;35mTotal 25889 observations\x1b[0m; each percentile contains 258.89 observations\n" +
		"sockperf: ---> percentile 99.900 = 2214.174\nsockperf: ---> percentile 99.000 =  519.805\n" +
		"sockperf: ---> percentile 50.000 =   11.917\n"
	s, err := parseSockperf(out)
	if err != nil || s.Value != 11.917 || s.P99 != 0.519805 || s.P999 != 2.214174 || s.Requests != 25889 {
		t.Errorf("got %+v %v", s, err)
	}
	if _, err := parseSockperf("sockperf: nothing"); err == nil {
		t.Error("no error for a run that measured nothing")
	}
}
