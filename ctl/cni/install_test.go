package cni

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func TestInstallIsIdempotentAndRefusesForeign(t *testing.T) {
	dir := t.TempDir()
	binary, bin, conf := filepath.Join(dir, "fastbr"), filepath.Join(dir, "opt", "bin"), filepath.Join(dir, "net.d")
	if err := os.WriteFile(binary, []byte("fastbr"), 0o755); err != nil {
		t.Fatal(err)
	}
	done, err := Install(binary, bin, conf)
	if err != nil || len(done) != 2 {
		t.Fatalf("first: %v, %v", done, err)
	}
	if to, err := os.Readlink(filepath.Join(bin, "fastbr")); err != nil || to != binary {
		t.Errorf("link to %s, %v", to, err)
	}
	list, err := libcni.ConfListFromFile(filepath.Join(conf, "99-fastbr.conflist"))
	if err != nil || list.Name != "fastbr" || list.Plugins[0].Network.Type != "fastbr" {
		t.Errorf("example: %+v, %v", list, err)
	}
	// The user's version of the example stays.
	if err := os.WriteFile(filepath.Join(conf, "99-fastbr.conflist"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if done, err := Install(binary, bin, conf); err != nil || len(done) != 0 {
		t.Errorf("second: %v, %v", done, err)
	}
	if b, _ := os.ReadFile(filepath.Join(conf, "99-fastbr.conflist")); string(b) != "mine" {
		t.Errorf("the list was overwritten: %s", b)
	}
	// The binary moved: the link follows.
	moved := filepath.Join(dir, "new", "fastbr")
	if done, err := Install(moved, bin, conf); err != nil || len(done) != 1 {
		t.Errorf("moved: %v, %v", done, err)
	}
	for name, make := range map[string]func(path string) error{
		"file": func(path string) error { return os.WriteFile(path, []byte("other"), 0o755) },
		"link": func(path string) error { return os.Symlink("/usr/lib/cni/bridge", path) },
	} {
		path := filepath.Join(bin, "fastbr")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Install(binary, bin, conf); !errors.Is(err, ErrForeign) {
			t.Errorf("foreign %s: %v, want ErrForeign", name, err)
		}
	}
}
