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

// wantSchema is the lowest schema number that maps of these layouts may have.
func (r released) wantSchema(now map[string]string) uint32 {
	if len(differences(r.Maps, now)) > 0 {
		return r.Schema + 1
	}
	return r.Schema
}

// TestSchemaIsRaisedWithTheLayout compares every map with that of the last release.
// -update records this build as the last release, so it belongs in a release's commit.
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
		t.Errorf("FBR_SCHEMA (bpf/lib/instance.h) is %d and must be %d: the last release had %d, and these maps differ from it: %s",
			schema, want, was.Schema, strings.Join(differences(was.Maps, now), " "))
	}
}

// A layout changes if a map is added or removed, or changes its type or a size, or if a
// field of its entries changes its type, its offset or its name. The number of entries
// is not part of the layout where the user chooses it.
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

// The layout that the kernel reports for a map of this build is that of the object
// file.
func TestPinnedLayoutIsTheObjectFiles(t *testing.T) {
	d := newReal(t, Config{FlowsMax: 64}, nil)
	spec, err := loadTc()
	check(t, err)
	resize(spec, d.meta)
	for name, m := range d.four.maps {
		got, err := pinnedLayout(m, false)
		check(t, err)
		if want := specLayout(spec.Maps[name], false); got != want {
			t.Errorf("%s: the kernel says\n%s\nthe object file\n%s", name, got, want)
		}
	}
}

// member is a field of a map's value. The test changes it.
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
