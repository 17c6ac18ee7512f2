package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// replay is dockerd's side of the protocol, played by the test. It covers what newer
// versions send, and crashes at a chosen moment.
type replay struct {
	*e2e
	socket string
	serve  *exec.Cmd
	client *http.Client
	net    string
}

func newReplay(t *testing.T, m harness.Mode, containers int) *replay {
	t.Helper()
	return replayIn(t, newE2E(t, m, lab.Options{Containers: containers}))
}

// replayIn starts the driver in an existing lab.
func replayIn(t *testing.T, h *e2e) *replay {
	t.Helper()
	r := &replay{e2e: h, net: strings.Repeat("0123456789abcdef", 4)}
	r.socket = filepath.Join(t.TempDir(), "d.sock")
	r.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.socket)
	}}}
	r.start(t, r.Cmd("serve", "--metrics", "", "--docker="+r.socket))
	return r
}

func (r *replay) start(t *testing.T, c *exec.Cmd) {
	t.Helper()
	r.serve = c
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.stop(t) })
	waitFor(t, r.Ctx, "serve to answer", func() bool {
		_, err := r.try("/Plugin.Activate", nil)
		return err == nil
	})
}

// stop ends serve, which must exit cleanly.
func (r *replay) stop(t *testing.T) {
	t.Helper()
	if r.serve == nil {
		return
	}
	_ = r.serve.Process.Signal(syscall.SIGTERM)
	if err := r.serve.Wait(); err != nil {
		t.Errorf("serve: %v", err)
	}
	r.serve = nil
}

// try makes a call. Like dockerd, it sends no content type.
func (r *replay) try(path string, body any) (answer map[string]any, err error) {
	var text io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		text = strings.NewReader(string(b))
	}
	q, err := http.NewRequestWithContext(r.Ctx, http.MethodPost, "http://plugin.moby.localhost"+path, text)
	if err != nil {
		return nil, err
	}
	a, err := r.client.Do(q)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Body.Close() }()
	if err := json.NewDecoder(a.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer["Err"] != nil || a.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("%s: %d %v", path, a.StatusCode, answer["Err"])
	}
	return answer, nil
}

type fields = map[string]any

