package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/ctl/fair"
)

const (
	// Port is the UDP and TCP port of DNS.
	Port = 53
	// lookAgain is the interval between checks for networks that came up or went.
	lookAgain = time.Second
	// patience bounds the wait for one resolver of the host, per question.
	patience = 2 * time.Second
	// asking bounds the questions that wait for the host's resolvers, and
	// connections the TCP clients. Both are shared fairly.
	asking      = 512
	connections = 256
)

// Source provides the names. *ctl.Names implements it.
type Source interface {
	Zones() ([]ctl.Zone, error)
}

// Server answers on the gateway addresses of a Source's networks.
type Server struct {
	source   Source
	upstream []netip.AddrPort // the host's resolvers, in order
	logf     func(format string, args ...any)
	asking   *fair.Shares
	clients  *fair.Shares // TCP connections
	said     map[netip.Addr]string
}

// NewServer returns a server that forwards other names to upstream.
func NewServer(source Source, upstream []netip.AddrPort, logf func(format string, args ...any)) *Server {
	return &Server{source: source, upstream: upstream, logf: logf, asking: fair.New(asking), clients: fair.New(connections), said: map[netip.Addr]string{}}
}

// Run answers until ctx ends. It reports an address on which it cannot listen
// once, and keeps trying: the names of other networks do not depend on it.
func (s *Server) Run(ctx context.Context) {
	open := map[netip.Addr]*listener{}
	defer func() {
		for _, l := range open {
			l.close()
		}
	}()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		s.follow(ctx, open)
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
	}
}

// follow opens and closes listeners as networks come and go.
func (s *Server) follow(ctx context.Context, open map[netip.Addr]*listener) {
	zones, err := s.source.Zones()
	if err != nil {
		s.report(netip.Addr{}, fmt.Errorf("reading the names: %w", err))
		return
	}
	s.report(netip.Addr{}, nil)
	for gw, l := range open {
		if !slices.ContainsFunc(zones, func(z ctl.Zone) bool { return z.Gateway == gw }) {
			l.close()
			delete(open, gw)
		}
	}
	for _, z := range zones {
		if open[z.Gateway] != nil {
			continue
		}
		l, err := s.listen(ctx, z.Gateway)
		if err == nil {
			open[z.Gateway] = l
		}
		s.report(z.Gateway, err)
	}
}

// report logs an error once, until it is resolved.
func (s *Server) report(about netip.Addr, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && s.said[about] != text {
		s.logf("names: %s", text)
	}
	s.said[about] = text
}

// listener serves one gateway address, UDP and TCP.
type listener struct {
	servers []*dns.Server
}

func (s *Server) listen(ctx context.Context, gw netip.Addr) (*listener, error) {
	at := netip.AddrPortFrom(gw, Port).String()
	var cfg net.ListenConfig
	pc, err := cfg.ListenPacket(ctx, "udp4", at)
	if err != nil {
		return nil, listenError(at, err)
	}
	ln, err := cfg.Listen(ctx, "tcp4", at)
	if err != nil {
		_ = pc.Close()
		return nil, listenError(at, err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) { s.serve(ctx, gw, w, req) })
	l := &listener{servers: []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: impatient{fair.Listen(ln, s.clients)}, Handler: handler}}}
	for _, srv := range l.servers {
		go func() { _ = srv.ActivateAndServe() }() // ends with close
	}
	return l, nil
}

// impatient ends connections whose peer does not read. dns.Server itself ends
// those whose peer does not write.
type impatient struct{ net.Listener }

type impatientConn struct{ net.Conn }

func (l impatient) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return impatientConn{c}, err
}

func (c impatientConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func listenError(at string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is taken by another program: containers of that network ask it instead", at)
	}
	return fmt.Errorf("listening on %s: %w", at, err)
}

func (l *listener) close() {
	for _, srv := range l.servers {
		// Not Shutdown: it waits for everybody who holds a connection open.
		if srv.PacketConn != nil {
			_ = srv.PacketConn.Close()
		}
		if srv.Listener != nil {
			_ = srv.Listener.Close()
		}
	}
}

func (s *Server) serve(ctx context.Context, gw netip.Addr, w dns.ResponseWriter, req *dns.Msg) {
	transport := w.RemoteAddr().Network()
	reply := s.reply(ctx, gw, fair.Client(w.RemoteAddr()), req, transport)
	if reply == nil {
		_ = w.Close() // only TCP: the UDP socket is the server's
		return
	}
	if transport == "udp" {
		size := dns.MinMsgSize
		if opt := req.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		reply.Truncate(size)
	}
	_ = w.WriteMsg(reply) // the client may be gone
}

// reply answers a client that asked at the gateway gw. The client's address
// selects its network: no port can forge one. What cannot be answered is
// refused or a server failure. nil means no reply: for a client in an internal
// network only its own gateway exists.
func (s *Server) reply(ctx context.Context, gw, client netip.Addr, req *dns.Msg, transport string) *dns.Msg {
	zones, err := s.source.Zones()
	if err != nil {
		return refusal(req, dns.RcodeServerFailure)
	}
	i := slices.IndexFunc(zones, func(z ctl.Zone) bool { return z.Subnet.Contains(client) })
	if i < 0 {
		return refusal(req, dns.RcodeRefused)
	}
	zone := zones[i]
	if zone.Internal && zone.Gateway != gw {
		return nil
	}
	if reply := answer(zone, req); reply != nil {
		return reply
	}
	if zone.Internal {
		return refusal(req, dns.RcodeRefused) // a question is a way out, too
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	done, ok := s.asking.Take(client, end)
	if !ok {
		return refusal(req, dns.RcodeRefused)
	}
	defer done()
	return s.forward(ctx, req, transport, zone.Via)
}

func refusal(req *dns.Msg, code int) *dns.Msg {
	return new(dns.Msg).SetRcode(req, code)
}

// forward asks the host's resolvers in turn, until ctx ends. With via, it asks by that device
// only: not those of the host itself, which would ask others by any.
func (s *Server) forward(ctx context.Context, req *dns.Msg, transport, via string) *dns.Msg {
	for _, to := range s.upstream {
		if via != "" && to.Addr().IsLoopback() {
			continue
		}
		if reply, err := exchange(ctx, to, req, transport, via); err == nil {
			return reply
		}
	}
	return refusal(req, dns.RcodeServerFailure)
}

// exchange asks one resolver. Of a context the library observes only the
// deadline.
func exchange(ctx context.Context, to netip.AddrPort, req *dns.Msg, transport, via string) (*dns.Msg, error) {
	client := &dns.Client{Net: transport, Timeout: patience, UDPSize: dns.MaxMsgSize}
	if via != "" {
		client.Dialer = &net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
			var bindErr error
			err := c.Control(func(fd uintptr) { bindErr = unix.BindToDevice(int(fd), via) })
			return errors.Join(err, bindErr)
		}}
	}
	conn, err := client.DialContext(ctx, to.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	reply, _, err := client.ExchangeWithConnContext(ctx, req, conn)
	return reply, err
}
