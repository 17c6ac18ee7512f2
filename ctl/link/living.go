package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Living are the namespaces that live, looked for no longer than it takes: almost
// all have a name or a process, and only for one without is every thread and
// descriptor of the machine looked at.
type Living struct {
	shown, all map[NetnsID]bool
}

// Has reports whether a namespace lives. An error means that it cannot tell.
func (l *Living) Has(id NetnsID) (_ bool, err error) {
	if l.shown == nil {
		l.shown = ShownNetns()
	}
	if l.shown[id] {
		return true, nil
	}
	if l.all == nil {
		l.all, err = liveNamespaces()
	}
	return l.all[id], err
}

// liveNamespaces collects every network namespace that a process is in, that is
// mounted somewhere, or that a descriptor holds open. A pinned BPF netfilter
// link keeps a namespace alive in the kernel without any of these: such a one
// counts as gone. Any doubt is an error.
func liveNamespaces() (map[NetnsID]bool, error) {
	self, err := OpenTarget("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	dev := self.ID().Dev // all namespaces are inodes of one nsfs
	self.Close()
	live := map[NetnsID]bool{}
	mounts := map[string]bool{}
	// A sandbox may hide the first process even from root. That is no doubt as
	// long as others are in the same namespace.
	shown, first := map[uint64]bool{}, uint64(0)
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	note := func(text string) {
		if ino, ok := netnsInode(text); ok {
			live[NetnsID{Dev: dev, Ino: ino}] = true
		}
	}
	for _, proc := range procs {
		err := scanTasks(proc, note)
		if err == nil {
			err = scanMounts(proc, mounts, note)
		}
		// Which namespace it is, its directory tells in any case.
		var st unix.Stat_t
		if statErr := unix.Stat(proc+"/net/dev", &st); ended(statErr) {
			continue
		} else if statErr != nil {
			return nil, statErr
		}
		switch {
		case proc == "/proc/1" && errors.Is(err, os.ErrPermission):
			first = st.Ino
		case err != nil:
			return nil, err
		default:
			shown[st.Ino] = true
		}
	}
	if first != 0 && !shown[first] {
		return nil, errors.New("the first process hides its namespace")
	}
	return live, nil
}

// scanTasks notes the namespace and the descriptors of every thread: threads
// may differ in both.
func scanTasks(proc string, note func(string)) error {
	tasks, err := os.ReadDir(proc + "/task")
	if ended(err) {
		return nil
	} else if err != nil {
		return err
	}
	for _, t := range tasks {
		dir := proc + "/task/" + t.Name()
		ns, err := os.Readlink(dir + "/ns/net")
		if err == nil {
			note(ns)
		} else if !ended(err) {
			return err
		}
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil && !ended(err) {
			return err
		}
		for _, fd := range fds {
			if to, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil {
				note(to)
			}
		}
	}
	return nil
}

// scanMounts notes the namespaces mounted where the process sees them, once per
// mount namespace.
func scanMounts(proc string, seen map[string]bool, note func(string)) error {
	ns, err := os.Readlink(proc + "/ns/mnt")
	if ended(err) || err == nil && seen[ns] {
		return nil
	} else if err != nil {
		return err
	}
	b, err := os.ReadFile(proc + "/mountinfo")
	if ended(err) {
		return nil
	} else if err != nil {
		return err
	}
	seen[ns] = true
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 3 {
			note(f[3]) // the root of an nsfs mount is "net:[4026532001]"
		}
	}
	return nil
}

// ended tells that a process went away while we looked.
func ended(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
}

// netnsInode parses "net:[INODE]".
func netnsInode(s string) (uint64, bool) {
	var ino uint64
	n, err := fmt.Sscanf(s, "net:[%d]", &ino)
	return ino, n == 1 && err == nil
}
