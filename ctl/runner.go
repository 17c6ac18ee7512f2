package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// step is one named change that can be taken back. undo must succeed when do
// never ran, ran halfway, or has been undone: after a SIGKILL nobody knows.
type step struct {
	name    string
	do      func() error
	undo    func() error // nil: nothing to take back
	rebuild func() error // makes it again after somebody else removed it; nil: nothing to make
}

// rebuild does again what is there to be made again, in order.
func rebuild(steps []step) error {
	for _, s := range steps {
		if s.rebuild == nil {
			continue
		}
		if err := s.rebuild(); err != nil {
			return err
		}
	}
	return nil
}

// runner runs steps. A hook prints "step: NAME" to stderr after each step (undone
// steps are called undo-NAME), another kills the process there: see hooks.
type runner struct {
	trace  io.Writer // nil: none
	killAt string
	failAt string // the step of that name fails after it ran; tests only
}

func newRunner(h hooks, failAt string) runner {
	r := runner{killAt: h.killAt, failAt: failAt}
	if h.trace {
		r.trace = os.Stderr
	}
	return r
}

// run does the steps in order. If one fails, or ctx ends, those already begun
// are undone in reverse and the first error is returned.
func (r runner) run(ctx context.Context, steps []step) error {
	for i, s := range steps {
		err := ctx.Err()
		if err == nil {
			err = s.do()
		}
		if err == nil {
			err = r.passed(s.name)
		}
		if err != nil {
			if undoErr := r.undo(steps[:i+1]); undoErr != nil {
				return fmt.Errorf("%w (and undoing it: %w)", err, undoErr)
			}
			return err
		}
	}
	return nil
}

// undo takes the steps back in reverse. An error does not stop it, except that
// the first step, the record of what we own, stays if any other failed.
func (r runner) undo(steps []step) error {
	var errs []error
	for i, s := range slices.Backward(steps) {
		if s.undo == nil || i == 0 && len(errs) > 0 {
			continue
		}
		err := s.undo()
		if err == nil {
			err = r.passed("undo-" + s.name)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (r runner) passed(name string) error {
	if r.trace != nil {
		fmt.Fprintf(r.trace, "step: %s\n", name)
	}
	if name == r.killAt {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	if name == r.failAt {
		return errors.New("broken at " + name)
	}
	return nil
}
