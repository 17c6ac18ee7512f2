package e2e

import (
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// hostSocket runs hostclient as a process of the lab's host, or of c's namespace.
func (h *e2e) hostSocket(t *testing.T, ns *lab.Namespace, args ...string) (s seen) {
	t.Helper()
	out, err := h.hostClient(t, ns, args...).Output()
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	if err != nil {
		t.Fatalf("hostclient %v: %v: %s", args, err, out)
	}
	return s
}

// hostClient is the command that hostSocket runs.
func (h *e2e) hostClient(t *testing.T, ns *lab.Namespace, args ...string) *lab.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := ns.Exec(h.Ctx, append([]string{self}, args...)...)
	c.Args[0] = "hostclient"
	h.inCgroup(t, c.Cmd)
	return c
}

// staying is a socket of the host that stays connected.
type staying struct {
	args string
	in   io.WriteCloser
	out  *json.Decoder
}

// stay connects a socket and waits for the first answer.
func (h *e2e) stay(t *testing.T, args string) *staying {
	t.Helper()
	c := h.hostClient(t, h.Host, strings.Fields(args)...)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &staying{args, in, json.NewDecoder(out)}
	t.Cleanup(func() {
		in.Close()
		_ = c.Wait()
	})
	if got := s.read(t); got.Echo != "hello" {
		t.Fatalf("%s: %+v", args, got)
	}
	return s
}

func (s *staying) read(t *testing.T) (got seen) {
	t.Helper()
	if err := s.out.Decode(&got); err != nil {
		t.Fatalf("%s: %v", s.args, err)
	}
	return got
}

// again makes the socket ask once more.
func (s *staying) again(t *testing.T) seen {
	t.Helper()
	if _, err := s.in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	return s.read(t)
}

// inCgroup puts a command into the cgroup of the host's processes, which fastbr hooks.
func (h *e2e) inCgroup(t *testing.T, c *exec.Cmd) {
	t.Helper()
	dir, err := os.Open(h.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(dir.Fd())
}

// hostPortLab is a lab in which c1's echo servers are published. It returns the
// servers, too.
func hostPortLab(t *testing.T) (h *e2e, tcp, udp *lab.Server) {
	t.Helper()
	h = upE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	web := h.Containers[0]
	tcp, udp = h.ServeTCP(t, web, on(web.Addr, 80)), h.ServeUDP(t, web, on(web.Addr, 53))
	h.Must(t, "publish", "add", "8080:80", "c1")
	h.Must(t, "publish", "add", "8080:53/udp", "c1")
	return h, tcp, udp
}

// TestE2EPublishedToTheHost reaches published ports from processes of the host, by
// loopback and by the host's own addresses, with every kind of socket. Each socket is
// told the address that it asked for.
func TestE2EPublishedToTheHost(t *testing.T) {
	t.Parallel()
	h, tcp, udp := hostPortLab(t)
	defer tcp.Close()
	defer udp.Close()
	own := h.HostAddr(0).String() + ":8080"
	for _, c := range []struct {
		args string
		from netip.Addr // what the container must see
	}{
		{"tcp 4 connect - 127.0.0.1:8080", h.gateway()},
		{"tcp 4 connect - 127.1.2.3:8080", h.gateway()},
		{"tcp 6 connect - [::ffff:127.0.0.1]:8080", h.gateway()},
		{"tcp 6 connect - [::1]:8080", h.gateway()},
		{"udp 4 connect - 127.0.0.1:8080", h.gateway()},
		{"udp 6 connect - [::1]:8080", h.gateway()},
		{"udp 6 connect - [::ffff:127.0.0.1]:8080", h.gateway()},
		{"udp 4 sendto - 127.0.0.1:8080", h.gateway()},
		{"udp 6 sendto - [::ffff:127.0.0.1]:8080", h.gateway()},
		{"tcp 4 connect - " + own, h.HostAddr(0)},
		{"tcp 4 connect 0.0.0.0:45454 127.0.0.1:8080", h.gateway()},
		{"tcp 4 connect " + h.HostAddr(0).String() + ":0 " + own, h.HostAddr(0)},
		{"tcp 6 connect - [::ffff:" + h.HostAddr(0).String() + "]:8080", h.HostAddr(0)},
		{"udp 4 connect - " + own, h.HostAddr(0)},
		{"udp 4 sendto - " + own, h.HostAddr(0)},
		{"tcp 4 connect - " + h.gateway().String() + ":8080", h.gateway()},
	} {
		args := strings.Fields(c.args)
		s, ok := h.reachedFromHost(t, args)
		if !ok {
			continue
		}
		local := netip.MustParseAddrPort(s.Local)
		server := tcp
		if args[0] == "udp" {
			server = udp
		}
		if from := on(c.from, local.Port()); server.Peers()[from] == 0 {
			t.Errorf("%s: from port %d the container saw nobody as %s: %v", c.args, local.Port(), c.from, server.Peers())
		}
	}

	// The kernel sends no datagram from ::1 to IPv4. A socket that is bound to a
	// loopback address or to a device stays there. All of them see what they would see
	// without a publication.
	for _, args := range []string{"udp 6 sendto - [::1]:8080", "tcp 4 connect 127.0.0.1:0 127.0.0.1:8080",
		"tcp 4 connect dev:lo 127.0.0.1:8080", "udp 4 sendto dev:lo 127.0.0.1:8080"} {
		if s := h.hostSocket(t, h.Host, strings.Fields(args)...); s.Err == "" {
			t.Errorf("%s: %+v", args, s)
		}
	}
	// A port of the same number on another address, or in another namespace, is not
	// ours.
	outside := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 8080))
	defer outside.Close()
	if s := h.hostSocket(t, h.Host, "tcp", "4", "connect", "-", outside.Addr.String()); s.Echo != "hello" || len(outside.Peers()) != 1 {
		t.Errorf("an address outside: %+v, its server saw %v", s, outside.Peers())
	}
	if s := h.hostSocket(t, h.Containers[1], "tcp", "4", "connect", "-", "127.0.0.1:8080"); !strings.Contains(s.Err, "refused") {
		t.Errorf("a container's own loopback: %+v", s)
	}

	h.Must(t, "publish", "rm", "8080")
	if s := h.hostSocket(t, h.Host, "tcp", "4", "connect", "-", "127.0.0.1:8080"); !strings.Contains(s.Err, "refused") {
		t.Errorf("published no more: %+v", s)
	}
	if left := h.hostPrograms(t); left != "" {
		t.Errorf("left on the cgroup: %s", left)
	}
}

