package testutil

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// headerLines is how long a header of the programs may be. A longer one holds more
// than one concept: docs/ARCHITECTURE.md has a table of them.
const headerLines = 300

func TestWallHeadersAreShort(t *testing.T) {
	headers, err := filepath.Glob("../../bpf/lib/*.h")
	if err != nil {
		t.Fatal(err)
	}
	if len(headers) == 0 {
		t.Fatal("no headers in bpf/lib")
	}
	for _, path := range headers {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text, []byte{'\n'}); n > headerLines {
			t.Errorf("%s has %d lines, more than %d: cut it by concept", filepath.Base(path), n, headerLines)
		}
	}
}
