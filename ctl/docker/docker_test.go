package docker

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl"
)

// recorder is a control plane that only takes notes.
type recorder struct {
	Core
	did      []string
	internal bool
	ports    []ctl.PublishRequest
	fail     error
	endpoint ctl.EndpointRequest // the last
}

func (r *recorder) note(what, network, name string) error {
	r.did = append(r.did, strings.TrimSpace(what+" "+network+" "+name))
	return r.fail
}

func (r *recorder) NetworkCreate(_ context.Context, name string, _ ctl.NetworkRequest) (ctl.NetworkView, error) {
	return ctl.NetworkView{}, r.note("create", name, "")
}

func (r *recorder) NetworkDiscard(_ context.Context, name string) error {
	return r.note("discard", name, "")
}

func (r *recorder) EndpointCreate(_ context.Context, q ctl.EndpointRequest) (ctl.EndpointView, error) {
	r.endpoint = q
	return ctl.EndpointView{IP: netip.PrefixFrom(q.IP, 24), IP6: netip.PrefixFrom(q.IP6, 64), MAC: "02:42:0a:00:00:02"}, r.note("endpoint", q.Network, q.Name)
}

func (r *recorder) EndpointJoin(_ context.Context, network, name, _ string) (ctl.EndpointView, error) {
	v := ctl.EndpointView{Peer: "veth1c", Ifname: r.endpoint.Ifname, Options: map[string]string{optIfacePrefix: "net"}}
	if !r.internal {
		v.Gateway = netip.MustParseAddr("10.0.0.1")
	}
	return v, r.note("join", network, name)
}

func (r *recorder) EndpointPublish(_ context.Context, network, name string, requests func(map[string]string) ([]ctl.PublishRequest, error)) (err error) {
	if r.ports, err = requests(map[string]string{optHostBinding: "192.0.2.1"}); err != nil {
		return err
	}
	return r.note("publish", network, name)
}

func (r *recorder) EndpointLeave(_ context.Context, network, name string) error {
	return r.note("leave", network, name)
}

func (r *recorder) EndpointDelete(_ context.Context, network, name string) error {
	return r.note("delete", network, name)
}

var (
	n1 = strings.Repeat("1a", 32)
	e1 = strings.Repeat("2b", 32)
)