// hostPrograms are the links that are pinned for sockets of the host.
func (h *e2e) hostPrograms(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("find", h.BPFFS, "-path", "*/links/host-*").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestE2EPublishedOnLoopback: what is published on 127.0.0.1 is for the host alone,
// whatever a neighbour on the link writes into its packets.
func TestE2EPublishedOnLoopback(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 2})
	web := h.Containers[0]
	tcp := h.ServeTCP(t, web, on(web.Addr, 80))
	defer tcp.Close()
	h.Must(t, "publish", "add", "127.0.0.1:8080:80", "c1")
	for _, to := range []string{"127.0.0.1:8080", "[::1]:8080"} {
		family := "4"
		if strings.HasPrefix(to, "[") {
			family = "6"
		}
		if s := h.hostSocket(t, h.Host, "tcp", family, "connect", "-", to); s.Echo != "hello" {
			t.Errorf("%s: %+v", to, s)
		}
	}
	for _, to := range []string{h.HostAddr(0).String() + ":8080", "127.0.0.2:8080"} {
		if s := h.hostSocket(t, h.Host, "tcp", "4", "connect", "-", to); !strings.Contains(s.Err, "refused") {
			t.Errorf("%s: %+v", to, s)
		}
	}
	h.notLetIn(t, h.Outside, on(h.HostAddr(0), 8080), "from outside")
	h.notLetIn(t, h.Containers[1], on(h.HostAddr(0), 8080), "from another container")
	// An outsider that routes 127.0.0.0/8 to the host gets no answer either.
	for _, c := range []*lab.Namespace{h.Outside, h.Containers[1]} {
		if err := c.SetSysctl("net.ipv4.conf.all.route_localnet", "1"); err != nil {
			t.Fatal(err)
		}
		via := h.HostAddr(0)
		if c != h.Outside {
			via = h.gateway()
		}
		cmd := c.Exec(h.Ctx, "sh", "-c", "ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1/32 via "+via.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		h.notLetIn(t, c, netip.MustParseAddrPort("127.0.0.1:8080"), "by the host's loopback address")
	}
}

