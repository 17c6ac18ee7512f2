package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/ctl/link"
	"github.com/fastbr/fastbr/ctl/statedir"
	"github.com/fastbr/fastbr/datapath"
)

// operation is what is true while the lock is held: the state, and what was looked up.
type operation struct {
	*instance
	ctx  context.Context
	st   *state
	conn *link.Conn
	dp   plane // nil: none is pinned
	// stale is why the pinned datapath cannot be used: its maps have another layout.
	// What changes something upgrades an older one first; `down --all` goes on with any.
	stale    error
	host     hostCache
	hostconf hostconf.Host
	thorough bool // see mutation

	// The parts of an operation, each with the methods of one topic.
	networks     networks
	ports        ports
	endpoints    endpoints
	bandwidths   bandwidths
	slow         slowPorts
	publications publications
	uplinks      uplinks
	vias         vias
	others       others
	stands       stands
	programs     programs
	reassembly   reassembly
	accelerators accelerators
	firewall     packetFilter
	checks       checks
	verifier     verifier
	repair       repair
}

// read runs f on the state as it is. f gets an operation with an empty state if
// nothing is up.
func (in *instance) read(ctx context.Context, f func(*operation) error) error {
	l, err := statedir.Acquire(ctx, in.lockPath(), false)
	if err != nil {
		return err
	}
	defer l.Release()
	st, err := loadState(in.statePath(), in.boot)
	if errors.Is(err, errDamaged) {
		return fmt.Errorf("%w: run 'fastbr up', which mends what it can, or 'fastbr down --all'", err)
	} else if err != nil {
		return err
	}
	op, err := in.begin(ctx, st, false)
	if err != nil {
		return err
	}
	defer op.end()
	if op.stale != nil {
		return op.stale
	}
	return f(op)
}

