package main

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fastbr/fastbr/ctl"
)

// attachFlags describe a port.
type attachFlags struct {
	network, name, mac, ifname string
	ips                        []string
	slow                       bool
	allowed                    allowedFlags
}

const ipUsage = "`ADDRESS`, once for IPv4 and once for IPv6 (default the lowest free ones)"

// allowedFlags say what a port may send with besides its container's own addresses.
type allowedFlags struct{ addrs, macs []string }

func (f *allowedFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.addrs, "allowed-address", nil, "another IPv4 address or `PREFIX` that the container may send with; repeatable")
	flags.StringArrayVar(&f.macs, "allowed-mac", nil, "another `MAC` address that the container may send with; repeatable")
}

func (f *allowedFlags) parse() (ctl.Allowed, error) {
	a, err := ctl.ParseAllowed(f.addrs, f.macs)
	if err != nil {
		return a, usage("%v", err)
	}
	return a, nil
}

func newAttachCmd(e *env) *cobra.Command {
	var f attachFlags
	cmd := &cobra.Command{
		Use:   "attach TARGET",
		Short: "Plug a network namespace into a network",
		Long: `Plug a network namespace into a network: a veth pair, an address, a default route.
TARGET is the path of a network namespace, netns:NAME for one made by 'ip netns
add', or pid:N for that of a process.

A container may send only with its own addresses. --allowed-address and --allowed-mac
allow it more: prefixes that it forwards for, an address that moves between containers,
MAC addresses of devices inside. The host gets a route to a prefix outside the network's
subnet; the container is the next hop.`,
		Example: `  fastbr attach netns:web --name web
  fastbr attach pid:4711 --ip 172.30.0.80
  fastbr attach netns:six --ip 172.30.0.80 --ip fd00:1:2::80
  fastbr attach /run/netns/db --network lab -o json
  fastbr attach netns:vpn --allowed-address 10.8.0.0/24
  fastbr attach netns:lb1 --allowed-address 172.30.0.100 --allowed-mac 00:00:5e:00:01:33`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := f.request(args[0])
			if err != nil {
				return err
			}
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				res, err := c.Attach(ctx, r)
				if err != nil {
					return err
				}
				return e.print(res, func(w io.Writer) {
					fmt.Fprintln(w, "NAME\tPORT\tNETWORK\tIFNAME\tIP\tMAC\tGATEWAY\tMTU\tDNS")
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n",
						res.Name, res.Port, res.Network, res.Ifname, ips(res.IP, res.IP6), res.MAC, ips(res.Gateway, res.Gateway6), res.MTU, res.DNS)
				})
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.network, "network", ctl.DefaultNetwork, "`NETWORK` to plug into")
	flags.StringVar(&f.name, "name", "", "`NAME` of the port (default that of the host's device)")
	flags.StringSliceVar(&f.ips, "ip", nil, ipUsage)
	flags.StringVar(&f.mac, "mac", "", "MAC `ADDRESS` (default 02:42 and the IPv4 address)")
	flags.StringVar(&f.ifname, "ifname", "eth0", "`NAME` of the device inside")
	flags.BoolVar(&f.slow, "slow", false, "take the kernel's path always")
	f.allowed.add(flags)
	complete(cmd, "network", e.completeNetworks)
	return cmd
}

func (f *attachFlags) request(target string) (r ctl.AttachRequest, err error) {
	r = ctl.AttachRequest{Target: target, Network: f.network, Name: f.name, Ifname: f.ifname, Slow: f.slow}
	if r.IP, r.IP6, err = ctl.ParseAddrs("address", f.ips); err != nil {
		return r, usage("%v", err)
	}
	if f.mac != "" {
		if r.MAC, err = net.ParseMAC(f.mac); err != nil {
			return r, usage("MAC address %q: want six bytes such as 02:42:ac:1e:00:02", f.mac)
		}
	}
	r.Allowed, err = f.allowed.parse()
	return r, err
}
