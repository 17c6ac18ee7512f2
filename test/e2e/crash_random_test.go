package e2e

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// chaos runs two commands at a time and kills them at random moments.
type chaos struct {
	*e2e
	commands []string // as typed, "C" and "D" being containers

	mu      sync.Mutex
	rand    *rand.Rand
	history []string // of this round
}

// TestE2EKilledAtRandom kills commands at any moment, not only between two steps, while
// others wait for the lock. Whatever they leave, `up` and other commands must work, and
// `down` must leave the host as it was.
func TestE2EKilledAtRandom(t *testing.T) {
	t.Parallel()
	h := newE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	if err := h.Host.IPTables(h.Ctx, "-P", "FORWARD", "DROP"); err != nil { // so that accept rules are added, too
		t.Fatal(err)
	}
	c := &chaos{e2e: h, rand: testutil.Rand(t), commands: []string{
		"up", "up --lease 1s", "down", "down --all", "network create blue", "network rm blue",
		"attach C --name c1", "attach D --name c2", "attach D --name c3 --network blue", "detach c1", "detach c2", "detach c3",
		"publish add 8080:80 c1", "publish add 8081-8089:81/udp c2", "publish rm 8080", "publish rm 8081-8089",
	}}
	before := h.snapshot(t)
	round, lasts := 0, sized(5*time.Second, 5*time.Minute)
	defer func() {
		if t.Failed() {
			t.Logf("round %d was:\n%s", round, strings.Join(c.history, "\n"))
		}
	}()
	for begin := time.Now(); !t.Failed() && (round == 0 || time.Since(begin) < lasts); round++ {
		c.Renew()
		c.history = nil
		c.round(t)
		h.assertAsBefore(t, before)
	}
	t.Logf("%d rounds of ten commands", round)
}

// round runs commands and ends with everything down.
func (c *chaos) round(t *testing.T) {
	t.Helper()
	if c.chance(0.8) { // otherwise from nothing
		c.Must(t, "up")
		c.Must(t, "attach", c.Containers[0].Path(), "--name", "c1")
	}
	var pair sync.WaitGroup
	for range 2 {
		pair.Go(func() {
			for range 5 {
				c.one(t)
			}
		})
	}
	pair.Wait()
	c.Must(t, "up")
	if _, there := c.ports(t)["c1"]; there {
		c.Must(t, "detach", "c1")
	}
	c.Attach(t, c.Containers[0], "c1")
	c.mustPing(t, c.Containers[0], c.Outside.Addr, lab.PingOptions{Count: 1})
	c.Must(t, "down", "--all")
	c.Fastbr(t, "network", "rm", "blue") // its definition outlives `down`
}

func (c *chaos) chance(p float64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.Float64() < p
}

// one starts a command and kills it some time after one of its steps, mostly before it
// ends by itself.
func (c *chaos) one(t *testing.T) {
	c.mu.Lock()
	text := c.commands[c.rand.IntN(len(c.commands))]
	steps, after := c.rand.IntN(16), time.Duration(c.rand.Int64N(int64(20*time.Millisecond)))
	c.mu.Unlock()

	args := strings.Fields(text)
	for i, a := range args {
		switch a {
		case "C":
			args[i] = c.Containers[0].Path()
		case "D":
			args[i] = c.Containers[1].Path()
		}
	}
	cmd := c.Cmd(args...)
	cmd.Env = append(cmd.Env, "FASTBR_TRACE_STEPS=1")
	errs, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Error(err)
		return
	}
	begin := time.Now()
	var said []string
	kill := func() { time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) }
	if steps == 0 {
		kill()
	}
	for lines := bufio.NewScanner(errs); lines.Scan(); {
		if said = append(said, lines.Text()); strings.HasPrefix(lines.Text(), "step: ") {
			if steps--; steps == 0 {
				kill()
			}
		}
	}
	_ = cmd.Wait()
	code := cmd.ProcessState.ExitCode()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history = append(c.history, fmt.Sprintf("%v to %v: %s: exit %d: %s", begin.Format("05.000"), time.Now().Format("05.000"),
		text, code, strings.Join(said, "; ")))
	if code == 2 {
		t.Errorf("fastbr %s is no command", text)
	}
}
