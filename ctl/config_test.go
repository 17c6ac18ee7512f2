package ctl

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fastbr/fastbr/datapath"
)

func TestDefineCompletes(t *testing.T) {
	no, yes := false, true
	tests := []struct {
		name    string
		network string
		req     NetworkRequest
		used    string
		want    Definition
		note    bool
	}{
		{"default", "default", NetworkRequest{}, "0.0.0.0/0",
			Definition{Bridge: "fastbr0", Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: netip.MustParseAddr("172.30.0.1"), Masquerade: true}, false},
		{"default moved", "default", NetworkRequest{}, "172.16.0.0/12",
			Definition{Bridge: "fastbr0", Subnet: netip.MustParsePrefix("192.168.0.0/20"), Gateway: netip.MustParseAddr("192.168.0.1"), Masquerade: true}, true},
		{"another", "lab", NetworkRequest{Bridge: "lab0", Internal: &yes, Masquerade: &no, MTU: 1400}, "0.0.0.0/0",
			Definition{Bridge: "lab0", Subnet: netip.MustParsePrefix("192.168.0.0/20"), Gateway: netip.MustParseAddr("192.168.0.1"), Internal: true, MTU: 1400}, false},
	}
	for _, test := range tests {
		def, note, err := define(test.network, test.req, usedAddrs{routes: []netip.Prefix{netip.MustParsePrefix(test.used)}})
		if err != nil || len(def.ID) != 64 || (note != "") != test.note {
			t.Errorf("%s: id %q, note %q, %v", test.name, def.ID, note, err)
		}
		test.want.ID, test.want.Name = def.ID, test.network
		test.want.NATMapping, test.want.NATFiltering, test.want.NATOnExhaustion = "endpoint-independent", "apdf", "overload"
		if !reflect.DeepEqual(def, test.want) {
			t.Errorf("%s: %+v, want %+v", test.name, def, test.want)
		}
	}
}

func TestDefineRefuses(t *testing.T) {
	var none usedAddrs
	outside := NetworkRequest{Subnet: netip.MustParsePrefix("172.20.0.0/24"), Gateway: netip.MustParseAddr("172.20.1.1")}
	if _, _, err := define("a", outside, none); !errors.Is(err, ErrInvalid) {
		t.Errorf("gateway outside: %v", err)
	}
	if _, _, err := define("a", NetworkRequest{Gateway: outside.Gateway}, none); !errors.Is(err, ErrInvalid) {
		t.Errorf("gateway without subnet: %v", err)
	}
}

func TestBridgeNameFits(t *testing.T) {
	if name := bridgeName("lab", newID()); len(name) > maxIfname || !strings.HasPrefix(name, "fbr-") {
		t.Error(name)
	}
}

func TestInstanceRequestCheck(t *testing.T) {
	d := func(v time.Duration) *time.Duration { return &v }
	tests := []struct {
		name string
		req  InstanceRequest
		ok   bool
	}{
		{"nothing", InstanceRequest{}, true},
		{"lease off", InstanceRequest{Lease: d(0)}, true},
		{"longest lease", InstanceRequest{Lease: d(datapath.MaxLease)}, true},
		{"lease too long", InstanceRequest{Lease: d(datapath.MaxLease + 1)}, false},
		{"lease too short", InstanceRequest{Lease: d(time.Millisecond)}, false},
		{"range", InstanceRequest{NATFirst: 1024, NATLast: 65535}, true},
		{"privileged range", InstanceRequest{NATFirst: 80, NATLast: 90}, false},
		{"reversed range", InstanceRequest{NATFirst: 3000, NATLast: 2000}, false},
		{"uplinks", InstanceRequest{Uplinks: []string{"eth0", "eth1"}}, true},
		{"auto and another", InstanceRequest{Uplinks: []string{"auto", "eth1"}}, false},
		{"uplink name", InstanceRequest{Uplinks: []string{"../eth0"}}, false},
	}
	for _, test := range tests {
		if err := test.req.check(); (err == nil) != test.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"a": true, "web-1.x_y": true, "": false, "-a": false, "a/b": false, "a b": false,
		strings.Repeat("n", 63): true, strings.Repeat("n", 64): false} {
		if err := checkName("port", name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, ok := range map[string]bool{"eth0": true, "a.b": true, "": false, ".": false, "..": false, "a/b": false, "a b": false,
		"fifteencharactr": true, "sixteencharacter": false, "veth%d": false} {
		if err := checkIfname(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"host", "none", "bridge"} {
		if checkNetworkName(name) == nil {
			t.Errorf("%q is built in", name)
		}
	}
}
