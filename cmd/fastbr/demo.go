package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/bench"
	"github.com/fastbr/fastbr/internal/lab"
)

const (
	demoRounds = 3
	demoRun    = time.Second // of each iperf3 run
	// demoMeasure bounds the measuring: on a slow machine the demo runs fewer
	// rounds, so that it ends within a minute.
	demoMeasure = 42 * time.Second
	// demoLines is the number of flows to show.
	demoLines = 8
)

func newDemoCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show everything in a throw-away lab, in less than a minute",
		Long: `Show everything in a throw-away lab: network namespaces for a host, two
containers and an outside server, by IPv4 and IPv6. Pings, measures TCP through
fastbr and through a plain kernel bridge with masquerade, shows ports, flows and
metrics, and removes the lab again. Nothing else on this machine is touched.`,
		Example: `  sudo fastbr demo`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needForLabs("demo", "iperf3", "nft"); err != nil {
				return err
			}
			self, err := e.self()
			if err != nil {
				return err
			}
			ctx, stop := untilPipeBreaks(cmd.Context())
			defer stop()
			d := &demo{out: e.stdout, started: time.Now(), fast: self.WithIPv6(), bridge: bench.Bridge{IPv6: true}}
			d.fast.Log = e.stdout
			return d.run(ctx)
		},
	}
}

// demo is one run: fastbr's lab, and an equal lab with a plain bridge.
type demo struct {
	out     io.Writer
	started time.Time
	fast    bench.Fastbr
	bridge  bench.Bridge
	lab     *lab.Lab // fastbr's
	plain   *lab.Lab
}

