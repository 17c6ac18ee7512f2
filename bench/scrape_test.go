package bench

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCPUTimeIsThatOfGetrusage(t *testing.T) {
	used := func() int64 {
		t.Helper()
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	now, err := cpuTime(os.Getpid())
	// getrusage counts user and system time separately, in microseconds.
	if after := used(); err != nil || now.Nanoseconds() < before-2000 || now.Nanoseconds() > after+2000 {
		t.Errorf("%d, %v: not between %d and %d", now, err, before, after)
	}
	if _, err := cpuTime(1 << 23); err == nil {
		t.Error("no process can have that number")
	}
}
