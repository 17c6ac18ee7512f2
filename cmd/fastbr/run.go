package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl"
)

const (
	exitNotRunnable = 126 // as a shell has it
	exitNotFound    = 127
	// cleanUpLimit bounds the time to detach a run's port after the command has ended.
	cleanUpLimit = 30 * time.Second
)

func newRunCmd(e *env) *cobra.Command {
	var network, net, name string
	var ips []string
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG]...",
		Short: "Run a command in a throw-away network namespace",
		Long: `Run a command in a network namespace of its own that is plugged into a network and
vanishes with the command. --network bridge is the default network, host the
host's own namespace, none an empty one. Where the network answers for names, the
command finds its gateway in /etc/resolv.conf. Exits as the command does.`,
		Example: `  fastbr run -- curl https://example.org
  fastbr run --name web -- python3 -m http.server 80
  fastbr run --network none -- ip addr`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if net != "" && cmd.Flags().Changed("network") && net != network {
				return usage("--network and --net are one: give one")
			}
			if net != "" {
				network = net
			}
			r := ctl.AttachRequest{Network: network, Name: name}
			if network == "bridge" {
				r.Network = ctl.DefaultNetwork
			}
			if portless := network == "host" || network == "none"; portless && name != "" {
				return usage("--name %s: there is no port to name with --network %s", name, network)
			} else if portless && len(ips) > 0 {
				return usage("--ip %s: there is no port that has an address with --network %s", ips[0], network)
			}
			var err error
			if r.IP, r.IP6, err = ctl.ParseAddrs("address", ips); err != nil {
				return usage("%v", err)
			}
			return e.runCommand(r, args)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // the command's flags are its own
	flags.StringVar(&network, "network", "bridge", "`NETWORK`, bridge, host or none")
	flags.StringVar(&net, "net", "", "short for --network")
	flags.StringVar(&name, "name", "", "`NAME` of the port (default that of the host's device)")
	flags.StringSliceVar(&ips, "ip", nil, ipUsage)
	_ = flags.MarkHidden("net")
	complete(cmd, "network", e.completeNetworks)
	complete(cmd, "net", e.completeNetworks)
	return cmd
}

// runCommand starts the command in the chosen mode and returns its exit code as
// an error.
func (e *env) runCommand(r ctl.AttachRequest, args []string) error {
	// From here on signals are for the command: Ctrl-C must not end fastbr before
	// the port is detached.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
	defer signal.Stop(signals)
	c, err := e.controller()
	if err != nil {
		return err
	}
	if r.Network == "host" {
		child := e.child(args)
		if err := child.Start(); err != nil {
			return startError(args[0], err)
		}
		return wait(child, signals)
	}
	if r.Network != "none" {
		if err := c.RunTarget(context.Background(), r.Network); err != nil {
			return err
		}
	}
	return e.runInside(c, r, args, signals)
}

func (e *env) child(args []string) *exec.Cmd {
	child := exec.Command(args[0], args[1:]...)
	child.Stdin, child.Stdout, child.Stderr = e.stdin, e.stdout, e.stderr
	return child
}

// runInside starts this program again in a new namespace. There it waits for the
// port, and then becomes the command.
func (e *env) runInside(c *ctl.Controller, r ctl.AttachRequest, args []string, signals <-chan os.Signal) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	ready, release, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer ready.Close()
	defer release.Close()
	child := e.child(append([]string{self, "run-init", "--"}, args...))
	child.Args[0] = "fastbr"
	child.ExtraFiles = []*os.File{ready}
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET}
	if err := child.Start(); err != nil {
		return startError(self, err)
	}
	r.Target = "pid:" + strconv.Itoa(child.Process.Pid)
	resolvers, detach, err := e.plug(c, r)
	if err != nil {
		release.Close() // without goAhead the helper gives up
		_ = child.Wait()
		return err
	}
	defer detach()
	if _, err := release.WriteString(goAhead + resolvers); err != nil {
		_ = child.Process.Kill()
		_ = child.Wait()
		return fmt.Errorf("starting %s: %w", args[0], err)
	}
	release.Close()
	return wait(child, signals)
}

// plug prepares the helper's namespace. It returns the content of its
// /etc/resolv.conf ("": the host's) and a function that undoes everything.
func (e *env) plug(c *ctl.Controller, r ctl.AttachRequest) (resolvers string, detach func(), err error) {
	if r.Network == "none" {
		return "", func() {}, ctl.RaiseLoopback(r.Target)
	}
	res, err := c.Attach(e.ctx, r)
	if err != nil {
		return "", nil, err
	}
	detach = func() {
		// The signal that ended the command may have ended e.ctx too.
		ctx, cancel := context.WithTimeout(context.Background(), cleanUpLimit)
		defer cancel()
		if _, err := c.Detach(ctx, res.Name, res.Network); err != nil {
			e.note("detaching %s: %v", res.Name, err)
		}
	}
	if resolvers, err = containerResolvers(res); err != nil {
		e.note("%v", err)
	}
	return resolvers, detach, nil
}

// wait forwards signals until the command ends and returns its exit code.
func wait(child *exec.Cmd, signals <-chan os.Signal) error {
	done := make(chan error, 1)
	go func() { done <- child.Wait() }()
	for {
		select {
		case s := <-signals:
			if !fromTerminal(s) {
				_ = child.Process.Signal(s)
			}
		case err := <-done:
			return childExit(err)
		}
	}
}

// fromTerminal reports whether the command already has the signal. A terminal sends
// typed signals and SIGWINCH to the whole foreground group.
func fromTerminal(s os.Signal) bool {
	if s != unix.SIGINT && s != unix.SIGQUIT && s != unix.SIGWINCH {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// childExit returns fastbr's exit code for the command's end: 128 plus the signal
// if a signal ended it.
func childExit(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return fmt.Errorf("waiting for the command: %w", err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitError{128 + int(status.Signal())}
	}
	return exitError{exit.ExitCode()}
}

// startError returns the message and exit code for a command that cannot start.
func startError(name string, err error) error {
	code := exitNotRunnable
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		code = exitNotFound
	}
	return codedError{fmt.Errorf("starting %s: %w", name, err), code}
}

// codedError is an error with a message and an exit code of its own.
type codedError struct {
	error
	code int
}

func (e codedError) Unwrap() error { return e.error }
