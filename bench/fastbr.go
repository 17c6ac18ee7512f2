package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
)

// Fastbr is fastbr with its defaults, run by its command line.
type Fastbr struct {
	// Binary is the path of the executable.
	Binary string
	// Flags are passed to every command (--state-dir and the like).
	Flags []string
	// Sessions is the NAT's limit (--nat-flows); 0: fastbr's default.
	Sessions int
	// XDP is the value of --xdp; "": fastbr's default.
	XDP string
	// BigTCP is the value of --big-tcp; "": fastbr's default.
	BigTCP string
	// Routed networks are not translated (--masquerade=false): the outside has a route
	// to the containers' addresses.
	Routed bool
	// IPv6 gives the network IPv6, too, which is translated unless Routed.
	IPv6 bool
	// NFCall leaves bridge-nf-call-iptables at 1, so frames between containers meet the
	// host's firewall.
	NFCall bool
	// Env holds additional environment variables: KEY=VALUE.
	Env []string
	// Log, if set, receives every command as a user would type it, with $HOST
	// for the host's namespace, and its output.
	Log io.Writer
}

// Name implements Contestant.
func (f Fastbr) Name() string {
	if f.XDP != "" {
		return "fastbr-xdp"
	}
	if f.BigTCP != "" {
		return "fastbr-64k"
	}
	if f.Routed {
		return ipv6Text("fastbr-routed", f.IPv6, ipv6)
	}
	if f.NFCall {
		return "fastbr-nfcall"
	}
	return ipv6Text("fastbr", f.IPv6, ipv6)
}

// Describe implements Contestant.
func (f Fastbr) Describe() string {
	if flags := f.upFlags(); len(flags) > 0 {
		return "fastbr with its defaults, but for " + strings.Join(flags, " ")
	}
	if f.NFCall {
		return "fastbr with its defaults, bridge-nf-call-iptables=1"
	}
	return "fastbr with its defaults"
}

// upFlags returns the flags of `fastbr up`.
func (f Fastbr) upFlags() (flags []string) {
	if f.Sessions != 0 {
		flags = append(flags, "--nat-flows", fmt.Sprint(f.Sessions))
	}
	if f.XDP != "" {
		flags = append(flags, "--xdp", f.XDP)
	}
	if f.BigTCP != "" {
		flags = append(flags, "--big-tcp", f.BigTCP)
	}
	if f.Routed {
		flags = append(flags, "--masquerade=false")
	}
	if f.IPv6 {
		flags = append(flags, "--subnet", containers6.String())
	}
	if f.IPv6 && f.Routed {
		flags = append(flags, "--masquerade6=false")
	}
	return flags
}

// WithXDP returns f with native XDP on the uplink.
func (f Fastbr) WithXDP() Fastbr {
	f.XDP = ctl.XDPNative
	return f
}

// WithoutBigTCP returns f with the kernel's usual super-packets of 64 KiB.
func (f Fastbr) WithoutBigTCP() Fastbr {
	f.BigTCP = ctl.BigTCPOff
	return f
}

// WithoutNAT returns f with a network that is not translated.
func (f Fastbr) WithoutNAT() Fastbr {
	f.Routed = true
	return f
}

// WithIPv6 returns f with IPv6 beside IPv4.
func (f Fastbr) WithIPv6() Fastbr {
	f.IPv6 = true
	return f
}

// WithNFCall returns f with frames between containers that meet the host's firewall.
func (f Fastbr) WithNFCall() Fastbr {
	f.NFCall = true
	return f
}

// defaultSessions is the datapath's default of --nat-flows.
const defaultSessions = 131072

func (f Fastbr) sessions() int {
	if f.Sessions == 0 {
		return defaultSessions
	}
	return f.Sessions
}

// Flows implements Contestant. One container may have four fifths of the
// sessions.
func (f Fastbr) Flows() int { return f.sessions() - f.sessions()/5 }

// Options implements Contestant.
func (f Fastbr) Options() lab.Options {
	return lab.Options{NFCall: f.NFCall, Private: []netip.Prefix{}, IPv6: addressing(f.IPv6)}
}

// WithRoomFor returns f with as many sessions as a workload needs, if the
// default is too small.
func (f Fastbr) WithRoomFor(w Workload) Fastbr {
	if p, ok := w.(PPS); ok && p.Flows > f.Flows() {
		f.Sessions = 2 * p.Flows
	}
	return f
}

