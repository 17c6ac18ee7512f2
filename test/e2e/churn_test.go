package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
	"github.com/fastbr/fastbr/test/harness"
)

// How long a churn lasts, and how many containers come and go. `make churn` raises both
// by FASTBR_CHURN and FASTBR_CHURN_CONTAINERS.
const (
	churnTime       = 6 * time.Second
	churnContainers = 24
	churnWorkers    = 6
	churnPort       = 31000 // published by the first container; the others follow
	churnPatience   = time.Minute
)

// churn is a lab in which two engines start and remove containers.
type churn struct {
	*runtime
	docker *replay
	list   *libcni.NetworkConfigList
	stay   [2]*lab.Namespace // the first of them is published
}

// comer is a container that comes and goes. Every other one is Docker's.
type comer struct {
	*churn
	ns     *lab.Namespace
	number int
	up     bool
	src    string       // Docker: the name of its end on the host
	conn   *net.TCPConn // from outside, open when it is removed
}

// TestE2EChurn starts and removes containers at random, by a CNI runtime and by
// Docker's calls at the same time. Each has published ports and traffic. The traffic of
// two containers that stay must go on, and in the end nothing is left of the others.
func TestE2EChurn(t *testing.T) {
	t.Parallel()
	lasts, count := churnSize(t)
	c := newChurn(t, lasts, count)
	before, files := c.owned(t), c.openFiles(t)
	var comers []*comer
	for i, ns := range c.Containers {
		comers = append(comers, &comer{churn: c, ns: ns, number: i})
		c.ServeTCP(t, ns, on(netip.IPv4Unspecified(), 80))
		c.ServeUDP(t, ns, on(netip.IPv4Unspecified(), 53))
	}
	ctx, stop := context.WithTimeout(c.Ctx, lasts)
	defer stop()
	traffic := c.traffic(t)
	rnd := testutil.Rand(t)
	var workers sync.WaitGroup
	var changes atomic.Int64
	for w := range churnWorkers {
		mine, rnd := comers[w*count/churnWorkers:(w+1)*count/churnWorkers], rand.New(rand.NewPCG(rnd.Uint64(), 0))
		workers.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				k := mine[rnd.IntN(len(mine))]
				if err := k.change(rnd.IntN(2) == 0); err != nil {
					t.Errorf("container %d: %v", k.number, err)
				}
				changes.Add(1)
			}
		})
	}
	workers.Wait()
	for _, k := range comers {
		if err := k.remove(false); err != nil {
			t.Errorf("container %d: %v", k.number, err)
		}
	}
	for _, flow := range traffic {
		flow.end(t)
	}
	t.Logf("%d containers, %d starts and removals in %v", count, changes.Load(), lasts)
	c.assertNothingLeft(t, before)
	waitFor(t, c.Ctx, "serve to have no more open files than before", func() bool { return c.openFiles(t) <= files })
}

