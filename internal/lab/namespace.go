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
	// Addr and Addr6 are the addresses by which others reach this namespace. The
	// lab sets them for the host, the outsides and what it connects itself (plain
	// mode, neighbour). Whoever attaches a container sets them with SetAddr. Zero:
	// none yet.
	Addr, Addr6 netip.Addr

	fd netns.NsHandle
	nl *netlink.Handle

	mu    sync.Mutex
	procs map[*Cmd]struct{} // started and not yet waited for
	close []func()          // ends servers and sessions, last first
	done  bool
	ip6   bool   // IPv6 is on
	path  string // of an adopted namespace; "": below runDir
	named bool   // below runDir, and to be removed by Close
}

// NewNamespace makes a namespace with lo up, IPv6 off and, where the kernel has
// it, bridge-nf-call-iptables off. Close removes it. A lab makes its own
// namespaces; this one is for tests that need another host.
func NewNamespace(name string) (*Namespace, error) { return newNamespace(name, false) }

// newNamespace is NewNamespace with a choice about IPv6.
func newNamespace(name string, ip6 bool) (*Namespace, error) {
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
	return nameNamespace(name, fd, ip6)
}

// Adopt gives a namespace that somebody else made, such as a container engine,
// the name "fblab-ID-NAME" in the lab. It is set up as Add does.
func (l *Lab) Adopt(name, path string) (*Namespace, error) {
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	n, err := nameNamespace(l.name(name), fd, l.opts.IPv6 != NoIPv6)
	if err != nil {
		return nil, err
	}
	l.keep(n)
	return n, nil
}

// nameNamespace binds an open namespace to a name. The result owns fd.
func nameNamespace(name string, fd netns.NsHandle, ip6 bool) (*Namespace, error) {
	n := &Namespace{Name: name, fd: fd, ip6: ip6, procs: map[*Cmd]struct{}{}}
	err := bindName(name, int(fd))
	if err == nil {
		n.named = true
		err = setUp(n)
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("creating namespace %s: %w", name, err)
	}
	return n, nil
}

// Adopt opens a namespace that somebody else made, such as a container engine.
// It does not set it up, and Close does not remove it.
func Adopt(path string) (*Namespace, error) {
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	n := &Namespace{Name: filepath.Base(path), path: path, fd: fd, procs: map[*Cmd]struct{}{}}
	if err := connect(n); err != nil {
		n.Close()
		return nil, fmt.Errorf("adopting namespace %s: %w", path, err)
	}
	return n, nil
}

func connect(n *Namespace) error {
	var err error
	if n.nl, err = netlink.NewHandleAt(n.fd, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	return nil
}

func setUp(n *Namespace) error {
	if err := connect(n); err != nil {
		return err
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := n.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	disable := "1"
	if n.ip6 {
		disable = "0"
	}
	for key, val := range map[string]string{
		"net.ipv6.conf.all.disable_ipv6":     disable,
		"net.ipv6.conf.default.disable_ipv6": disable,
		plan4.nfCall:                         "0",
		plan6.nfCall:                         "0",
	} {
		if err := n.SetSysctl(key, val); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Path returns the path for `nsenter --net=` and `fastbr --netns`.
func (n *Namespace) Path() string { return cmp.Or(n.path, filepath.Join(runDir, n.Name)) }

// SetAddr sets the address of a's family by which others reach this namespace.
func (n *Namespace) SetAddr(a netip.Addr) {
	if a.Is6() {
		n.Addr6 = a
	} else {
		n.Addr = a
	}
}

// Do calls fn on a thread inside the namespace. Sockets and processes that fn
// makes belong to the namespace; goroutines do not.
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
		// A thread that cannot return stays locked and ends with its goroutine.
		if netns.Set(before) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// Sysctl reads a sysctl by its dotted name. A device name in it must not
// contain a dot. The error wraps os.ErrNotExist if the kernel does not have the
// sysctl.
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

// SetSysctl writes a sysctl. The error wraps os.ErrNotExist if the kernel does
// not have it.
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

// onClose registers f to be called before the namespace goes. Once the
// namespace is closed it registers nothing and reports false.
func onClose(n *Namespace, f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.done {
		return false
	}
	n.close = append(n.close, f)
	return true
}

// Close ends the processes and servers started in the namespace and removes it.
// It is idempotent. The kernel frees the namespace once nobody else holds it.
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

// onOwnThread runs fn on a thread that is discarded afterwards.
func onOwnThread(fn func() error) error {
	ch := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is never discarded, and /proc/self shows its
			// namespace. Block it here while another thread does the work.
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
