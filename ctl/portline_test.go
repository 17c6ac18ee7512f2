package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/fastbr/fastbr/ctl/link"
)

// samplePorts are plain, with everything, and with what needs other words.
func samplePorts() []portRecord {
	common := port{Name: "c1", Port: "veth0123456", Index: 17, Ifname: "eth0", IP: netip.MustParseAddr("172.30.0.2"),
		MAC: "02:42:ac:1e:00:02", Netns: link.NetnsID{Dev: 4, Ino: 4026532176}, GSO: 196608}
	pending, owned, odd, huge := common, common, common, common
	pending.Index, pending.IP, pending.Pending = 0, netip.Addr{}, true
	owned.portExtra = portExtra{Slow: true, Slowed: true, Hairpin: true, XDP: true, GRO: true, Pending: true,
		Owner: &Owner{"cni", "lab", "0123", "eth0"}, Bandwidth: Bandwidth{In: Limit{Rate: 8000}}, Peer: "veth0c", Taken: true, Touched: 5,
		Publications: []*publication{{First: 80, Last: 81, Port: 8080, Proto: "tcp"}}}
	odd.Ifname = "a\\\"\u00e9<&"
	huge.Netns = link.NetnsID{Dev: 1<<64 - 1, Ino: 1<<64 - 1}
	return []portRecord{{"default", &common}, {"default", &pending}, {"lab", &owned}, {"lab", &odd}, {"lab", &huge}, {"", &port{}}}
}

// TestPortLineIsJSON wants what we write and read by hand to be what
// encoding/json makes of it.
func TestPortLineIsJSON(t *testing.T) {
	for _, r := range samplePorts() {
		line, err := r.appendTo([]byte("before"))
		want, _ := json.Marshal(r)
		if line = bytes.TrimPrefix(line, []byte("before")); err != nil || string(line) != string(want)+"\n" {
			t.Errorf("%s: wrote %s, %v", want, line, err)
		}
		if got, err := parsePort(bytes.TrimSpace(line)); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: read %+v, %v", want, got.port, err)
		}
	}
}

// TestPortLineInOtherWords reads what somebody else has written, and refuses what
// is no port at all.
func TestPortLineInOtherWords(t *testing.T) {
	want := samplePorts()[2]
	text, _ := json.MarshalIndent(want, "", " ")
	if got, err := parsePort(slices.Clone(text)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v", got.port, err)
	}
	line, _ := want.appendTo(nil)
	for end := range len(line) - 2 {
		if got, err := parsePort(slices.Clone(line[:end])); err == nil {
			t.Errorf("%s: read %+v", line[:end], got)
		}
	}
}

func BenchmarkState(b *testing.B) {
	st := newState("boot")
	n := &network{Definition: Definition{Name: "default"}, Ports: map[string]*port{}}
	st.Networks["default"] = n
	for i := range 1000 {
		p := *samplePorts()[0].port
		p.Port, p.IP = fmt.Sprintf("veth%07x", i), netip.AddrFrom4([4]byte{172, 30, byte(i >> 8), byte(i)})
		n.Ports[p.Port] = &p
	}
	path := b.TempDir() + "/state.json"
	b.Run("save", func(b *testing.B) {
		for b.Loop() {
			if err := st.save(path); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			if _, err := loadState(path, "boot"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
