package testutil

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Netns is an empty network namespace without a name.
type Netns struct{ f *os.File }

// NewNetns makes a namespace that lives until the test ends. It needs root.
func NewNetns(t testing.TB) *Netns {
	t.Helper()
	RequireRoot(t)
	n := &Netns{}
	var err error
	n.outside(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			err = refuseStarting()
		}
		if err == nil {
			n.f, err = os.Open("/proc/thread-self/ns/net")
		}
	})
	if err != nil {
		t.Fatalf("creating a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = n.f.Close() })
	return n
}

// outside runs fn on a thread that is thrown away afterwards. It is never the main
// thread, which cannot be thrown away.
func (n *Netns) outside(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			n.outside(fn)
			return
		}
		fn()
	}()
	<-done
}

// Path is valid as long as the test process lives.
func (n *Netns) Path() string {
	return filepath.Join("/proc", strconv.Itoa(os.Getpid()), "fd", strconv.Itoa(int(n.f.Fd())))
}

// Do calls fn on a thread inside the namespace. fn must not call t.Fatal or
// t.Skip: it runs in a goroutine of its own.
func (n *Netns) Do(t testing.TB, fn func()) {
	t.Helper()
	var err error
	n.outside(func() {
		if err = unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err == nil {
			fn()
		}
	})
	if err != nil {
		t.Fatalf("entering the namespace: %v", err)
	}
}

// Enter moves the calling test into the namespace for the rest of the test. Its
// goroutine stays on one thread. Goroutines that it starts are not inside.
func (n *Netns) Enter(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatalf("opening the current namespace: %v", err)
	}
	if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatalf("entering the namespace: %v", err)
	}
	// Cleanups run on the test's own goroutine. If the way back fails, the thread stays
	// locked and ends with the goroutine.
	t.Cleanup(func() {
		if unix.Setns(int(before.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		_ = before.Close()
	})
}

// refuseStarting returns an error if the calling thread is in the namespace that
// FASTBR_REFUSE_NETNS names, or in the machine's, or if that cannot be told. It
// compares entries of /proc/PID/net, which belong to a namespace: they can be looked at
// where /proc/PID/ns/net cannot be opened.
func refuseStarting() error {
	mine, err := os.Stat("/proc/thread-self/net/dev")
	if err != nil {
		return err
	}
	for _, path := range []string{"/proc/1/ns/net", os.Getenv("FASTBR_REFUSE_NETNS")} {
		proc, ok := strings.CutSuffix(path, "/ns/net")
		if !ok {
			continue
		}
		other, err := os.Stat(proc + "/net/dev")
		if err != nil {
			return err
		}
		if os.SameFile(mine, other) {
			return fmt.Errorf("the test would work in the namespace %s", path)
		}
	}
	return nil
}

// BPFFS mounts a bpffs and removes it, with everything pinned in it, when the test
// ends. It needs root.
func BPFFS(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mounting a bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting the bpffs: %v", err)
		}
	})
	return dir
}
