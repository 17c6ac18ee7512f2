package ctl

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl/hostconf"
)

func TestStateRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "state.json")
	st := newState("boot")
	st.Networks["lab"] = &network{Definition: Definition{ID: newID(), Name: "lab", Bridge: "lab0", Subnet: netip.MustParsePrefix("10.0.0.0/24"),
		Gateway: netip.MustParseAddr("10.0.0.1")}, Index: 7, Pending: true,
		Ports: map[string]*port{"veth0": {Name: "c1", Port: "veth0", IP: netip.MustParseAddr("10.0.0.2")}}}
	st.Uplinks = []uplink{{Name: "eth0", Index: 2, Addr: netip.MustParseAddr("192.0.2.1"), Addr6: netip.MustParseAddr("2001:db8::1"), MTU: 1500},
		{Name: "tun0", Index: 3, Addr: netip.MustParseAddr("192.0.2.2"), MTU: 1420, RawIP: true, Side: true}, {Name: "wg0", Index: 4, Addr6: netip.MustParseAddr("2001:db8::2")}}
	st.Sysctls = []hostconf.Sysctl{{Path: hostconf.IPForward, Old: "0", New: "1"}}
	if err := st.save(path); err != nil {
		t.Fatal(err)
	}
	got, err := loadState(path, "boot")
	if err != nil || !reflect.DeepEqual(got, st) {
		t.Errorf("read %+v, %v, want %+v", got, err, st)
	}
	if other, err := loadState(path, "another boot"); err != nil || len(other.Networks) != 0 {
		t.Errorf("state of an earlier boot: %+v, %v", other, err)
	}
	if err := os.Truncate(path, 0); err != nil { // what a crash of the machine may leave
		t.Fatal(err)
	}
	if empty, err := loadState(path, "boot"); err != nil || !reflect.DeepEqual(empty, newState("boot")) {
		t.Errorf("an empty state: %+v, %v", empty, err)
	}
}

// A state of before the ports had lines of their own.
func TestStateReadsPortsInTheirNetwork(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	const old = `{"version":1,"boot":"boot","networks":{"lab":{"name":"lab","bridge":"lab0","subnet":"10.0.0.0/24","gateway":"10.0.0.1","index":7,"ports":{"veth0":{"name":"c1","port":"veth0","ip":"10.0.0.2","index":8}}}}}`
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := loadState(path, "boot")
	if err != nil || st.Networks["lab"].Ports["veth0"].Index != 8 || st.Networks["lab"].ipv6() != IPv6Off {
		t.Errorf("read %+v, %v", st, err)
	}
}

func TestStateRefusesNewerAndBroken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	for content, want := range map[string]string{`{"version":99,"boot":"boot"}`: "newer", `{"version"`: "damaged",
		`{"version":1,"boot":"boot"}` + "\n" + `{"network":"lab","name":"c1","port":"veth0","ip":"10.0.0.2"}`: "network lab",
		`{"version":1,"boot":"boot"}` + "\n" + `{"netw`:                                                       "damaged",
		`{"version":1,"boot":"boot","networks":{"lab":null}}`:                                                 "network \"lab\"",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadState(path, "boot"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

func TestDefinitionsRoundTrip(t *testing.T) {
	d := definitions{filepath.Join(t.TempDir(), "x", "networks"), t.Logf}
	if all, err := d.all(); err != nil || len(all) != 0 {
		t.Errorf("none yet: %v, %v", all, err)
	}
	def := Definition{ID: newID(), Name: "lab", Bridge: "lab0", Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1")}
	if err := d.put(def); err != nil {
		t.Fatal(err)
	}
	if got, err := d.get("lab"); err != nil || !reflect.DeepEqual(*got, def) {
		t.Errorf("read %+v, %v", got, err)
	}
	if err := d.remove("lab"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(d.dir); !os.IsNotExist(err) {
		t.Errorf("the directory stays: %v", err)
	}
	if err := d.remove("lab"); err != nil {
		t.Errorf("removing twice: %v", err)
	}
}
