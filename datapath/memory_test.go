package datapath

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/fastbr/fastbr/internal/testutil"
)

// memory is the kernel's figure for the memory of maps, in bytes.
func memory(t *testing.T, maps map[string]*ebpf.Map) (n int) {
	t.Helper()
	for _, m := range maps {
		info, err := m.Info()
		check(t, err)
		bytes, _ := info.Memlock() // an empty trie takes nothing
		n += int(bytes)
	}
	return n
}

// A session takes as much memory as the documentation and the constants say, and so does
// all that does not depend on the number of sessions. IPv6's is taken only while a network
// has IPv6.
func TestMemoryOfASession(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.NewNetns(t).Enter(t)
	text, err := os.ReadFile("../docs/ARCHITECTURE.md")
	check(t, err)
	said := func(pattern string) int {
		t.Helper()
		found := regexp.MustCompile(pattern).FindSubmatch(text)
		if found == nil {
			t.Fatalf("docs/ARCHITECTURE.md does not say %q", pattern)
		}
		n, err := strconv.Atoi(string(found[1]))
		check(t, err)
		return n
	}
	const few, many = 1 << 14, 1 << 16
	var used [2][2]int // bytes, by number of sessions and family
	for i, n := range []uint32{few, many} {
		d := newDatapath(t, metaOf(t, Config{FlowsMax: n}), loading(loadTc, nil))
		check(t, d.families.load())
		for j, o := range d.families.loaded() {
			used[i][j] = memory(t, o.maps)
		}
	}
	within := func(what string, got, want, said int) {
		t.Helper()
		t.Logf("%s: %d", what, got)
		if got < want-want/10 || got > want+want/10 || said != want {
			t.Errorf("%s: %d, the constant is %d, docs/ARCHITECTURE.md says %d", what, got, want, said)
		}
	}
	for j, f := range []struct {
		name                    string
		session, rest           int
		saidSession, saidRestMB int
	}{
		{"IPv4", SessionBytes, RestBytes, said(`about (\d+) bytes a session`), said(`some (\d+) MB for everything else`)},
		{"IPv6", SessionBytes6, RestBytes6, said(`another (\d+) bytes a session`), said(`(\d+) MB besides, while a network has it`)},
	} {
		session := (used[1][j] - used[0][j]) / (many - few)
		within(fmt.Sprintf("%s: bytes of a session", f.name), session, f.session, f.saidSession)
		within(fmt.Sprintf("%s: MB of everything else", f.name), (used[0][j]-few*session)>>20, f.rest>>20, f.saidRestMB)
	}
}
