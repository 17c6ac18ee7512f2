package lab

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Cmd is an exec.Cmd whose process starts inside a namespace. Use its own
// Start, Run, Output and CombinedOutput; the fields are those of exec.Cmd.
type Cmd struct {
	*exec.Cmd
	ns *Namespace
}

// Exec prepares a command. Its process is killed when ctx ends or the namespace
// is closed, whichever comes first. It stays in the caller's mount namespace:
// bpffs and /run are the same.
func (n *Namespace) Exec(ctx context.Context, argv ...string) *Cmd {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.WaitDelay = 5 * time.Second
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	return &Cmd{Cmd: c, ns: n}
}

// Start starts the process. The child inherits the network namespace of the
// starting thread.
func (c *Cmd) Start() error {
	if err := c.ns.Do(c.Cmd.Start); err != nil {
		return fmt.Errorf("starting %s in %s: %w", c.Args[0], c.ns.Name, err)
	}
	c.ns.mu.Lock()
	closed := c.ns.done
	if !closed {
		c.ns.procs[c] = struct{}{}
	}
	c.ns.mu.Unlock()
	if closed {
		c.kill()
	}
	return nil
}

// Wait waits for the process, as exec.Cmd's Wait does.
func (c *Cmd) Wait() error {
	err := c.Cmd.Wait()
	c.ns.mu.Lock()
	delete(c.ns.procs, c)
	c.ns.mu.Unlock()
	return err
}

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns its standard output. The error contains
// its standard error, unless the caller set Stderr.
func (c *Cmd) Output() ([]byte, error) {
	var out, errs bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &errs
	}
	if err := c.Run(); err != nil {
		return out.Bytes(), withStderr(c.Args, err, errs.String())
	}
	return out.Bytes(), nil
}

// CombinedOutput runs the process and returns standard output and standard
// error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

func (c *Cmd) kill() {
	_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
}

// Run runs a command and returns its standard output.
func (n *Namespace) Run(ctx context.Context, argv ...string) (string, error) {
	out, err := n.Exec(ctx, argv...).Output()
	return string(out), err
}

// RunInput is Run with stdin as standard input.
func (n *Namespace) RunInput(ctx context.Context, stdin string, argv ...string) (string, error) {
	c := n.Exec(ctx, argv...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.Output()
	return string(out), err
}

func withStderr(argv []string, err error, stderr string) error {
	if stderr = strings.TrimSpace(stderr); stderr != "" {
		return fmt.Errorf("running %s: %w: %s", strings.Join(argv, " "), err, stderr)
	}
	return fmt.Errorf("running %s: %w", strings.Join(argv, " "), err)
}