func (r *replay) call(t *testing.T, name string, body fields) fields {
	t.Helper()
	a, err := r.try("/NetworkDriver."+name, body)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// endpointID makes an id out of a digit.
func endpointID(digit string) string { return strings.Repeat(digit, 64) }

func (r *replay) ids(endpoint string) fields {
	return fields{"NetworkID": r.net, "EndpointID": endpoint}
}

func (r *replay) with(endpoint string, more fields) fields {
	f := r.ids(endpoint)
	for k, v := range more {
		f[k] = v
	}
	return f
}

// join does what dockerd does to start a container, up to the moved interface. An empty
// mac leaves the choice to the driver.
func (r *replay) join(t *testing.T, endpoint string, c *lab.Namespace, ip, mac string) (src string) {
	t.Helper()
	created := r.call(t, "CreateEndpoint", r.with(endpoint, fields{"Interface": fields{"Address": ip, "AddressIPv6": "", "MacAddress": mac}, "Options": fields{}}))
	iface, _ := created["Interface"].(fields)
	if mac == "" {
		mac, _ = iface["MacAddress"].(string)
	} else if len(iface) != 0 {
		t.Errorf("the driver modified the interface: %v", iface)
	}
	j := r.call(t, "Join", r.with(endpoint, fields{"SandboxKey": c.Path(), "Options": fields{}}))
	name, _ := j["InterfaceName"].(fields)
	src, _ = name["SrcName"].(string)
	r.configure(t, c, src, fmt.Sprint(name["DstPrefix"], 0), ip, mac, fmt.Sprint(j["Gateway"]))
	return src
}

func (r *replay) configure(t *testing.T, c *lab.Namespace, src, dst, ip, mac, gateway string) {
	t.Helper()
	r.ip(t, r.Host, "link", "set", src, "netns", c.Name)
	r.ip(t, c, "link", "set", src, "name", dst)
	r.ip(t, c, "link", "set", dst, "address", mac)
	r.ip(t, c, "addr", "add", ip, "dev", dst)
	r.ip(t, c, "link", "set", dst, "up")
	r.ip(t, c, "route", "add", "default", "via", gateway)
	// The kernel's bridge learns about the carrier a little later.
	waitFor(t, r.Ctx, src+" to forward", func() bool {
		out, err := r.Host.Run(r.Ctx, "bridge", "link", "show", "dev", strings.TrimSuffix(src, "c"))
		return err == nil && strings.Contains(out, "state forwarding")
	})
	c.SetAddr(netip.MustParsePrefix(ip).Addr())
}

func (r *replay) ip(t *testing.T, n *lab.Namespace, args ...string) {
	t.Helper()
	if _, err := n.Run(r.Ctx, append([]string{"ip"}, args...)...); err != nil {
		t.Fatal(err)
	}
}

func (r *replay) createNetwork(t *testing.T) {
	t.Helper()
	r.call(t, "GetCapabilities", nil)
	r.call(t, "GwAllocCheck", fields{"Options": fields{}})
	r.call(t, "CreateNetwork", fields{"NetworkID": r.net, "Options": fields{
		"com.docker.network.enable_ipv4": true, "com.docker.network.enable_ipv6": false,
		"com.docker.network.generic": fields{"com.docker.network.driver.mtu": "1400"},
	}, "IPv4Data": []fields{{"AddressSpace": "LocalDefault", "Pool": "10.77.0.0/24", "Gateway": "10.77.0.1/24", "AuxAddresses": fields{}}}, "IPv6Data": []fields{}})
}

func portMap(bindings ...fields) fields {
	return fields{"Options": fields{"com.docker.network.portmap": bindings, "com.docker.network.endpoint.exposedports": []fields{{"Proto": 6, "Port": 80}}}}
}

// TestE2EDockerReplay plays the life of two containers, one fast and one slow.
func TestE2EDockerReplay(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		r := newReplay(t, m, 2)
		before := r.snapshot(t)
		r.Must(t, append([]string{"up"}, m.Up...)...)
		r.createNetwork(t)
		e1, e2, c1, c2 := endpointID("1"), endpointID("2"), r.Containers[0], r.Containers[1]
		src := r.join(t, e1, c1, "10.77.0.2/24", "")
		r.call(t, "ProgramExternalConnectivity", r.with(e1, portMap(fields{"Proto": 6, "Port": 80, "HostPort": 8080}, fields{"Proto": 17, "Port": 53, "HostPort": 0})))
		r.call(t, "EndpointOperInfo", r.ids(e1))
		r.join(t, e2, c2, "10.77.0.3/24", "02:00:00:00:00:03")
		r.mustPing(t, c1, c2.Addr, lab.PingOptions{})

		out := r.ServeTCP(t, r.Outside, on(r.Outside.Addr, 7))
		if err := c2.EchoTCP(r.Ctx, netip.AddrPort{}, out.Addr, "hello, world"); err != nil {
			t.Error(err)
		}
		assertPeers(t, out, r.HostAddr(0))
		r.assertReached(t, c1)
		r.replaceContainer(t, e1, src)
		r.assertForgotten(t, e2)
		r.call(t, "DeleteNetwork", fields{"NetworkID": r.net})
		r.call(t, "DeleteNetwork", fields{"NetworkID": r.net})
		r.Must(t, "down", "--all")
		r.stop(t) // it may be about to look for something to mend
		r.assertAsBefore(t, before)
		if _, err := os.Stat(r.socket); err == nil {
			t.Error("serve has ended and left its socket")
		}
	})
}

