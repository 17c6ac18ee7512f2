package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/datapath"
)

// Check says whether this host can run fastbr and what would be in the way.
// able is false if something required is missing.
func (c *Controller) Check(ctx context.Context) (out []FeatureView, able bool, err error) {
	err = c.instance.read(ctx, func(op *operation) error {
		out = append(op.checks.kernel(), op.checks.bpffs())
		host, err := op.checks.host()
		out = append(out, host...)
		return err
	})
	able = true
	for _, f := range out {
		able = able && f.State != "missing"
	}
	return out, able, err
}

// RunTarget checks that a network can take a port before a command is started
// for it. The error wraps ErrNotUp or ErrNoNetwork.
func (c *Controller) RunTarget(ctx context.Context, network string) error {
	return c.instance.read(ctx, func(op *operation) error {
		_, err := op.networks.find(network)
		return err
	})
}

// checks says whether the host can run fastbr, and what is in the way.
type checks struct {
	op       *operation
	features []datapath.Feature // see kernelFeatures
}

// kernelFeatures are what the kernel offers, looked for once in a command: it takes
// a tenth of a second.
func (cs *checks) kernelFeatures() []datapath.Feature {
	if cs.features == nil {
		cs.features = cs.op.opts.planes.probe()
	}
	return cs.features
}

func (cs *checks) kernel() []FeatureView {
	out := []FeatureView{}
	for _, f := range cs.kernelFeatures() {
		v := FeatureView{Name: f.Name, State: "ok", Required: f.Required, Minimum: f.Minimum}
		if f.Err != nil {
			v.Detail = f.Err.Error()
			if v.State = "absent"; f.Required {
				v.State = "missing"
			}
		}
		out = append(out, v)
	}
	return out
}

// fit refuses a kernel that lacks something, in one line.
func (cs *checks) fit() error {
	if err := cs.op.opts.planes.prepare(cs.op.opts.BPFFS); err != nil {
		return tagged(ErrUnfit, err.Error())
	}
	for _, f := range cs.kernelFeatures() {
		if f.Required && f.Err != nil {
			minimum := ""
			if f.Minimum != "" {
				minimum = fmt.Sprintf(" (needs Linux %s or newer)", f.Minimum)
			}
			return tagged(ErrUnfit, fmt.Sprintf("%v: %s is missing: %v%s; 'fastbr check' shows all", ErrUnfit, f.Name, f.Err, minimum))
		}
	}
	return nil
}

// fitNow is fit without mending anything.
func (cs *checks) fitNow() error {
	for _, f := range append(cs.kernel(), cs.bpffs()) {
		if f.State == "missing" {
			return tagged(ErrUnfit, fmt.Sprintf("%v: %s is missing: %s", ErrUnfit, f.Name, f.Detail))
		}
	}
	return nil
}

func (cs *checks) bpffs() FeatureView {
	v := FeatureView{Name: "bpffs", State: "ok", Required: true, Detail: "mounted at " + cs.op.opts.BPFFS}
	if isBPFFS(cs.op.opts.BPFFS) {
		return v
	}
	if _, err := os.Stat(cs.op.opts.BPFFS); err == nil && cs.op.opts.BPFFS == DefaultBPFFS {
		v.Detail = "not mounted at " + cs.op.opts.BPFFS + "; 'fastbr up' mounts it"
		return v
	}
	v.State, v.Detail = "missing", fmt.Sprintf("not mounted: mount -t bpf bpf %s", cs.op.opts.BPFFS)
	return v
}

