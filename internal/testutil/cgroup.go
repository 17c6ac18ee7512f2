package testutil

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Cgroup makes an empty cgroup below the root of the cgroup2 hierarchy and returns its
// directory. It is removed when the test ends.
func Cgroup(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if !strings.Contains(line, " - cgroup2 ") || f[3] != "/" {
			continue
		}
		dir, err := os.MkdirTemp(f[4], "fbt-")
		if err != nil {
			t.Fatalf("making a cgroup: %v", err)
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
		return dir
	}
	t.Fatal("no cgroup2 filesystem is mounted: sockets of the host cannot be tested")
	return ""
}

// removeCgroup removes a cgroup. It waits for processes that are ending.
func removeCgroup(t testing.TB, dir string) {
	err := os.Remove(dir)
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); err = os.Remove(dir) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		t.Errorf("removing a cgroup with the processes %q: %v", procs, err)
	}
}
