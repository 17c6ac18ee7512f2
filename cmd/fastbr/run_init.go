package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/ctl/dns"
)

const (
	// goAhead is the word that the helper waits for. The content of its
	// /etc/resolv.conf follows.
	goAhead     = "1"
	resolvConf  = "/etc/resolv.conf"
	resolvWhere = "fastbr-resolv-*"
)

// newRunInitCmd is the helper inside the new namespace.
func newRunInitCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "run-init -- COMMAND [ARG]...",
		Short:   "Helper of run",
		Long:    "Wait for the word on descriptor 3, then become the command. For 'fastbr run' only.",
		Example: "  fastbr run -- true",
		Hidden:  true,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			// The parent is gone: nobody waits for the command.
			ready := os.NewFile(3, "ready")
			said, _ := io.ReadAll(ready)
			ready.Close()
			resolvers, ok := strings.CutPrefix(string(said), goAhead)
			if !ok {
				return exitError{exitFailed}
			}
			if resolvers != "" {
				if err := useResolvers(resolvers); err != nil {
					e.note("%v: the command uses the host's", err)
				}
			}
			path, err := exec.LookPath(args[0])
			if err == nil {
				signal.Reset()
				err = unix.Exec(path, args, os.Environ())
			}
			return startError(args[0], err)
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// useResolvers gives this thread, and what it executes, an /etc/resolv.conf in a
// mount namespace of its own. Without such a file there is nothing
// to replace.
func useResolvers(content string) error {
	runtime.LockOSThread() // for good: the thread becomes the command
	f, err := os.CreateTemp("", resolvWhere)
	if err != nil {
		return fmt.Errorf("writing a %s: %w", resolvConf, err)
	}
	defer f.Close()
	defer os.Remove(f.Name()) // the mount keeps it
	if _, err := f.WriteString(content); err != nil {
		return fmt.Errorf("writing a %s: %w", resolvConf, err)
	}
	if err := f.Chmod(0o644); err != nil {
		return fmt.Errorf("writing a %s: %w", resolvConf, err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	// What the host mounts later still comes in, nothing goes out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount(f.Name(), resolvConf, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("replacing %s: %w", resolvConf, err)
	}
	return nil
}

// containerResolvers returns the /etc/resolv.conf of a container that was
// attached with this result, or "" if its network does not answer for names.
func containerResolvers(res ctl.AttachResult) (string, error) {
	if res.DNS == "" {
		return "", nil
	}
	gw, err := netip.ParseAddr(res.DNS)
	if err != nil {
		return "", fmt.Errorf("reading the gateway: %w", err)
	}
	return dns.ContainerConfig(resolvConf, gw, res.Internal)
}
