package e2e

import (
	"strings"
	"testing"
	"unicode"

	"github.com/fastbr/fastbr/internal/lab"
)

// TestE2EArgumentsCannotDrive: a command prints only printable text, whatever its
// arguments are. No argument can move the cursor or start a new line.
func TestE2EArgumentsCannotDrive(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	const evil = "x\x1b[31m\u009b\x9by\nfastbr: forged"
	for _, args := range [][]string{
		{evil}, {"up", evil}, {"up", "--uplink", evil}, {"up", "--bridge", evil}, {"up", "--subnet", evil}, {"up", "--nat-range", evil}, {"up", "--xdp", evil},
		{"down", evil}, {"attach", evil}, {"attach", "netns:" + evil}, {"attach", "pid:" + evil}, {"attach", "/run/" + evil},
		{"attach", h.Outside.Path(), "--network", evil}, {"attach", h.Outside.Path(), "--name", evil}, {"attach", h.Outside.Path(), "--ip", evil},
		{"attach", h.Outside.Path(), "--mac", evil}, {"attach", h.Outside.Path(), "--ifname", evil},
		{"detach", evil}, {"detach", "/run/" + evil}, {"run", "--network", evil, "--", "true"}, {"run", "--", evil},
		{"network", evil}, {"network", "create", evil}, {"network", "create", "n", "--subnet", evil}, {"network", "inspect", evil}, {"network", "rm", evil},
		{"show", evil}, {"port", evil}, {"port", "ls", "--network", evil}, {"stats", "--network", evil}, {"flows", "flush", evil}, {"flows", "ls", evil},
		{"publish", "add", evil, "c1"}, {"publish", "add", "8080:80", evil}, {"publish", "add", "8080:80", "c1", "--allow", evil},
		{"publish", "rm", evil}, {"publish", "rm", evil, "c1"}, {"status", evil}, {"serve", "--metrics", evil}, {"serve", "--docker=" + evil, "--metrics", ""},
		{"serve", "--dns-upstream", evil}, {"-o", evil, "status"}, {"-v", "detach", evil},
	} {
		r := h.Fastbr(t, args...)
		for _, text := range []string{r.Stdout, r.Stderr} {
			if i := strings.IndexFunc(text, func(c rune) bool {
				return c != '\n' && c != '\t' && !unicode.IsPrint(c) || c == unicode.ReplacementChar
			}); i >= 0 {
				t.Errorf("fastbr %q prints %q", args, text[i:])
			}
			if strings.Contains(text, "\nfastbr: forged") {
				t.Errorf("fastbr %q prints a line of its argument's: %q", args, text)
			}
		}
	}
}
