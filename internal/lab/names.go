package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// runDir is where iproute2 keeps named namespaces; nsenter --net= accepts
	// its files.
	runDir = "/run/netns"
	// namePrefix is the prefix of the names of a lab's namespaces.
	namePrefix = "fblab-"
)

// bindName gives an open namespace a name. It locks the descriptor. The lock
// shows other processes that somebody uses the namespace.
func bindName(name string, fd int) error {
	if err := unix.Flock(fd, unix.LOCK_SH); err != nil {
		return fmt.Errorf("locking the namespace: %w", err)
	}
	if err := shareRunDir(); err != nil {
		return err
	}
	path := filepath.Join(runDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), path, "", unix.MS_BIND, ""); err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("mounting on %s: %w", path, err)
	}
	return nil
}

func unbindName(name string) {
	path := filepath.Join(runDir, name)
	_ = unix.Unmount(path, unix.MNT_DETACH)
	_ = os.Remove(path)
}

// shareRunDir makes runDir a shared mount of itself, as `ip netns add` does. If
// that command did it later, it would hide what is mounted there by then, and
// closing the lab would uncover it instead of removing it. The lock is the one
// that iproute2 takes: two processes at once would mount it twice.
func shareRunDir() error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(runDir)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", runDir, err)
	}
	share := func() error { return unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) { // not yet a mount point
		if err = unix.Mount(runDir, runDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = share()
		}
	}
	if err != nil {
		return fmt.Errorf("making %s a shared mount: %w", runDir, err)
	}
	return nil
}

// removeDead removes the names of labs whose process was killed: nobody holds
// their locks. The kernel frees these namespaces when the processes that the
// lab started in them have ended, too.
func removeDead() {
	names, err := filepath.Glob(filepath.Join(runDir, namePrefix+"*"))
	if err != nil {
		return
	}
	for _, path := range names {
		if dead(path) {
			unbindName(strings.TrimPrefix(path, runDir+"/"))
		}
	}
}

// dead reports whether nobody has locked a namespace. It reports false for a
// name to which nothing is bound yet.
func dead(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return false
	}
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}
