package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/ctl/cni"
)

// run executes the command line and returns the exit code.
func run(e *env) int {
	ctx, stop := signal.NotifyContext(e.ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	e.ctx = ctx
	root := newRootCmd(e)
	if cni.Called(e.args) {
		return cni.Run(ctx, e.controllerOptions())
	}
	root.SetArgs(e.args)
	return e.exitCode(root.ExecuteContext(ctx))
}

// newRootCmd returns a fresh command tree.
func newRootCmd(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "fastbr",
		Short: "Container bridges with an eBPF fast path",
		Long: `fastbr plugs network namespaces into bridges, as docker0 does, and forwards
between them and to the outside with eBPF programs. Every command acts and
exits; no process is needed to forward.`,
		Example: `  fastbr up
  fastbr attach netns:web --name web
  fastbr run -- curl https://example.org`,
		// A runtime error is no reason to print the usage. exitCode prints errors.
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := e.checkOutput(); err != nil {
				return err
			}
			e.started = true
			return e.enterNetns()
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(flagError)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	flags := root.PersistentFlags()
	flags.StringVar(&e.flags.netns, "netns", "", "work in the network namespace at `PATH`")
	flags.StringVarP(&e.flags.output, "output", "o", "table", "`FORMAT` of data: table or json")
	flags.StringVar(&e.flags.bpffs, "bpffs", cmp.Or(os.Getenv("FASTBR_BPFFS"), ctl.DefaultBPFFS),
		"`DIR` where a BPF filesystem is mounted, for pins; or FASTBR_BPFFS in the environment")
	flags.StringVar(&e.flags.stateDir, "state-dir", os.Getenv("FASTBR_STATE_DIR"),
		"`DIR` for runtime state and definitions (default "+ctl.DefaultStateDir+"); or FASTBR_STATE_DIR")
	flags.BoolVarP(&e.flags.verbose, "verbose", "v", false, "show errors in full, with the verifier's log")
	complete(root, "output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(commands(e)...)
	root.AddCommand(newNetavarkCmds(e)...)
	initHelp(root)
	initCompletion(root)
	return root
}

// flagError names the kind of value that a flag takes. The parser's own error names
// the Go function that refused the value.
func flagError(_ *cobra.Command, err error) error {
	var bad *pflag.InvalidValueError
	if !errors.As(err, &bad) {
		return err
	}
	var number *strconv.NumError
	var want string
	switch kind := bad.GetFlag().Value.Type(); {
	case kind == "bool":
		want = "true or false"
	case kind == "duration":
		want = "a time with its unit, such as 10s"
	case errors.As(err, &number) && number.Err == strconv.ErrRange:
		want = "a smaller number"
	case errors.As(err, &number):
		want = "a number"
	default:
		return fmt.Errorf("--%s %q: %w", bad.GetFlag().Name, bad.GetValue(), bad.Unwrap())
	}
	return fmt.Errorf("--%s %q: want %s", bad.GetFlag().Name, bad.GetValue(), want)
}

// commands returns all commands in the order of the help.
func commands(e *env) []*cobra.Command {
	return []*cobra.Command{
		newUpCmd(e), newDownCmd(e), newAttachCmd(e), newDetachCmd(e), newRunCmd(e), newNetworkCmd(e),
		newShowCmd(e), newPortCmd(e), newStatsCmd(e), newFlowsCmd(e), newPublishCmd(e), newStatusCmd(e), newCheckCmd(e),
		newServeCmd(e), newMetricsCmd(e), newCNICmd(e), newDemoCmd(e), newBenchCmd(e), newVersionCmd(e), newRunInitCmd(e),
	}
}

func (e *env) checkOutput() error {
	if o := e.flags.output; o != "table" && o != "json" {
		return fmt.Errorf("output format %q: table or json", o)
	}
	return nil
}

// enterNetns starts the program again in the namespace of --netns. Then the whole
// process is inside, with every thread and socket. Mounts stay the same.
func (e *env) enterNetns() error {
	path := e.flags.netns
	if path == "" {
		return nil
	}
	f, err := ctl.OpenNetns(path)
	if err != nil {
		return fmt.Errorf("--netns: %w", err)
	}
	defer f.Close()
	if f.Current() {
		return nil
	}
	runtime.LockOSThread()
	if err := f.Enter(); err != nil {
		return fmt.Errorf("--netns %s: %w", path, err)
	}
	self, err := os.Executable()
	if err == nil {
		err = unix.Exec(self, append([]string{os.Args[0]}, e.args...), os.Environ())
	}
	return fmt.Errorf("--netns %s: starting again inside: %w", path, err)
}

// withController opens the instance and hands it to f.
func (e *env) withController(f func(ctx context.Context, c *ctl.Controller) error) error {
	c, err := e.controller()
	if err != nil {
		return err
	}
	return f(e.ctx, c)
}