// ask plays one call of dockerd and returns the answer.
func (r *recorder) ask(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	q := httptest.NewRequest(method, path, strings.NewReader(body))
	newHandler(driver{r}, t.Logf).ServeHTTP(w, q)
	if !json.Valid(w.Body.Bytes()) {
		t.Errorf("%s: the answer %q is no JSON", path, w.Body)
	}
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestCalls(t *testing.T) {
	ids := `{"NetworkID":"` + n1 + `","EndpointID":"` + e1 + `"`
	on := " " + n1[:12] + " " + e1[:12]
	for _, c := range []struct{ path, body, want, did string }{
		{"/Plugin.Activate", "", `{"Implements":["NetworkDriver"]}`, ""},
		{"/NetworkDriver.GetCapabilities", "", `{"Scope":"local","ConnectivityScope":"local","GwAllocChecker":true}`, ""},
		{"/NetworkDriver.GwAllocCheck", `{"Options":{}}`, `{"SkipIPv4":false,"SkipIPv6":false}`, ""},
		{"/NetworkDriver.CreateNetwork", `{"NetworkID":"` + n1 + `","IPv4Data":[{"Pool":"10.0.0.0/24"}]}`, `{}`, "create " + n1[:12]},
		{"/NetworkDriver.DeleteNetwork", ids + `}`, `{}`, "discard " + n1[:12]},
		{"/NetworkDriver.CreateEndpoint", ids + `,"Interface":{"Address":"10.0.0.2/24"}}`,
			`{"Interface":{"MacAddress":"02:42:0a:00:00:02"}}`, "endpoint" + on},
		{"/NetworkDriver.CreateEndpoint", ids + `,"Interface":{"Address":"10.0.0.2/24","MacAddress":"02:42:0a:00:00:09"}}`,
			`{"Interface":{}}`, "endpoint" + on},
		{"/NetworkDriver.EndpointOperInfo", ids + `}`, `{"Value":{}}`, ""},
		{"/NetworkDriver.Join", ids + `,"SandboxKey":"/x"}`, `{"InterfaceName":{"SrcName":"veth1c","DstPrefix":"net"},"Gateway":"10.0.0.1"}`, "join" + on},
		{"/NetworkDriver.ProgramExternalConnectivity", ids + `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080}]}}`, `{}`, "publish" + on},
		{"/NetworkDriver.RevokeExternalConnectivity", ids + `}`, `{}`, "leave" + on},
		{"/NetworkDriver.Leave", ids + `}`, `{}`, "leave" + on},
		{"/NetworkDriver.DeleteEndpoint", ids + `}`, `{}`, "delete" + on},
		{"/NetworkDriver.DiscoverNew", `{"DiscoveryType":1}`, `{}`, ""},
	} {
		r := &recorder{}
		if code, got := r.ask(t, http.MethodPost, c.path, c.body); code != http.StatusOK || got != c.want {
			t.Errorf("%s: %d %s, want %s", c.path, code, got, c.want)
		}
		if got := strings.Join(r.did, ","); got != c.did {
			t.Errorf("%s did %q, want %q", c.path, got, c.did)
		}
	}
}

// TestCallsRefuse: a call whose body was lost or makes no sense does nothing,
// and dockerd gets the reason.
func TestCallsRefuse(t *testing.T) {
	for _, c := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{http.MethodPost, "/NetworkDriver.CreateNetwork", "", 400, "empty"},
		{http.MethodPost, "/NetworkDriver.DeleteEndpoint", "{}", 400, "NetworkID"},
		{http.MethodPost, "/NetworkDriver.Leave", `{"NetworkID":"` + n1 + `"}`, 400, "EndpointID"},
		{http.MethodPost, "/NetworkDriver.Join", "not JSON", 400, "invalid character"},
		{http.MethodPost, "/NetworkDriver.NoSuch", "{}", 404, "no such call"},
		{http.MethodGet, "/Plugin.Activate", "", 404, "no such call"},
	} {
		r := &recorder{}
		code, got := r.ask(t, c.method, c.path, c.body)
		if code != c.code || !strings.Contains(got, `"Err":`) || !strings.Contains(got, c.want) || len(r.did) != 0 {
			t.Errorf("%s %s: %d %s, did %v; want %d and %q", c.path, c.body, code, got, r.did, c.code, c.want)
		}
	}
	failing := &recorder{fail: errors.New("one\ntwo")}
	if code, got := failing.ask(t, http.MethodPost, "/NetworkDriver.DeleteNetwork", `{"NetworkID":"`+n1+`"}`); code != 500 || got != `{"Err":"one; two"}` {
		t.Errorf("a failure: %d %s", code, got)
	}
}

// TestInterfaceNameIsPassedOn: the name comes with CreateEndpoint, and only
// there.
func TestInterfaceNameIsPassedOn(t *testing.T) {
	r := &recorder{}
	ids := `{"NetworkID":"` + n1 + `","EndpointID":"` + e1 + `"`
	r.ask(t, http.MethodPost, "/NetworkDriver.CreateEndpoint", ids+`,"Interface":{"Address":"10.0.0.2/24"},"Options":{"com.docker.network.endpoint.ifname":"wan0","x":7}}`)
	code, got := r.ask(t, http.MethodPost, "/NetworkDriver.Join", ids+`,"SandboxKey":"/x","Options":{}}`)
	if want := `{"InterfaceName":{"SrcName":"veth1c","DstPrefix":"net","DstName":"wan0"},"Gateway":"10.0.0.1"}`; code != http.StatusOK || got != want {
		t.Errorf("%d %s, want %s", code, got, want)
	}
}