func churnSize(t *testing.T) (lasts time.Duration, count int) {
	t.Helper()
	lasts, count = churnTime, churnContainers
	var err error
	if s := os.Getenv("FASTBR_CHURN"); s != "" {
		if lasts, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("FASTBR_CHURN_CONTAINERS"); s != "" {
		if count, err = strconv.Atoi(s); err != nil || count < churnWorkers {
			t.Fatalf("FASTBR_CHURN_CONTAINERS=%s: want a number from %d", s, churnWorkers)
		}
	}
	return lasts, count
}

// newChurn brings up the networks of both engines, and the two containers that stay.
func newChurn(t *testing.T, lasts time.Duration, count int) *churn {
	t.Helper()
	c := &churn{runtime: newRuntime(t, e2eModes()[0], lab.Options{Containers: count})}
	if lasts > harness.Deadline/2 {
		c.Ctx = context.WithoutCancel(c.Ctx) // the test binary's own deadline ends it
	}
	c.list = c.runtime.list(t, "1.0.0", "churn", ownNetwork)
	c.Must(t, "up")
	for i := range c.stay {
		n, err := c.Add(fmt.Sprint("stay", i))
		if err != nil {
			t.Fatal(err)
		}
		c.stay[i] = n
		c.Attach(t, n, fmt.Sprint("stay", i))
	}
	c.Must(t, "publish", "add", "8080:80", "stay0")
	c.Must(t, "publish", "add", "8080:53/udp", "stay0")
	c.docker = replayIn(t, c.e2e)
	c.docker.createNetwork(t)
	return c
}

// change starts or removes the container. After a start it also uses it.
func (k *comer) change(abrupt bool) error {
	if k.up {
		return k.remove(abrupt)
	}
	k.up = true
	start := k.add
	if k.byDocker() {
		start = k.join
	}
	if err := start(); err != nil {
		return err
	}
	return k.use()
}

func (k *comer) byDocker() bool { return k.number%2 == 1 }

func (k *comer) port() uint16 { return churnPort + uint16(k.number) }

func (k *comer) add() error {
	raw, err := k.cni.AddNetworkList(k.Ctx, k.list, k.attachment())
	if err != nil {
		return fmt.Errorf("ADD: %w", err)
	}
	res, err := current.NewResultFromResult(raw)
	if err != nil {
		return err
	}
	if _, ok := netip.AddrFromSlice(res.IPs[0].Address.IP.To4()); !ok {
		return fmt.Errorf("ADD gave %v", res.IPs[0])
	}
	return nil
}

func (k *comer) attachment() *libcni.RuntimeConf {
	return attachment(k.ns, map[string]any{"portMappings": []map[string]any{
		{"hostPort": k.port(), "containerPort": 80, "protocol": "tcp"}, {"hostPort": k.port(), "containerPort": 53, "protocol": "udp"}}})
}

// endpoint is the container's id to Docker; fastbr knows it by its first digits.
func (k *comer) endpoint() string { return fmt.Sprintf("%012x%052x", k.number+1, 0) }

// join does what dockerd does to start a container.
func (k *comer) join() error {
	d, ip := k.docker, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(k.number + 2)}), 24)
	call := func(name string, body fields) (fields, error) {
		return d.try("/NetworkDriver."+name, d.with(k.endpoint(), body))
	}
	if _, err := call("CreateEndpoint", fields{"Interface": fields{"Address": ip.String()}, "Options": fields{}}); err != nil {
		return err
	}
	j, err := call("Join", fields{"SandboxKey": k.ns.Path(), "Options": fields{}})
	if err != nil {
		return err
	}
	name, _ := j["InterfaceName"].(fields)
	k.src, _ = name["SrcName"].(string)
	if _, err := k.Host.Run(k.Ctx, "ip", "link", "set", k.src, "netns", k.ns.Name, "name", "eth0"); err != nil {
		return err
	}
	inside := fmt.Sprintf("addr add %s dev eth0\nlink set eth0 up\nroute add default via %s\n", ip, j["Gateway"])
	if _, err := k.ns.RunInput(k.Ctx, inside, "ip", "-batch", "-"); err != nil {
		return err
	}
	_, err = call("ProgramExternalConnectivity", portMap(fields{"Proto": 6, "Port": 80, "HostPort": k.port()}, fields{"Proto": 17, "Port": 53, "HostPort": k.port()}))
	return err
}

// use reaches the container by its published ports, and the outside from the container.
// One connection stays open.
func (k *comer) use() (err error) {
	ctx, cancel := context.WithTimeout(k.Ctx, churnPatience)
	defer cancel()
	if k.conn, err = k.Outside.DialTCP(ctx, netip.AddrPort{}, on(k.HostAddr(0), k.port())); err != nil {
		return err
	}
	return errors.Join(lab.Echo(ctx, k.conn, "by the published port"),
		k.Outside.EchoUDP(ctx, netip.AddrPort{}, on(k.HostAddr(0), k.port()), "by the published port"),
		k.ns.EchoTCP(ctx, netip.AddrPort{}, on(k.Outside.Addr, 7), "outwards"))
}

// remove removes a container that is up. abrupt: as after its namespace or its engine
// has died.
func (k *comer) remove(abrupt bool) error {
	if !k.up {
		return nil
	}
	k.up = false
	if k.conn != nil {
		defer k.conn.Close()
	}
	if !k.byDocker() {
		rt := k.attachment()
		if abrupt {
			rt.NetNS = ""
		}
		return k.cni.DelNetworkList(k.Ctx, k.list, rt)
	}
	d := k.docker
	if !abrupt {
		if _, err := d.try("/NetworkDriver.Leave", d.ids(k.endpoint())); err != nil {
			return err
		}
		if _, err := k.ns.Run(k.Ctx, "ip", "link", "set", "eth0", "netns", k.Host.Name, "name", k.src); err != nil {
			return err
		}
	}
	_, err := d.try("/NetworkDriver.DeleteEndpoint", d.ids(k.endpoint()))
	return err
}

// stream is traffic that must not be disturbed: a question and its answer, again and
// again, on one socket.
type stream struct {
	name string
	sock net.Conn
	stop chan struct{}
	done chan struct{}
	took []time.Duration // the time that each question took
	n    atomic.Int64    // the number of questions so far
	err  error
}

