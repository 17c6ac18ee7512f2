package datapath

import (
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/fastbr/fastbr/internal/testutil"
)

// memory is the kernel's figure for the memory of all maps, in bytes.
func (d *Datapath) memory(t *testing.T) (n int) {
	t.Helper()
	for _, m := range d.four.maps {
		info, err := m.Info()
		check(t, err)
		bytes, _ := info.Memlock() // an empty trie takes nothing
		n += int(bytes)
	}
	return n
}

// A session takes as much memory as the documentation says, within a tenth.
func TestMemoryOfASession(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.NewNetns(t).Enter(t)
	text, err := os.ReadFile("../docs/ARCHITECTURE.md")
	check(t, err)
	said := regexp.MustCompile(`about (\d+) bytes a session`).FindSubmatch(text)
	if said == nil {
		t.Fatal("docs/ARCHITECTURE.md does not say what a session takes")
	}
	want, err := strconv.Atoi(string(said[1]))
	check(t, err)
	const few, many = 1 << 14, 1 << 16
	small := newDatapath(t, metaOf(t, Config{FlowsMax: few}), loading(loadTc, nil)).memory(t)
	large := newDatapath(t, metaOf(t, Config{FlowsMax: many}), loading(loadTc, nil)).memory(t)
	got := (large - small) / (many - few)
	t.Logf("%d bytes a session, %d bytes of maps besides", got, small-few*got)
	if want != SessionBytes {
		t.Errorf("docs/ARCHITECTURE.md says %d bytes, SessionBytes is %d", want, SessionBytes)
	}
	if got < want-want/10 || got > want+want/10 {
		t.Errorf("a session takes %d bytes, docs/ARCHITECTURE.md says %d", got, want)
	}
}

// IPv6 takes as much memory as the documentation says, within a tenth, and only while a
// network has it.
func TestMemoryOfIPv6(t *testing.T) {
	text, err := os.ReadFile("../docs/ARCHITECTURE.md")
	check(t, err)
	said := regexp.MustCompile(`IPv6 takes about (\d+) MB more`).FindSubmatch(text)
	if said == nil {
		t.Fatal("docs/ARCHITECTURE.md does not say what IPv6 takes")
	}
	want, err := strconv.Atoi(string(said[1]))
	check(t, err)
	h := withIP6(t, newHarness(t, usual, nil))
	n := 0
	for name, m := range h.six.maps {
		info, err := m.Info()
		check(t, err)
		bytes, _ := info.Memlock()
		t.Logf("%s: %d KB", name, bytes>>10)
		n += int(bytes)
	}
	if got := float64(n) / (1 << 20); got < float64(want)*0.9 || got > float64(want)*1.1 {
		t.Errorf("IPv6 takes %.1f MB, docs/ARCHITECTURE.md says %d", got, want)
	}
}
