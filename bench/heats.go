package bench

import "slices"

// Set is a set of heats that belong together.
type Set struct {
	Name, Purpose string
	Heats         []Heat
}

// Sets returns the sets that can be selected by name.
func Sets() []Set {
	return []Set{
		{"table", "what README.md compares, in some ten minutes: --set table --rounds 10 --seconds 1", tableHeats()},
		{"smoke", "everybody and everything once, to see that it works: --set smoke --rounds 1 --seconds 1 --out -", smokeHeats()},
		{"full", "every workload with every contestant that can", fullHeats()},
	}
}

// tableHeats omit what shows nothing: bulk TCP hardly differs between kinds of
// kernel NAT, and a bare veth pair is no comparison for small packets.
func tableHeats() []Heat {
	kernel, call, docker := Bridge{NAT: IPTables}.Name(), Bridge{NAT: IPTables, NFCall: true}.Name(), NewDocker().Name()
	fast, floor, hash, direct := Fastbr{}.Name(), NewFloor().Name(), HashFloor{}.Name(), Direct{}.Name()
	// Networks that are not translated, beside the kernel's routing.
	routed := []string{Bridge{NAT: Routed}.Name(), Fastbr{}.WithoutNAT().Name()}
	pps, bulk, short := []string{kernel, docker, fast, floor}, []string{kernel, docker, fast, direct}, []string{docker, fast}
	many := []string{fast, floor, hash}
	// These show what larger super-packets contribute: the outside does not send
	// any.
	big := append(slices.Clone(bulk), Fastbr{}.WithoutBigTCP().Name(), Bridge{NAT: IPTables, Big: true}.Name())
	return []Heat{
		{Workload: PPS{Direction: ContainerToContainer}, Contestants: append(slices.Clone(pps), call, Fastbr{}.WithNFCall().Name(), Fastbr{}.WithoutNAT().Name())},
		{Workload: PPS{Direction: ContainerToOutside}, Contestants: append(append(slices.Clone(pps), hash), routed...)},
		{Workload: PPS{Direction: OutsideToContainer}, Contestants: append(append(slices.Clone(pps), Fastbr{}.WithXDP().Name(), NewXDPFloor().Name()), routed...)},
		{Workload: Flood{}, Contestants: droppers()},
		{Workload: PPS{Direction: ContainerToOutside, Flows: 100_000}, Contestants: many, Every: 2},
		{Workload: PPS{Direction: ContainerToOutside, Flows: 1_000_000}, Contestants: many, Every: 2},
		{Workload: PPS{Direction: ContainerToContainer, IPv6: true}, Contestants: inside6()},
		{Workload: PPS{Direction: ContainerToOutside, IPv6: true}},
		{Workload: PPS{Direction: OutsideToContainer, IPv6: true}},
		{Workload: Bulk{Direction: ContainerToContainer, Omit: warmUp, IPv6: true}, Contestants: inside6()},
		{Workload: Bulk{Direction: ContainerToOutside, Omit: warmUp, IPv6: true}},
		{Workload: Bulk{Direction: OutsideToContainer, Omit: warmUp, IPv6: true}},
		{Workload: Bulk{Direction: ContainerToContainer, Omit: warmUp}, Contestants: big},
		{Workload: Bulk{Direction: ContainerToOutside, Omit: warmUp}, Contestants: append(slices.Clone(big), routed...)},
		{Workload: Bulk{Direction: OutsideToContainer, Omit: warmUp}, Contestants: append(append(slices.Clone(bulk), Fastbr{}.WithXDP().Name()), routed...)},
		{Workload: RoundTrip{ContainerToContainer}, Contestants: short},
		{Workload: RoundTrip{ContainerToOutside}, Contestants: short},
		{Workload: ConnMax{}, Contestants: short},
	}
}

func smokeHeats() []Heat {
	fast := []string{Fastbr{}.Name()}
	withoutXDP := []string{Bridge{}.Name(), Bridge{NAT: IPTables}.Name(), Bridge{NAT: IPTables, NFCall: true}.Name(), Bridge{NAT: Routed}.Name(),
		Bridge{NAT: IPTables, Big: true}.Name(), NewDocker().Name(), Fastbr{}.Name(), Fastbr{}.WithoutNAT().Name(), Fastbr{}.WithoutBigTCP().Name(), NewFloor().Name(), HashFloor{}.Name(), Direct{}.Name()}
	return []Heat{
		{Workload: PPS{Direction: ContainerToOutside}, Contestants: withoutXDP},
		{Workload: PPS{Direction: ContainerToContainer}, Contestants: append(slices.Clone(fast), Fastbr{}.WithNFCall().Name())},
		{Workload: PPS{Direction: OutsideToContainer}, Contestants: []string{Fastbr{}.WithXDP().Name(), NewXDPFloor().Name()}},
		{Workload: PPS{Direction: ContainerToContainer, IPv6: true}, Contestants: inside6()},
		{Workload: PPS{Direction: ContainerToOutside, IPv6: true}},
		{Workload: PPS{Direction: OutsideToContainer, IPv6: true}, Contestants: []string{Fastbr{}.WithIPv6().Name()}},
		{Workload: Bulk{Direction: OutsideToContainer, Omit: warmUp, IPv6: true}, Contestants: []string{Fastbr{}.WithIPv6().Name()}},
		{Workload: Flood{}, Contestants: []string{NewXDPDrop().Name()}},
		{Workload: Bulk{Direction: OutsideToContainer, Omit: warmUp}, Contestants: fast},
		{Workload: RoundTrip{ContainerToOutside}, Contestants: fast},
		{Workload: ConnMax{}, Contestants: fast},
		{Workload: ConnRate{}, Contestants: fast},
	}
}

// inside6 are the contestants of IPv6 between containers, where none translates.
func inside6() []string {
	return []string{Bridge{IPv6: true}.Name(), Fastbr{}.WithIPv6().Name(), NewFloor().WithIPv6().Name()}
}

func fullHeats() []Heat {
	var heats []Heat
	for _, w := range Workloads() {
		h := Heat{Workload: w}
		if (w == Flood{}) {
			h.Contestants = droppers()
		}
		heats = append(heats, h)
	}
	return heats
}

// droppers are the contestants that let nothing in to a container's own
// address.
func droppers() []string {
	return []string{Fastbr{}.Name(), Fastbr{}.WithXDP().Name(), NewXDPDrop().Name()}
}