func (d *demo) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(interruption(ctx, err), d.remove()) }()
	for _, step := range []func(context.Context) error{d.build, d.ping, d.measure, d.look, d.scrape} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) printf(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

func (d *demo) title(text string) { d.printf("\n── %s\n", text) }

func (d *demo) build(ctx context.Context) (err error) {
	d.printf(`fastbr demo: a host of its own, in network namespaces; nothing of yours is touched.

  c1 ──┐
       ├── fastbr0 ── host ── eth0 ────────── outside, a server
  c2 ──┘              198.51.100.1            192.0.2.11
                      2001:db8:1::1           2001:db8:f::11
`)
	d.title("Build")
	o := d.fast.Options()
	o.Containers = 2
	if d.lab, err = lab.New(ctx, o); err != nil {
		return err
	}
	d.printf("$ HOST=%s\n", d.lab.Host.Path())
	if err := d.fast.Setup(ctx, d.lab); err != nil {
		return err
	}
	if d.plain, err = bench.Build(ctx, d.bridge); err != nil {
		return err
	}
	d.printf("Beside it, in %s, the same lab with a plain kernel bridge and masquerade (bridge-nf-call-iptables=0).\n", d.plain.Host.Path())
	return nil
}

// remove leaves nothing behind, however far run has come. It prints nothing if
// there is no lab yet.
func (d *demo) remove() error {
	if d.lab == nil && d.plain == nil {
		return nil
	}
	d.title("Clean up")
	var err error
	if d.lab != nil {
		err = bench.Close(d.fast, d.lab)
	}
	if d.plain != nil {
		_ = bench.Close(d.bridge, d.plain)
	}
	if err == nil {
		d.printf("All namespaces removed, %.0f s in all.\n", time.Since(d.started).Seconds())
	}
	return err
}

func (d *demo) ping(ctx context.Context) error {
	d.title("Ping")
	c1, c2, server := d.lab.Containers[0], d.lab.Containers[1], d.lab.Outside
	for _, p := range []struct {
		what string
		to   netip.Addr
	}{{"c1 → c2", c2.Addr}, {"c1 → c2", c2.Addr6}, {"c1 → outside", server.Addr}, {"c1 → outside", server.Addr6}} {
		r, err := c1.Ping(ctx, p.to, lab.PingOptions{})
		if err != nil {
			return err
		}
		if r.Received == 0 {
			return fmt.Errorf("ping %s: no reply", p.what)
		}
		d.printf("%-14s %-16s %d of %d replies, %s\n", p.what, p.to, r.Received, r.Sent, r.RTT[len(r.RTT)-1].Round(time.Microsecond))
	}
	for _, at := range [][2]netip.Addr{{c1.Addr, server.Addr}, {c1.Addr6, server.Addr6}} {
		s, err := server.ServeTCPEcho(netip.AddrPortFrom(at[1], 80))
		if err != nil {
			return err
		}
		defer s.Close()
		if err := c1.EchoTCP(ctx, netip.AddrPort{}, s.Addr, "hello"); err != nil {
			return err
		}
		for peer := range s.Peers() {
			d.printf("c1 (%s) connected to %s, which saw it come from %s\n", at[0], s.Addr, peer)
		}
	}
	return nil
}

// race is one workload with the samples of both sides.
type race struct {
	load        bench.Bulk
	label       string
	fast, plain []bench.Sample
}

func (d *demo) measure(ctx context.Context) error {
	d.title(fmt.Sprintf("Throughput: iperf3, TCP, one stream on one CPU, %.0f s each, in turn, Gbit/s", demoRun.Seconds()))
	var races []*race
	for _, family := range []struct {
		ipv6 bool
		name string
	}{{false, "IPv4"}, {true, "IPv6"}} {
		for direction, label := range []string{"c1 → c2", "c1 → outside", "outside → c1 (-R)"} {
			load := bench.Bulk{Direction: bench.Direction(direction), IPv6: family.ipv6}
			races = append(races, &race{load: load, label: family.name + " " + label})
		}
	}
	begin := time.Now()
	d.printf("%-8s %-23s %8s %14s\n", "", "", "fastbr", "kernel bridge")
	rounds := 0
	for ; rounds < demoRounds; rounds++ {
		// Another round takes as long as the average of those before.
		if spent := time.Since(begin); rounds > 0 && spent+spent/time.Duration(rounds) > demoMeasure {
			break
		}
		for _, r := range races {
			d.printf("round %d  %-23s ", rounds+1, r.label)
			if err := d.lap(ctx, r, rounds); err != nil {
				d.printf("\n")
				return err
			}
		}
	}
	d.printf("\nMedians of %d rounds:\n", rounds)
	w := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "\tfastbr\tkernel bridge\tratio\tfast path")
	for _, r := range races {
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.2f\t%s\n", r.label, medianOf(r.fast), medianOf(r.plain),
			bench.Median(bench.PairedRatios(r.fast, r.plain)), fastShare(r.fast))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	d.printf("By IPv4, fastbr's containers send super-packets of 128 KiB here, the bridge's the usual 64 ('fastbr up --big-tcp').\n")
	return nil
}

// lap measures both sides once. The sides take turns to begin; the columns stay.
func (d *demo) lap(ctx context.Context, r *race, round int) error {
	fast := func() (err error) {
		r.fast, err = d.sample(ctx, r.fast, d.fast, r.load, d.lab)
		return err
	}
	plain := func() (err error) {
		r.plain, err = d.sample(ctx, r.plain, d.bridge, r.load, d.plain)
		return err
	}
	order := []func() error{fast, plain}
	if round%2 == 1 {
		order = []func() error{plain, fast}
	}
	for _, side := range order {
		if err := side(); err != nil {
			return err
		}
	}
	d.printf("%8.1f %14.1f\n", r.fast[round].Value, r.plain[round].Value)
	return nil
}

func (d *demo) sample(ctx context.Context, to []bench.Sample, c bench.Contestant, w bench.Workload, l *lab.Lab) ([]bench.Sample, error) {
	s := bench.Measure(ctx, c, w, l, demoRun)
	if s.Error != "" {
		return to, fmt.Errorf("%s through %s: %s", w.Title(), c.Name(), s.Error)
	}
	return append(to, s), nil
}