// startStream starts a stream, by UDP or TCP.
func (h *e2e) startStream(t *testing.T, name string, udp bool, from *lab.Namespace, to netip.AddrPort) *stream {
	t.Helper()
	s := &stream{name: name, stop: make(chan struct{}), done: make(chan struct{})}
	var err error
	if udp {
		s.sock, err = from.DialUDP(netip.AddrPort{}, to)
	} else {
		s.sock, err = from.DialTCP(h.Ctx, netip.AddrPort{}, to)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	go s.run()
	return s
}

// traffic starts streams of the containers that stay, on every kind of path.
func (c *churn) traffic(t *testing.T) (all []*stream) {
	t.Helper()
	a, b, host := c.stay[0], c.stay[1], c.HostAddr(0)
	c.ServeTCP(t, a, on(a.Addr, 80))
	c.ServeUDP(t, a, on(a.Addr, 53))
	c.ServeTCP(t, c.Outside, on(c.Outside.Addr, 7))
	for name, x := range map[string]struct {
		from *lab.Namespace
		to   netip.AddrPort
	}{
		"out":           {a, on(c.Outside.Addr, 7)},
		"published":     {c.Outside, on(host, 8080)},
		"bridge":        {b, on(a.Addr, 80)},
		"hairpin":       {b, on(host, 8080)},
		"published UDP": {c.Outside, on(host, 8080)},
	} {
		all = append(all, c.startStream(t, name, strings.HasSuffix(name, "UDP"), x.from, x.to))
	}
	return all
}

func (s *stream) run() {
	defer close(s.done)
	for s.err == nil {
		select {
		case <-s.stop:
			return
		case <-time.After(2 * time.Millisecond):
		}
		began := time.Now()
		s.err = s.ask(fmt.Sprint("question ", len(s.took)))
		s.took = append(s.took, time.Since(began))
		s.n.Add(1)
	}
}

// ask asks only once: a lost packet is an error.
func (s *stream) ask(text string) error {
	if err := s.sock.SetDeadline(time.Now().Add(churnPatience)); err != nil {
		return err
	}
	if _, err := io.WriteString(s.sock, text); err != nil {
		return err
	}
	answer := make([]byte, len(text))
	if _, err := io.ReadFull(s.sock, answer); err != nil {
		return err
	}
	if string(answer) != text {
		return fmt.Errorf("%q was answered by %q", text, answer)
	}
	return nil
}

// end checks that every question was answered, and logs how long that took.
func (s *stream) end(t *testing.T) {
	t.Helper()
	close(s.stop)
	<-s.done
	_ = s.sock.Close()
	n := len(s.took)
	if s.err != nil || n == 0 {
		t.Errorf("%s was interrupted after %d answers: %v", s.name, n, s.err)
		return
	}
	slices.Sort(s.took)
	t.Logf("%s: %d answers, median %v, 99 %% within %v, the longest took %v", s.name, n,
		s.took[n/2].Round(time.Microsecond), s.took[n*99/100].Round(time.Microsecond), s.took[n-1].Round(time.Microsecond))
}

// owned is what fastbr has on the host, one text for each kind of thing.
func (c *churn) owned(t *testing.T) snapshot {
	t.Helper()
	s := snapshot{"pins": tree(t, c.BPFFS), "files": tree(t, c.StateDir)}
	for what, command := range map[string]string{"links": "ip -o link | cut -d: -f2", "neighbours": "ip neigh show nud permanent", "bridges": "bridge fdb show"} {
		out, err := c.Host.Run(c.Ctx, "sh", "-c", command)
		if err != nil {
			t.Fatal(err)
		}
		s[what] = strings.Join(slices.Sorted(strings.Lines(out)), "")
	}
	return s
}

// openFiles counts the files that serve has open while it is idle. Then it has no map
// open.
func (c *churn) openFiles(t *testing.T) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", c.docker.serve.Process.Pid)
	waitFor(t, c.Ctx, "serve to have no map open", func() bool {
		fds, err := os.ReadDir(dir)
		n = len(fds)
		return err == nil && !slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
			to, _ := os.Readlink(filepath.Join(dir, fd.Name()))
			return strings.Contains(to, "bpf")
		})
	})
	return n
}

// assertNothingLeft fails if devices, pins, addresses, flows or publications of a
// removed container are left.
func (c *churn) assertNothingLeft(t *testing.T, before snapshot) {
	t.Helper()
	for kind, now := range c.owned(t) {
		if diff := lineDiff(before[kind], now); diff != "" {
			t.Errorf("%s differ from before:\n%s", kind, diff)
		}
	}
	if n := c.containers(t); n != len(c.stay) {
		t.Errorf("%d ports are left, want %d: %v", n, len(c.stay), c.ports(t))
	}
	var pubs []ctl.PublicationView
	if c.JSON(t, &pubs, "publish", "ls"); len(pubs) != 2 {
		t.Errorf("left published: %+v", pubs)
	}
	stay := []netip.Addr{c.stay[0].Addr, c.stay[1].Addr}
	for _, f := range c.Flows(t) {
		if !slices.Contains(stay, netip.MustParseAddrPort(f.Src).Addr()) {
			t.Errorf("a flow is left: %+v", f)
		}
	}
	// The next container gets the lowest address that the removed ones had.
	if a := c.Attach(t, c.Containers[0], "next"); netip.MustParsePrefix(a.IP).Addr() != c.stay[1].Addr.Next() {
		t.Errorf("the next container has %s, those that stay %v", a.IP, stay)
	}
}
