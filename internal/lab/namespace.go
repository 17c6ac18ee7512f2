package lab

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is one network namespace of a lab, kept alive by a bind mount.
type Namespace struct {
	// Name is the file below /run/netns: "fblab-1a2b3c4d-h".
	Name string
	// Addr is the address others reach this namespace by. The lab sets it for
	// the host, the outsides and whatever it connects itself (plain mode,
	// neighbour); whoever attaches a container sets it with SetAddr. Zero: none yet.
	Addr netip.Addr

	fd netns.NsHandle
	nl *netlink.Handle

	mu    sync.Mutex
	procs map[*Cmd]struct{} // started, not yet waited for
	close []func()          // servers and sessions to end, last first
	done  bool
	path  string // of an adopted one; "": below runDir
	named bool   // below runDir, and ours to remove
}

// NewNamespace makes a namespace named NAME with lo up, IPv6 off and, where the
// kernel has it, bridge-nf-call-iptables off. Its Close removes it again. A lab
// makes all of its own; more are for tests that need an extra host.
func NewNamespace(name string) (*Namespace, error) {
	fd := netns.None()
	err := onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unsharing the network: %w", err)
		}
		fd, err = netns.GetFromPath("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return nameNamespace(name, fd)
}

// Adopt gives the lab a namespace that somebody else made, a container engine
// maybe, under the name "fblab-ID-NAME". It is set up as NewNamespace does.
func (l *Lab) Adopt(name, path string) (*Namespace, error) {
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	n, err := nameNamespace(l.name(name), fd)
	if err != nil {
		return nil, err
	}
	l.keep(n)
	return n, nil
}

// nameNamespace binds an open namespace, which becomes the result's, to a name.
func nameNamespace(name string, fd netns.NsHandle) (*Namespace, error) {
	n := &Namespace{Name: name, fd: fd, procs: map[*Cmd]struct{}{}}
	err := bindName(name, int(fd))
	if err == nil {
		n.named = true
		err = n.open()
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return n, nil
}

// Adopt opens a namespace that somebody else made, a container engine for one.
// It is used as it is, and Close leaves it.
func Adopt(path string) (*Namespace, error) {
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	n := &Namespace{Name: filepath.Base(path), path: path, fd: fd, procs: map[*Cmd]struct{}{}}
	if err := n.connect(); err != nil {
		n.Close()
		return nil, fmt.Errorf("adopting namespace %s: %w", path, err)
	}
	return n, nil
}

func (n *Namespace) connect() error {
	var err error
	if n.nl, err = netlink.NewHandleAt(n.fd, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	return nil
}

func (n *Namespace) open() error {
	if err := n.connect(); err != nil {
		return err
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := n.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	for key, val := range map[string]string{
		"net.ipv6.conf.all.disable_ipv6":     "1",
		"net.ipv6.conf.default.disable_ipv6": "1",
		"net.bridge.bridge-nf-call-iptables": "0",
	} {
		if err := n.SetSysctl(key, val); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Path is what `nsenter --net=` and `fastbr --netns` take.
func (n *Namespace) Path() string { return cmp.Or(n.path, filepath.Join(runDir, n.Name)) }

// SetAddr records the address others reach this namespace by.
func (n *Namespace) SetAddr(a netip.Addr) { n.Addr = a }

// Do calls fn on a thread that is inside the namespace. Sockets made by fn and
// processes started by it belong to the namespace; goroutines started by it do not.
func (n *Namespace) Do(fn func() error) error {
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening the current network namespace: %w", err)
	}
	defer func() { _ = before.Close() }()
	if err := netns.Set(n.fd); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering %s: %w", n.Name, err)
	}
	defer func() {
		// A thread that cannot get back stays locked and dies with its goroutine.
		if netns.Set(before) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// Sysctl reads a sysctl by its dotted name; the name of a device may itself not contain a dot.
// The error wraps os.ErrNotExist where the kernel does not have it.
func (n *Namespace) Sysctl(key string) (string, error) {
	var val string
	err := n.Do(func() error {
		b, err := os.ReadFile(sysctlPath(key))
		val = strings.TrimSpace(string(b))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading sysctl %s in %s: %w", key, n.Name, err)
	}
	return val, nil
}

// SetSysctl writes a sysctl. The error wraps os.ErrNotExist where the kernel does not have it.
func (n *Namespace) SetSysctl(key, val string) error {
	err := n.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(val), 0) })
	if err != nil {
		return fmt.Errorf("setting sysctl %s in %s: %w", key, n.Name, err)
	}
	return nil
}

func sysctlPath(key string) string {
	return filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
}

// onClose registers something to end before the namespace goes. It reports
// false, and registers nothing, once the namespace is closed.
func (n *Namespace) onClose(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.done {
		return false
	}
	n.close = append(n.close, f)
	return true
}

// Close ends the processes and servers started in the namespace and removes it.
// Idempotent. The kernel frees the namespace once nobody else holds it.
func (n *Namespace) Close() {
	n.mu.Lock()
	if n.done {
		n.mu.Unlock()
		return
	}
	n.done = true
	funcs, procs := n.close, n.procs
	n.close, n.procs = nil, nil
	n.mu.Unlock()
	for c := range procs {
		c.kill()
	}
	for i := len(funcs) - 1; i >= 0; i-- {
		funcs[i]()
	}
	if n.nl != nil {
		n.nl.Close()
	}
	if n.fd >= 0 {
		_ = n.fd.Close()
	}
	if n.named {
		unbindName(n.Name)
	}
}

// onOwnThread runs fn on a thread that is thrown away afterwards.
func onOwnThread(fn func() error) error {
	ch := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is never thrown away, and /proc/self shows its
			// namespace: keep it busy here while another thread does the work.
			defer runtime.UnlockOSThread()
			ch <- onOwnThread(fn)
			return
		}
		ch <- fn()
	}()
	return <-ch
}

func randomID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
