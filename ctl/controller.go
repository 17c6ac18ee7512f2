package ctl

import (
	"context"
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
	"github.com/fastbr/fastbr/datapath"
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
	opts     Options
	instance string // netns cookie in hex
	netns    link.NetnsID
	machine  bool // the namespace is that of process 1
	boot     string
	root     string // state directory of all instances
	pins     string // of this instance
	defs     definitions
	hooks    hooks
	runner   runner

	departures departures
	warned     map[string]bool // what warnOfFilter said last
}

// Open prepares to work on the namespace of the calling thread. It changes
// nothing. FASTBR_REFUSE_NETNS=PATH is a safety net for tests and labs: Open
// fails if PATH is the namespace it was called in.
func Open(opts Options) (*Controller, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("this needs root: run it with sudo")
	}
	hooks := currentHooks()
	if opts.planes == nil {
		opts.planes = kernel{hooks.missing}
	}
	if opts.patience == 0 {
		opts.patience = endpointPatience
	}
	if opts.Messages == nil {
		opts.Messages = io.Discard
	}
	c := &Controller{opts: opts, hooks: hooks, runner: newRunner(hooks, opts.failAt)}
	if err := c.identify(); err != nil {
		return nil, err
	}
	bpffs := opts.BPFFS
	if bpffs == "" {
		bpffs = DefaultBPFFS
	}
	c.opts.BPFFS = bpffs
	c.pins = filepath.Join(bpffs, "fastbr", c.instance)
	c.root = opts.StateDir
	if c.root == "" {
		c.root = DefaultStateDir
	}
	c.defs = definitions{filepath.Join(c.dir(), "networks"), c.say}
	if c.machine && opts.StateDir == "" {
		c.defs.dir = definitionsDir
	}
	return c, nil
}

// identify finds out which instance the calling thread belongs to.
func (c *Controller) identify() error {
	ns, err := link.Current()
	if err != nil {
		return err
	}
	defer ns.Close()
	c.netns = ns.ID()
	cookie, err := link.Cookie()
	if err != nil {
		return err
	}
	if path := c.hooks.refuse; path != "" {
		same, err := link.IsCurrent(path)
		if err != nil {
			return fmt.Errorf("FASTBR_REFUSE_NETNS: cannot tell whether this is %s: %w", path, err)
		}
		if same {
			return fmt.Errorf("refusing to work in the network namespace %s (FASTBR_REFUSE_NETNS)", path)
		}
	}
	// Where it cannot be told, definitions stay with the runtime state.
	c.machine, _ = link.IsCurrent("/proc/1/ns/net")
	c.instance = strconv.FormatUint(cookie, 16)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("reading the boot id: %w", err)
	}
	c.boot = strings.TrimSpace(string(boot))
	return nil
}

// Instance names the instance: the namespace's cookie in hex.
func (c *Controller) Instance() string { return c.instance }

func (c *Controller) dir() string       { return filepath.Join(c.root, c.instance) }
func (c *Controller) statePath() string { return filepath.Join(c.dir(), "state.json") }
func (c *Controller) lockPath() string  { return c.dir() + ".lock" }

// say tells the user something that is neither data nor an error.
func (c *Controller) say(format string, args ...any) {
	fmt.Fprintf(c.opts.Messages, "fastbr: %s\n", Line(fmt.Sprintf(format, args...)))
}

// operation is what is true while the lock is held: the state, and what was looked up.
type operation struct {
	*Controller
	ctx  context.Context
	st   *state
	conn *link.Conn
	dp   plane // nil: none is pinned
	// stale is why the pinned datapath cannot be used: its maps have another layout.
	// What changes something upgrades an older one first; `down --all` goes on with any.
	stale error
	// hostReached: reachFromHost has been called.
	hostReached bool
	host        hostCache
	hostconf    hostconf.Host

	// The parts of an operation.
	networks   networks
	uplinks    uplinks
	reassembly reassembly
	repair     repair

	features []datapath.Feature // see kernelFeatures
	thorough bool               // see mutation
}

// read runs f on the state as it is. f gets an operation with an empty state if
// nothing is up.
func (c *Controller) read(ctx context.Context, f func(*operation) error) error {
	l, err := acquire(ctx, c.lockPath(), false)
	if err != nil {
		return err
	}
	defer l.release()
	st, err := loadState(c.statePath(), c.boot)
	if errors.Is(err, errDamaged) {
		return fmt.Errorf("%w: run 'fastbr up', which mends what it can, or 'fastbr down --all'", err)
	} else if err != nil {
		return err
	}
	op, err := c.begin(ctx, st, false)
	if err != nil {
		return err
	}
	defer op.end()
	if op.stale != nil {
		return op.stale
	}
	return f(op)
}