// Setup implements Contestant.
func (f Fastbr) Setup(ctx context.Context, l *lab.Lab) error {
	if f.XDP != "" {
		if err := completeChecksums(l.Outside); err != nil {
			return err
		}
	}
	if _, err := f.Command(ctx, l, append([]string{"up"}, f.upFlags()...)...); err != nil {
		return err
	}
	for i, c := range l.Containers {
		if _, err := f.Command(ctx, l, "attach", "netns:"+c.Name, "--name", portName(i)); err != nil {
			return err
		}
	}
	ports, err := f.ports(ctx, l)
	if err != nil {
		return err
	}
	for i, c := range l.Containers {
		at := slices.IndexFunc(ports, func(p ctl.PortView) bool { return p.Name == portName(i) })
		if at < 0 {
			return fmt.Errorf("port ls does not show %s", portName(i))
		}
		for _, text := range []string{ports[at].IP, ports[at].IP6} {
			if text == "" {
				continue
			}
			ip, err := netip.ParsePrefix(text)
			if err != nil {
				return fmt.Errorf("reading what port ls printed: %w", err)
			}
			c.SetAddr(ip.Addr())
		}
	}
	if f.Routed {
		return leadBack(l, f.IPv6)
	}
	return nil
}

func portName(i int) string { return fmt.Sprintf("c%d", i+1) }

// ports returns the ports with their counters. It does not log the command.
func (f Fastbr) ports(ctx context.Context, l *lab.Lab) ([]ctl.PortView, error) {
	f.Log = nil
	out, err := f.Command(ctx, l, "port", "ls", "-o", "json")
	if err != nil {
		return nil, err
	}
	var ports []ctl.PortView
	if err := json.Unmarshal(out, &ports); err != nil {
		return nil, fmt.Errorf("reading what port ls printed: %w", err)
	}
	return ports, nil
}

// Paths implements Contestant. It adds up only the ports' counters: the
// uplink's counters count the same packets again.
func (f Fastbr) Paths(ctx context.Context, l *lab.Lab) (Paths, bool, error) {
	ports, err := f.ports(ctx, l)
	if err != nil {
		return Paths{}, false, err
	}
	var p Paths
	for _, v := range ports {
		if v.Network != "" {
			p.Fast += v.FastPackets
			p.Slow += v.SlowPackets
		}
	}
	return p, true, nil
}

// Teardown implements Contestant.
func (f Fastbr) Teardown(ctx context.Context, l *lab.Lab) error {
	_, err := f.Command(ctx, l, "down", "--all")
	return err
}

// Command runs one fastbr command on the lab's host and returns its output.
func (f Fastbr) Command(ctx context.Context, l *lab.Lab, args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	c := f.Prepare(ctx, l, args...)
	c.Stdout, c.Stderr = &out, &errs
	f.logf("$ %s\n", f.Typed(args...))
	if err := c.Run(); err != nil {
		if said := strings.TrimPrefix(strings.TrimSpace(errs.String()), "fastbr: "); said != "" {
			err = errors.New(said)
		}
		return out.Bytes(), fmt.Errorf("fastbr %s: %w", strings.Join(args, " "), err)
	}
	f.logf("%s%s", &errs, &out)
	return out.Bytes(), nil
}

// Typed returns the command line as a user would type it.
func (f Fastbr) Typed(args ...string) string {
	argv := append([]string{"fastbr", "--netns", "$HOST"}, f.Flags...)
	return strings.Join(append(argv, args...), " ")
}

func (f Fastbr) logf(format string, args ...any) {
	if f.Log != nil {
		fmt.Fprintf(f.Log, format, args...)
	}
}

// Prepare makes a command without starting it. When ctx ends it gets SIGTERM,
// and SIGKILL a little later. It has its own process group: a Ctrl-C on the
// terminal goes to the process that started it, which then ends it in order.
func (f Fastbr) Prepare(ctx context.Context, l *lab.Lab, args ...string) *exec.Cmd {
	argv := append([]string{"--netns", l.Host.Path()}, f.Flags...)
	c := exec.CommandContext(ctx, f.Binary, append(argv, args...)...)
	c.Env = append(os.Environ(), f.Env...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 2 * time.Second
	return c
}
