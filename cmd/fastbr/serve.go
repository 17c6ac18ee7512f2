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
	"github.com/fastbr/fastbr/ctl/docker"
	"github.com/fastbr/fastbr/ctl/fair"
	"github.com/fastbr/fastbr/ctl/metrics"
	"github.com/fastbr/fastbr/ctl/watch"
)

const (
	defaultMetricsAddr = "127.0.0.1:9469"
	// defaultDriver is the driver's name for `docker network create -d`.
	defaultDriver = "fastbr"
	// scrapers bounds the connections to the metrics. Clients share them fairly.
	scrapers = 64
	// shutdownTime is how long running scrapes may take when serve ends.
	shutdownTime = 3 * time.Second
)

func newServeCmd(e *env) *cobra.Command {
	var addr, driver string
	var upstream []string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve metrics and Docker, and follow changes of the host",
		Long: `Serve metrics to Prometheus, and follow changes of the host: when its firewall
rules, its routes or its gateway change, flows go through the kernel again at
once instead of within the lease. It also answers containers' questions for each
other's names, NAME or NAME.NETWORK, on each network's gateway address.

With --docker it is also a network driver for Docker: 'docker network create
-d fastbr NAME', then 'docker run --network NAME'. NAME of --docker is the
driver's, or the absolute path of a socket. A socket passed by systemd is used
instead. Networks that Docker creates come up by themselves.

No traffic depends on it: packets are forwarded, translated and counted without
it. It may be stopped or killed at any time, and started before anything is up.`,
		Example: `  fastbr serve
  fastbr serve --metrics :9469
  fastbr serve --metrics ""      # follow changes only
  fastbr serve --docker          # docker network create -d fastbr web`,
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
			return server{controller: c, say: e.note, errs: e.stderr, resolvers: resolvers}.run(cmd.Context(), addr, driver)
		},
	}
	cmd.Flags().StringVar(&addr, "metrics", defaultMetricsAddr, "`ADDRESS` to serve metrics on; \"\" serves none")
	cmd.Flags().StringVar(&driver, "docker", "", "be Docker's network driver `NAME`")
	cmd.Flags().Lookup("docker").NoOptDefVal = defaultDriver
	cmd.Flags().StringSliceVar(&upstream, "dns-upstream", nil, "`ADDRESS` to ask for names that are no container's, repeatable (default those of /etc/resolv.conf)")
	return cmd
}

// server is a running `fastbr serve`. It holds nothing that a command needs.
type server struct {
	controller *ctl.Controller
	say        func(format string, args ...any)
	errs       io.Writer
	resolvers  []netip.AddrPort // of the host, for names that are no container's
}

// run serves until ctx ends, which is no error. An empty addr or driver switches
// that service off.
func (s server) run(ctx context.Context, addr, driver string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A package upgrade restarts serve.
	if err := s.controller.Upgrade(ctx); err != nil {
		s.say("%v", err)
	}
	var group sync.WaitGroup
	failed := make(chan error, 2)
	serve := func(what string, srv *http.Server, ln net.Listener) {
		group.Go(func() {
			if err := serveUntil(ctx, srv, ln); err != nil {
				failed <- fmt.Errorf("serving %s: %w", what, err)
			}
		})
	}
	// Open both sockets before serving either.
	front, err := s.listen(addr, driver)
	if err != nil {
		return err
	}
	if front.metrics != nil {
		h, err := metrics.Handler(newGatherer(s.controller), s.errs)
		if err != nil {
			return errors.Join(err, front.close())
		}
		serve("metrics", metrics.NewServer(h), fair.Listen(front.metrics, fair.New(scrapers)))
		s.say("serving metrics on http://%s/metrics", front.metrics.Addr())
	}
	if front.docker != nil {
		serve("Docker", docker.NewServer(s.controller.Engine(), s.say), front.docker)
		s.say("serving Docker on %s", front.docker.Addr())
	}
	group.Go(func() {
		// serve is useful without events too: leases end by themselves.
		if err := watch.Run(ctx, s.controller, s.say); err != nil {
			s.say("%v: changes take effect within the lease", err)
		}
	})
	group.Go(func() { dns.NewServer(s.controller.Names(), s.resolvers, s.say).Run(ctx) })
	if err := notifyReady(); err != nil {
		s.say("%v", err)
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	group.Wait()
	return err
}

// serveUntil serves until ctx ends or the listener fails.
func serveUntil(ctx context.Context, srv *http.Server, ln net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	last, done := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer done()
	if srv.Shutdown(last) != nil {
		_ = srv.Close() // a client that hangs must not keep serve alive
	}
	return nil
}

// sockets are the listeners of serve; nil: switched off.
type sockets struct{ metrics, docker net.Listener }

func (s server) listen(addr, driver string) (f sockets, err error) {
	if addr != "" {
		if f.metrics, err = listen(addr); err != nil {
			return f, err
		}
	}
	if driver == "" {
		return f, nil
	}
	if f.docker, err = docker.Listen(driver); err != nil {
		err = fmt.Errorf("--docker: %w", err)
		if errors.Is(err, docker.ErrName) {
			err = codedError{err, exitUsage}
		}
		return f, errors.Join(err, f.close())
	}
	return f, nil
}

func (f sockets) close() error {
	var errs []error
	for _, ln := range []net.Listener{f.metrics, f.docker} {
		if ln != nil {
			errs = append(errs, ln.Close())
		}
	}
	return errors.Join(errs...)
}

// hostResolvers returns the resolvers named by the user, with or without a port,
// otherwise the host's.
func hostResolvers(named []string) (out []netip.AddrPort, err error) {
	if len(named) == 0 {
		return dns.HostResolvers(resolvConf)
	}
	for _, name := range named {
		at, err := netip.ParseAddrPort(name)
		if err != nil {
			addr, err := netip.ParseAddr(name)
			if err != nil {
				return nil, usage("--dns-upstream %q: want an address such as 192.0.2.53", name)
			}
			at = netip.AddrPortFrom(addr, dns.Port)
		}
		out = append(out, at)
	}
	return out, nil
}

// listen opens the port, or returns a one-line error.
func listen(addr string) (net.Listener, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, usage("--metrics: %v", err)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return nil, usage("--metrics %s: port %q: want a number up to 65535", addr, port)
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

// notifyReady tells systemd that serve is ready, if systemd has asked (Type=notify).
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
