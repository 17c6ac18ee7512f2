package harness

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// BusyboxTree is the smallest root file system possible, as a tar: one static program,
// /bin/busybox.
func BusyboxTree(t testing.TB) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return Tar(t, "bin/busybox", program)
}

// Tar makes an archive of files: a name and its content, and so on.
func Tar(t testing.TB, files ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		name, content := files[i].(string), files[i+1].([]byte)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
