package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fastbr/fastbr/ctl"
)

func newUpCmd(e *env) *cobra.Command {
	var nf networkFlags
	var inf instanceFlags
	var noNetwork bool
	cmd := &cobra.Command{
		Use:   "up [NETWORK]",
		Short: "Bring a network up",
		Long: `Bring a network up: its bridge, its address, the programs on the uplinks and the
host settings that they need. Without NETWORK it is "default", on bridge fastbr0 with
172.30.0.0/16. A network made by 'fastbr network create' comes up from its
definition. With --ipv6 it has an IPv6 /64, too: of a /48 that is chosen at random for
this host, once (RFC 4193). A second 'up' can change --lease, --uplink, --xdp, --big-tcp and
--nat-range, which hold for all networks; it refuses other changes.`,
		Example: `  fastbr up
  fastbr up --no-network --uplink eth1   # before engines bring their own networks up
  fastbr up --subnet 10.20.0.0/16 --uplink eth0 --uplink eth1
  fastbr up --ipv6
  fastbr up --subnet 10.20.0.0/16 --subnet 2001:db8:1::/64
  fastbr up lab --internal`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: e.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			nr, err := nf.request(cmd)
			if err != nil {
				return err
			}
			ir, err := inf.request(cmd)
			if err != nil {
				return err
			}
			if noNetwork {
				if err := onlyInstance(cmd, args); err != nil {
					return err
				}
				return e.withController(func(ctx context.Context, c *ctl.Controller) error { return c.Settle(ctx, ir) })
			}
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				v, created, err := c.Up(ctx, networkArg(args), nr, ir)
				if err != nil {
					return err
				}
				return e.printUp(v, created)
			})
		},
	}
	nf.define(cmd.Flags())
	inf.define(cmd.Flags())
	cmd.Flags().BoolVar(&noNetwork, "no-network", false, "create no network: only change the settings of all networks, including those of engines, until 'fastbr down --all'")
	complete(cmd, "big-tcp", cobra.FixedCompletions([]string{ctl.BigTCPOff, ctl.BigTCPAuto, ctl.BigTCPOn}, cobra.ShellCompDirectiveNoFileComp))
	complete(cmd, "xdp", cobra.FixedCompletions([]string{ctl.XDPOff, ctl.XDPAuto, ctl.XDPNative}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// onlyInstance refuses arguments of a network together with --no-network.
func onlyInstance(cmd *cobra.Command, args []string) (err error) {
	if len(args) > 0 {
		return usage("--no-network and network %q exclude each other", args[0])
	}
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(networkFlags).define(own)
	own.VisitAll(func(f *pflag.Flag) {
		if err == nil && cmd.Flags().Changed(f.Name) {
			err = usage("--no-network and --%s, an option of a network, exclude each other", f.Name)
		}
	})
	return err
}

func networkArg(args []string) string {
	if len(args) == 0 {
		return ctl.DefaultNetwork
	}
	return args[0]
}

// printUp reports what came up: data for a program, a message for a person.
func (e *env) printUp(v ctl.NetworkView, created bool) error {
	if e.json() {
		return e.print(v, nil)
	}
	verb := "is up"
	if !created {
		verb = "is up already"
	}
	ipv6 := ""
	switch {
	case v.Subnet6 != "":
		ipv6 = fmt.Sprintf(", IPv6 subnet %s, gateway %s", v.Subnet6, v.Gateway6)
	case v.IPv6 == ctl.IPv6LinkLocal:
		ipv6 = ", IPv6 by link-local addresses"
	}
	e.note("network %s %s: bridge %s, subnet %s, gateway %s%s", v.Name, verb, v.Bridge, v.Subnet, v.Gateway, ipv6)
	return nil
}

// networkFlags describe a network, for `up` and `network create`.
type networkFlags struct {
	bridge, ipv6         string
	subnets, gateways    []string
	mtu                  int
	masquerade, internal bool
	masquerade6, ndProxy bool
	dns                  bool
	noMasquerade         []string
	publishedOnly        bool
	snatAddresses        []string
	via                  string

	natMapping, natFiltering, natOnExhaustion string
}

func (f *networkFlags) define(flags *pflag.FlagSet) {
	flags.StringVar(&f.bridge, "bridge", "", "`NAME` of the bridge device (default fbr- and the network's id; that of \"default\" is fastbr0)")
	flags.StringSliceVar(&f.subnets, "subnet", nil, "subnet as `CIDR`, once for IPv4 (/8 to /30) and once for IPv6 (/24 to /126) (default for IPv4 the next free pool; for \"default\" 172.30.0.0/16 first)")
	flags.StringSliceVar(&f.gateways, "gateway", nil, "the bridge's own `ADDRESS`, once for each subnet (default the subnet's first)")
	flags.StringVar(&f.ipv6, "ipv6", "", "give containers IPv6 addresses: `true|false|link-local`; true: of the IPv6 --subnet, else of a /64 that no other host uses; link-local: only among themselves (default false, with an IPv6 --subnet true)")
	flags.Lookup("ipv6").NoOptDefVal = ctl.IPv6On
	flags.IntVar(&f.mtu, "mtu", 0, "MTU of bridge and ports in `BYTES` (default that of the default route's device)")
	flags.BoolVar(&f.masquerade, "masquerade", true, "translate the source of outbound packets to the uplink's address")
	flags.BoolVar(&f.masquerade6, "masquerade6", true, "translate the source of outbound IPv6 packets; false: the IPv6 subnet is routed to this host")
	flags.BoolVar(&f.ndProxy, "nd-proxy", false, "with --masquerade6=false: answer on the uplinks for containers' IPv6 addresses, which are a part of an uplink's own subnet")
	flags.StringSliceVar(&f.noMasquerade, "no-masquerade", nil, "destinations, a `CIDR` of IPv4 or IPv6 (repeatable), to which the source is not translated: they see containers' own addresses, and may reach them")
	flags.StringSliceVar(&f.snatAddresses, "snat-address", nil, "translate to this `ADDRESS` of the host, once for IPv4 and once for IPv6; nothing leaves while the host does not have it (default the one of the route)")
	flags.StringVar(&f.via, "via", "", "the only `DEVICE` by which containers get outside, and are reached; nothing leaves while it is gone (default every uplink)")
	flags.BoolVar(&f.publishedOnly, "published-only", false, "with --masquerade=false, --masquerade6=false or both: only published ports, answers and ping come in from outside, to the containers' own addresses and ports")
	flags.BoolVar(&f.internal, "internal", false, "no traffic between the network and the outside")
	flags.BoolVar(&f.dns, "dns", true, "answer containers' questions for each other's names on the gateway, while 'fastbr serve' runs")
	flags.StringVar(&f.natMapping, "nat-mapping", "", "external port of a source port: one for all destinations, or one for each: `endpoint-independent|endpoint-dependent` (default endpoint-independent)")
	flags.StringVar(&f.natFiltering, "nat-filtering", "", "who may send to an external port: `apdf|adf|eif`: the contacted address and port, any port of a contacted address, anybody (default apdf)")
	flags.StringVar(&f.natOnExhaustion, "nat-on-exhaustion", "", "with no external port free, share one or refuse the flow: `overload|refuse` (default overload)")
}

func (f *networkFlags) request(cmd *cobra.Command) (r ctl.NetworkRequest, err error) {
	r.Bridge, r.MTU, r.IPv6 = f.bridge, f.mtu, f.ipv6
	r.NATMapping, r.NATFiltering, r.NATOnExhaustion = f.natMapping, f.natFiltering, f.natOnExhaustion
	if f.mtu == 0 && cmd.Flags().Changed("mtu") {
		return r, usage("MTU 0: want a number of bytes")
	}
	if r.Subnet, r.Subnet6, err = ctl.ParseSubnets(f.subnets); err != nil {
		return r, usage("%v", err)
	}
	if r.Gateway, r.Gateway6, err = ctl.ParseAddrs("gateway", f.gateways); err != nil {
		return r, usage("%v", err)
	}
	if err := apart(cmd); err != nil {
		return r, err
	}
	if r.NoMasquerade, err = ctl.ParsePrefixes(f.noMasquerade); err != nil {
		return r, usage("--no-masquerade %v", err)
	}
	if cmd.Flags().Changed("masquerade") {
		r.Masquerade = &f.masquerade
	}
	if cmd.Flags().Changed("masquerade6") {
		r.Masquerade6 = &f.masquerade6
	}
	if cmd.Flags().Changed("nd-proxy") {
		r.NDProxy = &f.ndProxy
	}
	if r.SNATAddress, r.SNATAddress6, err = ctl.ParseSNATAddresses(f.snatAddresses); err != nil {
		return r, usage("--snat-address: %v", err)
	}
	r.Via = f.via
	if cmd.Flags().Changed("published-only") {
		r.PublishedOnly = &f.publishedOnly
	}
	if cmd.Flags().Changed("internal") {
		r.Internal = &f.internal
	}
	if cmd.Flags().Changed("dns") {
		r.DNS = &f.dns
	}
	return r, nil
}

// apart refuses a value of --ipv6 that stands apart from it: that is the network's name.
func apart(cmd *cobra.Command) error {
	if arg := cmd.Flags().Arg(0); cmd.Flags().Changed("ipv6") && slices.Contains([]string{ctl.IPv6On, ctl.IPv6Off, ctl.IPv6LinkLocal}, arg) {
		return usage("--ipv6 %s: want --ipv6=%s", arg, arg)
	}
	return nil
}

// instanceFlags belong to all networks of the namespace.
type instanceFlags struct {
	uplinks  []string
	xdp      string
	bigTCP   string
	lease    string
	natRange string
	natFlows uint32
}

func (f *instanceFlags) define(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.uplinks, "uplink", nil, "`DEVICE` by which containers leave (repeatable); tun, WireGuard and ppp devices work too. Containers leave by no other device. auto: every device that a route leads to, as they come and go (default auto)")
	flags.StringVar(&f.bigTCP, "big-tcp", "", "let containers' TCP build super-packets of 128 KiB instead of 64: `off|auto|on`; auto: where every uplink takes them (default auto)")
	flags.StringVar(&f.xdp, "xdp", "", "run XDP in the drivers of the uplinks: `off|auto|native`; auto: where nothing is lost by it, never on a veth (default auto)")
	flags.StringVar(&f.lease, "lease", "", "how long a flow may bypass the host's firewall: `SECONDS` 1 to 15, 0: never (default 10)")
	flags.StringVar(&f.natRange, "nat-range", "", "external ports of new mappings, `FIRST-LAST` (default 10000-29999); may be changed while up")
	flags.Uint32Var(&f.natFlows, "nat-flows", 0, "NAT sessions at most, a `NUMBER` (default 131072)")
}

func (f *instanceFlags) request(cmd *cobra.Command) (r ctl.InstanceRequest, err error) {
	r.Uplinks, r.FlowsMax, r.XDP, r.BigTCP = f.uplinks, f.natFlows, f.xdp, f.bigTCP
	if cmd.Flags().Changed("lease") {
		lease, err := parseSeconds(f.lease)
		if err != nil {
			return r, err
		}
		r.Lease = &lease
	}
	if f.natRange != "" {
		if r.NATFirst, r.NATLast, err = parseRange(f.natRange); err != nil {
			return r, err
		}
	}
	return r, nil
}

// parseSeconds accepts "10" and "10s".
func parseSeconds(s string) (time.Duration, error) {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, usage("lease %q: want a number of seconds", s)
	}
	return d, nil
}

func parseRange(s string) (first, last uint16, err error) {
	a, b, ok := strings.Cut(s, "-")
	x, err1 := strconv.ParseUint(a, 10, 16)
	y, err2 := strconv.ParseUint(b, 10, 16)
	if !ok || err1 != nil || err2 != nil || x > y || x == 0 {
		return 0, 0, usage("NAT range %q: want FIRST-LAST, such as 10000-29999", s)
	}
	return uint16(x), uint16(y), nil
}

// usageError is a malformed argument that cobra cannot detect.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }
func (e usageError) Unwrap() error { return ctl.ErrInvalid }

func usage(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }
