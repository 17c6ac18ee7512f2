package datapath

import "fmt"

// NATPolicy is how a network's packets are translated. The zero value is the
// default: endpoint-independent mapping, the narrowest filter, and sharing of
// external ports when none is free.
type NATPolicy struct {
	Mapping      Mapping
	Filtering    Filtering
	OnExhaustion Exhaustion
}

// Mapping says for which destinations a source port keeps its external port
// (RFC 4787 section 4.1).
type Mapping string

// The mapping behaviours; "" means EndpointIndependent.
const (
	EndpointIndependent Mapping = "endpoint-independent" // one external port for all destinations
	EndpointDependent   Mapping = "endpoint-dependent"   // one for each destination
)

// Filtering says who may answer through a mapping (RFC 4787 section 5).
type Filtering string

// The filtering behaviours; "" means APDF.
const (
	APDF Filtering = "apdf" // the contacted address and port: address- and port-dependent
	ADF  Filtering = "adf"  // any port of a contacted address: address-dependent
	EIF  Filtering = "eif"  // anybody: endpoint-independent
)

// Exhaustion says what happens to a new flow when no external port is free.
type Exhaustion string

// The behaviours on exhaustion; "" means Overload.
const (
	Overload Exhaustion = "overload" // share a port whose tuple towards the remote is unique
	Refuse   Exhaustion = "refuse"   // drop it and tell the container (RFC 5508 REQ-8)
)

// Check returns an error if the datapath does not support the policy.
func (p NATPolicy) Check() error {
	switch p.Mapping {
	case "", EndpointIndependent, EndpointDependent:
	default:
		return fmt.Errorf("NAT mapping %q: %s or %s", p.Mapping, EndpointIndependent, EndpointDependent)
	}
	switch p.Filtering {
	case "", APDF, ADF, EIF:
	default:
		return fmt.Errorf("NAT filtering %q: %s, %s or %s", p.Filtering, APDF, ADF, EIF)
	}
	switch p.OnExhaustion {
	case "", Overload, Refuse:
	default:
		return fmt.Errorf("NAT on exhaustion %q: %s or %s", p.OnExhaustion, Overload, Refuse)
	}
	if p.Mapping == EndpointDependent && (p.Filtering == ADF || p.Filtering == EIF) {
		return fmt.Errorf("NAT filtering %q: needs the mapping %s, since a flow's own port has one remote only",
			p.Filtering, EndpointIndependent)
	}
	return nil
}

// WithDefaults returns the policy with its empty fields filled in.
func (p NATPolicy) WithDefaults() NATPolicy {
	if p.Mapping == "" {
		p.Mapping = EndpointIndependent
	}
	if p.Filtering == "" {
		p.Filtering = APDF
	}
	if p.OnExhaustion == "" {
		p.OnExhaustion = Overload
	}
	return p
}

// flags returns the policy as flags of enum fbr_net_flags of bpf/lib/device.h.
func (p NATPolicy) flags() (f tcFbrNetFlags) {
	if p.Mapping == EndpointDependent {
		f |= tcFbrNetFlagsFBR_NET_EDM
	}
	switch p.Filtering {
	case ADF:
		f |= tcFbrNetFlagsFBR_NET_ADF
	case EIF:
		f |= tcFbrNetFlagsFBR_NET_EIF
	}
	if p.OnExhaustion == Refuse {
		f |= tcFbrNetFlagsFBR_NET_STRICT
	}
	return f
}
