/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Life and death of a session: TCP state, expiry, reclaim, the sweep.
 *
 * Nothing here needs a process. A session past its time is a miss for the
 * packet that finds it; its memory comes back through the sweep timer, through
 * whoever needs the slot, or through the packet that wants the same flow. Who
 * deletes a session first claims it (FBR_LIVE -> FBR_DYING by compare-and-swap).
 * The sweep waits FBR_GRACE seconds after expiry: entries are re-used at once,
 * and a CPU may still hold a pointer.
 */
#ifndef FBR_SESSION_H
#define FBR_SESSION_H

#include "clock.h"
#include "config.h"
#include "flow.h"
#include "lease.h"
#include "maps.h"
#include "nport.h"
#include "parse.h"

#define FBR_GRACE       2        /* seconds between expiry and reclaim */
#define FBR_SWEEP_SLOTS 256      /* per tick */
#define FBR_SWEEP_NS    20000000 /* 20 ms */
#define FBR_SWEEP_STALL 5  /* seconds without a tick before the kernel path restarts the timer */
#define FBR_PROBES      64 /* slots looked at by one insert when none is free */
#define FBR_ROOM_TRIES  64 /* closed sessions looked at to make room for one */

static __always_inline bool fbr_closed_bits(__u32 bits)
{
	return (bits & FBR_S_RST) ||
	       (bits & (FBR_S_FIN_OUT | FBR_S_FIN_IN)) == (FBR_S_FIN_OUT | FBR_S_FIN_IN);
}

/* Seconds a session lives after its last packet. */
static __always_inline __u32 fbr_timeout(__u8 proto, __be16 rport, __u32 bits)
{
	switch (proto) {
	case IPPROTO_TCP:
		if (fbr_closed_bits(bits))
			return cfg_to_tcp_closing;
		if (!(bits & FBR_S_REPLIED) || !(bits & FBR_S_ACKED))
			return cfg_to_tcp_open;
		return bits & (FBR_S_FIN_OUT | FBR_S_FIN_IN) ? cfg_to_tcp_half : cfg_to_tcp;
	case IPPROTO_UDP:
		if (!(bits & FBR_S_REPLIED))
			return cfg_to_udp_oneway;
		return bpf_ntohs(rport) < 1024 ? cfg_to_udp_wellknown : cfg_to_udp;
	default:
		return cfg_to_icmp;
	}
}

static __always_inline struct fbr_session *fbr_sess_get(__u32 slot)
{
	return bpf_map_lookup_elem(&fbr_sess, &slot);
}

/* The jiffies at which the session ends unless a packet comes. */
__fbr_global __u64 fbr_sess_expires(__u32 slot)
{
	struct fbr_session *s = fbr_sess_get(slot);
	struct fbr_flow *f;
	__u64 seen = 0;

	if (!s)
		return 0;
	f = fbr_flow_out(slot);
	if (f)
		seen = f->seen;
	f = s->bits & FBR_S_OUT_ONLY ? NULL : fbr_flow_in(slot);
	if (f && f->seen > seen)
		seen = f->seen;
	return seen + (__u64)fbr_timeout(s->fwd.proto, s->fwd.dport, s->bits) * cfg_hz;
}

/* Whether the time of f's session is not over. One entry is enough to tell that
 * it lives: the other direction's is looked up, and so fetched from memory where
 * there are many flows, only if this one's has been silent for so long.
 */
__fbr_global bool fbr_sess_lasts(const struct fbr_flow *f)
{
	if (!f)
		return false;

	__u32 slot = f->sess;
	struct fbr_session *s = fbr_sess_get(slot);
	__u64 now = fbr_now();

	if (s && ((f->kind & FBR_OUT) || !(s->bits & FBR_S_OUT_ONLY)) &&
	    f->seen + (__u64)fbr_timeout(s->fwd.proto, s->fwd.dport, s->bits) * cfg_hz > now)
		return true;
	return fbr_sess_expires(slot) > now;
}

static __always_inline bool fbr_is_live(__u32 state)
{
	return (state & FBR_STATE_MASK) == FBR_LIVE;
}

/* Reads the state before a session is judged, for fbr_sess_claim. */
static __always_inline __u32 fbr_sess_state(const struct fbr_session *s)
{
	return *(volatile __u32 *)&s->state;
}

