package ctl

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/fastbr/fastbr/ctl/link"
)

// An engine may hold the ports that it has published for a container with sockets
// of its own, so that nobody else gets them: Podman's monitor of the container
// does, and a process that nerdctl starts. When the container's network is made
// again (`podman network reload`, `disconnect` and `connect`, a second ADD), they
// are there before the publication.

// sockets are those that the engine may hold the ports of a container with, by
// inode: the sockets of processes that were given the container's id, as monitors
// are, and of those that the process that called us has started.
func (o *Owner) sockets() map[uint32]bool {
	var pids []int
	procs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, dir := range procs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile(dir + "/cmdline")
		if err == nil && (parentOf(dir) == os.Getppid() || slices.ContainsFunc(bytes.Split(args, []byte{0}), o.named)) {
			pids = append(pids, pid)
		}
	}
	return link.SocketsOf(pids)
}

func (o *Owner) named(arg []byte) bool { return string(arg) == o.Container }

// parentOf reads who started a process, 0 if it has ended. See proc_pid_stat(5).
func parentOf(dir string) (ppid int) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0
	}
	// The name before, in parentheses, may contain anything.
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	var state string
	_, _ = fmt.Sscan(string(rest), &state, &ppid)
	return ppid
}
