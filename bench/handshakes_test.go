package bench

import "testing"

// TestHandshakesAreCounted: connections complete, and count as failed if one
// end does not get through.
func TestHandshakesAreCounted(t *testing.T) {
	needRoot(t)
	l, err := Build(t.Context(), Bridge{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = Close(Bridge{}, l) }()
	const n = 300
	h := Handshakes{Client: l.Containers[0], Server: l.Outside, PerSecond: 100_000}
	for _, want := range []Handshaken{{Begun: n, Completed: n, Served: n}, {Begun: n}} {
		got, err := h.Run(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		got.Took, got.Repeated = 0, 0
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if err := l.Host.IPTables(t.Context(), "-I", "FORWARD", "-p", "tcp", "--tcp-flags", "FIN", "FIN", "-j", "DROP"); err != nil {
			t.Fatal(err)
		}
	}
}