/* Claims the session for deletion if it is still the one whose state was read. */
static __always_inline bool fbr_sess_claim(struct fbr_session *s, __u32 state)
{
	__u32 dying = (state & ~FBR_STATE_MASK) | FBR_DYING;

	return fbr_is_live(state) && __sync_val_compare_and_swap(&s->state, state, dying) == state;
}

/* Deletes a session that the caller has claimed. */
__fbr_global int fbr_sess_free(__u32 slot)
{
	struct fbr_session *s = fbr_sess_get(slot);
	struct fbr_state *st = fbr_state_get();
	struct fbr_quota *q;

	if (!s || !st)
		return 0;
	fbr_flow_remove(2 * slot + 1);
	fbr_flow_remove(2 * slot);
	if (s->bits & FBR_S_PEER)
		fbr_peer_put(s->fwd.proto, bpf_ntohs(s->eport), s->fwd.daddr);
	if (!(s->bits & FBR_S_OVERLOAD))
		fbr_port_put(s->fwd.proto, bpf_ntohs(s->eport));
	q = fbr_quota_get(s->pif);
	if (q) {
		fbr_atomic_dec(&q->sessions);
		if (s->bits & FBR_S_HALF)
			fbr_atomic_dec(&q->half);
	}
	__sync_fetch_and_add(&st->live, -1);
	barrier();
	*(volatile __u32 *)&s->state = ((s->state | FBR_STATE_MASK) + 1) | FBR_FREE;
	bpf_map_push_elem(&fbr_free, &slot, BPF_ANY);
	return 0;
}

/* Frees the session if it has been dead for grace jiffies. */
__fbr_global bool fbr_sess_reap(__u32 slot, __u64 grace)
{
	struct fbr_session *s = fbr_sess_get(slot);
	__u64 now = fbr_now(), end, check_at;
	__u32 state;
	bool owned;

	if (!s)
		return false;
	state = fbr_sess_state(s);
	if (!fbr_is_live(state))
		return false;
	owned = (s->bits & FBR_S_HOST) || fbr_dev_get(s->pif);
	check_at = s->check_at;
	if (owned && check_at + grace > now)
		return false;
	end = fbr_sess_expires(slot);
	if (owned && end + grace > now) {
		/* Unless the timeout has become shorter meanwhile (fbr_sess_track). */
		__sync_val_compare_and_swap(&s->check_at, check_at, end);
		return false;
	}
	if (!fbr_sess_claim(s, state))
		return false;
	fbr_sess_free(slot);
	return true;
}

/* Takes the leases of both directions away. */
static __always_inline void fbr_sess_slow(struct fbr_flow *fwd, __u32 slot)
{
	struct fbr_flow *rev = fbr_flow_in(slot);

	fbr_lease_end(fwd);
	if (rev)
		fbr_lease_end(rev);
}

static __always_inline void fbr_closed_push(__u32 slot, struct fbr_session *s)
{
	if (!__sync_val_compare_and_swap(&s->queued, 0, 1))
		bpf_map_push_elem(&fbr_closed, &slot, BPF_ANY);
}

/* A TCP session that has become established, or is over, is not half-open any more. */
static __always_inline void fbr_half_done(struct fbr_session *s, __u32 bits)
{
	const __u32 both = FBR_S_REPLIED | FBR_S_ACKED;
	struct fbr_quota *q;

	if (!(bits & FBR_S_HALF) || ((bits & both) != both && !fbr_closed_bits(bits)))
		return;
	if (!(__sync_fetch_and_and(&s->bits, ~FBR_S_HALF) & FBR_S_HALF))
		return;
	q = fbr_quota_get(s->pif);
	if (q)
		fbr_atomic_dec(&q->half);
}

/* A session that closes, and would have ended at end (jiffies), lives for the
 * closing time from now on, however long it was idle: a RST may have been forged
 * (RFC 7857 section 2.2). But no longer than it would have: a RST keeps nothing
 * alive (section 7). f is its outbound entry.
 */
static __always_inline void fbr_closing(struct fbr_flow *f, __u64 end)
{
	__u64 closing = (__u64)cfg_to_tcp_closing * cfg_hz, now = fbr_now();

	if (end > now + closing)
		end = now + closing;
	if (end - closing > f->seen)
		f->seen = end - closing;
}