// TestAllowedAddresses: an endpoint's options are lists in one text each.
func TestAllowedAddresses(t *testing.T) {
	r := &recorder{}
	ask := func(options string) (int, string) {
		return r.ask(t, http.MethodPost, "/NetworkDriver.CreateEndpoint", `{"NetworkID":"`+n1+`","EndpointID":"`+e1+
			`","Interface":{"Address":"10.0.0.2/24"},"Options":{`+options+`}}`)
	}
	code, got := ask(`"fastbr.allowed-address":"10.8.0.0/24, 10.0.0.9","fastbr.allowed-mac":"00:00:5e:00:01:33"`)
	want, err := ctl.ParseAllowed([]string{"10.8.0.0/24", "10.0.0.9/32"}, []string{"00:00:5e:00:01:33"})
	if code != http.StatusOK || err != nil || !reflect.DeepEqual(r.endpoint.Allowed, want) {
		t.Errorf("%d %s: allowed %+v, want %+v (%v)", code, got, r.endpoint.Allowed, want, err)
	}
	for _, bad := range []string{`"fastbr.allowed-address":"10.8.0.0/33"`, `"fastbr.allowed-mac":"x"`} {
		r.did = nil
		if code, got := ask(bad); code == http.StatusOK || !strings.Contains(got, "allowed") || len(r.did) > 0 {
			t.Errorf("%s: %d %s, did %v", bad, code, got, r.did)
		}
	}
}

func TestInternalNetworkHasNoGateway(t *testing.T) {
	r := &recorder{internal: true}
	code, joined := r.ask(t, http.MethodPost, "/NetworkDriver.Join", `{"NetworkID":"`+n1+`","EndpointID":"`+e1+`"}`)
	if code != http.StatusOK || strings.Contains(joined, "Gateway") {
		t.Errorf("join %d %s", code, joined)
	}
}