func (cs *checks) host() ([]FeatureView, error) {
	out := []FeatureView{cs.bridgeCalls(cs.op.st.hasIPv6()), cs.forwarding(), cs.liberal(), cs.ipv6(), cs.op.others.finding()}
	if cs.op.st.leads6() {
		out = append(out, cs.forwarding6(), cs.advertised())
	}
	out = append(out, cs.op.firewall.findings()...)
	for _, u := range cs.op.uplinks.current() {
		if conflict := cs.op.uplinks.conflict(u); conflict != "" {
			out = append(out, FeatureView{Name: "uplink-address", State: "warning", Detail: conflict})
		}
	}
	out = append(out, cs.op.repair.findings()...)
	uplink, err := cs.uplink()
	if err != nil {
		return nil, err
	}
	out = append(out, uplink)
	for _, a := range cs.op.accelerators {
		found, err := a.findings()
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// bridgeCalls says whether frames between ports meet iptables, or, in networks with IPv6,
// ip6tables.
func (cs *checks) bridgeCalls(ipv6 bool) FeatureView {
	v := FeatureView{Name: "br_netfilter", State: "ok", Detail: "frames between ports do not meet iptables"}
	paths := []string{hostconf.BridgeCall}
	if ipv6 {
		paths = append(paths, hostconf.BridgeCall6)
	}
	var on []string
	for _, path := range paths {
		if now, err := hostconf.Read(path); err == nil && now == "1" {
			on = append(on, hostconf.Name(path)+" is 1")
		}
	}
	if len(on) > 0 {
		v.State, v.Detail = "warning", strings.Join(on, ", ")+
			": frames between ports pass the host's firewall, each flow with a lease of its own; with 0 they are faster"
	}
	return v
}

// warnBridgeCalls tells of the one setting under which frames between ports
// meet the host's firewall, and so are less fast.
func (cs *checks) warnBridgeCalls(ipv6 bool) {
	if v := cs.bridgeCalls(ipv6); v.State == "warning" {
		cs.op.say("%s", v.Detail)
	}
}

// forwarding says who wants this host to forward, and what.
func (cs *checks) forwarding() FeatureView {
	v := FeatureView{Name: "ip_forward", State: "ok", Detail: "1: this host is a router, between all its networks"}
	now, err := hostconf.Read(hostconf.IPForward)
	switch {
	case err != nil:
		v.State, v.Detail = "warning", err.Error()
	case now == "1" && cs.op.hostconf.Recorded(hostconf.IPForward):
		v.Detail += "; fastbr has set it for a network that is not translated"
	case now == "1":
	case len(cs.op.st.Networks) == 0:
		v.Detail = now + ": 'fastbr up' opens devices for containers' packets only, the last 'fastbr down' closes them"
	default:
		v = cs.forwardsOnly(v, hostconf.IPv4, now, cs.opened())
	}
	return v
}

// forwarding6 says the same of IPv6, while a network leads outside by it.
func (cs *checks) forwarding6() FeatureView {
	v := FeatureView{Name: "ipv6-forwarding", State: "ok", Detail: "1: this host is a router, between all its networks"}
	now, err := hostconf.Read(hostconf.Forward6)
	switch {
	case err != nil:
		v.State, v.Detail = "warning", err.Error()
	case now != "0" && cs.op.hostconf.Recorded(hostconf.Forward6):
		v.Detail += "; fastbr has set it for a network with IPv6, since this kernel cannot open single devices; it stays until the last 'fastbr down'"
	case now != "0":
	case !hostconf.IPv6.OpensDevices():
		v.State, v.Detail = "warning", hostconf.Name(hostconf.Forward6)+" is 0: nothing is forwarded by IPv6"+nextMends
	default:
		v = cs.forwardsOnly(v, hostconf.IPv6, now, cs.opened6())
	}
	return v
}

// forwardsOnly says by which devices the kernel forwards on a host that is no router.
func (cs *checks) forwardsOnly(v FeatureView, f hostconf.Family, now string, devices []string) FeatureView {
	v.Detail = now + ": only containers' packets are forwarded, by " + strings.Join(devices, ", ")
	if cs.op.hostconf.OthersOpen(f) {
		v.Detail += " and any other device"
	}
	if closed := cs.closed(f, devices); len(closed) > 0 {
		v.State, v.Detail = "warning", strings.Join(closed, "; ")
	}
	return v
}

// advertised says whether the host keeps the routes that routers have advertised to it,
// also when somebody makes it a router.
func (cs *checks) advertised() FeatureView {
	v := FeatureView{Name: "advertised-routes", State: "ok", Detail: "no router has advertised any"}
	devices, err := cs.op.host.advertised()
	switch unkept := hostconf.Unkept(devices); {
	case err != nil:
		v.State, v.Detail = "warning", err.Error()
	case len(unkept) > 0:
		v.State, v.Detail = "warning", "accept_ra is 1 on "+strings.Join(unkept, ", ")+": whoever makes this host an IPv6 router takes away its advertised routes"+nextMends
	case len(devices) > 0:
		v.Detail = "the host keeps those by " + strings.Join(devices, ", ") + ", router or not"
	}
	return v
}

// opened are the devices that have to be open: our bridges and uplinks, but for side
// uplinks, which are open or not as any other device.
func (cs *checks) opened() (out []string) {
	for _, name := range cs.op.st.networkNames() {
		out = append(out, cs.op.st.Networks[name].Bridge)
	}
	for _, u := range cs.op.st.mainUplinks() {
		out = append(out, u.Name)
	}
	return out
}

// opened6 are those that have to be open for IPv6.
func (cs *checks) opened6() (out []string) {
	for _, name := range cs.op.st.networkNames() {
		if n := cs.op.st.Networks[name]; n.leads6() {
			out = append(out, n.Bridge)
		}
	}
	for _, u := range cs.op.st.mainUplinks() {
		if u.Addr6.IsValid() {
			out = append(out, u.Name)
		}
	}
	return out
}

// closed tells of those devices by which the kernel forwards nothing.
func (cs *checks) closed(f hostconf.Family, devices []string) (out []string) {
	for _, device := range devices {
		if what, is := closed(f, device); is {
			out = append(out, what+nextMends)
		}
	}
	return out
}

func (cs *checks) liberal() FeatureView {
	v := FeatureView{Name: "conntrack-be-liberal", State: "ok", Detail: "1"}
	now, err := hostconf.Read(hostconf.Liberal)
	switch {
	case errors.Is(err, os.ErrNotExist):
		v.Detail = "connection tracking is not loaded; 'fastbr up' tries to load it"
	case err != nil:
		v.State, v.Detail = "warning", err.Error()
	case now != "1" && len(cs.op.st.Networks) > 0:
		v.State, v.Detail = "warning", hostconf.Name(hostconf.Liberal)+" is 0 again: connections will break; set it to 1"
	case now != "1":
		v.Detail = now + ": 'fastbr up' sets 1, the last 'fastbr down' restores it"
	}
	return v
}

// ipv6 says whether networks can have IPv6.
func (cs *checks) ipv6() FeatureView {
	if !hostconf.HasIPv6() {
		return FeatureView{Name: "ipv6", State: "absent", Detail: "the kernel has none: networks cannot have --ipv6"}
	}
	return FeatureView{Name: "ipv6", State: "ok", Detail: "networks can have it (--ipv6)"}
}

func (cs *checks) uplink() (FeatureView, error) {
	v := FeatureView{Name: "default-route", State: "ok"}
	devices, notes, err := cs.op.uplinks.defaults(cs.op.st.leads6())
	if err != nil {
		return v, err
	}
	var names []string
	for _, d := range devices {
		names = append(names, fmt.Sprintf("%s (%s)", d.Name, uplinkKind(d.RawIP)))
	}
	if v.Detail = strings.Join(names, ", "); len(names) == 0 {
		v.State, v.Detail = "warning", strings.Join(notes, "; ")
	}
	return v, nil
}