// mutate runs f alone, on a state that was made sound before, on a host that was
// looked at again: whatever an operation changes, it also mends what other programs
// have changed since the last.
func (c *Controller) mutate(ctx context.Context, f func(*operation) error) error {
	return c.mutateWith(ctx, mutation{}, f)
}

// mutation is what is special about an operation.
type mutation struct {
	evenStale bool   // go on with pins that cannot be used, and with what cannot be made sound
	evenLost  bool   // go on if there are pins that no state speaks of
	thorough  bool   // look at every device, whatever that takes
	looks     moment // when it looks at the host again
}

// moment is when an operation calls refresh.
type moment int

const (
	// looksFirst: what it makes then stands on sound ground, and an error leaves
	// nothing behind.
	looksFirst moment = iota
	// looksLast: it takes away, and what goes needs no mending; what stays does. By
	// then it has done what was asked, so an error is a note.
	looksLast
	// looksItself: it calls refresh between its own steps, with settings that it has
	// changed.
	looksItself
)

func (c *Controller) mutateWith(ctx context.Context, m mutation, f func(*operation) error) error {
	l, err := acquire(ctx, c.lockPath(), true)
	if err != nil {
		return err
	}
	defer l.release()
	st, salvaged, err := c.usableState()
	if err != nil {
		return err
	}
	op, err := c.begin(ctx, st, m.evenStale)
	if err != nil {
		return err
	}
	defer op.end()
	defer op.tidy(l)
	if errors.Is(op.stale, datapath.ErrSchemaOlder) && !m.evenStale {
		if err := op.upgrade(); err != nil {
			return err
		}
	}
	switch {
	case m.evenStale:
	case op.stale != nil:
		return op.stale
	case op.dp != nil && len(st.Networks) == 0 && !m.evenLost:
		return tagged(ErrExists, "networks are up that "+c.statePath()+" should tell of, and it is lost: run 'fastbr down --all', which removes what is left of them")
	}
	c.sweepLeftovers()
	if salvaged {
		op.repair.settle()
	}
	if err := op.repair.recover(m.thorough); err != nil {
		err = fmt.Errorf("recovering from an interrupted command: %w", err)
		if !m.evenStale {
			return err
		}
		op.say("%v", err)
	}
	op.thorough = m.thorough
	if m.looks == looksFirst {
		if err := op.refresh(true); err != nil {
			return err
		}
	}
	if err := f(op); err != nil || m.looks != looksLast {
		return err
	}
	if err := op.refresh(true); err != nil {
		op.say("%v", firstLine(err))
	}
	return nil
}

// begin opens what a state speaks of. evenStale is to call pins stale that
// cannot be opened.
func (c *Controller) begin(ctx context.Context, st *state, evenStale bool) (_ *operation, err error) {
	op := &operation{Controller: c, ctx: ctx, st: st}
	if op.conn, err = link.Open(); err != nil {
		return nil, err
	}
	op.networks, op.uplinks, op.reassembly, op.repair = networks{op}, uplinks{op}, reassembly{op}, repair{op}
	op.host.conn = op.conn
	op.hostconf = hostconf.Host{Record: &st.Record, Save: op.save, Say: op.say}
	op.dp, err = c.opts.planes.open(c.pins)
	switch {
	case err == nil, errors.Is(err, datapath.ErrNotLoaded):
	case errors.Is(err, datapath.ErrSchemaNewer):
		op.stale = fmt.Errorf("%w: use that, or end its networks with 'fastbr down --all'", err)
	case errors.Is(err, datapath.ErrSchemaOlder):
		op.stale = fmt.Errorf("%w: 'fastbr up' upgrades it, and so does every command that changes something; connections go on", datapath.ErrSchemaOlder)
	case len(st.Networks) == 0:
		// A Create that was killed: Remove knows how to clear it.
	case evenStale:
		op.stale = err
	default:
		op.conn.Close()
		return nil, fmt.Errorf("opening the datapath: %w", err)
	}
	return op, nil
}

func (op *operation) end() {
	if op.dp != nil {
		op.dp.Close()
	}
	op.conn.Close()
}

func (op *operation) save() error { return op.st.save(op.statePath()) }

// tidy removes the instance's files if nothing is left to remember.
func (op *operation) tidy(l *lock) {
	if len(op.st.Networks) > 0 || op.st.Settings.Kept {
		return
	}
	os.Remove(op.statePath())
	os.Remove(unfinished(op.statePath())) // of a killed command
	os.Remove(former(op.statePath()))
	if _, err := os.Stat(filepath.Join(op.dir(), "networks")); errors.Is(err, os.ErrNotExist) {
		os.Remove(op.identityPath())
		os.Remove(op.dir())
	}
	l.remove()
	if op.root == DefaultStateDir {
		os.Remove(op.root) // only if it is empty
	}
}
