package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
)

// ConnMax opens short TCP connections to one server as fast as possible:
// connect, one byte each way, close.
type ConnMax struct{}

const (
	// connClients keep two cores busy. Each has one connection at a time.
	connClients = 8
	connBacklog = 4096
	connPort    = 7777
)

// Name implements Workload.
func (ConnMax) Name() string { return "tcp-crr" }

// Title implements Workload.
func (ConnMax) Title() string { return "TCP connections, " + ContainerToOutside.String() }

// Unit implements Workload.
func (ConnMax) Unit() string { return connsPerSecond }

// connsPerSecond is the unit of ConnMax: complete connections.
const connsPerSecond = "connections/s"

// Run implements Workload.
func (ConnMax) Run(ctx context.Context, l *lab.Lab, d time.Duration, start func() error) (Sample, error) {
	client, server := l.Containers[0], l.Outside
	// The client's ports stay in TIME-WAIT for a minute. Without both settings
	// it would run out of ports, and the benchmark would measure that.
	for key, value := range map[string]string{"net.ipv4.ip_local_port_range": "1024 65535", "net.ipv4.tcp_tw_reuse": "1"} {
		if err := client.SetSysctl(key, value); err != nil {
			return Sample{}, err
		}
	}
	to := &unix.SockaddrInet4{Addr: server.Addr.As4(), Port: connPort}
	stop, err := serveByte(server, to)
	if err != nil {
		return Sample{}, err
	}
	defer stop()
	if _, err := client.NextHop(ctx, server.Addr); err != nil {
		return Sample{}, err
	}
	if err := start(); err != nil {
		return Sample{}, err
	}
	t := newTally()
	end := time.Now().Add(d)
	var all sync.WaitGroup
	for range connClients {
		mine := *to // Connect writes to it
		all.Go(func() { t.connect(ctx, client, &mine, end) })
	}
	all.Wait()
	if err := ctx.Err(); err != nil {
		return Sample{}, err
	}
	s := t.sample()
	s.Value = float64(len(t.took)) / d.Seconds()
	return s, nil
}

// connect opens one connection after another until end.
func (t *tally) connect(ctx context.Context, n *lab.Namespace, to unix.Sockaddr, end time.Time) {
	err := n.Do(func() error {
		for time.Now().Before(end) && ctx.Err() == nil {
			begin := time.Now()
			err := byteThereAndBack(to)
			t.add("TCP", time.Since(begin), err)
		}
		return nil
	})
	if err != nil {
		t.add("TCP", 0, err)
	}
}

// byteThereAndBack blocks its thread: Go's poller would cost as much as the
// rest.
func byteThereAndBack(to unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(int64(tcpPatience))
	if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience)); err != nil {
		return err
	}
	_, err = uninterrupted(func() (int, error) { return 0, unix.Connect(fd, to) })
	if err != nil && !errors.Is(err, unix.EISCONN) { // interrupted, and connected meanwhile
		return err
	}
	b := []byte{1}
	if _, err := uninterrupted(func() (int, error) { return unix.Write(fd, b) }); err != nil {
		return err
	}
	if n, err := uninterrupted(func() (int, error) { return unix.Read(fd, b) }); err != nil {
		return err
	} else if n == 0 {
		return errors.New("closed without an answer")
	}
	return nil
}

// uninterrupted repeats a blocking system call that a signal of Go's scheduler
// interrupts. The kernel does not restart calls with a time-out.
func uninterrupted(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// serveByte echoes one byte on each connection and waits for the client to
// close.
func serveByte(n *lab.Namespace, at *unix.SockaddrInet4) (stop func(), err error) {
	fd := -1
	err = n.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, at), unix.Listen(fd, connBacklog))
	})
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("listening on %v in %s: %w", netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port)), n.Name, err)
	}
	var all sync.WaitGroup
	for range 2 * connClients { // some wait for their client to close
		all.Go(func() {
			for {
				c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				if errors.Is(err, unix.EINVAL) { // shut down
					return
				}
				if err == nil {
					answerByte(c)
				}
			}
		})
	}
	return func() {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		all.Wait()
		_ = unix.Close(fd)
	}, nil
}

func answerByte(fd int) {
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(int64(tcpPatience))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience)
	b := make([]byte, 1)
	read := func() (int, error) { return unix.Read(fd, b) }
	if n, err := uninterrupted(read); err == nil && n == 1 {
		if _, err := uninterrupted(func() (int, error) { return unix.Write(fd, b) }); err == nil {
			_, _ = uninterrupted(read) // until the client closes
		}
	}
}