func medianOf(samples []bench.Sample) float64 {
	var v []float64
	for _, s := range samples {
		v = append(v, s.Value)
	}
	return bench.Median(v)
}

// fastShare is the lowest share of all rounds.
func fastShare(samples []bench.Sample) string {
	lowest, known := 1.0, false
	for _, s := range samples {
		if s.FastShare != nil {
			lowest, known = min(lowest, *s.FastShare), true
		}
	}
	if !known {
		return "–"
	}
	return bench.Percent(lowest)
}

// look shows the ports and, while there is traffic, its flows.
func (d *demo) look(ctx context.Context) error {
	d.title("Bridge, ports and flows")
	for _, args := range [][]string{{"show"}, {"port", "ls"}} {
		if _, err := d.fast.Command(ctx, d.lab, args...); err != nil {
			return err
		}
	}
	c1, server := d.lab.Containers[0], d.lab.Outside
	for _, addr := range []netip.Addr{server.Addr, server.Addr6} {
		web, err := server.ServeTCPEcho(netip.AddrPortFrom(addr, 80))
		if err != nil {
			return err
		}
		defer web.Close()
		dns, err := server.ServeUDPEcho(netip.AddrPortFrom(addr, 53))
		if err != nil {
			return err
		}
		defer dns.Close()
		conn, err := c1.DialTCP(ctx, netip.AddrPort{}, web.Addr)
		if err != nil {
			return err
		}
		defer conn.Close() // open while the flows are shown
		for range 3 {      // later packets take the fast path, so a lease shows
			if err := lab.Echo(ctx, conn, "hello"); err != nil {
				return err
			}
		}
		if err := c1.EchoUDP(ctx, netip.AddrPort{}, dns.Addr, "hello"); err != nil {
			return err
		}
	}
	d.printf("$ %s | grep -v closed | head -%d\n", d.fast.Typed("flows", "ls"), demoLines)
	quiet := d.fast
	quiet.Log = nil
	out, err := quiet.Command(ctx, d.lab, "flows", "ls")
	left := demoLines
	for line := range strings.Lines(string(out)) {
		if left > 0 && !strings.Contains(line, "closed") {
			d.printf("%s", line)
			left--
		}
	}
	return err
}

// scrape runs a real `fastbr serve` and scrapes it as Prometheus does.
func (d *demo) scrape(ctx context.Context) error {
	d.title("Metrics")
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	d.printf("$ %s &\n", d.fast.Typed("serve"))
	serve := d.fast.Prepare(ctx, d.lab, "serve")
	var said strings.Builder
	serve.Stderr = &said
	if err := serve.Start(); err != nil {
		return fmt.Errorf("starting fastbr serve: %w", err)
	}
	stop := sync.OnceFunc(func() {
		cancel() // SIGTERM
		_ = serve.Wait()
	})
	defer stop()
	d.printf("$ nsenter --net=$HOST curl -s http://%s/metrics | grep ^fastbr_port_\n", defaultMetricsAddr)
	var text string
	err := lab.Poll(ctx, func() (bool, error) {
		var err error
		text, err = d.get(ctx)
		return err == nil, nil // not listening yet
	})
	if err != nil {
		stop() // now said is complete
		return fmt.Errorf("scraping fastbr serve: %w: %s", err, strings.TrimSpace(said.String()))
	}
	for line := range strings.Lines(text) {
		// Every drop reason has a line; those with 0 are left out.
		if strings.HasPrefix(line, "fastbr_port_") && !(strings.Contains(line, "_dropped_") && strings.HasSuffix(line, " 0\n")) {
			d.printf("%s", line)
		}
	}
	return nil
}

// get is one scrape from inside the host's namespace.
func (d *demo) get(ctx context.Context) (string, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return d.lab.Host.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(addr))
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+defaultMetricsAddr+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}
