package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The linker's version and commit take precedence over the toolchain's stamp, which in
// a tarball or a package is "(devel)" and empty.
func TestVersionIsTheLinkers(t *testing.T) {
	version, commit = "1.2.3", "0123456789abcdef0123456789abcdef01234567-dirty"
	defer func() { version, commit = "", "" }()
	v := buildVersion()
	if v.Version != "1.2.3" || v.commit() != "0123456789ab-dirty" {
		t.Errorf("%+v", v)
	}
}

// A binary built by make knows its version and commit.
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
