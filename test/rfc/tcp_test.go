package rfc

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/internal/testutil"
)

// segment is a segment of a TCP conversation, from the container or the server.
type segment struct {
	server  bool
	flags   string
	payload bool
	again   bool // a SYN that was sent before
	change  func(*testutil.Frame)
}

// play sends the segments. Each must arrive whole at the other end.
func (f *flow) play(steps ...segment) error {
	f.b.t.Helper()
	for i, s := range steps {
		var payload []byte
		if s.payload {
			payload = f.b.tag()
		}
		var change []func(*testutil.Frame)
		if s.change != nil {
			change = append(change, s.change)
		}
		who, send, seq := "the container's", f.out, &f.cseq
		if s.server {
			who, send, seq = "the server's", f.in, &f.sseq
		}
		if s.again {
			*seq--
		}
		p, err := send(s.flags, payload, change...)
		if err == nil && !s.server && p.from() != f.nat {
			err = fmt.Errorf("came from %v, want %v", p.from(), f.nat)
		}
		if err == nil {
			err = testutil.CheckSums(p.frame)
		}
		if err != nil {
			return fmt.Errorf("segment %d, %s %s: %w", i+1, who, s.flags, err)
		}
	}
	return nil
}

func client(flags string) segment { return segment{flags: flags} }
func server(flags string) segment { return segment{server: true, flags: flags} }
func again(s segment) segment     { s.again = true; return s }
func clientData() segment         { return segment{flags: "PA", payload: true} }
func serverData() segment         { return segment{server: true, flags: "PA", payload: true} }

// checkConversation plays a script after the container's SYN.
func checkConversation(steps ...segment) func(*bed) error {
	return func(b *bed) error {
		f, err := b.open(b.c1, "tcp")
		if err != nil {
			return err
		}
		return f.play(steps...)
	}
}

func checkSimultaneousOpen(b *bed) error {
	return checkConversation(server("S"), again(client("SA")), again(server("SA")), clientData(), serverData(), clientData(), serverData())(b)
}

// checkHalfClose closes the container's side, which goes on receiving.
func checkHalfClose(b *bed) error {
	f, err := b.live(b.c1, "tcp")
	if err != nil {
		return err
	}
	err = f.lives(4*time.Minute, func() error { return f.play(client("FA"), server("A")) })
	if err != nil {
		return err
	}
	for range 3 {
		if err := f.play(serverData(), client("A")); err != nil {
			return err
		}
	}
	return f.play(server("FA"), client("A"))
}

// checkReset sends an RST in the window and one far out of it. The peer has not seen
// the RST, and its data must still pass.
func checkReset(b *bed) error {
	for _, off := range []uint32{0, 1 << 30} {
		f, err := b.live(b.c1, "tcp")
		if err != nil {
			return err
		}
		far := func(fr *testutil.Frame) { fr.TCP.Seq += off }
		rst := f.inFrame("R", nil, far)
		if _, err := b.cross(f.at, rst, f.c, nil); err != nil && off == 0 {
			return fmt.Errorf("an RST in the window %w", err)
		}
		if err := f.play(clientData(), serverData(), clientData()); err != nil {
			return fmt.Errorf("after an RST at +%d: %w", off, err)
		}
	}
	return nil
}

// checkResetLifetime reads how long a session lives after an RST.
func checkResetLifetime(b *bed) error {
	f, err := b.live(b.c1, "tcp")
	if err != nil {
		return err
	}
	if err := f.lives(4*time.Minute, func() error { return f.play(server("R")) }); err != nil {
		return err
	}
	return f.play(clientData(), serverData())
}

func checkSYNAgain(b *bed) error {
	f, err := b.open(b.c1, "tcp")
	if err != nil {
		return err
	}
	for range 3 {
		if err := f.play(again(client("S"))); err != nil {
			return err
		}
	}
	return f.play(server("SA"), client("A"), clientData(), serverData())
}

