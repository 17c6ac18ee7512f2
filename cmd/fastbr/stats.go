package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
)

// refresh is the interval of `stats -w`.
const refresh = time.Second

func newStatsCmd(e *env) *cobra.Command {
	var network string
	var watch bool
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show the counters of ports, networks and uplinks",
		Long: `Show the counters of ports and uplinks, and the totals of networks. With -w the
table is refreshed every second and shows rates.`,
		Example: `  fastbr stats
  fastbr stats -w
  fastbr stats -o json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.withController(func(ctx context.Context, c *ctl.Controller) error {
				if watch {
					return e.watchStats(ctx, c, network)
				}
				ports, err := c.Ports(ctx, network)
				if err != nil {
					return err
				}
				return e.print(ports, func(w io.Writer) { statsTable(w, ports) })
			})
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "only ports of this `NETWORK`")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "refresh until interrupted, with rates")
	complete(cmd, "network", e.completeNetworks)
	return cmd
}

func statsTable(w io.Writer, ports []ctl.PortView) {
	fmt.Fprintln(w, "NAME\tNETWORK\tRX PACKETS\tRX BYTES\tTX PACKETS\tTX BYTES\tFAST\tSLOW\tDROPS")
	for _, p := range ports {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", p.Name, dash(p.Network), p.RXPackets, p.RXBytes, p.TXPackets,
			p.TXBytes, p.FastPackets, p.SlowPackets, dropsText(p.Drops))
	}
	for _, t := range totals(ports) {
		fmt.Fprintf(w, "total\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", t.Network, t.RXPackets, t.RXBytes, t.TXPackets, t.TXBytes,
			t.FastPackets, t.SlowPackets, dropsText(t.Drops))
	}
}

// totals sums the ports of each network, in order of appearance.
func totals(ports []ctl.PortView) []ctl.PortView {
	var out []ctl.PortView
	for _, p := range ports {
		if p.Network == "" {
			continue
		}
		i := slices.IndexFunc(out, func(t ctl.PortView) bool { return t.Network == p.Network })
		if i < 0 {
			out = append(out, ctl.PortView{Network: p.Network, Drops: map[string]uint64{}})
			i = len(out) - 1
		}
		t := &out[i]
		t.RXPackets, t.RXBytes = t.RXPackets+p.RXPackets, t.RXBytes+p.RXBytes
		t.TXPackets, t.TXBytes = t.TXPackets+p.TXPackets, t.TXBytes+p.TXBytes
		t.FastPackets, t.SlowPackets = t.FastPackets+p.FastPackets, t.SlowPackets+p.SlowPackets
		for reason, n := range p.Drops {
			t.Drops[reason] += n
		}
	}
	return out
}

// watchStats shows rates until interrupted. With -o json it prints one array per
// line each second.
func (e *env) watchStats(ctx context.Context, c *ctl.Controller, network string) error {
	last := map[string]ctl.PortView{}
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	at := time.Now()
	for {
		ports, err := c.Ports(ctx, network)
		if err != nil {
			return err
		}
		now := time.Now()
		if !e.json() {
			fmt.Fprint(e.stdout, "\033[H\033[2J") // home, clear
		}
		if err := e.print(ports, func(w io.Writer) { rateTable(w, ports, last, now.Sub(at)) }); err != nil {
			return err
		}
		at = now
		for _, p := range ports {
			last[p.Port] = p
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func rateTable(w io.Writer, ports []ctl.PortView, last map[string]ctl.PortView, over time.Duration) {
	fmt.Fprintln(w, "NAME\tNETWORK\tRX\tRX PPS\tTX\tTX PPS\tFAST\tDROPS")
	for _, p := range ports {
		before, ok := last[p.Port]
		if !ok {
			before = p
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\t%s\t%s\n", p.Name, dash(p.Network),
			bitsText(rate(p.RXBytes, before.RXBytes, over)*8), rate(p.RXPackets, before.RXPackets, over),
			bitsText(rate(p.TXBytes, before.TXBytes, over)*8), rate(p.TXPackets, before.TXPackets, over), share(p), dropsText(p.Drops))
	}
}

// rate is a counter's growth per second.
func rate(now, before uint64, over time.Duration) uint64 {
	if now < before || over <= 0 {
		return 0
	}
	return uint64(float64(now-before) / over.Seconds())
}

// share is the part of a port's packets that took the fast path.
func share(p ctl.PortView) string {
	sum := p.FastPackets + p.SlowPackets
	if sum == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(p.FastPackets)/float64(sum))
}

func dropsText(drops map[string]uint64) string {
	var items []string
	for reason, n := range drops {
		if n > 0 {
			items = append(items, fmt.Sprintf("%s=%d", reason, n))
		}
	}
	slices.Sort(items)
	return dash(strings.Join(items, ","))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func bytesText(n uint64) string {
	return scaled(float64(n), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB"})
}

func bitsText(n uint64) string {
	return scaled(float64(n), 1000, []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"})
}

func scaled(v, base float64, units []string) string {
	i := 0
	for v >= base && i < len(units)-1 {
		v, i = v/base, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%.0f %s", v, units[0])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
