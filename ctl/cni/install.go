package cni

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

const (
	// pluginName is the "type" of a configuration.
	pluginName = "fastbr"
	// listName sorts last: runtimes that take the first file keep their network.
	listName = "99-fastbr.conflist"
)

// example is a network list for the default network.
const example = `{
  "cniVersion": "1.0.0",
  "name": "fastbr",
  "plugins": [
    {
      "type": "fastbr",
      "network": "default",
      "capabilities": { "portMappings": true, "ips": true, "mac": true, "dns": true, "bandwidth": true }
    }
  ]
}
`

// ErrForeign: the file to install exists and is not fastbr's.
var ErrForeign = errors.New("is not fastbr's")

// Install makes binary known to CNI runtimes. It creates a link to it in
// binDir, and an example list in confDir unless a file of that name exists. It
// returns what it did, one line each. The error wraps ErrForeign if another
// file is in the way.
func Install(binary, binDir, confDir string) (done []string, err error) {
	for _, dir := range []string{binDir, confDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("making the directory: %w", err)
		}
	}
	path := filepath.Join(binDir, pluginName)
	made, err := installLink(binary, path)
	if err != nil {
		return nil, err
	}
	if made {
		done = append(done, path+" -> "+binary)
	}
	list := filepath.Join(confDir, listName)
	if _, err := os.Lstat(list); err == nil {
		return done, nil
	}
	if err := renameio.WriteFile(list, []byte(example), 0o644); err != nil {
		return done, fmt.Errorf("writing the example: %w", err)
	}
	return append(done, list), nil
}

// installLink makes path a link to binary. It reports false if it already was
// one.
func installLink(binary, path string) (bool, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return false, err
	case st.Mode()&os.ModeSymlink != 0:
		to, err := os.Readlink(path)
		if err != nil {
			return false, err
		}
		if to == binary {
			return false, nil
		}
		if filepath.Base(to) != filepath.Base(binary) {
			return false, fmt.Errorf("%s %w: it is a link to %s: remove it, or choose another --bin-dir", path, ErrForeign, to)
		}
	case sameContent(path, binary):
		return false, nil
	default:
		return false, fmt.Errorf("%s %w: remove it, or choose another --bin-dir", path, ErrForeign)
	}
	return true, renameio.Symlink(binary, path)
}

// sameContent reports whether path is binary or a copy of it.
func sameContent(path, binary string) bool {
	a, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	b, err := os.ReadFile(binary)
	return err == nil && bytes.Equal(a, b)
}
