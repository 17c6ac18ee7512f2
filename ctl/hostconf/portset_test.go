package hostconf

import "testing"

func TestPortSetNotation(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "80": "80", "80,81,82": "80-82", "10000-29999": "10000-29999", "65535,1": "1,65535",
		"0-65535": "0-65535", " 5-7,6-9 ": "5-9",
	} {
		s, err := ParsePorts(in)
		if err != nil || s.String() != want {
			t.Errorf("%q: %q, %v, want %q", in, s, err, want)
		}
	}
	for _, in := range []string{"x", "1-", "9-8", "65536", "-1"} {
		if _, err := ParsePorts(in); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

func TestPortSetArithmetic(t *testing.T) {
	have, _ := ParsePorts("8080,20000-40000")
	ours := PortRange(10000, 29999)
	added := ours.Minus(have)
	if got := added.String(); got != "10000-19999" {
		t.Errorf("added %s", got)
	}
	if got := have.Plus(added).String(); got != "8080,10000-40000" {
		t.Errorf("together %s", got)
	}
	if got := have.Plus(added).Minus(added); got != have {
		t.Errorf("taken away again %s", got)
	}
}
