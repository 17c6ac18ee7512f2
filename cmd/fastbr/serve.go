package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/ctl/dns"
	"github.com/fastbr/fastbr/ctl/metrics"
)

const (
	defaultMetricsAddr = "127.0.0.1:9469"
	// shutdownTime is what scrapes that are under way get when serve ends.
	shutdownTime = 3 * time.Second
)

func newServeCmd(e *env) *cobra.Command {
	var addr string
	var upstream []string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve metrics and follow changes of the host",
		Long: `Serve metrics to Prometheus, and follow changes of the host: when its firewall
rules, its routes or its gateway change, flows go through the kernel again at
once instead of within the lease. It also answers containers' questions for each
other's names, NAME or NAME.NETWORK, on each network's gateway address.

Nothing needs it: packets are forwarded, translated and counted without it, and
it may be stopped or killed at any time. It runs also when nothing is up yet.`,
		Example: `  fastbr serve
  fastbr serve --metrics :9469
  fastbr serve --metrics ""      # follow changes only`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.controller()
			if err != nil {
				return err
			}
			resolvers, err := hostResolvers(upstream)
			if err != nil {
				return err
			}
			return server{controller: c, say: e.note, errs: e.stderr, resolvers: resolvers}.run(cmd.Context(), addr)
		},
	}
	cmd.Flags().StringVar(&addr, "metrics", defaultMetricsAddr, `address to serve metrics on; "" serves none`)
	cmd.Flags().StringSliceVar(&upstream, "dns-upstream", nil, "`ADDRESS` to ask for names that are no container's, repeatable (default those of /etc/resolv.conf)")
	return cmd
}

func newMetricsCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print the metrics once, as Prometheus would scrape them",
		Long: `Print the metrics once, in Prometheus' text format, and exit: for node_exporter's
textfile collector, or a look. Without anything up, fastbr_up is 0.`,
		Example: `  fastbr metrics
  fastbr metrics > /var/lib/prometheus/node-exporter/fastbr.prom`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := e.controller()
			if err != nil {
				return err
			}
			col, err := newCollector(c)
			if err != nil {
				return err
			}
			return metrics.Write(e.stdout, col)
		},
	}
}

// server is a running `fastbr serve`. It holds nothing that a command needs.
type server struct {
	controller *ctl.Controller
	say        func(format string, args ...any)
	errs       io.Writer
	resolvers  []netip.AddrPort // of the host, for names that are no container's
}

func newCollector(c *ctl.Controller) (*metrics.Collector, error) {
	reasons, err := ctl.DropReasons()
	if err != nil {
		return nil, err
	}
	v := buildVersion()
	return metrics.NewCollector(c, metrics.Build{Version: v.Version, Revision: v.Revision, GoVersion: v.Go}, reasons), nil
}

// run serves until ctx ends, which is no error.
func (s server) run(ctx context.Context, addr string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var srv *http.Server
	failed := make(chan error, 1)
	if addr != "" {
		ln, err := listen(addr)
		if err != nil {
			return err
		}
		if srv, err = s.http(); err != nil {
			return err
		}
		go func() { failed <- srv.Serve(ln) }()
		s.say("serving metrics on http://%s/metrics", ln.Addr())
	}
	var watching sync.WaitGroup
	watching.Go(func() {
		// Without events serve is still worth running: leases end by themselves.
		if err := ctl.Watch(ctx, s.controller, s.say); err != nil {
			s.say("%v: changes take effect within the lease", err)
		}
	})
	watching.Go(func() { dns.NewServer(s.controller.Names(), s.resolvers, s.say).Run(ctx) })
	if err := notifyReady(); err != nil {
		s.say("%v", err)
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("serving metrics: %w", err)
	}
	cancel()
	if srv != nil {
		last, done := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer done()
		if srv.Shutdown(last) != nil {
			_ = srv.Close() // a scrape that hangs must not keep serve alive
		}
	}
	watching.Wait()
	return err
}

func (s server) http() (*http.Server, error) {
	c, err := newCollector(s.controller)
	if err != nil {
		return nil, err
	}
	h, err := metrics.Handler(c, s.errs)
	if err != nil {
		return nil, err
	}
	return metrics.NewServer(h), nil
}

// hostResolvers are those named by the user, with or without a port, else the host's.
func hostResolvers(named []string) (out []netip.AddrPort, err error) {
	if len(named) == 0 {
		return dns.HostResolvers(resolvConf)
	}
	for _, name := range named {
		at, err := netip.ParseAddrPort(name)
		if err != nil {
			addr, err := netip.ParseAddr(name)
			if err != nil {
				return nil, usage("--dns-upstream %q: an address such as 192.0.2.53 is wanted", name)
			}
			at = netip.AddrPortFrom(addr, dns.Port)
		}
		out = append(out, at)
	}
	return out, nil
}

// listen opens the port, or says in one line why not.
func listen(addr string) (net.Listener, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, codedError{fmt.Errorf("--metrics: %w", err), exitUsage}
	}
	ln, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s is taken by another program: choose another address with --metrics", addr)
	case err != nil:
		return nil, fmt.Errorf("--metrics %s: %w", addr, errors.Unwrap(err))
	}
	return ln, nil
}

// notifyReady tells systemd, if it asked (Type=notify), that serve is ready.
func notifyReady() error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.Dial("unixgram", path)
	if err != nil {
		return fmt.Errorf("telling systemd: %w", err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "READY=1"); err != nil {
		return fmt.Errorf("telling systemd: %w", err)
	}
	return nil
}
