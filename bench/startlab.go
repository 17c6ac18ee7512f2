package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"golang.org/x/sys/unix"
)

// startLab is one dockerd with two networks, one of its own bridge driver and
// one of fastbr, on a host with an outside.
type startLab struct {
	*lab.Lab
	docker Docker
	fastbr Fastbr
	cgroup string    // for fastbr's hooks on the host's sockets, instead of the whole machine
	serve  *exec.Cmd // fastbr's driver; nil: not running

	server  *lab.Server
	arrived chan time.Time // time of each connection to the server outside
}

// Networks by contestant.
const (
	dockerNetwork = "bench-bridge"
	fastbrNetwork = "bench-fastbr"
)

// serverPort is the port outside to which containers connect when they are up.
const serverPort = 7

func newStartLab(ctx context.Context, f Fastbr) (_ *startLab, err error) {
	d := NewDocker()
	s := &startLab{docker: d, fastbr: f, arrived: make(chan time.Time, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.Lab, err = lab.New(ctx, d.Options()); err != nil {
		return nil, err
	}
	if s.cgroup, err = newCgroup(); err != nil {
		return nil, err
	}
	s.fastbr.Env = append(s.fastbr.Env, "FASTBR_CGROUP="+s.cgroup)
	s.server, err = s.Outside.ServeTCP(netip.AddrPortFrom(s.Outside.Addr, serverPort), func(*net.TCPConn) { s.arrived <- time.Now() })
	if err != nil {
		return nil, err
	}
	if err := d.ready(ctx, s.Lab); err != nil {
		return nil, err
	}
	if err := s.startServe(ctx); err != nil {
		return nil, err
	}
	if err := s.do(ctx, "network", "create", dockerNetwork); err != nil {
		return nil, err
	}
	return s, s.do(ctx, "network", "create", "-d", s.driver(), fastbrNetwork)
}

// driver returns the name of this lab's own driver: Docker's plugin directory
// belongs to the whole machine.
func (s *startLab) driver() string { return "fb" + s.ID }

// startServe runs fastbr's network driver until close.
func (s *startLab) startServe(ctx context.Context) error {
	c := s.fastbr.Prepare(context.WithoutCancel(ctx), s.Lab, "serve", "--metrics", "", "--docker="+s.driver())
	if err := c.Start(); err != nil {
		return fmt.Errorf("starting fastbr serve: %w", err)
	}
	s.serve = c
	ctx, cancel := context.WithTimeout(ctx, dockerPatience)
	defer cancel()
	err := lab.Poll(ctx, func() (bool, error) {
		_, err := os.Stat(filepath.Join("/run/docker/plugins", s.driver()+".sock"))
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for fastbr serve: %w", err)
	}
	return nil
}

// do runs a docker command.
func (s *startLab) do(ctx context.Context, args ...string) error {
	_, err := s.Host.Run(ctx, s.docker.argv(args...)...)
	return err
}

// processes counts the processes in the host's network namespace: proxies and
// shims, not those in containers.
func (s *startLab) processes() (n int, err error) {
	var host, of unix.Stat_t
	if err := unix.Stat(s.Host.Path(), &host); err != nil {
		return 0, fmt.Errorf("counting processes: %w", err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range all {
		if unix.Stat(path, &of) == nil && of.Dev == host.Dev && of.Ino == host.Ino {
			n++
		}
	}
	return n, err
}

// close removes everything. It continues after an error.
func (s *startLab) close() error {
	if s.Lab == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startCleanup)
	defer cancel()
	var errs []error
	if s.serve != nil {
		errs = append(errs, s.docker.clear(ctx, s.Lab))
		// This fails if the network was never created.
		_ = s.do(ctx, "network", "rm", fastbrNetwork)
		_, err := s.fastbr.Command(ctx, s.Lab, "down", "--all")
		errs = append(errs, err, s.serve.Process.Signal(syscall.SIGTERM), s.serve.Wait())
	}
	errs = append(errs, s.docker.Teardown(ctx, s.Lab))
	s.Close()
	if s.cgroup != "" {
		errs = append(errs, os.Remove(s.cgroup))
	}
	return errors.Join(errs...)
}

// newCgroup makes an empty cgroup below the root of the cgroup2 hierarchy.
func newCgroup() (string, error) {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return os.MkdirTemp(root, "fastbr-bench-")
		}
	}
	return "", errors.New("no cgroup2 filesystem is mounted on /sys/fs/cgroup or /sys/fs/cgroup/unified")
}
