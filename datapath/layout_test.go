package datapath

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

const releasedFile = "testdata/layout.json"

// released is the layout of the maps in the last release.
type released struct {
	Schema uint32            `json:"schema"`
	Maps   map[string]string `json:"maps"`
}

func readReleased(t *testing.T) (r released) {
	t.Helper()
	text, err := os.ReadFile(releasedFile)
	check(t, err)
	check(t, json.Unmarshal(text, &r))
	return r
}

// wantSchema is the number that maps of these layouts need at least.
func (r released) wantSchema(now map[string]string) uint32 {
	if len(differences(r.Maps, now)) > 0 {
		return r.Schema + 1
	}
	return r.Schema
}

// TestSchemaIsRaisedWithTheLayout compares every map with the last release's.
// -update makes this build the last release: it belongs to the commit that is one.
func TestSchemaIsRaisedWithTheLayout(t *testing.T) {
	spec, err := loadTc()
	check(t, err)
	now := layouts(spec)
	if *update {
		text, err := json.MarshalIndent(released{schema, now}, "", "  ")
		check(t, err)
		text = bytes.ReplaceAll(text, []byte(`\u003e`), []byte(">"))
		check(t, os.WriteFile(releasedFile, append(text, '\n'), 0o644))
		return
	}
	was := readReleased(t)
	if want := was.wantSchema(now); schema < want {
		t.Errorf("FBR_SCHEMA (bpf/lib/types.h) is %d and must be %d: the last release had %d, and these maps differ from it: %s",
			schema, want, was.Schema, strings.Join(differences(was.Maps, now), " "))
	}
}

// A map that is new, gone, of another type or size, or whose entries have another
// field, place or name of one, is another layout; the number of entries that the
// user chooses is not.
func TestAnyChangeOfAMapIsSeen(t *testing.T) {
	change := func(f func(*ebpf.CollectionSpec)) uint32 {
		spec, err := loadTc()
		check(t, err)
		was := released{schema, layouts(spec)}
		f(spec)
		return was.wantSchema(layouts(spec))
	}
	for name, c := range map[string]struct {
		do   func(*ebpf.CollectionSpec)
		want uint32
	}{
		"nothing":     {func(*ebpf.CollectionSpec) {}, schema},
		"sessions":    {func(s *ebpf.CollectionSpec) { s.Maps[tcMapFbrSess].MaxEntries++ }, schema},
		"devices":     {func(s *ebpf.CollectionSpec) { s.Maps[tcMapFbrDevs].MaxEntries++ }, schema + 1},
		"gone":        {func(s *ebpf.CollectionSpec) { delete(s.Maps, tcMapFbrHair) }, schema + 1},
		"new":         {func(s *ebpf.CollectionSpec) { s.Maps["fbr_more"] = s.Maps[tcMapFbrHair].Copy() }, schema + 1},
		"type":        {func(s *ebpf.CollectionSpec) { s.Maps[tcMapFbrFree].Type = ebpf.Stack }, schema + 1},
		"flags":       {func(s *ebpf.CollectionSpec) { s.Maps[tcMapFbrPub].Flags = 0 }, schema + 1},
		"field moved": {func(s *ebpf.CollectionSpec) { member(t, s, tcMapFbrSess, "pif").Offset += 8 }, schema + 1},
		"field named": {func(s *ebpf.CollectionSpec) { member(t, s, tcMapFbrSess, "pif").Name = "port" }, schema + 1},
		"field of a field": {func(s *ebpf.CollectionSpec) {
			member(t, s, tcMapFbrFlow, "key").Type = s.Maps[tcMapFbrBind].Key
		}, schema + 1},
		"key": {func(s *ebpf.CollectionSpec) { s.Maps[tcMapFbrFdb].Key = s.Maps[tcMapFbrBind].Key }, schema + 1},
	} {
		if got := change(c.do); got != c.want {
			t.Errorf("%s: schema %d wanted, must be %d", name, got, c.want)
		}
	}
}

// What the kernel says of a map that this build made is what the object file says.
func TestPinnedLayoutIsTheObjectFiles(t *testing.T) {
	d := newReal(t, Config{FlowsMax: 64}, nil)
	spec, err := loadTc()
	check(t, err)
	resize(spec, d.meta)
	for name, m := range d.named {
		got, err := pinnedLayout(m, false)
		check(t, err)
		if want := specLayout(spec.Maps[name], false); got != want {
			t.Errorf("%s: the kernel says\n%s\nthe object file\n%s", name, got, want)
		}
	}
}

// member is a field of a map's value, to be changed.
func member(t *testing.T, s *ebpf.CollectionSpec, name, field string) *btf.Member {
	t.Helper()
	v := btf.Copy(s.Maps[name].Value).(*btf.Struct)
	s.Maps[name].Value = v
	for i := range v.Members {
		if v.Members[i].Name == field {
			return &v.Members[i]
		}
	}
	t.Fatalf("%s has no field %s", name, field)
	return nil
}