func TestNetworkOptions(t *testing.T) {
	create := func(top map[string]any, user map[string]any) (ctl.NetworkRequest, error) {
		q := createNetworkRequest{NetworkID: n1, IPv4Data: []ipamData{{Pool: "10.0.0.0/24", Gateway: "10.0.0.9/24"}}, Options: map[string]any{optGeneric: user}}
		for k, v := range top {
			q.Options[k] = v
		}
		return networkRequest(q)
	}
	r, err := create(map[string]any{optInternal: true, optIPv4: true, optIPv6: false}, map[string]any{optBridge: "lab0", optMTU: "1400", optMasquerade: "false",
		optIPv6: "false", optIPv4: "true", optHostIPv6: "fd00::1", optDefault: "false", optICC: "true", optMode4: "nat", optTrusted: "", optInhibit4: "0", optHostBinding: "192.0.2.1", optIfacePrefix: "net", optFiltering: "eif"})
	if err != nil {
		t.Fatal(err)
	}
	if r.ID != n1 || r.Bridge != "lab0" || r.MTU != 1400 || *r.Masquerade || !*r.Internal || *r.DNS || r.NATFiltering != "eif" ||
		r.Subnet.String() != "10.0.0.0/24" || r.Gateway.String() != "10.0.0.9" || r.Options[optIfacePrefix] != "net" {
		t.Errorf("request %+v", r)
	}
	if r, err := create(nil, nil); err != nil || r.Bridge != "br-"+n1[:12] || r.Masquerade != nil || r.Internal != nil {
		t.Errorf("plain request %+v, %v", r, err)
	}
	r, err = create(nil, map[string]any{optMode4: "routed", optMasquerade: "true"})
	if err != nil || *r.Masquerade || !*r.PublishedOnly {
		t.Errorf("routed: %+v, %v", r, err)
	}
	r, err = create(map[string]any{optInternal: true}, map[string]any{optMode4: "routed"})
	if err != nil || *r.Masquerade || *r.PublishedOnly || !*r.Internal {
		t.Errorf("routed and internal: %+v, %v", r, err)
	}
	r, err = create(nil, map[string]any{optPlain: "10.0.0.0/8,192.168.0.0/16"})
	if err != nil || len(r.NoMasquerade) != 2 {
		t.Errorf("no masquerade: %+v, %v", r, err)
	}
	if r, err = create(nil, map[string]any{optVia: "wg0"}); err != nil || r.Via != "wg0" {
		t.Errorf("via: %+v, %v", r, err)
	}
	for key, value := range map[string]string{optICC: "false", optPlain: "10.0.0.0/8,", optMode4: "isolated", optTrusted: "eth1", optInhibit4: "true", optHostIPv4: "host",
		optHostBinding: "host", optMTU: "big", optMasquerade: "perhaps", optIfacePrefix: "a/b", "com.docker.network.bridge.typo": "1"} {
		if _, err := create(nil, map[string]any{key: value}); err == nil || !strings.Contains(err.Error(), strings.Split(key, "_host")[0]) && key != optHostBinding {
			t.Errorf("%s=%s: %v", key, value, err)
		}
	}
	for key, value := range map[string]any{optIPv6: true, optIPv4: false, optInternal: "perhaps"} {
		if _, err := create(map[string]any{key: value}, nil); err == nil {
			t.Errorf("%s=%v: no error", key, value)
		}
	}
	if _, err := create(nil, map[string]any{optIPv6: "true"}); !errors.Is(err, errNoPool6) {
		t.Errorf("IPv6 as an option: %v", err)
	}
	if _, err := networkRequest(createNetworkRequest{NetworkID: n1, Options: map[string]any{optIPv4: false}}); !errors.Is(err, errNoIPv4) {
		t.Errorf("--ipv4=false: %v", err)
	}
	for name, q := range map[string]createNetworkRequest{
		"no pool":                 {NetworkID: n1},
		"two pools":               {NetworkID: n1, IPv4Data: []ipamData{{Pool: "10.0.0.0/24"}, {Pool: "10.0.1.0/24"}}},
		"two IPv6 pools":          {NetworkID: n1, IPv4Data: []ipamData{{Pool: "10.0.0.0/24"}}, IPv6Data: []ipamData{{Pool: "fd00::/64"}, {Pool: "fd01::/64"}}},
		"only an IPv6 pool":       {NetworkID: n1, IPv6Data: []ipamData{{Pool: "fd00::/64"}}},
		"another gateway":         {NetworkID: n1, IPv4Data: []ipamData{{Pool: "10.0.0.0/24", AuxAddresses: map[string]any{auxGateways[0]: "10.0.0.7/24"}}}},
		"another gateway of IPv6": {NetworkID: n1, IPv4Data: []ipamData{{Pool: "10.0.0.0/24"}}, IPv6Data: []ipamData{{Pool: "fd00::/64", AuxAddresses: map[string]any{auxGateways[1]: "fd00::7/64"}}}},
		"a malformed pool":        {NetworkID: n1, IPv4Data: []ipamData{{Pool: "10.0.0.0"}}},
	} {
		if _, err := networkRequest(q); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestNetworkWithIPv6: the second subnet is IPv6's, and the options that concern IPv6 count
// if there is one.
func TestNetworkWithIPv6(t *testing.T) {
	create := func(internal bool, user map[string]any, pools ...ipamData) (ctl.NetworkRequest, error) {
		return networkRequest(createNetworkRequest{NetworkID: n1, IPv4Data: []ipamData{{Pool: "10.0.0.0/24"}}, IPv6Data: pools,
			Options: map[string]any{optIPv6: len(pools) > 0, optInternal: internal, optGeneric: user}})
	}
	six := ipamData{Pool: "2001:db8:9::/64", Gateway: "2001:db8:9::9/64"}
	r, err := create(false, nil, six)
	if err != nil || r.Subnet6.String() != "2001:db8:9::/64" || r.Gateway6.String() != "2001:db8:9::9" || r.Masquerade6 != nil {
		t.Errorf("plain: %+v, %v", r, err)
	}
	for _, x := range []struct {
		key, value string
		pools      []ipamData
		internal   bool
		masquerade string // what is asked for, "" for nothing
	}{
		{optMode6, "nat", []ipamData{six}, false, ""},
		{optMode6, "routed", []ipamData{six}, false, "false"},
		{optMode6, "routed", []ipamData{six}, true, ""},
		{optMode6, "routed", nil, false, ""},
		{optMode4, "routed", []ipamData{six}, false, ""},
		{optMasquerade, "false", []ipamData{six}, false, "false"},
		{optMasquerade, "false", []ipamData{six}, true, ""},
		{optMasquerade, "false", nil, false, ""},
	} {
		r, err := create(x.internal, map[string]any{x.key: x.value}, x.pools...)
		got := ""
		if r.Masquerade6 != nil {
			got = strconv.FormatBool(*r.Masquerade6)
		}
		published := r.PublishedOnly != nil && *r.PublishedOnly
		if routed := x.value == "routed" && (x.key == optMode4 || x.masquerade != ""); err != nil || got != x.masquerade || published != routed {
			t.Errorf("%+v: masquerade6 %q, published only %v, %v", x, got, published, err)
		}
	}
	for _, value := range []string{"isolated", "nat-unprotected", "perhaps"} {
		if _, err := create(false, map[string]any{optMode6: value}, six); err == nil || !strings.Contains(err.Error(), optMode6+"="+value) {
			t.Errorf("mode %s: %v", value, err)
		}
	}
	if r, err := create(false, map[string]any{optHostIPv6: "2001:db8::1"}, six); err != nil || r.SNATAddress6.String() != "2001:db8::1" || r.SNATAddress.IsValid() {
		t.Errorf("the address that IPv6 leaves with: %+v, %v", r, err)
	}
	if _, err := create(false, map[string]any{optHostIPv6: "host"}, six); err == nil || !strings.Contains(err.Error(), "IPv6 address of the host") {
		t.Errorf("a name as host_ipv6: %v", err)
	}
	if r, err := create(false, map[string]any{optMode6: "routed", optNDProxy: "true"}, six); err != nil || !*r.NDProxy {
		t.Errorf("nd-proxy: %+v, %v", r, err)
	}
}

// TestEndpointWithIPv6: dockerd's addresses are taken over. An address that it leaves open is
// in the answer, and the gateways are.
func TestEndpointWithIPv6(t *testing.T) {
	r := &recorder{}
	ids := `{"NetworkID":"` + n1 + `","EndpointID":"` + e1 + `"`
	code, got := r.ask(t, http.MethodPost, "/NetworkDriver.CreateEndpoint", ids+`,"Interface":{"Address":"10.0.0.2/24","AddressIPv6":"2001:db8:9::2/64","MacAddress":"02:42:0a:00:00:09"}}`)
	if code != http.StatusOK || got != `{"Interface":{}}` || r.endpoint.IP.String() != "10.0.0.2" || r.endpoint.IP6.String() != "2001:db8:9::2" {
		t.Errorf("%d %s: %+v", code, got, r.endpoint)
	}
	for _, bad := range []string{`"Address":"x"`, `"AddressIPv6":"fd00::"`} {
		if code, got := r.ask(t, http.MethodPost, "/NetworkDriver.CreateEndpoint", ids+`,"Interface":{`+bad+`}}`); code != 400 {
			t.Errorf("%s: %d %s", bad, code, got)
		}
	}
	d := driver{given{r}}
	v, err := d.createEndpoint(t.Context(), createEndpointRequest{NetworkID: n1, EndpointID: e1})
	if a, ok := v.(createEndpointResponse); err != nil || !ok || a.Interface.Address != "10.0.0.5/24" || a.Interface.AddressIPv6 != "2001:db8:9::5/64" {
		t.Errorf("left open: %+v, %v", v, err)
	}
	v, err = d.join(t.Context(), joinRequest{NetworkID: n1, EndpointID: e1})
	if a, ok := v.(joinResponse); err != nil || !ok || a.Gateway != "10.0.0.1" || a.GatewayIPv6 != "2001:db8:9::1" {
		t.Errorf("join: %+v, %v", v, err)
	}
}

// given is a control plane that gives out addresses of both families.
type given struct{ *recorder }

func (given) EndpointCreate(context.Context, ctl.EndpointRequest) (ctl.EndpointView, error) {
	return ctl.EndpointView{IP: netip.MustParsePrefix("10.0.0.5/24"), IP6: netip.MustParsePrefix("2001:db8:9::5/64")}, nil
}

func (given) EndpointJoin(context.Context, string, string, string) (ctl.EndpointView, error) {
	return ctl.EndpointView{Gateway: netip.MustParseAddr("10.0.0.1"), Gateway6: netip.MustParseAddr("2001:db8:9::1")}, nil
}

func TestPublishRequests(t *testing.T) {
	got, err := publishRequests([]portBinding{
		{Proto: 6, Port: 81, HostPort: 8081}, {Proto: 6, Port: 80, HostPort: 8080}, {Proto: 6, Port: 90, HostPort: 8082},
		{Proto: 17, Port: 82, HostPort: 8082}, {Proto: 6, Port: 80, HostPort: 8080}, {Proto: 17, Port: 53}, {Proto: 17, Port: 54, HostPort: 7000, HostPortEnd: 7009, HostIP: "0.0.0.0"},
		{Proto: 132, Port: 2905, HostPort: 2905},
	}, "192.0.2.1")
	host := netip.MustParseAddr("192.0.2.1")
	want := []ctl.PublishRequest{
		{HostIP: host, First: 2905, Last: 2905, Port: 2905, Proto: "sctp"},
		{HostIP: host, First: 8080, Last: 8081, Port: 80, Proto: "tcp"},
		{HostIP: host, First: 8082, Last: 8082, Port: 90, Proto: "tcp"},
		{HostIP: host, First: 8082, Last: 8082, Port: 82, Proto: "udp"},
		{HostIP: netip.IPv4Unspecified(), First: 7000, Last: 7009, Port: 54, Proto: "udp", Any: true},
		{HostIP: host, First: 61000, Last: 65535, Port: 53, Proto: "udp", Any: true},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want)
	}
	for _, b := range []portBinding{{Proto: 136, Port: 80, HostPort: 80}, {Proto: 6, Port: 80, HostPort: 80, HostIP: "host"}} {
		if _, err := publishRequests([]portBinding{b}, ""); err == nil {
			t.Errorf("%+v: no error", b)
		}
	}
}

// TestPublishRequestsOfBothFamilies: no address means both families, and so does 0.0.0.0 as
// the network's.
func TestPublishRequestsOfBothFamilies(t *testing.T) {
	for _, x := range []struct{ host, binding, want string }{
		{"", "", "invalid IP"}, {"", "0.0.0.0", "invalid IP"}, {"0.0.0.0", "", "0.0.0.0"}, {"::", "", "::"},
		{"::1", "", "::1"}, {"::1", "192.0.2.1", "::1"}, {"", "2001:db8::1", "2001:db8::1"},
	} {
		got, err := publishRequests([]portBinding{{Proto: 6, Port: 80, HostPort: 80, HostIP: x.host}}, x.binding)
		if err != nil || len(got) != 1 || got[0].HostIP.String() != x.want {
			t.Errorf("%+v: %+v, %v", x, got, err)
		}
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugins", "x.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another driver") {
		t.Errorf("a socket that answers: %v", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // as if killed
	_ = ln.Close()
	if ln, err = Listen(path); err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	_ = ln.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("closed, and the socket is still there: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	if _, err := Listen("no/path"); !errors.Is(err, ErrName) {
		t.Errorf("a relative path: %v", err)
	}
}
