package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// ufwRun runs ufw with the configuration in the directory that is its first argument.
// Without IPv6 ufw takes half the time.
const ufwRun = `dir=$1; shift
mount --bind "$dir/ufw" /etc/ufw
mount --bind "$dir/default" /etc/default/ufw
mount -t tmpfs ufw /run
exec ufw "$@"`

// ufw is the real program in the lab's host, with a configuration of its own.
type ufw struct {
	h   *e2e
	dir string
}

func (h *e2e) ufw(t *testing.T) ufw {
	t.Helper()
	testutil.RequireCommand(t, "ufw", "unshare")
	u := ufw{h, t.TempDir()}
	if err := os.CopyFS(filepath.Join(u.dir, "ufw"), os.DirFS("/etc/ufw")); err != nil {
		t.Fatal(err)
	}
	defaults, err := os.ReadFile("/etc/default/ufw")
	if err == nil {
		err = os.WriteFile(filepath.Join(u.dir, "default"), []byte(strings.Replace(string(defaults), "IPV6=yes", "IPV6=no", 1)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// run runs "ufw ARGS".
func (u ufw) run(t *testing.T, command string) {
	t.Helper()
	argv := append([]string{"unshare", "--mount", "sh", "-ec", ufwRun, "ufw", u.dir}, strings.Fields(command)[1:]...)
	if _, err := u.h.Host.Run(u.h.Ctx, argv...); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
}

// TestE2EUfw: the real ufw denies incoming and routed packets, as by default.
// Containers reach the outside and the gateway's names, and clients reach published
// ports. Nothing else is opened. That holds whether ufw was enabled before `up` or
// after, and after a reload. A packet that ufw's own rules drop is reported, with the
// command that lets it through.
func TestE2EUfw(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := newE2E(t, m, lab.Options{Containers: 1})
		u := h.ufw(t)
		first := m.Name == "fast" // ufw is enabled before `up`
		if first {
			u.run(t, "ufw --force enable")
		}
		if check := h.Fastbr(t, "check").Stdout; first != strings.Contains(check, "iptables-nft filter INPUT (by policy): 'fastbr up' adds") {
			t.Errorf("check: %s", check)
		}
		h.Must(t, append([]string{"up"}, m.Up...)...)
		c1 := h.Containers[0]
		h.Attach(t, c1, "c1")
		h.Must(t, "publish", "add", "8080:80", "c1")
		server, published := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 7)), on(h.Host.Addr, 8080)
		h.ServeTCP(t, c1, on(c1.Addr, 80))
		h.ServeTCP(t, h.Host, on(h.gateway(), 22))
		if !first {
			u.run(t, "ufw --force enable")
			if !h.blocked(c1, server.Addr) || !h.blocked(h.Outside, published) {
				t.Error("ufw lets containers through: nothing to mend")
			}
			if status := h.Must(t, "status"); !strings.Contains(status, "the next command that changes something lets it through") {
				t.Errorf("status: %s", status)
			}
		}
		h.serve(t) // serve mends by itself
		h.eventually(t, "names and traffic", func() error {
			return errors.Join(h.resolves(c1, dropTime), h.reaches(c1, server.Addr, dropTime))
		})
		through := func(when string) { t.Helper(); h.through(t, when, c1, server.Addr, published) }
		through("with ufw")
		if !h.blocked(c1, on(h.gateway(), 22)) {
			t.Error("another port of the host's is open to containers")
		}
		status := h.Must(t, "status")
		for _, want := range []string{"accept fastbr0 in iptables-nft filter FORWARD: what is forwarded", "accept fastbr0 in iptables-nft filter INPUT: questions for names"} {
			if !strings.Contains(status, want) {
				t.Errorf("status: %s, want %q", status, want)
			}
		}
		if strings.Contains(status, "Note") {
			t.Errorf("status has notes: %s", status)
		}
		if !first {
			u.run(t, "ufw reload")
			through("after a reload")
			return
		}

		// A rule for incoming packets does not see a published port. A rule for routed
		// packets does.
		u.run(t, "ufw deny 8080/tcp")
		if err := h.reaches(h.Outside, published, passTime); err != nil {
			t.Errorf("ufw deny 8080/tcp: %v, want that it changes nothing, as behind docker0", err)
		}
		u.run(t, "ufw route deny out on fastbr0 to "+c1.Addr.String()+" port 80 proto tcp")
		u.run(t, "ufw deny in on fastbr0 to any port 53")
		if !h.blocked(h.Outside, published) || h.resolves(c1, dropTime) == nil {
			t.Error("ufw's rules do not keep anybody out")
		}
		for line := range strings.Lines(h.Must(t, "status")) {
			if _, command, ok := strings.Cut(line, "unless that is meant: "); ok {
				for one := range strings.SplitSeq(command, " && ") {
					u.run(t, one)
				}
			}
		}
		through("after what status says to run")

		h.Must(t, "down", "--all")
		if rules, err := h.Host.Run(h.Ctx, "iptables-save"); err != nil || strings.Contains(rules, "fastbr:") {
			t.Errorf("after down (%v): %s", err, rules)
		}
	})
}