// checkTupleReuse closes a connection and opens it again from the same port.
func checkTupleReuse(b *bed) error {
	f, err := b.live(b.c1, "tcp")
	if err != nil {
		return err
	}
	if err := f.play(client("FA"), server("A"), server("FA"), client("A")); err != nil {
		return err
	}
	f.cseq, f.sseq = f.cseq+100000, f.sseq+100000
	p, err := f.out("S", nil)
	if err != nil {
		return err
	}
	f.nat = p.from()
	if err := f.play(server("SA"), client("A"), clientData(), serverData(), client("A")); err != nil {
		return err
	}
	if left, ok := f.expiry(); !ok || left < 2*time.Hour {
		return fmt.Errorf("the new connection would live %v", left)
	}
	return nil
}

func checkFastOpen(b *bed) error {
	f := &flow{b: b, c: b.c1, proto: "tcp", sport: b.rawPort(), dst: on(b.mute, b.rawPort()), at: b.sv, cseq: 77, sseq: 99}
	p, err := f.out("S", b.tag())
	if err != nil {
		return err
	}
	f.nat = p.from()
	return f.play(segment{server: true, flags: "SA", payload: true}, client("A"), clientData(), serverData())
}

// checkKeepAlive sends only keep-alive probes and their answers.
func checkKeepAlive(b *bed) error {
	f, err := b.live(b.c1, "tcp")
	if err != nil {
		return err
	}
	probe := segment{flags: "A", change: func(fr *testutil.Frame) { fr.TCP.Seq-- }}
	return f.lives(7440*time.Second, func() error { return f.play(probe, server("A"), probe, server("A")) })
}

// checkTCPOptions sends segments that a window-tracking or normalising NAT would
// change.
func checkTCPOptions(b *bed) error {
	opts := func(fr *testutil.Frame) { fr.TCP.Options, fr.TCP.ECE = make([]byte, 12), true }
	f := &flow{b: b, c: b.c1, proto: "tcp", sport: b.rawPort(), dst: on(b.mute, b.rawPort()), at: b.sv, cseq: 5, sseq: 6}
	p, err := f.out("S", nil, opts)
	if err != nil {
		return err
	}
	f.nat = p.from()
	urgent := func(fr *testutil.Frame) { fr.TCP.URG = true }
	return f.play(
		segment{server: true, flags: "SA", change: opts}, segment{flags: "A", change: opts},
		segment{flags: "PA", payload: true, change: urgent}, segment{server: true, flags: "PA", payload: true, change: urgent},
		segment{flags: "PA", payload: true, change: opts}, segment{server: true, flags: "PA", payload: true, change: opts},
	)
}

// checkUnsolicitedSYN sends a SYN to a port that nobody uses.
func checkUnsolicitedSYN(b *bed) error {
	const wait = 6 * time.Second
	if !b.plain() {
		b.Must(b.t, "flows", "flush")
	}
	p := uint16(23456)
	syn := b.frame(b.LAN, testutil.Frame{Dst: b.HostAddr(0), TCP: &testutil.TCP{SrcPort: b.rawPort(), DstPort: p, SYN: true, Seq: 1}})
	got, err := b.crossIn(wait, b.LAN, syn, b.LAN, func(q packet) bool {
		_, _, in, isErr := icmpError(q)
		return q.src == b.HostAddr(0) && (q.proto == protoTCP && q.sport() == p || isErr && in.dport() == p)
	})
	if err == nil {
		b.t.Logf("the answer: %v", got)
		return errors.New("it is answered")
	}
	return b.lateOpen()
}

// lateOpen sends the server's SYN first, and the container's afterwards.
func (b *bed) lateOpen() error {
	b.t.Helper()
	f, err := b.open(b.c1, "tcp") // to learn the external port
	if err != nil {
		return err
	}
	g := *f
	g.dst = on(f.dst.Addr(), b.rawPort())
	if err := b.blocked(g.at, g.inFrame("S", nil), b.sv, func(q packet) bool { return q.src == b.HostAddr(0) && q.proto == protoTCP && q.dport() == g.dst.Port() }); err != nil {
		return fmt.Errorf("an answer to the early SYN %w", err)
	}
	g.cseq += 1000
	if _, err := g.out("S", nil); err != nil {
		return err
	}
	return g.play(again(server("S")), again(client("SA")), again(server("SA")), clientData(), serverData())
}

