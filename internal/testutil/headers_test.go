package testutil

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	// headerLines is how long a header of the programs may be. A longer one holds more
	// than one concept: docs/ARCHITECTURE.md has a table of them.
	headerLines = 300
	// columns is how long a line of C may be. clang-format breaks code, not comments.
	columns = 100
)

func TestWallHeadersAreShort(t *testing.T) {
	for _, path := range cFiles(t, "lib/*.h") {
		if n := bytes.Count(read(t, path), []byte{'\n'}); n > headerLines {
			t.Errorf("%s has %d lines, more than %d: cut it by concept", path, n, headerLines)
		}
	}
}

func TestWallLinesOfCAreShort(t *testing.T) {
	tab := strings.NewReplacer("\t", "        ")
	for _, path := range cFiles(t, "*.c", "lib/*.h", "tests/*.c", "bench/*.[ch]") {
		for i, line := range strings.Split(string(read(t, path)), "\n") {
			if n := utf8.RuneCountInString(tab.Replace(line)); n > columns {
				t.Errorf("%s:%d has %d columns, more than %d", path, i+1, n, columns)
			}
		}
	}
}

// cFiles returns the files below bpf that match patterns, each of which matches one.
func cFiles(t *testing.T, patterns ...string) (files []string) {
	t.Helper()
	for _, p := range patterns {
		matches, err := filepath.Glob(filepath.Join("../../bpf", p))
		if err != nil || len(matches) == 0 {
			t.Fatalf("no files bpf/%s (%v)", p, err)
		}
		files = append(files, matches...)
	}
	return files
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
