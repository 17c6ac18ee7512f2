package rfc

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// timed is a condition that must hold some time after the bed was made.
type timed struct {
	id     string
	after  time.Duration
	verify func() error
}

// runLong opens flows and waits until their time is nearly over.
func (s *scoring) runLong(t *testing.T, column string) {
	b := newBed(t, column, 2)
	start := time.Now()
	list := b.timeouts()
	slices.SortStableFunc(list, func(x, y timed) int { return int(x.after - y.after) })
	for _, w := range list {
		time.Sleep(time.Until(start.Add(w.after)))
		o := outcome{Met: true, Waited: true}
		if err := w.verify(); err != nil {
			o.Met, o.Why = false, fmt.Sprintf("after %v: %v", w.after, err)
		}
		s.add(w.id, column, o)
	}
}

// timeouts begins the checks that are verified later. It allows a margin of one second
// for the machine, and of two seconds where a mapping must be gone.
func (b *bed) timeouts() []timed {
	b.t.Helper()
	open := func(proto string, live bool) *flow {
		f, err := b.open(b.c1, proto)
		b.ok(err)
		if live {
			b.ok(f.establish())
		}
		return f
	}
	oneWay, answered, kept := open("udp", false), open("udp", true), open("udp", false)
	echo, partial, half, reset, idle := open("icmp", false), open("tcp", false), open("tcp", true), open("tcp", true), open("tcp", true)
	b.ok(half.play(client("FA"), server("A")))
	if err := reset.play(server("R")); err != nil {
		b.t.Fatal(err)
	}
	inbound := func(f *flow) func() error { return func() error { _, err := f.in("", nil); return err } }
	data := func(f *flow) func() error {
		return func() error { return f.play(serverData()) }
	}
	list := []timed{
		{"rfc:4787#REQ-5", 119 * time.Second, inbound(oneWay)},
		{"rfc:4787#REQ-5", 299 * time.Second, inbound(answered)},
		{"rfc:4787#REQ-6", 310 * time.Second, inbound(kept)},
		{"rfc:5508#REQ-2", 59 * time.Second, inbound(echo)},
		{"rfc:5382#REQ-5", 239 * time.Second, func() error { return partial.play(server("SA")) }},
		{"rfc:5382#REQ-5", 300 * time.Second, data(idle)},
		{"rfc:5382#REQ-2/half-close", 238 * time.Second, data(half)},
		{"rfc:7857#2.2", 237 * time.Second, data(reset)},
	}
	for at := 60 * time.Second; at < 310*time.Second; at += 60 * time.Second {
		list = append(list, timed{"rfc:4787#REQ-6", at, func() error { _, err := kept.out("", nil); return err }})
	}
	return append(list, b.errorsForAMinute()...)
}

// errorsForAMinute sends one ICMP error a second about a separate echo flow. They must
// not refresh the mapping, which ends when its time is over.
func (b *bed) errorsForAMinute() (list []timed) {
	b.t.Helper()
	f, err := b.live(b.c1, "icmp")
	b.ok(err)
	sent, err := f.out("", nil)
	b.ok(err)
	for i := range 75 {
		list = append(list, timed{"rfc:5508#REQ-6", time.Duration(i) * time.Second, func() error {
			b.send(b.Router, b.about(errorKind{3, 1}, sent.ip))
			return nil
		}})
	}
	return append(list, timed{"rfc:5508#REQ-6", 76 * time.Second, func() error {
		if err := b.blocked(f.at, f.inFrame("", nil), f.c, nil); err != nil {
			return errors.New("errors have kept the mapping")
		}
		return nil
	}})
}