// checkTCPLifetimes reads the timeout in each state.
func checkTCPLifetimes(b *bed) error {
	const transitory, established = 4 * time.Minute, 7440 * time.Second
	f, err := b.open(b.c1, "tcp")
	if err != nil {
		return err
	}
	for _, s := range []struct {
		state string
		want  time.Duration
		steps []segment
	}{
		{"SYN sent", transitory, nil},
		{"SYN and SYN/ACK seen", transitory, []segment{server("SA")}},
		{"established", established, []segment{client("A"), clientData(), serverData(), client("A")}},
		{"one side closed", transitory, []segment{server("FA"), client("A")}},
		{"both sides closed", transitory, []segment{client("FA"), server("A")}},
	} {
		if err := f.lives(s.want, func() error { return f.play(s.steps...) }); err != nil {
			return fmt.Errorf("%s: %w", s.state, err)
		}
	}
	return nil
}

// checkTCPStates reads the state after each segment.
func checkTCPStates(b *bed) error {
	if b.plain() {
		return checkConversation(server("SA"), client("A"), client("FA"), server("FA"), client("A"))(b)
	}
	f, err := b.open(b.c1, "tcp")
	if err != nil {
		return err
	}
	for _, s := range []struct {
		want  string
		steps []segment
	}{
		{"new", nil},
		{"new", []segment{server("SA")}},
		{"established", []segment{client("A"), clientData(), serverData()}},
		{"closing", []segment{client("FA")}},
		{"closing", []segment{server("A"), serverData()}},
		{"closed", []segment{server("FA"), client("A")}},
	} {
		if err := f.play(s.steps...); err != nil {
			return err
		}
		if got := f.state(); got != s.want {
			return fmt.Errorf("state %q, want %q", got, s.want)
		}
	}
	return nil
}

func (f *flow) state() string {
	f.b.t.Helper()
	for _, v := range f.b.Flows(f.b.t) {
		if v.Proto == f.proto && v.Src == netip.AddrPortFrom(f.c.Addr, f.sport).String() && v.Dst == f.dst.String() {
			return v.State
		}
	}
	return "gone"
}

// checkRefusedConnection connects to a port that answers with an ICMP error.
func checkRefusedConnection(b *bed) error {
	b.ok(b.sv.NFT(b.Ctx, "table ip refuse {\nchain in {\ntype filter hook input priority filter;\ntcp dport 9 reject with icmp type port-unreachable\n}\n}\n"))
	ctx, cancel := b.within(10 * time.Second)
	defer cancel()
	c, err := b.c1.DialTCP(ctx, netip.AddrPort{}, on(b.a, 9))
	if err == nil {
		_ = c.Close()
		b.t.Fatal("connected to a port that is refused")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("the application is not told: %w", err)
	}
	return nil
}

// checkErrorsOnLiveTCP sends each kind of ICMP error about an open connection.
func checkErrorsOnLiveTCP(b *bed) error {
	f, err := b.live(b.c1, "tcp")
	if err != nil {
		return err
	}
	if err := f.attackWithErrors(); err != nil {
		return err
	}
	s := b.ServeTCP(b.t, b.sv, on(b.a, 7010))
	defer s.Close()
	ctx, cancel := b.within(20 * time.Second)
	defer cancel()
	c, err := b.c1.DialTCP(ctx, netip.AddrPort{}, s.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return lab.Echo(ctx, c, "after the errors")
}

// checkAnswersDoNotRefresh answers one inbound packet with an ICMP error and another
// with an RST. Neither may refresh the mapping.
func checkAnswersDoNotRefresh(b *bed) error {
	f, err := b.live(b.c1, "udp")
	if err != nil {
		return err
	}
	g, err := b.live(b.c1, "tcp")
	if err != nil {
		return err
	}
	got, err := f.in("", nil)
	if err != nil {
		return err
	}
	if err := g.play(client("R")); err != nil { // the first one changes the timeout
		return err
	}
	if err := b.age(f, g); err != nil {
		return err
	}
	if _, err := b.errorFromInside(f, 3, 3, got.ip); err != nil {
		return err
	}
	if err := f.notRefreshed(); err != nil {
		return fmt.Errorf("by an ICMP error %w", err)
	}
	if err := g.play(client("R")); err != nil {
		return err
	}
	if err := g.notRefreshed(); err != nil {
		return fmt.Errorf("by an RST %w", err)
	}
	return nil
}