// TestE2EListenerOfTheHostGoesFirst: a listener that a published port does not exclude,
// since it is for IPv6 only.
func TestE2EListenerOfTheHostGoesFirst(t *testing.T) {
	t.Parallel()
	h := upE2E(t, e2eModes()[0], lab.Options{Containers: 1})
	if err := h.Host.SetSysctl("net.ipv6.conf.lo.disable_ipv6", "0"); err != nil {
		t.Fatal(err)
	}
	listener := h.ServeTCP(t, h.Host, netip.MustParseAddrPort("[::1]:8080"))
	defer listener.Close()
	web := h.ServeTCP(t, h.Containers[0], on(h.Containers[0].Addr, 80))
	defer web.Close()
	h.Must(t, "publish", "add", "8080:80", "c1")
	for args, reached := range map[string]*lab.Server{"tcp 6 connect - [::1]:8080": listener, "tcp 4 connect - 127.0.0.1:8080": web} {
		before := len(reached.Peers())
		if s := h.hostSocket(t, h.Host, strings.Fields(args)...); s.Echo != "hello" {
			t.Errorf("%s: %+v", args, s)
		}
		if len(reached.Peers()) != before+1 {
			t.Errorf("%s reached the wrong one", args)
		}
	}
}

// reachedFromHost runs a socket of the host (hostSocket) that gets an answer, and finds what
// it has asked for.
func (h *e2e) reachedFromHost(t *testing.T, args []string) (s seen, ok bool) {
	t.Helper()
	s = h.hostSocket(t, h.Host, args...)
	if s.Err != "" || s.Echo != "hello" {
		t.Errorf("%s: %+v", args, s)
		return s, false
	}
	if args[2] == "connect" && s.Peer != args[4] {
		t.Errorf("%s: the socket's peer is %s", args, s.Peer)
	}
	if args[0] == "udp" && s.From != args[4] {
		t.Errorf("%s: the answer came from %s", args, s.From)
	}
	return s, true
}

// TestE2EPublishedPortIsTaken: no process of the host can bind a published port.
func TestE2EPublishedPortIsTaken(t *testing.T) {
	t.Parallel()
	h, tcp, udp := hostPortLab(t)
	defer tcp.Close()
	defer udp.Close()
	h.Must(t, "publish", "add", h.HostAddr(0).String()+":8090:80", "c1")
	for args, taken := range map[string]bool{
		"tcp 4 bind 0.0.0.0:8080 -":                        true,
		"tcp 4 bind 127.0.0.1:8080 -":                      true,
		"udp 4 bind 0.0.0.0:8080 -":                        true,
		"tcp 6 bind [::]:8080 -":                           true,
		"tcp 6only bind [::]:8080 -":                       false, // it takes no packet of IPv4
		"tcp 6 bind [::ffff:127.0.0.1]:8080 -":             true,
		"tcp 4 bind " + h.HostAddr(0).String() + ":8090 -": true,
		"tcp 4 bind 0.0.0.0:8090 -":                        true,
		"tcp 4 bind 127.0.0.1:8090 -":                      false,
		"udp 4 bind 0.0.0.0:8090 -":                        false,
		"udp 4 bind 224.0.0.251:8080 -":                    false, // no publication is for a group
		"tcp 4 bind 0.0.0.0:8081 -":                        false,
		"tcp 6 bind [::]:8081 -":                           false,
		"tcp 4 bind 0.0.0.0:0 -":                           false,
	} {
		s := h.hostSocket(t, h.Host, strings.Fields(args)...)
		if got := strings.Contains(s.Err, "address already in use"); got != taken || !got && s.Err != "" {
			t.Errorf("%s: %+v, want taken: %v", args, s, taken)
		}
	}
	if s := h.hostSocket(t, h.Containers[1], "tcp", "4", "bind", "0.0.0.0:8080", "-"); s.Err != "" {
		t.Errorf("a container's own port: %+v", s)
	}
	h.Must(t, "publish", "rm", "8080/tcp")
	if s := h.hostSocket(t, h.Host, "tcp", "4", "bind", "0.0.0.0:8080", "-"); s.Err != "" {
		t.Errorf("published no more: %+v", s)
	}
}

