package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The linker's version and commit go before what the toolchain has stamped, which in
// a tarball or a package is "(devel)" and nothing.
func TestVersionIsTheLinkers(t *testing.T) {
	version, commit = "1.2.3", "0123456789abcdef0123456789abcdef01234567-dirty"
	defer func() { version, commit = "", "" }()
	v := buildVersion()
	if v.Version != "1.2.3" || v.commit() != "0123456789ab-dirty" {
		t.Errorf("%+v", v)
	}
}

// What make has built knows its version and its commit.
func TestMakeBuildsAVersion(t *testing.T) {
	bin := os.Getenv("FASTBR_TEST_BINARY")
	if bin == "" {
		t.Skip("FASTBR_TEST_BINARY is not set: make test does")
	}
	out, err := exec.Command(bin, "version", "-o", "json").CombinedOutput()
	if err != nil || strings.Contains(string(out), "(devel)") || strings.Contains(string(out), `"revision": ""`) {
		t.Errorf("%v: %s", err, out)
	}
}
