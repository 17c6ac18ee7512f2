package bench

import (
	"testing"

	"github.com/cilium/ebpf"
)

// TestHashFloorKnowsFlows: a flow's first packet makes two entries, and the
// next one finds them.
func TestHashFloorKnowsFlows(t *testing.T) {
	needRoot(t)
	table, err := newFlowTable(10)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = table.Close() }()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: redirects(lookUp(table), nil)})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer func() { _ = prog.Close() }()
	frame, _, _ := stream{}.template(1)
	for _, c := range []struct {
		sport   byte
		entries int
	}{{1, 2}, {1, 2}, {2, 4}} {
		frame[35] = c.sport
		if _, _, err := prog.Test(frame[:]); err != nil {
			t.Fatal(err)
		}
		var key [flowKeyBytes]byte
		var value [flowValueBytes]byte
		entries := 0
		for it := table.Iterate(); it.Next(&key, &value); {
			entries++
		}
		if entries != c.entries {
			t.Errorf("%d entries after a packet from port %d, want %d", entries, c.sport, c.entries)
		}
	}
}
