package lab_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
)

// inChild marks the process that asChild started.
const inChild = "FASTBR_LAB_TEST_CHILD"

// asChild prepares a process that runs the calling test again.
func asChild(t *testing.T) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces")
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	c.Env = append(os.Environ(), inChild+"=1")
	return c
}

// TestLabOutlivesIPNetnsAdd: the first `ip netns add` of a machine mounts
// /run/netns on itself. It must not hide an existing lab. The test runs with a
// fresh /run.
func TestLabOutlivesIPNetnsAdd(t *testing.T) {
	if os.Getenv(inChild) == "" {
		c := asChild(t)
		c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("with a /run of its own: %v\n%s", err, out)
		}
		return
	}
	if err := unix.Mount("run", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	l, ctx := newLab(t, lab.Options{})
	if _, err := l.Host.Run(ctx, "ip", "netns", "add", "other"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Host.Run(ctx, "nsenter", "--net="+l.Host.Path(), "true"); err != nil {
		t.Errorf("after `ip netns add` the lab's host is hidden: %v", err)
	}
	l.Close()
	if _, err := os.Lstat("/run/netns/other"); err != nil {
		t.Errorf("the lab took somebody else's namespace along: %v", err)
	}
	if mounts := mountsOf(t, l.ID); mounts != 0 {
		t.Errorf("the lab left %d mounts", mounts)
	}
}

// TestKilledLabIsRemoved: the next lab removes what a killed process left of
// its lab, but not the lab of a living process.
func TestKilledLabIsRemoved(t *testing.T) {
	if os.Getenv(inChild) != "" {
		l, _ := newLab(t, lab.Options{Containers: 1})
		fmt.Println("lab", l.ID)
		select {}
	}
	alive, _ := newLab(t, lab.Options{})
	c := asChild(t)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var killed string
	for lines := bufio.NewScanner(out); killed == "" && lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "lab "); ok {
			killed = id
		}
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	if killed == "" || mountsOf(t, killed) == 0 {
		t.Fatalf("the process has built no lab: %q", killed)
	}
	newLab(t, lab.Options{})
	if n := mountsOf(t, killed); n != 0 {
		t.Errorf("%d namespaces of the killed lab are left", n)
	}
	if mountsOf(t, alive.ID) == 0 {
		t.Error("a living lab was removed")
	}
}

// mountsOf counts the mounts of a lab.
func mountsOf(t *testing.T, id string) (n int) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, id) {
			n++
		}
	}
	return n
}
