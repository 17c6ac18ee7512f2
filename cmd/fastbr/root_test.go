package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

// testEnv is an environment that writes to buffers.
func testEnv(t *testing.T, args ...string) (e *env, stdout, stderr *bytes.Buffer) {
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	return &env{ctx: t.Context(), args: args, stdin: strings.NewReader(""), stdout: stdout, stderr: stderr}, stdout, stderr
}

func TestEveryCommandHasHelp(t *testing.T) {
	e, _, _ := testEnv(t)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s lacks help: short %q, long %q, example %q", c.CommandPath(), c.Short, c.Long, c.Example)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCmd(e))
}

func TestUsageErrorsExit2(t *testing.T) {
	for _, args := range []string{"nosuch", "up --nosuch", "up a b", "attach", "up -o yaml", "up --mtu x", "network nosuch", "status now"} {
		e, stdout, stderr := testEnv(t, strings.Fields(args)...)
		if code := run(e); code != exitUsage {
			t.Errorf("%s: exit code %d", args, code)
		}
		if stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 || !strings.HasPrefix(stderr.String(), "fastbr: ") {
			t.Errorf("%s: stdout %q, stderr %q", args, stdout, stderr)
		}
	}
}

func TestBadValuesAreNamed(t *testing.T) {
	for args, want := range map[string]string{
		"up --nat-flows x":                    `--nat-flows "x": want a number`,
		"up --nat-flows 99999999999999999999": `--nat-flows "99999999999999999999": want a smaller number`,
		"port set c1 --slow=maybe":            `--slow "maybe": want true or false`,
		"demo --nosuch=x":                     "unknown flag: --nosuch",
	} {
		e, _, stderr := testEnv(t, strings.Fields(args)...)
		if code := run(e); code != exitUsage || stderr.String() != "fastbr: "+want+"\n" {
			t.Errorf("%s: exit code %d, stderr %q, want %q", args, code, stderr, want)
		}
	}
}

func TestVersionAndHelpNeedNothing(t *testing.T) {
	for args, want := range map[string]string{"version": "state schema", "version -o json": `"schema"`, "help": "attach", "completion zsh": "compdef"} {
		e, stdout, stderr := testEnv(t, strings.Fields(args)...)
		if code := run(e); code != 0 || !strings.Contains(stdout.String(), want) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

func TestBrctlTable(t *testing.T) {
	got := brctlTable([]ctl.BridgeView{
		{Name: "br0", ID: "8000.000000000000", Interfaces: []string{}},
		{Name: "fastbr0", ID: "8000.0242ac1e0001", STP: true, Interfaces: []string{"veth1", "veth2"}},
	})
	want := "bridge name\tbridge id\t\tSTP enabled\tinterfaces\n" +
		"br0\t\t8000.000000000000\tno\t\t\n" +
		"fastbr0\t\t8000.0242ac1e0001\tyes\t\tveth1\n\t\t\t\t\t\t\tveth2\n"
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestHumanNumbers(t *testing.T) {
	for got, want := range map[string]string{
		bytesText(0): "0 B", bytesText(1023): "1023 B", bytesText(1536): "1.5 KiB", bytesText(5 << 40): "5.0 TiB",
		bitsText(999): "999 bit/s", bitsText(12_300_000_000): "12.3 Gbit/s",
		dropsText(map[string]uint64{"b": 2, "a": 1, "c": 0}): "a=1,b=2", dropsText(nil): "-",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// longError has a longer text for %+v, as a verifier's error has.
type longError struct{}

func (longError) Error() string { return "refused" }

func (e longError) Format(f fmt.State, verb rune) {
	fmt.Fprint(f, e.Error())
	if f.Flag('+') {
		fmt.Fprint(f, ":\n\tR0 unbounded memory access")
	}
}

// With -v, errors are shown in full, however deeply they are wrapped.
func TestVerboseShowsWrappedErrorsInFull(t *testing.T) {
	err := fmt.Errorf("creating the datapath: %w", fmt.Errorf("loading: %w", longError{}))
	for verbose, want := range map[bool]string{
		false: "fastbr: creating the datapath: loading: refused\n",
		true:  "fastbr: creating the datapath: loading: refused\nrefused:\n    R0 unbounded memory access\n",
	} {
		e, _, stderr := testEnv(t)
		e.started, e.flags.verbose = true, verbose
		if code := e.exitCode(err); code != exitFailed || stderr.String() != want {
			t.Errorf("verbose %v: exit code %d, stderr %q, want %q", verbose, code, stderr, want)
		}
	}
}
