package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain runs hostClient if the binary is called by that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "hostclient" {
		hostClient()
		return
	}
	os.Exit(m.Run())
}

// seen is what a socket of the host was told.
type seen struct {
	Err, Local, Peer, From, Echo string
}

// hostClient is a process of the host with one socket. A socket is in the cgroup of
// the process that makes it.
//
//	hostclient tcp|udp 4|6|6only connect|stay|sendto|bind LOCAL|dev:DEVICE|- REMOTE|-
//
// LOCAL or DEVICE is bound to first. connect and sendto send "hello" and wait for an answer;
// stay connects, and after a line on standard input does the same again; bind
// listens, for TCP.
func hostClient() {
	var s seen
	s.tell(s.ask(os.Args[1:]))
}

// tell prints what was seen so far, as one line.
func (s *seen) tell(err error) {
	if err != nil {
		s.Err = err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(s)
}

func (s *seen) ask(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("%d arguments", len(args))
	}
	kind, family := unix.SOCK_STREAM, unix.AF_INET
	if args[0] == "udp" {
		kind = unix.SOCK_DGRAM
	}
	six := args[1] != "4"
	if six {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	if args[1] == "6only" {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	if device, ok := strings.CutPrefix(args[3], "dev:"); ok {
		if err := unix.BindToDevice(fd, device); err != nil {
			return fmt.Errorf("bind to %s: %w", device, err)
		}
	} else if args[3] != "-" {
		if err := unix.Bind(fd, sockaddr(args[3], six)); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
	}
	switch args[2] {
	case "bind":
		if kind == unix.SOCK_STREAM {
			return unix.Listen(fd, 1)
		}
		return nil
	case "connect", "stay":
		if err := unix.Connect(fd, sockaddr(args[4], six)); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			return fmt.Errorf("getpeername: %w", err)
		}
		s.Peer = addrPort(peer)
		if _, err := unix.Write(fd, []byte("hello")); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	case "sendto":
		if err := unix.Sendto(fd, []byte("hello"), 0, sockaddr(args[4], six)); err != nil {
			return fmt.Errorf("sendto: %w", err)
		}
	}
	err = s.answer(fd, kind)
	if args[2] != "stay" || err != nil {
		return err
	}
	s.tell(nil)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	*s = seen{}
	if _, err := unix.Write(fd, []byte("hello")); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return s.answer(fd, kind)
}

// receive is recvfrom(2). The runtime's own signals do not interrupt it.
func receive(fd int, buf []byte) (n int, from unix.Sockaddr, err error) {
	for {
		if n, from, err = unix.Recvfrom(fd, buf, 0); !errors.Is(err, unix.EINTR) {
			return n, from, err
		}
	}
}

func (s *seen) answer(fd, kind int) error {
	buf := make([]byte, 100)
	n, from, err := receive(fd, buf)
	if err != nil {
		return fmt.Errorf("recvfrom: %w", err)
	}
	s.Echo = string(buf[:n])
	if kind == unix.SOCK_DGRAM {
		s.From = addrPort(from)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	s.Local = addrPort(local)
	return nil
}

func sockaddr(s string, six bool) unix.Sockaddr {
	a := netip.MustParseAddrPort(s)
	if six {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func addrPort(s unix.Sockaddr) string {
	switch a := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	}
	return ""
}
