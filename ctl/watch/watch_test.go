package watch

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fastbr/fastbr/ctl/link"
)

// fakeChanges is a Watcher driven by hand.
type fakeChanges struct {
	wake    chan struct{}
	mu      sync.Mutex
	pending link.Change
}

func (f *fakeChanges) Ready() <-chan struct{} { return f.wake }

func (f *fakeChanges) Take() link.Change {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.pending
	f.pending = 0
	return c
}

func (f *fakeChanges) happen(c link.Change) {
	f.mu.Lock()
	f.pending |= c
	f.mu.Unlock()
	f.wake <- struct{}{}
}

// fakeKeeper notes what was called when, in milliseconds since its start.
type fakeKeeper struct {
	start time.Time
	calls []string
	err   error
}

func (k *fakeKeeper) note(what string) error {
	k.calls = append(k.calls, fmt.Sprintf("%d %s", time.Since(k.start).Milliseconds(), what))
	return k.err
}

func (k *fakeKeeper) Reconcile(context.Context) error { return k.note("reconcile") }
func (k *fakeKeeper) Revoke(_ context.Context, c link.Change) error {
	if c == link.IPv6Change {
		return k.note("revoke IPv6")
	}
	return k.note("revoke")
}

func TestFollowAnswersChanges(t *testing.T) {
	type event struct {
		at     time.Duration
		change link.Change
	}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	cases := []struct {
		name   string
		events []event
		until  time.Duration
		want   []string
	}{
		{"at the start", nil, ms(5000), []string{"200 reconcile"}},
		{"rules revoke twice, then reconcile", []event{{ms(1000), link.RulesetChange}}, ms(5000),
			[]string{"200 reconcile", "1000 revoke", "1100 revoke", "1200 reconcile"}},
		{"a link only reconciles", []event{{ms(1000), link.LinkChange}}, ms(5000),
			[]string{"200 reconcile", "1200 reconcile"}},
		{"a gateway revokes", []event{{ms(0), link.GatewayChange}}, ms(2000),
			[]string{"0 revoke", "100 revoke", "200 reconcile"}},
		{"each change of a burst gets a revoke 100 ms later", []event{
			{ms(1000), link.RouteChange}, {ms(1030), link.RouteChange}, {ms(1060), link.AddressChange}}, ms(5000),
			[]string{"200 reconcile", "1000 revoke", "1100 revoke", "1200 revoke", "1200 reconcile"}},
		{"of IPv6 alone, and with another", []event{
			{ms(1000), link.IPv6Change | link.LinkChange}, {ms(1030), link.IPv6Change}, {ms(1130), link.RouteChange}}, ms(5000),
			[]string{"200 reconcile", "1000 revoke IPv6", "1100 revoke IPv6", "1200 reconcile", "1200 revoke", "1300 revoke"}},
		{"reconciles keep their distance", []event{
			{ms(1000), link.QueueingChange}, {ms(1500), link.LinkChange}, {ms(1700), link.LinkChange}}, ms(5000),
			[]string{"200 reconcile", "1200 reconcile", "2200 reconcile"}},
		{"and now and then without a change", nil, 31 * time.Second,
			[]string{"200 reconcile", "30200 reconcile"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &fakeChanges{wake: make(chan struct{})}
				k := &fakeKeeper{start: time.Now()}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { follow(ctx, w, k, t.Logf); close(done) }()
				for _, e := range c.events {
					time.Sleep(time.Until(k.start.Add(e.at)))
					w.happen(e.change)
				}
				time.Sleep(time.Until(k.start.Add(c.until)))
				cancel()
				<-done
				if got := k.calls; !reflect.DeepEqual(counted(got), counted(c.want)) {
					t.Errorf("calls %q, want %q", got, c.want)
				}
			})
		})
	}
}

// counted forgets the order, which two calls of one millisecond do not have.
func counted(calls []string) map[string]int {
	m := map[string]int{}
	for _, c := range calls {
		m[c]++
	}
	return m
}

func TestFollowReportsAnErrorOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeChanges{wake: make(chan struct{})}
		k := &fakeKeeper{start: time.Now(), err: errors.New("no luck")}
		var said []string
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			follow(ctx, w, k, func(f string, a ...any) { said = append(said, fmt.Sprintf(f, a...)) })
			close(done)
		}()
		for range 5 {
			w.happen(link.LinkChange)
			time.Sleep(3 * time.Second)
		}
		cancel()
		<-done
		if want := []string{"reconciling: no luck"}; !reflect.DeepEqual(said, want) {
			t.Errorf("said %q, want %q", said, want)
		}
		if len(k.calls) != 5 {
			t.Errorf("%d calls, want 5", len(k.calls))
		}
	})
}
