// Package ctl is fastbr's control plane: it turns what the user asks for into
// bridges, veth pairs, addresses and sysctls (ctl/link) and into datapath
// state, and undoes all of it without a trace.
//
// A Controller works on one instance: the network namespace that the calling
// thread is in when Open is called, and in which every later call must be made.
// Nothing is kept in memory between two operations. Each takes the instance's
// lock, reads the state file, finishes or undoes what a killed predecessor
// left, acts in named steps that can be undone, and writes what it is about to
// own before it makes it.
package ctl

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/ctl/statedir"
)

// Defaults of Options.
const (
	DefaultBPFFS    = "/sys/fs/bpf"
	DefaultStateDir = "/run/fastbr"
	definitionsDir  = "/var/lib/fastbr/networks"
)

// Options say where a Controller keeps things. Zero fields mean the defaults.
type Options struct {
	BPFFS    string
	StateDir string
	Messages io.Writer // notes and warnings for the user, one per line; nil: none

	planes planes // tests: a fake datapath
	failAt string // tests: the step that breaks

	patience time.Duration // tests: 0 means endpointPatience
}

// Controller works on the instance of one network namespace.
type Controller struct {
	instance   *instance
	departures departures
}

// instance is what fastbr owns in one network namespace: where that is, and how it is
// worked on.
type instance struct {
	opts    Options
	id      string // netns cookie in hex
	netns   link.NetnsID
	machine bool // the namespace is that of process 1
	boot    string
	root    string // state directory of all instances
	pins    string // of this instance
	defs    definitions
	hooks   hooks
	runner  runner
	warned  map[string]bool // what packetFilter.warn said last
}

// Open prepares to work on the namespace of the calling thread. It changes
// nothing. FASTBR_REFUSE_NETNS=PATH is a safety net for tests and labs: Open
// fails if PATH is the namespace it was called in.
func Open(opts Options) (*Controller, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("this needs root: run it with sudo")
	}
	hooks := currentHooks()
	if hooks.missing == "force_forwarding" {
		hooks.missing = ""
		hostconf.WithoutForced()
	}
	if opts.planes == nil {
		opts.planes = kernel{hooks.missing}
	}
	if opts.patience == 0 {
		opts.patience = endpointPatience
	}
	if opts.Messages == nil {
		opts.Messages = io.Discard
	}
	in := &instance{opts: opts, hooks: hooks, runner: newRunner(hooks, opts.failAt)}
	if err := in.identify(); err != nil {
		return nil, err
	}
	bpffs := opts.BPFFS
	if bpffs == "" {
		bpffs = DefaultBPFFS
	}
	in.opts.BPFFS = bpffs
	in.pins = filepath.Join(bpffs, "fastbr", in.id)
	in.root = opts.StateDir
	if in.root == "" {
		in.root = DefaultStateDir
	}
	in.defs = definitions{filepath.Join(in.dir(), "networks"), in.say}
	if in.machine && opts.StateDir == "" {
		in.defs.dir = definitionsDir
	}
	return &Controller{instance: in}, nil
}

// identify finds out which instance the calling thread belongs to.
func (in *instance) identify() error {
	ns, err := link.Current()
	if err != nil {
		return err
	}
	defer ns.Close()
	in.netns = ns.ID()
	cookie, err := link.Cookie()
	if err != nil {
		return err
	}
	if path := in.hooks.refuse; path != "" {
		same, err := link.IsCurrent(path)
		if err != nil {
			return fmt.Errorf("FASTBR_REFUSE_NETNS: cannot tell whether this is %s: %w", path, err)
		}
		if same {
			return fmt.Errorf("refusing to work in the network namespace %s (FASTBR_REFUSE_NETNS)", path)
		}
	}
	// Where it cannot be told, definitions stay with the runtime state.
	in.machine, _ = link.IsCurrent("/proc/1/ns/net")
	in.id = strconv.FormatUint(cookie, 16)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("reading the boot id: %w", err)
	}
	in.boot = strings.TrimSpace(string(boot))
	return nil
}

// Instance names the instance: the namespace's cookie in hex.
func (c *Controller) Instance() string { return c.instance.id }

func (in *instance) dir() string       { return filepath.Join(in.root, in.id) }
func (in *instance) statePath() string { return filepath.Join(in.dir(), "state.json") }
func (in *instance) lockPath() string  { return in.dir() + ".lock" }

// say tells the user something that is neither data nor an error.
func (in *instance) say(format string, args ...any) {
	fmt.Fprintf(in.opts.Messages, "fastbr: %s\n", Line(fmt.Sprintf(format, args...)))
}

func (in *instance) identity() statedir.Identity {
	return statedir.Identity{Netns: in.netns, Boot: in.boot, Pins: in.pins}
}

// OpenNetns opens a path, netns:NAME or pid:N, for commands that start in another
// namespace. The error wraps link.ErrGone or link.ErrNotNetns.
func OpenNetns(target string) (*link.Netns, error) { return link.OpenTarget(target) }

// RaiseLoopback raises lo in a namespace that gets no port.
func RaiseLoopback(target string) error {
	ns, err := link.OpenTarget(target)
	if err != nil {
		return err
	}
	defer ns.Close()
	inside, err := link.OpenIn(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	lo, err := inside.ByName("lo")
	if err != nil {
		return err
	}
	if err := inside.SetUp(lo.Index, true); err != nil {
		return fmt.Errorf("raising lo in %s: %w", target, err)
	}
	return nil
}
