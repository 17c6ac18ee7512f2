package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/fastbr/fastbr/ctl"
)

// Exit codes of fastbr; `run` returns those of its command as well.
const (
	exitFailed = 1
	exitUsage  = 2
	exitNotUp  = 3
)

// env holds everything that a command uses besides its arguments. Tests replace it
// to run the real command line in process.
type env struct {
	ctx            context.Context
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
	flags          globalFlags
	started        bool // arguments were understood: errors from here on are not usage
}

// globalFlags are valid for every command.
type globalFlags struct {
	netns    string
	output   string
	bpffs    string
	stateDir string
	verbose  bool
}

// newEnv returns the environment of the process.
func newEnv() *env {
	return &env{ctx: context.Background(), args: os.Args[1:], stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
}

// controller opens the instance of the process's namespace.
func (e *env) controller() (*ctl.Controller, error) {
	return ctl.Open(e.controllerOptions())
}

func (e *env) controllerOptions() ctl.Options {
	return ctl.Options{BPFFS: e.flags.bpffs, StateDir: e.flags.stateDir, Messages: e.stderr}
}

// note prints a message that is neither data nor an error.
func (e *env) note(format string, args ...any) {
	fmt.Fprintf(e.stderr, "fastbr: %s\n", ctl.Line(fmt.Sprintf(format, args...)))
}

// json reports whether -o json was given.
func (e *env) json() bool { return e.flags.output == "json" }

// print writes v as JSON, or as the table that table prints.
func (e *env) print(v any, table func(w io.Writer)) error {
	if e.json() {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	// One write: a tabwriter on stdout would write each cell separately.
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
	table(w)
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(e.stdout, ctl.Plain(out.String()))
	return err
}

// exitError ends the process with a code and without a message.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// detail returns the verifier's log if err's chain has one. It is empty for most
// errors.
func detail(err error) string {
	var long interface {
		error
		fmt.Formatter
	}
	if !errors.As(err, &long) {
		return ""
	}
	return fmt.Sprintf("%+v", long)
}

// exitCode returns the exit code for an error. It prints the error unless the error
// is only a code.
func (e *env) exitCode(err error) int {
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	text := ctl.Line(strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", "; ")), " "))
	if long := detail(err); e.flags.verbose && long != "" {
		text += "\n" + ctl.Plain(strings.ReplaceAll(long, "\t", "    "))
	}
	fmt.Fprintf(e.stderr, "fastbr: %s\n", text)
	var coded codedError
	switch {
	case errors.As(err, &coded):
		return coded.code
	case errors.Is(err, ctl.ErrNotUp):
		return exitNotUp
	case !e.started, errors.Is(err, ctl.ErrInvalid):
		return exitUsage
	}
	return exitFailed
}
