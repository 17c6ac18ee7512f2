package testutil

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireRoot skips the test if it does not run as root. `make test` runs everything as
// root, so only a bare `go test` of a user skips.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run make test")
	}
}

// RequireCommand fails the test if a command that `make deps` installs is missing.
func RequireCommand(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			t.Fatalf("%v: run make deps", err)
		}
	}
}

// SkipUnsupported skips the test if err wraps notSupported and the running kernel is
// older than minimum ("6.6"). On a newer kernel it fails the test, as it does for any
// other error.
func SkipUnsupported(t testing.TB, err, notSupported error, minimum string) {
	t.Helper()
	switch {
	case err == nil:
	case !errors.Is(err, notSupported):
		t.Fatal(err)
	case kernelAtLeast(t, minimum):
		t.Fatalf("this kernel should have it since %s: %v", minimum, err)
	default:
		t.Skipf("needs Linux %s: %v", minimum, err)
	}
}

func kernelAtLeast(t testing.TB, minimum string) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatalf("reading the kernel version: %v", err)
	}
	return versionAtLeast(t, unix.ByteSliceToString(u.Release[:]), minimum)
}

func versionAtLeast(t testing.TB, have, want string) bool {
	t.Helper()
	var h, w [2]int
	for _, v := range []struct {
		s  string
		to *[2]int
	}{{have, &h}, {want, &w}} {
		if _, err := fmt.Sscanf(v.s, "%d.%d", &v.to[0], &v.to[1]); err != nil {
			t.Fatalf("kernel version %q: %v", v.s, err)
		}
	}
	return h[0] > w[0] || h[0] == w[0] && h[1] >= w[1]
}
