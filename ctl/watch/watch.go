// Package watch follows the events of a network namespace, and keeps what fastbr has
// there in order.
package watch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fastbr/fastbr/ctl/link"
)

// Keeper is what Run calls. *ctl.Controller is one. Both methods do nothing and
// return nil when nothing is up.
type Keeper interface {
	// Revoke ends every lease that a change may concern, so that the kernel judges each
	// flow again.
	Revoke(ctx context.Context, c link.Change) error
	// Reconcile mends what drifted: accept rules, uplinks, flags of slow ports, sysctls.
	Reconcile(ctx context.Context) error
}

const (
	// revokeAgain is the distance of the second revoke: a packet that was judged
	// before the change but granted its lease after the first revoke keeps the
	// old verdict, and no packet needs that long through the stack.
	revokeAgain = 100 * time.Millisecond
	// settle is how long changes are collected before a Reconcile; they come in
	// bursts (a restart of dockerd is some hundred messages).
	settle = 200 * time.Millisecond
	// reconcileEvery is the least distance between two Reconciles: each takes
	// the instance lock, and commands must get their turn.
	reconcileEvery = time.Second
	// lookAgain is for what sends no event: sysctls, iptables-legacy policies.
	lookAgain = 30 * time.Second
)

// revoking are the changes after which the kernel may judge a packet
// differently or send it another way.
const revoking = link.RulesetChange | link.RouteChange | link.AddressChange | link.GatewayChange | link.DownChange | link.IPv6Change

// Run follows the current network namespace until ctx ends: on a change it
// revokes the leases, twice, and reconciles. Nothing depends on it: without it
// leases run out by themselves, and the next command reconciles. Errors of the
// keeper are given to logf and tried again; only a failed subscription returns.
func Run(ctx context.Context, k Keeper, logf func(format string, args ...any)) error {
	w, err := link.Watch()
	if err != nil {
		return fmt.Errorf("watching the namespace: %w", err)
	}
	defer w.Close()
	follow(ctx, w, k, logf)
	return nil
}

// changes is the part of link.Watcher that follow needs.
type changes interface {
	Ready() <-chan struct{}
	Take() link.Change
}

func follow(ctx context.Context, w changes, k Keeper, logf func(string, ...any)) {
	f := follower{Keeper: k, logf: logf, said: map[string]string{}}
	second, mend := newStopped(), newStopped()
	defer second.Stop()
	defer mend.Stop()
	look := time.NewTicker(lookAgain)
	defer look.Stop()

	var window, again, mending bool
	var last, next link.Change // what the first revoke of the window was for, and what has come since
	var mended time.Time
	mendSoon := func() {
		if mending {
			return
		}
		mending = true
		mend.Reset(max(settle, time.Until(mended.Add(reconcileEvery))))
	}
	mendSoon() // of what changed while nobody watched
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.Ready():
			c := w.Take()
			if c == 0 {
				continue
			}
			if c := c & revoking; c != 0 {
				if window {
					again, next = true, next|c // the revoke that is due covers it; then one more
				} else {
					f.revoke(ctx, c)
					window, last = true, c
					second.Reset(revokeAgain)
				}
			}
			mendSoon()
		case <-second.C:
			f.revoke(ctx, last|next)
			window, again, last, next = again, false, next, 0
			if window {
				second.Reset(revokeAgain)
			}
		case <-mend.C:
			mending = false
			mended = time.Now()
			f.reconcile(ctx)
		case <-look.C:
			mendSoon()
		}
	}
}

func newStopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// follower calls a Keeper and reports an error once, not at every change.
type follower struct {
	Keeper
	logf func(string, ...any)
	said map[string]string
}

func (f follower) revoke(ctx context.Context, c link.Change) {
	f.report("revoking the leases", f.Revoke(ctx, c))
}

func (f follower) reconcile(ctx context.Context) { f.report("reconciling", f.Reconcile(ctx)) }

func (f follower) report(doing string, err error) {
	text := ""
	if err != nil && !errors.Is(err, context.Canceled) {
		text = err.Error()
	}
	if text != "" && text != f.said[doing] {
		f.logf("%s: %s", doing, text)
	}
	f.said[doing] = text
}
