package docker

// Messages of dockerd (moby, daemon/libnetwork/drivers/remote/api). Addresses
// are CIDR strings and may be empty.

type networkID struct{ NetworkID string }

type endpointID struct{ NetworkID, EndpointID string }

type createNetworkRequest struct {
	NetworkID          string
	Options            map[string]any
	IPv4Data, IPv6Data []ipamData
}

type ipamData struct {
	Pool, Gateway string
	AuxAddresses  map[string]any
}

type createEndpointRequest struct {
	NetworkID, EndpointID string
	Interface             endpointInterface
	Options               struct {
		Ifname           string `json:"com.docker.network.endpoint.ifname"`
		AllowedAddresses string `json:"fastbr.allowed-address"` // a list
		AllowedMACs      string `json:"fastbr.allowed-mac"`     // a list
	}
}

type endpointInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

// createEndpointResponse holds only what the request left open. dockerd treats
// anything else as an error.
type createEndpointResponse struct{ Interface endpointInterface }

type joinRequest struct {
	NetworkID, EndpointID string
	SandboxKey            string // path of the container's namespace
}

type joinResponse struct {
	InterfaceName interfaceName
	// Gateway is empty only for internal networks. Without a gateway dockerd adds
	// a second interface on its own bridge docker_gwbridge.
	Gateway     string `json:",omitempty"`
	GatewayIPv6 string `json:",omitempty"`
}

// interfaceName tells dockerd which device to move and how to name it: DstName,
// otherwise the prefix and a number. dockerd before 28 does not know DstName.
type interfaceName struct {
	SrcName, DstPrefix string
	DstName            string `json:",omitempty"`
}

type programRequest struct {
	NetworkID, EndpointID string
	Options               struct {
		PortMap []portBinding `json:"com.docker.network.portmap"`
	}
}

// portBinding is one `docker run -p`. A range arrives as one binding per port.
type portBinding struct {
	Proto                       int // IP protocol number
	Port, HostPort, HostPortEnd uint16
	HostIP                      string
}

type (
	activateResponse     struct{ Implements []string }
	capabilitiesResponse struct {
		Scope, ConnectivityScope string
		GwAllocChecker           bool
	}
	// gwAllocResponse: true means that the network needs no gateway address.
	gwAllocResponse  struct{ SkipIPv4, SkipIPv6 bool }
	operInfoResponse struct{ Value map[string]any }
	errorResponse    struct{ Err string }
)
