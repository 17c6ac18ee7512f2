package statedir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Lock is a flock on a file beside the instance's directory. The last down
// removes the file, so whoever got the lock looks whether the path still leads
// to the file it locked.
type Lock struct {
	f *os.File
}

// Acquire takes the lock, shared or exclusive. A reader never creates the file:
// it gets nil if there is none.
func Acquire(ctx context.Context, path string, exclusive bool) (*Lock, error) {
	for {
		f, err := openLock(path, exclusive)
		if err != nil || f == nil {
			return nil, err
		}
		how := unix.LOCK_SH
		if exclusive {
			how = unix.LOCK_EX
		}
		if err := flock(ctx, f, how); err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if samePath(f, path) {
			return &Lock{f}, nil
		}
		f.Close()
	}
}

// tryAcquire takes the exclusive lock if it is free; nil if it is not.
func tryAcquire(path string) (*Lock, error) {
	f, err := openLock(path, true)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil || !samePath(f, path) {
		f.Close()
		return nil, nil
	}
	return &Lock{f}, nil
}

func openLock(path string, create bool) (*os.File, error) {
	if !create {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return f, err
	}
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
		// The directory went with somebody's last down.
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("making the state directory: %w", err)
		}
	}
}

// flock waits for the lock in a goroutine, so that the wait can be given up.
func flock(ctx context.Context, f *os.File, how int) error {
	if unix.Flock(int(f.Fd()), how|unix.LOCK_NB) == nil {
		return nil
	}
	// A descriptor of its own: when ctx ends first, the waiter keeps it until
	// it gets the lock, and gives it back at once by closing.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := unix.Flock(fd, how)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(fd, how)
		}
		unix.Close(fd)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func samePath(f *os.File, path string) bool {
	opened, err1 := f.Stat()
	named, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(opened, named)
}

// Release gives the lock up. A nil lock is none.
func (l *Lock) Release() {
	if l != nil {
		l.f.Close()
	}
}

// Remove deletes the lock file while it is held.
func (l *Lock) Remove() { _ = os.Remove(l.f.Name()) }
