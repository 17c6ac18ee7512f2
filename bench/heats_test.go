package bench

import (
	"slices"
	"testing"
)

// TestSetsNameContestants: a name that no contestant has would silently run
// nothing.
func TestSetsNameContestants(t *testing.T) {
	known := []Contestant{Bridge{}, Bridge{NAT: Routed}, Bridge{NAT: IPTables}, Bridge{NAT: IPTables, NFCall: true}, Bridge{NAT: IPTables, Big: true},
		NewDocker(), Fastbr{}, Fastbr{}.WithoutNAT(), Fastbr{}.WithNFCall(), Fastbr{}.WithXDP(), Fastbr{}.WithoutBigTCP(), NewFloor(), HashFloor{}, NewXDPFloor(), NewXDPDrop(), Direct{},
		Bridge{IPv6: true}, Fastbr{}.WithIPv6(), NewFloor().WithIPv6()}
	for _, set := range Sets() {
		for _, h := range set.Heats {
			for _, name := range h.Contestants {
				if !slices.ContainsFunc(known, func(c Contestant) bool { return c.Name() == name }) {
					t.Errorf("set %s: %s: no contestant %s", set.Name, h.Workload.Name(), name)
				}
			}
		}
	}
}

func TestHeatEntersWhoCan(t *testing.T) {
	h := Heat{Workload: PPS{Flows: 1_000_000}, Contestants: []string{"fastbr", "floor"}, Every: 2}
	room := Fastbr{}.WithRoomFor(h.Workload)
	if h.entered(Fastbr{}) || !h.entered(room) || !h.entered(NewFloor()) || h.entered(Direct{}) {
		t.Error("wrong contestants")
	}
	six := Heat{Workload: PPS{IPv6: true}}
	if six.entered(Fastbr{}) || !six.entered(Fastbr{}.WithIPv6()) || (Heat{Workload: PPS{}}).entered(Fastbr{}.WithIPv6()) {
		t.Error("contestants of the other family")
	}
	p := Plan{Contestants: []Contestant{room, NewFloor()}, Heats: []Heat{h, {Workload: ConnMax{}}}, Rounds: 3}
	if got := p.Runs(); got != 2*2+3*2 {
		t.Errorf("%d runs", got)
	}
}