// assertReached: published ports lead to c, also the one whose host port was not given
// but chosen.
func (r *replay) assertReached(t *testing.T, c *lab.Namespace) {
	t.Helper()
	var pubs []ctl.PublicationView
	r.JSON(t, &pubs, "publish", "ls")
	if len(pubs) != 2 || pubs[0].HostPort != 8080 || pubs[1].HostPort < 61000 {
		t.Fatalf("publications %+v", pubs)
	}
	tcp, udp := r.ServeTCP(t, c, on(c.Addr, 80)), r.ServeUDP(t, c, on(c.Addr, 53))
	defer tcp.Close()
	defer udp.Close()
	if err := r.Outside.EchoTCP(r.Ctx, on(r.Outside.Addr, 0), on(r.HostAddr(0), 8080), "hello"); err != nil {
		t.Error(err)
	}
	if err := r.Outside.EchoUDP(r.Ctx, on(r.Outside.Addr, 0), on(r.HostAddr(0), uint16(pubs[1].HostPort)), "hello"); err != nil {
		t.Error(err)
	}
	assertPeers(t, tcp, r.Outside.Addr)
	assertPeers(t, udp, r.Outside.Addr)
}

// replaceContainer stops c1 as dockerd does and starts another container with its
// address and another MAC address. Neighbours that knew the address learn that at once.
func (r *replay) replaceContainer(t *testing.T, e1, src string) {
	t.Helper()
	c1, c2 := r.Containers[0], r.Containers[1]
	r.mustPing(t, c2, c1.Addr, lab.PingOptions{})
	r.call(t, "Leave", r.ids(e1)) // newer dockerds do not revoke after a restart
	var pubs []ctl.PublicationView
	if r.JSON(t, &pubs, "publish", "ls"); len(pubs) != 0 {
		t.Errorf("published after Leave: %+v", pubs)
	}
	r.ip(t, c1, "link", "set", "eth0", "down")
	r.ip(t, c1, "link", "set", "eth0", "name", src)
	r.ip(t, c1, "link", "set", src, "netns", r.Host.Name)
	r.call(t, "DeleteEndpoint", r.ids(e1))
	e3 := endpointID("3")
	r.join(t, e3, c1, "10.77.0.2/24", "02:00:00:00:00:33")
	r.mustPing(t, c2, c1.Addr, lab.PingOptions{})
	for range 2 {
		r.call(t, "RevokeExternalConnectivity", r.ids(e3))
		r.call(t, "Leave", r.ids(e3))
		r.call(t, "DeleteEndpoint", r.ids(e3))
	}
}

// assertForgotten takes everything down, as a reboot does, and lets dockerd go on.
// dockerd never creates a network twice. It has forgotten the endpoint e2, whose
// address it gives out next.
func (r *replay) assertForgotten(t *testing.T, e2 string) {
	t.Helper()
	c1, c2 := r.Containers[0], r.Containers[1]
	r.join(t, endpointID("4"), c1, "10.77.0.3/24", "")
	if _, ok := r.ports(t)[e2[:12]]; ok {
		t.Error("the forgotten endpoint is still there")
	}
	r.Must(t, "down", "--all")
	r.join(t, endpointID("5"), c1, "10.77.0.4/24", "")
	r.join(t, endpointID("6"), c2, "10.77.0.5/24", "")
	r.mustPing(t, c1, c2.Addr, lab.PingOptions{})
	r.call(t, "DeleteEndpoint", r.ids(endpointID("5")))
}

// TestE2EDockerActivated passes the socket as systemd does. The socket stays when serve
// ends.
func TestE2EDockerActivated(t *testing.T) {
	t.Parallel()
	r := newReplay(t, e2eModes()[0], 0)
	r.stop(t)
	ln, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	f, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	c := r.Cmd("serve", "--metrics", "", "--docker")
	c.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh", c.Path}, c.Args[1:]...)
	if c.Path, err = exec.LookPath("sh"); err != nil {
		t.Fatal(err)
	}
	c.ExtraFiles = []*os.File{f}
	r.start(t, c)
	r.createNetwork(t)
	r.call(t, "DeleteNetwork", fields{"NetworkID": r.net})
	r.stop(t)
	if _, err := os.Stat(r.socket); err != nil {
		t.Errorf("systemd's socket is gone: %v", err)
	}
}
