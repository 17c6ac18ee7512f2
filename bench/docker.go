package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"golang.org/x/sys/unix"
)

// Docker is Docker itself: its own dockerd in the lab's host namespace, with
// docker0, its iptables rules and containers of a busybox image.
type Docker struct{ *dockerd }

// dockerd is the state that Teardown needs.
type dockerd struct {
	dir  string // for everything it writes
	cmd  *lab.Cmd
	exit chan error
}

// NewDocker returns the contestant.
func NewDocker() Docker { return Docker{&dockerd{}} }

const (
	dockerImage    = "fastbr-bench"
	dockerPatience = time.Minute // to start or to stop
	busybox        = "busybox"   // statically linked
)

// Name implements Contestant.
func (Docker) Name() string { return "docker" }

// Describe implements Contestant.
func (Docker) Describe() string {
	version := firstLine(context.Background(), "dockerd", "--version")
	return orNone(version) + ", its default network with all of its rules, bridge-nf-call-iptables=0"
}

// Options implements Contestant.
func (Docker) Options() lab.Options { return lab.Options{Private: []netip.Prefix{}} }

// Flows implements Contestant.
func (Docker) Flows() int { return conntrackMax() }

// Paths implements Contestant.
func (Docker) Paths(context.Context, *lab.Lab) (Paths, bool, error) { return Paths{}, false, nil }

// Setup implements Contestant.
func (d Docker) Setup(ctx context.Context, l *lab.Lab) error {
	if err := d.ready(ctx, l); err != nil {
		return err
	}
	for i := range l.Containers {
		var err error
		if l.Containers[i], err = d.runContainer(ctx, l, portName(i)); err != nil {
			return err
		}
	}
	return nil
}

// ready starts dockerd and loads an image.
func (d Docker) ready(ctx context.Context, l *lab.Lab) error {
	if err := d.start(ctx, l); err != nil {
		return err
	}
	if err := l.Host.SetSysctl("net.bridge.bridge-nf-call-iptables", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	image, err := busyboxImage()
	if err != nil {
		return err
	}
	_, err = l.Host.RunInput(ctx, image, d.argv("import", "-", dockerImage)...)
	return err
}

// start starts dockerd and waits until it answers.
func (d Docker) start(ctx context.Context, l *lab.Lab) (err error) {
	if d.dir, err = os.MkdirTemp("", "fastbr-bench-docker-"); err != nil {
		return fmt.Errorf("making a directory for dockerd: %w", err)
	}
	log, err := os.Create(d.log())
	if err != nil {
		return fmt.Errorf("making dockerd's log: %w", err)
	}
	defer log.Close()
	// It outlives ctx: Teardown needs it.
	d.cmd = l.Host.Exec(context.WithoutCancel(ctx), "dockerd", "--host", d.socket(), "--pidfile", d.path("pid"),
		"--data-root", d.path("data"), "--exec-root", d.path("exec"), "--storage-driver", "vfs")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.cmd = nil
		return err
	}
	d.exit = make(chan error, 1)
	go func() { d.exit <- d.cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, dockerPatience)
	defer cancel()
	err = lab.Poll(ctx, func() (bool, error) {
		select {
		case err := <-d.exit:
			d.exit <- err
			return false, fmt.Errorf("dockerd ended: %w", err)
		default:
		}
		_, err := l.Host.Run(ctx, d.argv("version")...)
		return err == nil, nil
	})
	if err != nil {
		said, _ := os.ReadFile(d.log())
		return fmt.Errorf("starting dockerd: %w: %s", err, lastLine(said))
	}
	return nil
}

func lastLine(text []byte) []byte {
	text = bytes.TrimSpace(text)
	return text[bytes.LastIndexByte(text, '\n')+1:]
}

func (d Docker) path(name string) string { return filepath.Join(d.dir, name) }
func (d Docker) log() string             { return d.path("log") }
func (d Docker) socket() string          { return "unix://" + d.path("socket") }

// argv returns a docker command for this dockerd.
func (d Docker) argv(args ...string) []string {
	return append([]string{"docker", "--host", d.socket()}, args...)
}

// runContainer starts a container that sleeps, and adopts its namespace into
// the lab.
func (d Docker) runContainer(ctx context.Context, l *lab.Lab, name string) (*lab.Namespace, error) {
	if _, err := l.Host.Run(ctx, d.argv("run", "--detach", "--name", name, dockerImage, "/"+busybox, "sleep", "1000000")...); err != nil {
		return nil, err
	}
	out, err := l.Host.Run(ctx, d.argv("inspect", "--format", "{{.State.Pid}} {{.NetworkSettings.IPAddress}}", name)...)
	if err != nil {
		return nil, err
	}
	pid, ip, _ := strings.Cut(strings.TrimSpace(out), " ")
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, fmt.Errorf("reading what docker inspect printed: %w", err)
	}
	n, err := l.Adopt("docker-"+name, filepath.Join("/proc", pid, "ns/net"))
	if err != nil {
		return nil, err
	}
	n.SetAddr(addr)
	return n, nil
}

// busyboxImage returns the path of a tar archive with one file.
func busyboxImage() (string, error) {
	path, err := exec.LookPath(busybox)
	if err != nil {
		return "", fmt.Errorf("finding a program for the image: %w", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading a program for the image: %w", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err = w.WriteHeader(&tar.Header{Name: busybox, Mode: 0o755, Size: int64(len(program))})
	if err == nil {
		_, err = w.Write(program)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return "", fmt.Errorf("making the image: %w", err)
	}
	return b.String(), nil
}

// Teardown implements Contestant.
func (d Docker) Teardown(ctx context.Context, l *lab.Lab) error {
	if d.dir == "" {
		return nil
	}
	var errs []error
	if d.cmd != nil {
		errs = append(errs, d.clear(ctx, l), d.stop(ctx))
	}
	// Left only if dockerd did not shut down properly.
	mounts, _ := filepath.Glob(d.path("exec/netns/*"))
	for _, m := range mounts {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	errs = append(errs, os.RemoveAll(d.dir))
	*d.dockerd = dockerd{}
	return errors.Join(errs...)
}

// clear removes all containers.
func (d Docker) clear(ctx context.Context, l *lab.Lab) error {
	ids, err := l.Host.Run(ctx, d.argv("ps", "--all", "--quiet")...)
	if containers := strings.Fields(ids); err == nil && len(containers) > 0 {
		_, err = l.Host.Run(ctx, d.argv(append([]string{"rm", "--force"}, containers...)...)...)
	}
	return err
}

// stop ends dockerd, and so its containerd.
func (d Docker) stop(ctx context.Context) error {
	containerd := pidIn(d.path("exec/containerd/containerd.pid"))
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping dockerd: %w", err)
	}
	select {
	case <-d.exit:
		return nil
	case <-ctx.Done():
		_ = d.cmd.Process.Kill()
		<-d.exit
		if containerd > 0 {
			_ = syscall.Kill(containerd, syscall.SIGKILL)
		}
		return fmt.Errorf("stopping dockerd: %w", ctx.Err())
	}
}

func pidIn(path string) int {
	n, _ := strconv.Atoi(line(path))
	return n
}