// mutate runs f while nobody else reads or changes the instance. Before that it makes
// the state sound and looks at the host again: whatever an operation changes, it also
// mends what other programs have changed since the last one.
func (in *instance) mutate(ctx context.Context, f func(*operation) error) error {
	return in.mutateWith(ctx, mutation{}, f)
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

func (in *instance) mutateWith(ctx context.Context, m mutation, f func(*operation) error) error {
	l, err := statedir.Acquire(ctx, in.lockPath(), true)
	if err != nil {
		return err
	}
	defer l.Release()
	st, salvaged, err := in.usableState()
	if err != nil {
		return err
	}
	op, err := in.begin(ctx, st, m.evenStale)
	if err != nil {
		return err
	}
	defer op.end()
	defer op.tidy(l)
	if errors.Is(op.stale, datapath.ErrSchemaOlder) && !m.evenStale {
		if err := op.programs.upgrade(); err != nil {
			return err
		}
	}
	switch {
	case m.evenStale:
	case op.stale != nil:
		return op.stale
	case op.dp != nil && len(st.Networks) == 0 && !m.evenLost:
		return tagged(ErrExists, "networks are up that "+in.statePath()+" should tell of, and it is lost: run 'fastbr down --all', which removes what is left of them")
	}
	statedir.Sweep(in.root, in.identity(), in.opts.planes.remove, in.say)
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

// usableState is loadState for whoever may change the state. It sets a damaged state
// aside, and uses what is left of it and of the one before.
func (in *instance) usableState() (st *state, salvaged bool, err error) {
	st, err = loadState(in.statePath(), in.boot)
	if !errors.Is(err, errDamaged) {
		return st, false, err
	}
	st = salvage(in.boot, former(in.statePath()), in.statePath())
	if err := in.setAside(in.statePath()); err != nil {
		return nil, false, fmt.Errorf("setting the damaged state aside: %w", err)
	}
	in.say("%v: kept as %s; from it and the state before it %d network(s) and %d port(s) are known",
		err, aside(in.statePath()), len(st.Networks), len(st.indexes())-len(st.Uplinks))
	return st, true, st.save(in.statePath())
}

// setAside keeps a damaged file for whoever wants to look at it.
func (in *instance) setAside(path string) error {
	err := os.Rename(path, aside(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// aside is what a damaged file is called from then on.
func aside(path string) string { return path + ".damaged" }

// begin opens what a state speaks of. With evenStale, pins that cannot be opened count
// as stale.
func (in *instance) begin(ctx context.Context, st *state, evenStale bool) (_ *operation, err error) {
	op := &operation{instance: in, ctx: ctx, st: st}
	if op.conn, err = link.Open(); err != nil {
		return nil, err
	}
	op.assemble()
	op.host.conn = op.conn
	op.hostconf = hostconf.Host{Record: &st.Record, Save: op.save, Say: op.say}
	op.dp, err = in.opts.planes.open(in.pins)
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

// assemble makes the parts.
func (op *operation) assemble() {
	op.networks, op.ports, op.endpoints = networks{op}, ports{op}, endpoints{op}
	op.bandwidths, op.slow, op.publications = bandwidths{op}, slowPorts{op}, publications{op: op}
	op.uplinks, op.vias, op.others = uplinks{op}, vias{op}, others{op}
	op.programs, op.reassembly = programs{op}, reassembly{op}
	op.stands = stands{op}
	op.accelerators, op.firewall = accelerators{xdp{op}, bigTCP{op}}, packetFilter{op}
	op.checks, op.verifier, op.repair = checks{op: op}, verifier{op}, repair{op}
}

func (op *operation) end() {
	if op.dp != nil {
		op.dp.Close()
	}
	op.conn.Close()
}

func (op *operation) save() error { return op.st.save(op.statePath()) }

// tidy removes the instance's files if nothing is left to remember.
func (op *operation) tidy(l *statedir.Lock) {
	if len(op.st.Networks) > 0 || op.st.Settings.Kept {
		return
	}
	os.Remove(op.statePath())
	os.Remove(unfinished(op.statePath())) // of a killed command
	os.Remove(former(op.statePath()))
	if _, err := os.Stat(filepath.Join(op.dir(), "networks")); errors.Is(err, os.ErrNotExist) {
		os.Remove(filepath.Join(op.dir(), siteFile)) // no network has an address of it any more
		statedir.RemoveIdentity(op.dir())
	}
	l.Remove()
	if op.root == DefaultStateDir {
		os.Remove(op.root) // only if it is empty
	}
}

// refresh looks again at what other programs may have changed since `up`, and mends
// it. quiet: what need not keep a container from being served is a note.
func (op *operation) refresh(quiet bool) error {
	if len(op.st.Networks) == 0 || op.dp == nil {
		return nil
	}
	if err := op.setHost(); err != nil {
		return err
	}
	if err := op.reassembly.ensure(); err != nil && !quiet {
		return err
	} else if err != nil {
		op.say("%v", err) // no reason to refuse a container
	}
	// What is attached again, or raised, is so before anything is decided by it.
	if err := errors.Join(op.uplinks.sync(quiet), op.vias.renew(), op.repair.mend(quiet), op.vias.follow()); err != nil {
		return err
	}
	if err := op.slow.sync(); err != nil {
		return err
	}
	if err := op.accelerators.sync(quiet); err != nil {
		return err
	}
	if len(op.publications.all()) > 0 {
		if err := op.publications.syncLocal(); err != nil {
			return err
		}
	}
	return errors.Join(op.firewall.open(), op.others.ensure())
}

// setHost brings the host's settings to what the networks need.
func (op *operation) setHost() error {
	want := hostconf.Want{Router: op.st.leads(false), Router6: op.st.leads6(), Reserved: op.st.reserved()}
	if want.Router6 {
		var err error
		if want.Advertised, err = op.host.advertised(); err != nil {
			return err
		}
	}
	return op.hostconf.Set(want)
}

// needNetwork is ErrNotUp if there is no network.
func (op *operation) needNetwork() error {
	if len(op.st.Networks) == 0 {
		return errNothingUp()
	}
	return nil
}

func errNothingUp() error { return tagged(ErrNotUp, "nothing is up here: run 'fastbr up' first") }

// firstLine keeps an error to one line.
func firstLine(err error) error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && len(joined.Unwrap()) > 0 {
		return joined.Unwrap()[0]
	}
	return err
}
