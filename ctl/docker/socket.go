package docker

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// PluginDir is where dockerd looks for drivers.
const PluginDir = "/run/docker/plugins"

// ErrName: the name is neither a driver's name nor the absolute path of a
// socket.
var ErrName = errors.New("want a driver's name or the absolute path of a socket")

// Listen opens the socket that dockerd calls: the one that systemd passed to
// this process, otherwise NAME.sock in PluginDir. A path instead of a name is
// for drivers that /etc/docker/plugins/NAME.spec announces. Listen replaces a
// socket at which nobody answers. Closing the listener removes a socket that
// Listen made. The error wraps ErrName.
func Listen(name string) (net.Listener, error) {
	path, err := socketPath(name)
	if err != nil {
		return nil, err
	}
	if ln, err := activated(); ln != nil || err != nil {
		return ln, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the directory for %s: %w", path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Only root can connect even before the mode is set: connecting needs write
	// permission.
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listening on %s: %w", path, err), ln.Close())
	}
	return ln, nil
}

func socketPath(name string) (string, error) {
	if filepath.IsAbs(name) && !strings.HasSuffix(name, "/") {
		return name, nil
	}
	if !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`).MatchString(name) {
		return "", fmt.Errorf("%q: %w", name, ErrName)
	}
	return filepath.Join(PluginDir, name+".sock"), nil
}

// activated returns the one socket that systemd passed, or nil.
func activated() (net.Listener, error) {
	all, err := activation.Listeners()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	if len(all) > 1 || all[0] == nil || all[0].Addr().Network() != "unix" {
		return nil, fmt.Errorf("%d sockets were passed: want one unix stream socket", len(all))
	}
	return all[0], nil
}

// removeStale removes the socket of a killed driver. It returns an error if
// somebody answers there, or if the file is not a socket.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s exists and is no socket: remove it, or choose another name", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%s is another driver's: choose another name", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
