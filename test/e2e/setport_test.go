package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
)

// TestE2EPortSet makes an attached port slow and fast again, and asks why it is slow.
func TestE2EPortSet(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	c1, c2 := h.Containers[0], h.Containers[1]
	// grows reports whether c2's packets to c1 take the fast path.
	grows := func() bool {
		before := h.ports(t)["c2"].FastPackets
		h.mustPing(t, c2, c1.Addr, lab.PingOptions{Count: 3})
		return h.ports(t)["c2"].FastPackets > before
	}
	why := func(want ...string) {
		t.Helper()
		if got := h.ports(t)["c1"].Slow; !slices.Equal(got, want) {
			t.Errorf("c1 is slow for %q, want %q", got, want)
		}
	}
	if why(); !grows() {
		t.Error("nothing is fast")
	}
	h.Must(t, "port", "set", "c1", "--slow")
	if why("asked"); grows() {
		t.Error("c1 was made slow, and is fast")
	}
	if out := h.Must(t, "port", "ls", "--network", "default"); !strings.Contains(out, "asked") {
		t.Errorf("port ls says\n%s", out)
	}
	h.Must(t, "port", "set", h.ports(t)["c1"].Port, "--slow=false")
	if why(); !grows() {
		t.Error("c1 was made fast again, and is slow")
	}
	dev := h.ports(t)["c1"].Port
	if _, err := h.Host.Run(h.Ctx, "tc", "qdisc", "add", "dev", dev, "root", "tbf", "rate", "100mbit", "burst", "100kb", "latency", "50ms"); err != nil {
		t.Fatal(err)
	}
	h.Must(t, "port", "set", "c1", "--slow=false") // it stays slow, for another reason
	if why("tbf"); grows() {
		t.Error("c1 has a queueing discipline, and is fast")
	}
	for want, args := range map[string][]string{
		"no port c9":         {"port", "set", "c9", "--slow"},
		"nothing to set":     {"port", "set", "c1"},
		"no network nowhere": {"port", "set", "c1", "--slow", "--network", "nowhere"},
	} {
		if r := h.Fastbr(t, args...); r.Code == 0 || !strings.Contains(r.Stderr, want) {
			t.Errorf("%v: exit %d: %s", args, r.Code, r.Stderr)
		}
	}
}