/* Notes what a packet on the kernel path tells about the session. f is the
 * entry of the packet's own direction. RFC 6146 section 3.5.2, coarser: only
 * SYN, FIN and RST move a TCP session, and any segment after a RST takes that
 * back, since the RST may have been forged or out of window.
 */
__fbr_global int fbr_sess_track(__u32 slot, const struct fbr_pkt *p, bool out)
{
	if (!p)
		return 0;

	struct fbr_session *s = fbr_sess_get(slot);
	struct fbr_flow *f;
	__u32 set = 0, bits;
	__u64 closes = 0;
	bool closed;

	if (!s)
		return 0;
	bits = s->bits;
	if (out == !!(bits & FBR_S_INBOUND))
		set = FBR_S_REPLIED;
	if (p->proto == IPPROTO_TCP) {
		if (p->tcp_flags & TCP_RST) {
			set = FBR_S_RST;
		} else if (p->tcp_flags & TCP_SYN) {
			if (out && !(p->tcp_flags & TCP_ACK) && fbr_closed_bits(bits)) {
				/* the 4-tuple is used again */
				__sync_fetch_and_and(&s->bits,
						     ~(FBR_S_RST | FBR_S_FIN_OUT | FBR_S_FIN_IN |
						       FBR_S_REPLIED | FBR_S_ACKED));
			}
		} else {
			if (out)
				set |= FBR_S_ACKED;
			if (p->tcp_flags & TCP_FIN)
				set |= out ? FBR_S_FIN_OUT : FBR_S_FIN_IN;
			/* Where inbound packets keep nothing alive, they revive nothing. */
			if ((bits & FBR_S_RST) && (out || !(bits & FBR_S_OUT_ONLY)))
				__sync_fetch_and_and(&s->bits, ~FBR_S_RST);
		}
	}
	bits = s->bits;
	if (!fbr_closed_bits(bits) && fbr_closed_bits(bits | set))
		closes = fbr_sess_expires(slot);
	if ((bits & set) != set) {
		__sync_fetch_and_or(&s->bits, set);
		bits |= set;
		s->check_at = 0; /* the timeout may have become shorter */
		fbr_half_done(s, bits);
	}
	closed = p->proto == IPPROTO_TCP && fbr_closed_bits(bits);
	/* A FIN shortens the timeout as well, and no lease outlives its session. */
	if (!closed && !(set & (FBR_S_FIN_OUT | FBR_S_FIN_IN)))
		return 0;
	f = fbr_flow_out(slot);
	if (f) {
		if (closes)
			fbr_closing(f, closes);
		fbr_sess_slow(f, slot);
	}
	if (closed)
		fbr_closed_push(slot, s);
	return 0;
}

enum fbr_reclaim {
	FBR_RECLAIM_NONE, /* the queue is empty */
	FBR_RECLAIM_DONE,
	FBR_RECLAIM_AGAIN, /* that one will not do */
};

/* Looks at the head of fbr_closed and gives that session up if it is the
 * device's (pif; 0: anybody's). One that closed less than 20 ms ago is left
 * alone: its last segments are still on the way.
 */
__fbr_global enum fbr_reclaim fbr_reclaim_one(__u32 pif)
{
	struct fbr_state *st = fbr_state_get();
	struct fbr_session *s;
	__u32 slot, state;
	__u64 last;

	if (bpf_map_pop_elem(&fbr_closed, &slot))
		return FBR_RECLAIM_NONE;
	s = fbr_sess_get(slot);
	if (!s)
		return FBR_RECLAIM_AGAIN;
	s->queued = 0;
	state = fbr_sess_state(s);
	if (!fbr_is_live(state) || !fbr_closed_bits(s->bits))
		return FBR_RECLAIM_AGAIN; /* swept, or open again */
	last = fbr_sess_expires(slot) - (__u64)cfg_to_tcp_closing * cfg_hz;
	if ((pif && s->pif != pif) || fbr_now() - last < cfg_hz / 50) {
		fbr_closed_push(slot, s);
		return FBR_RECLAIM_AGAIN;
	}
	if (!fbr_sess_claim(s, state))
		return FBR_RECLAIM_AGAIN;
	fbr_sess_free(slot);
	if (st)
		__sync_fetch_and_add(&st->reclaimed, 1);
	return FBR_RECLAIM_DONE;
}

struct fbr_room {
	__u32 pif;
	__u32 ports; /* it has room for a port with fewer of them; 0: a session is wanted only */
	bool made;
};

