package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces.
const netnsDir = "/run/netns"

// NetnsID identifies a namespace while it lives. The kernel may reuse a dead
// one's inode number.
type NetnsID struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// Netns is an open network namespace.
type Netns struct {
	file *os.File
	name string
	id   NetnsID
}

// TargetPath translates a target to a path. A target is a path, netns:NAME or
// pid:N. The error wraps ErrTarget.
func TargetPath(target string) (string, error) {
	if name, ok := strings.CutPrefix(target, "netns:"); ok {
		if name == "" || name != filepath.Base(name) || name == ".." || name == "." {
			return "", fmt.Errorf("%w %q: want netns:NAME", ErrTarget, target)
		}
		return filepath.Join(netnsDir, name), nil
	}
	if pid, ok := strings.CutPrefix(target, "pid:"); ok {
		if n, err := strconv.ParseUint(pid, 10, 31); err != nil || n == 0 {
			return "", fmt.Errorf("%w %q: want pid:NUMBER", ErrTarget, target)
		}
		return "/proc/" + pid + "/ns/net", nil
	}
	return target, nil
}

// OpenTarget opens a path, netns:NAME or pid:N. The error wraps ErrTarget if
// the target is malformed, ErrGone if it does not exist, and ErrNotNetns if it
// is no network namespace.
func OpenTarget(target string) (*Netns, error) {
	path, err := TargetPath(target)
	if err != nil {
		return nil, err
	}
	// O_NONBLOCK: the user's path may be a FIFO.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%s: %w", target, ErrGone)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", target, errors.Unwrap(err))
	}
	ns, err := newNetns(f, target)
	if err != nil {
		f.Close()
		return nil, err
	}
	return ns, nil
}

// FindNetns opens the namespace with an id, if it is named or a process's. The
// error wraps ErrGone if none is found.
func FindNetns(id NetnsID) (*Netns, error) {
	for path, at := range shownNetns {
		if at != id {
			continue
		}
		if ns, err := OpenTarget(path); err == nil && ns.ID() == id {
			return ns, nil
		} else if err == nil {
			ns.Close()
		}
	}
	return nil, fmt.Errorf("namespace %d: %w", id.Ino, ErrGone)
}

// ShownNetns returns the named namespaces and those of processes. Others may
// exist.
func ShownNetns() map[NetnsID]bool {
	shown := map[NetnsID]bool{}
	for _, id := range shownNetns {
		shown[id] = true
	}
	return shown
}

// shownNetns yields the paths of named namespaces and those of processes.
func shownNetns(yield func(path string, id NetnsID) bool) {
	for _, pattern := range []string{filepath.Join(netnsDir, "*"), "/proc/[0-9]*/ns/net"} {
		paths, _ := filepath.Glob(pattern) // fails only for a malformed pattern
		for _, path := range paths {
			var st unix.Stat_t
			if unix.Stat(path, &st) == nil && !yield(path, NetnsID{Dev: uint64(st.Dev), Ino: st.Ino}) {
				return
			}
		}
	}
}

// Current opens the namespace of the calling thread.
func Current() (*Netns, error) {
	ns, err := OpenTarget("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	ns.name = "the current namespace"
	return ns, nil
}

// IsCurrent reports whether path is the namespace of the calling thread. A
// sandbox may forbid even root to open /proc/PID/ns/net of a process with more
// rights. /proc/PID/net has no such guard, and its entries differ between
// namespaces. An error means that IsCurrent cannot tell.
func IsCurrent(path string) (bool, error) {
	there, err := OpenTarget(path)
	if proc, ok := strings.CutSuffix(path, "/ns/net"); ok && errors.Is(err, os.ErrPermission) {
		return sameEntry(proc+"/net/dev", "/proc/thread-self/net/dev")
	}
	if err != nil {
		return false, err
	}
	defer there.Close()
	here, err := Current()
	if err != nil {
		return false, err
	}
	defer here.Close()
	return there.ID() == here.ID(), nil
}

func sameEntry(a, b string) (bool, error) {
	fa, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	fb, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	return os.SameFile(fa, fb), nil
}

// NewNetns makes a namespace. It lives as long as it is open or somebody else
// refers to it.
func NewNetns(name string) (*Netns, error) {
	type made struct {
		ns  *Netns
		err error
	}
	done := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, as in Do
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: fmt.Errorf("making the namespace %s: %w", name, err)}
			return
		}
		ns, err := Current()
		if err == nil {
			ns.name = name
		}
		done <- made{ns, err}
	}()
	m := <-done
	return m.ns, m.err
}

func newNetns(f *os.File, name string) (*Netns, error) {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("%s: %w", name, ErrNotNetns)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &Netns{file: f, name: name, id: NetnsID{Dev: uint64(st.Dev), Ino: st.Ino}}, nil
}

// String returns the name by which the namespace was opened.
func (n *Netns) String() string { return n.name }

// ID returns the namespace's identity.
func (n *Netns) ID() NetnsID { return n.id }

// Close releases the namespace.
func (n *Netns) Close() { n.file.Close() }

// Current reports whether the calling thread is in the namespace.
func (n *Netns) Current() bool {
	now, err := Current()
	if err != nil {
		return false
	}
	defer now.Close()
	return now.ID() == n.ID()
}

// Do runs f on a thread inside the namespace. The thread is never used again,
// so nothing that f does to it has an effect elsewhere.
func (n *Netns) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := n.Enter(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// Enter moves the calling thread into the namespace. The caller has locked the
// thread.
func (n *Netns) Enter() error {
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering %s: %w", n, err)
	}
	return nil
}

// Cookie returns the kernel's number for the namespace of the calling thread.
// The kernel does not reuse it before the next boot.
func Cookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the namespace's cookie: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("reading the namespace's cookie: %w", err)
	}
	return cookie, nil
}
