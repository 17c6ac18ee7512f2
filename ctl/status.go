package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/datapath"
)

// Status says what is up and how. The error wraps ErrNotUp.
func (c *Controller) Status(ctx context.Context) (v StatusView, err error) {
	err = c.looking(ctx, func(r *reading) error {
		if err := r.anyUp(); err != nil {
			return err
		}
		set := r.st.Settings
		v = StatusView{Up: true, Instance: r.instance, Lease: set.Lease.String(), L2Fast: set.L2Fast, Mechanism: "tcx", XDP: cmp.Or(set.XDP, XDPAuto),
			BigTCP: bigTCP{r.operation}.view(), NATRange: fmt.Sprintf("%d-%d", set.NATFirst, set.NATLast), Uplinks: []UplinkView{}, Networks: []NetworkView{}}
		if err := r.statusOfDatapath(&v); err != nil {
			return err
		}
		for _, u := range r.st.Uplinks {
			x := r.st.uplinkXDP(u.Index)
			view := UplinkView{Device: u.Name, Addr: u.Addr.String(), Kind: uplinkKind(u.RawIP), XDP: XDPOff, XDPWhy: x.Why}
			if x.On {
				view.XDP = XDPNative
			}
			v.Uplinks = append(v.Uplinks, view)
		}
		for _, name := range r.st.networkNames() {
			v.Networks = append(v.Networks, r.network(r.st.Networks[name]))
		}
		if v.Accept, err = r.acceptRules(); err != nil {
			return err
		}
		if v.Features = r.st.Features; v.Features == nil { // loaded by an older build
			v.Features = r.kernelFindings()
		}
		v.Notes = r.notes()
		return nil
	})
	return v, err
}

func (r *reading) statusOfDatapath(v *StatusView) error {
	if r.dp == nil {
		return nil
	}
	nat, err := r.dp.NATStats()
	if err != nil {
		return fmt.Errorf("reading the NAT figures: %w", err)
	}
	v.Flows, v.FlowsMax = nat.Flows, nat.FlowsMax
	return nil
}

// notes is what the user should know and maybe mend.
func (r *reading) notes() []string {
	notes := []string{}
	note := func(f FeatureView) {
		if f.State == "warning" {
			notes = append(notes, f.Detail)
		}
	}
	if r.dp == nil {
		notes = append(notes, "the pinned datapath is gone: run 'fastbr up' to load it again")
	}
	if len(r.st.Uplinks) == 0 {
		notes = append(notes, "no uplink: nothing leads outside until there is a default route and another command runs")
	}
	for _, u := range r.uplinks.current() {
		if conflict := r.uplinks.conflict(u); conflict != "" {
			notes = append(notes, conflict)
		}
	}
	for _, name := range r.st.networkNames() {
		if n := r.st.Networks[name]; !r.up(n) {
			notes = append(notes, fmt.Sprintf("network %s is not whole: the next command that changes something mends it", name))
		}
	}
	for _, f := range r.firewallFindings() {
		note(f)
	}
	notes = append(notes, r.repair.notes()...)
	note(bridgeCallFinding())
	if v, err := hostconf.Read(hostconf.Liberal); err == nil && v == "0" {
		notes = append(notes, hostconf.Name(hostconf.Liberal)+" is 0: connections will break under a firewall that uses connection tracking; set it to 1")
	}
	return notes
}

// Check says whether this host can run fastbr and what would be in the way.
// able is false if something required is missing.
func (c *Controller) Check(ctx context.Context) (out []FeatureView, able bool, err error) {
	err = c.read(ctx, func(op *operation) error {
		out = append(op.kernelFindings(), c.bpffsFinding())
		host, err := op.hostFindings()
		out = append(out, host...)
		return err
	})
	able = true
	for _, f := range out {
		able = able && f.State != "missing"
	}
	return out, able, err
}

// kernelFeatures are what the kernel offers, looked for once in a command: it takes
// a tenth of a second.
func (op *operation) kernelFeatures() []datapath.Feature {
	if op.features == nil {
		op.features = op.opts.planes.probe()
	}
	return op.features
}

func (op *operation) kernelFindings() []FeatureView {
	out := []FeatureView{}
	for _, f := range op.kernelFeatures() {
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

func (c *Controller) bpffsFinding() FeatureView {
	v := FeatureView{Name: "bpffs", State: "ok", Required: true, Detail: "mounted at " + c.opts.BPFFS}
	if isBPFFS(c.opts.BPFFS) {
		return v
	}
	if _, err := os.Stat(c.opts.BPFFS); err == nil && c.opts.BPFFS == DefaultBPFFS {
		v.Detail = "not mounted at " + c.opts.BPFFS + "; 'fastbr up' mounts it"
		return v
	}
	v.State, v.Detail = "missing", fmt.Sprintf("not mounted: mount -t bpf bpf %s", c.opts.BPFFS)
	return v
}

func (op *operation) hostFindings() ([]FeatureView, error) {
	out := []FeatureView{bridgeCallFinding(), op.forwardFinding(), op.liberalFinding()}
	out = append(out, op.firewallFindings()...)
	for _, u := range op.uplinks.current() {
		if conflict := op.uplinks.conflict(u); conflict != "" {
			out = append(out, FeatureView{Name: "uplink-address", State: "warning", Detail: conflict})
		}
	}
	out = append(out, op.repair.findings()...)
	uplink, err := op.uplinkFinding()
	if err != nil {
		return nil, err
	}
	out = append(out, uplink)
	for _, a := range op.accelerators() {
		found, err := a.findings()
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func bridgeCallFinding() FeatureView {
	v := FeatureView{Name: "br_netfilter", State: "ok", Detail: "frames between ports do not meet iptables"}
	if now, err := hostconf.Read(hostconf.BridgeCall); err == nil && now == "1" {
		v.State, v.Detail = "warning", hostconf.Name(hostconf.BridgeCall)+
			" is 1: frames between ports pass the host's firewall, on the kernel's path; with 0 they are fast"
	}
	return v
}

func (op *operation) liberalFinding() FeatureView {
	v := FeatureView{Name: "conntrack-be-liberal", State: "ok", Detail: "1"}
	now, err := hostconf.Read(hostconf.Liberal)
	switch {
	case errors.Is(err, os.ErrNotExist):
		v.Detail = "connection tracking is not loaded; 'fastbr up' tries to load it"
	case err != nil:
		v.State, v.Detail = "warning", err.Error()
	case now != "1" && len(op.st.Networks) > 0:
		v.State, v.Detail = "warning", hostconf.Name(hostconf.Liberal)+" is 0 again: connections will break; set it to 1"
	case now != "1":
		v.Detail = now + ": 'fastbr up' sets 1, the last 'fastbr down' restores it"
	}
	return v
}

func (op *operation) uplinkFinding() (FeatureView, error) {
	v := FeatureView{Name: "default-route", State: "ok"}
	devices, notes, err := op.uplinks.auto()
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

// RunTarget checks that a network can take a port before a command is started
// for it. The error wraps ErrNotUp or ErrNoNetwork.
func (c *Controller) RunTarget(ctx context.Context, network string) error {
	return c.read(ctx, func(op *operation) error {
		_, err := op.upNetwork(network)
		return err
	})
}