static long fbr_room_one(__u64 i, struct fbr_room *r)
{
	enum fbr_reclaim got = fbr_reclaim_one(r->pif);
	struct fbr_quota *q;

	if (got == FBR_RECLAIM_NONE)
		return 1;
	if (got == FBR_RECLAIM_AGAIN)
		return 0;
	/* A session may have shared its port with others. */
	q = r->ports ? fbr_quota_get(r->pif) : NULL;
	r->made = !q || q->ports < r->ports;
	return r->made;
}

/* Gives up closed sessions of a device (pif; 0: of anybody), the longest-closed
 * first, until there is room for one more session, or, where the device may have so
 * many ports (0: that does not matter), for one more port. False if there is none to give up.
 */
__fbr_global bool fbr_make_room(__u32 pif, __u32 ports)
{
	struct fbr_room r = { .pif = pif, .ports = ports };

	bpf_loop(FBR_ROOM_TRIES, fbr_room_one, &r, 0);
	return r.made;
}

struct fbr_sweep {
	__u64 slots; /* in use so far */
	__u64 hand;
	__u64 grace;
	bool found;
};

static long fbr_sweep_one(__u64 i, struct fbr_sweep *w)
{
	if (w->hand >= w->slots)
		w->hand = 0;
	if (fbr_sess_reap(w->hand++, w->grace))
		w->found = true; /* not a count: that would keep the verifier counting, too */
	return 0;
}

/* Looks at up to n slots from the hand on; returns whether one came free. */
static __always_inline bool fbr_sweep_slots(struct fbr_state *st, __u32 n)
{
	struct fbr_sweep w = {
		.slots = st->fresh < cfg_flows_max ? st->fresh : cfg_flows_max,
		.hand = st->hand,
		.grace = (__u64)FBR_GRACE * cfg_hz,
	};

	if (w.slots < n)
		n = w.slots;
	bpf_loop(n, fbr_sweep_one, &w, 0);
	st->hand = w.hand;
	return w.found;
}

/* Takes a slot that is no closed session any more off the head of fbr_closed. */
static long fbr_closed_trim(__u64 i, void *unused)
{
	struct fbr_session *s;
	__u32 slot;

	if (bpf_map_peek_elem(&fbr_closed, &slot))
		return 1;
	s = fbr_sess_get(slot);
	if (s && fbr_is_live(fbr_sess_state(s)) && fbr_closed_bits(s->bits))
		return 1;
	/* Another CPU may have taken the one just seen. */
	if (bpf_map_pop_elem(&fbr_closed, &slot))
		return 1;
	s = fbr_sess_get(slot);
	if (!s)
		return 0;
	s->queued = 0;
	if (fbr_is_live(fbr_sess_state(s)) && fbr_closed_bits(s->bits))
		fbr_closed_push(slot, s);
	return 0;
}

/* One tick's work. */
static __always_inline void fbr_sweep_pass(struct fbr_state *st)
{
	fbr_sweep_slots(st, FBR_SWEEP_SLOTS);
	bpf_loop(FBR_SWEEP_SLOTS, fbr_closed_trim, NULL, 0);
}

static int fbr_sweep_tick(void *map, __u32 *key, struct fbr_state *st)
{
	fbr_sweep_pass(st);
	if (!st->live) {
		/* Nothing to sweep; the next new session starts the timer again. */
		st->tick = 0;
		return 0;
	}
	st->tick = fbr_now();
	fbr_timer_start(&st->timer, FBR_SWEEP_NS);
	return 0;
}

/* Starts the sweep if it does not run: the first session, a stalled timer, or
 * programs that have been replaced (the timer holds the old ones' callback).
 */
static __always_inline void fbr_sweep_ensure(struct fbr_state *st)
{
	__u64 now = fbr_now();

	if (st->tick && now - st->tick < FBR_SWEEP_STALL * cfg_hz && st->epoch == cfg_epoch + 1)
		return;
	st->tick = now;
	st->epoch = cfg_epoch + 1;
	bpf_timer_init(&st->timer, &fbr_state, CLOCK_MONOTONIC); /* EBUSY: has been */
	bpf_timer_set_callback(&st->timer, fbr_sweep_tick);
	fbr_timer_start(&st->timer, FBR_SWEEP_NS);
}

#endif