// TestE2EPublishedPortIsNotChosen: the kernel never chooses a published port for a
// socket of the host. Answers to such a socket would go to the container.
func TestE2EPublishedPortIsNotChosen(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 1})
		if err := h.Host.SetSysctl("net.ipv4.ip_local_port_range", "40000 40003"); err != nil {
			t.Fatal(err)
		}
		web := h.Containers[0]
		tcp, udp := h.ServeTCP(t, web, on(web.Addr, 80)), h.ServeUDP(t, web, on(web.Addr, 80))
		defer tcp.Close()
		defer udp.Close()
		for _, ports := range []string{"40000:80", "40001:80", "40003:80"} {
			h.Must(t, "publish", "add", ports, "c1")
			h.Must(t, "publish", "add", ports+"/udp", "c1")
		}
		for i := range uint16(4) {
			outside := h.ServeTCP(t, h.Outside, on(h.Outside.Addr, 9000+i))
			defer outside.Close()
			dns := h.ServeUDP(t, h.Outside, on(h.Outside.Addr, 9000+i))
			defer dns.Close()
			for _, args := range []string{"tcp 4 connect", "udp 4 connect", "udp 4 sendto"} {
				s := h.hostSocket(t, h.Host, append(strings.Fields(args), "-", outside.Addr.String())...)
				if s.Echo != "hello" || !strings.HasSuffix(s.Local, ":40002") {
					t.Errorf("%s: %+v, want it from port 40002", args, s)
				}
			}
		}
		if n := len(tcp.Peers()) + len(udp.Peers()); n != 0 {
			t.Errorf("the container has seen %d clients", n)
		}
		if err := h.Outside.EchoTCP(h.Ctx, on(h.Outside.Addr, 0), on(h.HostAddr(0), 40001), "hello"); err != nil {
			t.Error(err)
		}
	})
}

// TestE2EPublishedNoMoreEndsTheHostsSockets: a process of the host is connected when a
// publication is removed. It learns that its connection has ended, and sends nothing to
// the next container with that address. Other connections stay.
func TestE2EPublishedNoMoreEndsTheHostsSockets(t *testing.T) {
	t.Parallel()
	h, tcp, udp := hostPortLab(t)
	h.Must(t, "publish", "add", "8081:80", "c1")
	web, own := h.Containers[0], h.HostAddr(0).String()
	var ended, kept []*staying
	for _, args := range []string{"tcp 4 stay - 127.0.0.1:8080", "tcp 6 stay - [::1]:8080", "tcp 4 stay - " + own + ":8080",
		"udp 4 stay - 127.0.0.1:8080", "udp 6 stay - [::ffff:127.0.0.1]:8080", "udp 4 stay - " + own + ":8080"} {
		ended = append(ended, h.stay(t, args))
	}
	for _, args := range []string{"tcp 4 stay - 127.0.0.1:8081", "tcp 4 stay - " + on(web.Addr, 80).String(), "udp 4 stay - " + on(web.Addr, 53).String()} {
		kept = append(kept, h.stay(t, args))
	}
	h.Must(t, "publish", "rm", "8080")
	for _, s := range kept {
		if got := s.again(t); got.Echo != "hello" {
			t.Errorf("%s, not by what was published: %+v", s.args, got)
		}
	}
	tcp.Close()
	udp.Close()
	h.Must(t, "detach", "c1")
	heir := h.Containers[1]
	h.Must(t, "detach", "c2")
	h.Attach(t, heir, "c3", "--ip", web.Addr.String())
	tcp, udp = h.ServeTCP(t, heir, on(heir.Addr, 80)), h.ServeUDP(t, heir, on(heir.Addr, 53))
	defer tcp.Close()
	defer udp.Close()
	h.Must(t, "publish", "add", "8080:80", "c3")
	h.Must(t, "publish", "add", "8080:53/udp", "c3")
	for _, s := range ended {
		if got := s.again(t); got.Err == "" || strings.Contains(got.Err, "temporarily unavailable") {
			t.Errorf("%s, published no more: %+v", s.args, got)
		}
	}
	if n := len(tcp.Peers()) + len(udp.Peers()); n != 0 {
		t.Errorf("%d of them reached the heir of the address", n)
	}
	if s := h.hostSocket(t, h.Host, "udp", "4", "connect", "-", "127.0.0.1:8080"); s.Echo != "hello" {
		t.Errorf("a new socket: %+v", s)
	}
}
