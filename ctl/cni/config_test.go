package cni

import (
	"errors"
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fastbr/fastbr/ctl"
)

// bridged is the least that describes a bridge.
const bridged = `"ipam": {"type": "host-local"}`

func parsed(t *testing.T, keys, args string) *config {
	t.Helper()
	c, err := parse([]byte(`{"cniVersion": "1.0.0", "name": "net", "type": "fastbr", `+keys+`}`), args)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func codeOf(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// TestEveryKeyOfTheBridgePlugin: each key is honoured, has no effect here, or
// is refused.
func TestEveryKeyOfTheBridgePlugin(t *testing.T) {
	for keys, want := range map[string]uint{
		`"network": "default"`:        0,
		bridged:                       0,
		bridged + `, "bridge": "br7"`: 0,
		bridged + `, "isGateway": true, "ipMasq": true`:        0,
		bridged + `, "isDefaultGateway": true`:                 0,
		bridged + `, "forceAddress": true`:                     0,
		bridged + `, "ipMasqBackend": "nftables"`:              0,
		bridged + `, "mtu": 9000`:                              0,
		bridged + `, "hairpinMode": true`:                      0,
		bridged + `, "macspoofchk": true`:                      0,
		bridged + `, "enabledad": true`:                        0,
		bridged + `, "preserveDefaultVlan": true`:              0,
		bridged + `, "vlan": 0, "vlanTrunk": []`:               0,
		bridged + `, "portIsolation": false`:                   0,
		bridged + `, "dns": {"nameservers": ["1.1.1.1"]}`:      0,
		bridged + `, "promiscMode": true`:                      0,
		bridged + `, "promiscMode": true, "hairpinMode": true`: types.ErrInvalidNetworkConfig,
		bridged + `, "vlan": 7`:                                types.ErrUnsupportedField,
		bridged + `, "vlanTrunk": [{"id": 7}]`:                 types.ErrUnsupportedField,
		bridged + `, "disableContainerInterface": true`:        types.ErrUnsupportedField,
		bridged + `, "portIsolation": true`:                    types.ErrUnsupportedField,
		`"bridge": "br7"`:                                      types.ErrInvalidNetworkConfig,
		`"network": "default", ` + bridged:                     types.ErrInvalidNetworkConfig,
		`"network": "default", "isGateway": false`:             types.ErrInvalidNetworkConfig,
		`"network": "default", "mtu": 1400`:                    types.ErrInvalidNetworkConfig,
		`"network": "default", "bridge": "br7"`:                types.ErrInvalidNetworkConfig,
		bridged + `, "ipMasq": true, "noMasquerade": ["ten"]`:  types.ErrInvalidNetworkConfig,
		bridged + `, "noMasquerade": ["10.0.0.0/8"]`:           types.ErrInvalidNetworkConfig,
		bridged + `, "ipMasq": true, "snatAddress": "mail"`:    types.ErrInvalidNetworkConfig,
		bridged + `, "snatAddress": "192.0.2.1"`:               types.ErrInvalidNetworkConfig,
	} {
		if got := codeOf(parsed(t, keys, "").check()); got != want {
			t.Errorf("%s: code %d, want %d", keys, got, want)
		}
	}
}

func TestBridgeBecomesNetwork(t *testing.T) {
	given := allocation{v4: assignment{netip.MustParsePrefix("10.88.0.5/16"), netip.MustParseAddr("10.88.0.1")}}
	for keys, want := range map[string]struct{ masq, internal bool }{
		bridged:                         {false, true},
		bridged + `, "isGateway": true`: {false, false},
		bridged + `, "isGateway": true, "ipMasq": true`:        {true, false},
		bridged + `, "isDefaultGateway": true, "ipMasq": true`: {true, false},
		bridged + `, "ipMasq": true`:                           {false, true},
	} {
		r := parsed(t, keys, "").network(given)
		if r.Bridge != "cni0" || r.Subnet.String() != "10.88.0.0/16" || *r.Masquerade != want.masq || *r.Internal != want.internal {
			t.Errorf("%s: %s %s, masquerade %v, internal %v; want %+v", keys, r.Bridge, r.Subnet, *r.Masquerade, *r.Internal, want)
		}
	}
}

// TestBridgeSaysWhatIsTranslated: ipMasq may except destinations, and name a source.
func TestBridgeSaysWhatIsTranslated(t *testing.T) {
	given := allocation{v4: assignment{netip.MustParsePrefix("10.88.0.5/16"), netip.MustParseAddr("10.88.0.1")}}
	keys := bridged + `, "isGateway": true, "ipMasq": true`
	r := parsed(t, keys+`, "noMasquerade": ["10.0.0.0/8"], "snatAddress": "192.0.2.1"`, "").network(given)
	if len(r.NoMasquerade) != 1 || r.NoMasquerade[0].String() != "10.0.0.0/8" || r.SNATAddress.String() != "192.0.2.1" {
		t.Errorf("not masqueraded to %v, else as %v", r.NoMasquerade, r.SNATAddress)
	}
	if r := parsed(t, keys, "").network(given); r.NoMasquerade == nil || len(r.NoMasquerade) > 0 || r.SNATAddress.IsValid() {
		t.Errorf("without the keys: %v, %v; want none, not anything", r.NoMasquerade, r.SNATAddress)
	}
}

// TestAllowance: the configuration, its arguments and the runtime may each allow addresses.
func TestAllowance(t *testing.T) {
	c := parsed(t, bridged+`, "allowedAddresses": ["10.8.0.0/24"], "args": {"cni": {"allowedAddresses": ["10.9.0.1"]}},
		"runtimeConfig": {"allowedAddresses": ["10.9.0.2/32"], "allowedMACs": ["00:00:5e:00:01:33"]}`, "")
	want, err := ctl.ParseAllowed([]string{"10.8.0.0/24", "10.9.0.1/32", "10.9.0.2/32"}, []string{"00:00:5e:00:01:33"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.allowance(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("allowed %+v (%v), want %+v", got, err, want)
	}
	if _, err := parsed(t, bridged+`, "allowedMACs": ["x"]`, "").allowance(); err == nil {
		t.Error("a MAC address of one letter is taken")
	}
}

// TestRoutesMakeAGateway: where isGateway is absent, routes that lead out by the subnet's
// gateway decide.
func TestRoutesMakeAGateway(t *testing.T) {
	dst := func(text string) net.IPNet {
		_, n, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		return *n
	}
	for _, x := range []struct {
		keys, dst, gw string
		internal      bool
	}{
		{bridged, "10.244.0.0/16", "", false},
		{bridged, "0.0.0.0/0", "10.244.1.1", false},
		{bridged + `, "ipMasq": false`, "10.244.0.0/16", "", false},
		{bridged, "10.244.1.0/24", "", true},
		{bridged, "10.244.1.128/25", "", true},
		{bridged, "0.0.0.0/0", "10.244.1.9", true},
		{bridged + `, "isGateway": false`, "0.0.0.0/0", "", true},
	} {
		given := allocation{v4: assignment{netip.MustParsePrefix("10.244.1.5/24"), netip.MustParseAddr("10.244.1.1")},
			routes: []*types.Route{{Dst: dst(x.dst), GW: net.ParseIP(x.gw)}}}
		if got := *parsed(t, x.keys, "").network(given).Internal; got != x.internal {
			t.Errorf("%s, a route to %s via %q: internal is %v, want %v", x.keys, x.dst, x.gw, got, x.internal)
		}
	}
}

func TestPublications(t *testing.T) {
	one := netip.MustParseAddr("198.51.100.1")
	for mappings, want := range map[string][]ctl.PublishRequest{
		`[]`:                                     nil,
		`[{"hostPort": 0, "containerPort": 80}]`: nil,
		`[{"hostPort": 80, "containerPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"}]`: {{HostIP: netip.IPv4Unspecified(), First: 80, Last: 80, Port: 80, Proto: "tcp", Held: true, Lenient: true}},
		`[{"hostPort": 80, "containerPort": 8080}, {"hostPort": 81, "containerPort": 8081}, {"hostPort": 82, "containerPort": 8083}]`: {
			{First: 80, Last: 81, Port: 8080, Proto: "tcp", Held: true, Lenient: true}, {First: 82, Last: 82, Port: 8083, Proto: "tcp", Held: true, Lenient: true}},
		`[{"hostPort": 80, "containerPort": 80}, {"hostPort": 81, "containerPort": 81}, {"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]`: {
			{First: 80, Last: 81, Port: 80, Proto: "tcp", Held: true, Lenient: true}},
		`[{"hostPort": 53, "containerPort": 53, "protocol": "udp"}, {"hostPort": 54, "containerPort": 54, "protocol": "tcp", "hostIP": "198.51.100.1"}]`: {
			{First: 53, Last: 53, Port: 53, Proto: "udp", Held: true, Lenient: true}, {HostIP: one, First: 54, Last: 54, Port: 54, Proto: "tcp", Held: true, Lenient: true}},
	} {
		got, err := parsed(t, `"network": "default", "runtimeConfig": {"portMappings": `+mappings+`}`, "").publications()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v; want %v", mappings, got, err, want)
		}
	}
	for mappings, want := range map[string]uint{
		`[{"hostPort": 80, "containerPort": 80, "protocol": "gre"}]`: types.ErrUnsupportedField,
		`[{"hostPort": 80, "containerPort": 80, "hostIP": "here"}]`:  types.ErrInvalidNetworkConfig,
		`[{"hostPort": 65536, "containerPort": 80}]`:                 types.ErrInvalidNetworkConfig,
		`[{"hostPort": 80}]`: types.ErrInvalidNetworkConfig,
	} {
		_, err := parsed(t, `"network": "default", "runtimeConfig": {"portMappings": `+mappings+`}`, "").publications()
		if codeOf(err) != want {
			t.Errorf("%s: %v, want code %d", mappings, err, want)
		}
	}
}

func TestNamesAndWishes(t *testing.T) {
	id := "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for args, want := range map[string]string{
		"":                    "0123456789ab",
		"IgnoreUnknown=1;X":   "0123456789ab",
		"K8S_POD_NAME=web":    "web",
		"K8S_POD_NAME=a/b":    "0123456789ab",
		"K8S_POD_NAME=" + id:  "0123456789ab",
		"K8S_POD_NAMESPACE=n": "0123456789ab",
		"K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop": "shop.web",
	} {
		if got := parsed(t, bridged, args).portName(id); got != want {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
	}
	if got := parsed(t, bridged, "").portName("c1"); got != "c1" {
		t.Errorf("short id: %q", got)
	}
	c := parsed(t, `"network": "default", "args": {"cni": {"mac": "02:00:00:00:00:01", "ips": ["172.30.0.9"]}}, "runtimeConfig": {"mac": "02:00:00:00:00:02"}`, "MAC=02:00:00:00:00:03;IP=172.30.0.8")
	if mac, err := c.mac(); err != nil || mac.String() != "02:00:00:00:00:02" {
		t.Errorf("MAC %v, %v", mac, err)
	}
	if ip, ip6, err := c.ips(); err != nil || ip.String() != "172.30.0.9" || ip6.IsValid() {
		t.Errorf("addresses %v and %v, %v", ip, ip6, err)
	}
}

// TestOneAddressAsOftenAsOneLikes: one of each family, whatever the order.
func TestOneAddressAsOftenAsOneLikes(t *testing.T) {
	for ips, want := range map[string]string{
		`[]`:                               "invalid IP, invalid IP",
		`["10.0.0.9"]`:                     "10.0.0.9, invalid IP",
		`["10.0.0.9", "10.0.0.9/24"]`:      "10.0.0.9, invalid IP",
		`["10.0.0.9", "10.0.0.8"]`:         "",
		`["fd00::9/64", "10.0.0.9"]`:       "10.0.0.9, fd00::9",
		`["fd00::9"]`:                      "invalid IP, fd00::9",
		`["fd00::9", "fd00::8"]`:           "",
		`["fe80::9"]`:                      "",
		`["10.0.0.9", "nonsense"]`:         "",
		`["10.0.0.9", "::ffff:10.0.0.10"]`: "",
	} {
		v4, v6, err := parsed(t, `"network": "default", "runtimeConfig": {"ips": `+ips+`}`, "").ips()
		if got := v4.String() + ", " + v6.String(); (err != nil) != (want == "") || err == nil && got != want {
			t.Errorf("%s: %v, %v; want %q", ips, got, err, want)
		}
	}
}

// TestPortsOfBothFamilies: an address says of which family a mapping is; none, both.
func TestPortsOfBothFamilies(t *testing.T) {
	got, err := parsed(t, `"network": "default", "runtimeConfig": {"portMappings": [
		{"hostPort": 80, "containerPort": 80, "protocol": "SCTP"}, {"hostPort": 81, "containerPort": 81, "hostIP": "::"}, {"hostPort": 82, "containerPort": 82, "hostIP": "2001:db8::1"}]}`, "").publications()
	want := []ctl.PublishRequest{{First: 80, Last: 80, Port: 80, Proto: "sctp", Held: true, Lenient: true},
		{HostIP: netip.IPv6Unspecified(), First: 81, Last: 81, Port: 81, Proto: "tcp", Held: true, Lenient: true},
		{HostIP: netip.MustParseAddr("2001:db8::1"), First: 82, Last: 82, Port: 82, Proto: "tcp", Held: true, Lenient: true}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}
