package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/fastbr/fastbr/ctl/ipam"
	"github.com/fastbr/fastbr/ctl/link"
)

// Engine is what container engines ask for, in place of a user: ports that they know
// by names of their own, networks that come and go with these, and endpoints.
type Engine struct{ c *Controller }

// Engine returns the instance as engines see it.
func (c *Controller) Engine() Engine { return Engine{c} }

// NetworkCreate is the Controller's.
func (e Engine) NetworkCreate(ctx context.Context, name string, nr NetworkRequest) (NetworkView, error) {
	return e.c.NetworkCreate(ctx, name, nr)
}

// Attach is the Controller's, but a network that is not up comes up with the port,
// and goes down again if the port cannot be. With known it must have been defined,
// and stays up; else r.Expect describes it, and a network without ports that differs
// is made anew.
func (e Engine) Attach(ctx context.Context, r AttachRequest, known bool) (AttachResult, error) {
	return e.c.attach(ctx, r, func(nets networks, r AttachRequest) (*network, bool, error) {
		n, _, err := nets.asExpected(r)
		if errors.Is(err, ErrDiffers) && !known && len(n.Ports) == 0 {
			err = errors.Join(nets.downUndefined(n), err)
			if nets.op.st.Networks[r.Network] == nil {
				err = tagged(ErrNotUp, "it has just gone down")
			}
		}
		if !errors.Is(err, ErrNotUp) && (known || !errors.Is(err, ErrNoNetwork)) {
			return n, false, err
		}
		n, err = nets.raiseDescribed(r.Network, r.Expect)
		return n, true, err
	})
}

// Detach unplugs the ports whose owner matches and returns what was
// unplugged. It goes on past errors. With last, a network that loses its last
// port by this goes down, if no `network create` made it.
func (e Engine) Detach(ctx context.Context, last bool, match func(Owner) bool) (gone []Owner, err error) {
	err = e.c.instance.mutate(ctx, func(op *operation) error {
		var errs []error
		for _, name := range op.st.networkNames() {
			n := op.st.Networks[name]
			found := false
			for _, p := range n.sortedPorts() {
				if p.Owner == nil || !match(*p.Owner) {
					continue
				}
				found = true
				if err := op.ports.detach(n, p); err != nil {
					errs = append(errs, err)
					continue
				}
				gone = append(gone, *p.Owner)
			}
			if last && found && len(n.Ports) == 0 {
				errs = append(errs, op.networks.downUndefined(n))
			}
		}
		return errors.Join(errs...)
	})
	return gone, err
}

// NetworkDiscard is NetworkRemove for an engine that has no container on the network
// any more: endpoints are left over, and go too.
// A network that is gone is no error. The error wraps ErrInUse while there are
// other ports.
func (e Engine) NetworkDiscard(ctx context.Context, name string) error {
	if err := checkNetworkName(name); err != nil {
		return err
	}
	return e.c.instance.mutateWith(ctx, mutation{looks: looksLast}, func(op *operation) error {
		if n := op.st.Networks[name]; n != nil {
			endpoints := slices.DeleteFunc(n.sortedPorts(), func(p *port) bool { return p.Peer == "" })
			if err := op.ports.detachAll(n, endpoints); err != nil {
				return err
			}
		}
		if err := op.networks.remove(name); !errors.Is(err, ErrNoNetwork) {
			return err
		}
		return nil
	})
}

// Propose is what a network would be if it were defined now; nothing is made but the
// prefix of the host's own IPv6 addresses, if it is needed. Which free subnets it gets
// depends on its name, so that two that are proposed before either is up get different ones.
func (e Engine) Propose(ctx context.Context, name string, r NetworkRequest) (def Definition, err error) {
	if err := errors.Join(checkNetworkName(name), r.check()); err != nil {
		return def, firstLine(err)
	}
	err = e.c.instance.read(ctx, func(op *operation) error {
		used, err := op.networks.usedAddrs(name)
		if err != nil {
			return err
		}
		h := fnv.New32a()
		io.WriteString(h, name)
		if r.IPv6 == IPv6On && !r.Subnet6.IsValid() && !r.Gateway6.IsValid() {
			if r.Subnet6, err = used.next6(uint16(h.Sum32())); err != nil {
				return err
			}
		}
		if !r.Subnet.IsValid() && !r.Gateway.IsValid() {
			pools := slices.Collect(ipam.Pools())
			at := int(h.Sum32() % uint32(len(pools)))
			if r.Subnet, err = ipam.Next(used.all(), append(pools[at:], pools[:at]...)...); err != nil {
				return fmt.Errorf("%w: choose one with --subnet", err)
			}
		}
		def, _, err = define(name, r, used)
		return err
	})
	return def, err
}

// Owner is how the engine that asked for a port knows it.
type Owner struct {
	Engine    string `json:"engine"`    // "cni", "netavark"
	Network   string `json:"network"`   // the engine's name for the network
	Container string `json:"container"` // the engine's id
	Ifname    string `json:"ifname"`    // inside, as asked for
}

// Route is one inside a container.
type Route struct {
	Dst         netip.Prefix
	Gateway     netip.Addr // invalid: the network's
	Metric      int
	MTU, AdvMSS int // bytes, 0: the kernel's choice
	Table       int // 0: main
	Scope       int // 0: universe
}

// PortName is what an engine's port is called in statistics: the container's name
// if a port may be called so, else the short form of its id.
func PortName(container, id string) string {
	if checkName("port", container) == nil {
		return container
	}
	return id[:min(len(id), 12)]
}

// owned finds the port that an engine knows by this name; nil if there is none.
func (ps ports) owned(o Owner) (*network, *port) {
	for _, n := range ps.op.st.Networks {
		for _, p := range n.Ports {
			if p.Owner != nil && *p.Owner == o {
				return n, p
			}
		}
	}
	return nil, nil
}

// sockets are those that the engine may hold the ports of a container with, by inode:
// the sockets of processes that were given the container's id, as monitors are, and of
// those that the process that called us has started.
//
// An engine may keep a socket on each port that it has published, so that nobody else
// gets the port: Podman's monitor of the container does, and a process that nerdctl
// starts. When the container's network is made again (`podman network reload`,
// `disconnect` and `connect`, a second ADD), they are there before the publication.
func (o *Owner) sockets() map[uint32]bool {
	var pids []int
	procs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, dir := range procs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile(dir + "/cmdline")
		if err == nil && (parentOf(dir) == os.Getppid() || slices.ContainsFunc(bytes.Split(args, []byte{0}), o.named)) {
			pids = append(pids, pid)
		}
	}
	return link.SocketsOf(pids)
}

func (o *Owner) named(arg []byte) bool { return string(arg) == o.Container }

// parentOf reads who started a process, 0 if it has ended. See proc_pid_stat(5).
func parentOf(dir string) (ppid int) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0
	}
	// The name before, in parentheses, may contain anything.
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	var state string
	_, _ = fmt.Sscan(string(rest), &state, &ppid)
	return ppid
}
