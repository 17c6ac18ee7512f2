/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How memory comes back: through whoever needs a slot, and through the sweep timer. */
#ifndef FBR_RECLAIM_H
#define FBR_RECLAIM_H

#include "clock.h"
#include "config.h"
#include "device.h"
#include "instance.h"
#include "nat.h"
#include "queues.h"
#include "session.h"

#define FBR_SWEEP_SLOTS 256      /* per tick */
#define FBR_SWEEP_NS    20000000 /* 20 ms */
#define FBR_SWEEP_STALL 5  /* seconds without a tick until the kernel's path restarts the timer */
#define FBR_PROBES      64 /* slots looked at by one insert when none is free */

enum fbr_reclaim {
	FBR_RECLAIM_NONE, /* the queue is empty */
	FBR_RECLAIM_DONE,
	FBR_RECLAIM_AGAIN, /* this one was not given up */
};

/* Takes the session at the head of fbr_closed or fbr_doubted, and gives it up if it belongs
 * to the device (pif; 0: anybody's). A session that closed less than 20 ms ago is queued
 * again: its last segments are still on the way.
 */
static __always_inline enum fbr_reclaim fbr_reclaim_one(__u32 pif, bool doubted)
{
	struct fbr_state *st = fbr_state_get();
	struct fbr_session *s;
	__u32 slot, state;
	__u64 last;

	s = fbr_closed_pop(&slot, doubted);
	if (!s)
		return FBR_RECLAIM_NONE;
	state = fbr_sess_state(s);
	if (!fbr_is_live(state) || !fbr_closed_bits(s->bits))
		return FBR_RECLAIM_AGAIN; /* swept, or open again */
	last = fbr_sess_expires(slot) - (__u64)cfg_to_tcp_closing * cfg_hz;
	if ((pif && fbr_payer(s) != pif) || fbr_now() - last < cfg_hz / 50 ||
	    (!doubted && fbr_doubted_bits(s->bits))) {
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
	__u32 ports; /* the device needs fewer than so many ports; 0: only a session is wanted */
	bool doubted;
	bool made;
};

static long fbr_room_one(__u64 i, struct fbr_room *r)
{
	enum fbr_reclaim got = fbr_reclaim_one(r->pif, r->doubted);
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

/* Gives up closed sessions of a device (pif; 0: anybody's), the longest-closed first, until
 * there is room for one more session. With ports, until the device has fewer than so many
 * ports. doubted: after all others, also gives up sessions closed only by a RST from
 * outside. False if no session could be given up.
 */
__fbr_global bool fbr_make_room(__u32 pif, __u32 ports, bool doubted)
{
	struct fbr_room r = { .pif = pif, .ports = ports };

	bpf_loop(FBR_ROOM_TRIES, fbr_room_one, &r, 0);
	if (r.made || !doubted)
		return r.made;
	r.doubted = true;
	bpf_loop(FBR_ROOM_TRIES, fbr_room_one, &r, 0);
	return r.made;
}

struct fbr_sweep {
	__u32 slots; /* slots used so far */
	__u32 hand;
	__u32 grace;
	bool pressed; /* a slot is wanted */
	bool found;
};

static long fbr_sweep_one(__u64 i, struct fbr_sweep *w)
{
	if (w->hand >= w->slots)
		w->hand = 0;
	if (fbr_sess_reap(w->hand++, w->grace, w->pressed))
		w->found = true; /* not a count: the verifier would track it */
	return 0;
}

/* Looks at up to n slots, beginning at the hand. Returns whether one became free. */
static __always_inline bool fbr_sweep_slots(struct fbr_state *st, __u32 n, bool pressed)
{
	struct fbr_sweep w = {
		.slots = st->fresh < cfg_flows_max ? st->fresh : cfg_flows_max,
		.hand = st->hand,
		.grace = FBR_GRACE * cfg_hz,
		.pressed = pressed,
	};

	if (w.slots < n)
		n = w.slots;
	bpf_loop(n, fbr_sweep_one, &w, 0);
	st->hand = w.hand;
	return w.found;
}

/* Removes the slot at the head of fbr_closed or fbr_doubted if it holds no closed session
 * any more.
 */
static long fbr_closed_trim(__u64 i, const bool *doubted)
{
	bool from = *doubted;
	struct fbr_session *s;
	__u32 slot;

	if (from ? bpf_map_peek_elem(&fbr_doubted, &slot) : bpf_map_peek_elem(&fbr_closed, &slot))
		return 1;
	s = fbr_sess_get(slot);
	if (s && fbr_is_live(fbr_sess_state(s)) && fbr_closed_bits(s->bits))
		return 1;
	/* Another CPU may have taken the one just seen. */
	s = fbr_closed_pop(&slot, from);
	if (!s)
		return 1;
	if (fbr_is_live(fbr_sess_state(s)) && fbr_closed_bits(s->bits))
		fbr_closed_push(slot, s);
	return 0;
}

/* One tick's work. */
static __always_inline void fbr_sweep_pass(struct fbr_state *st)
{
	bool doubted = false;

	fbr_sweep_slots(st, FBR_SWEEP_SLOTS, false);
	bpf_loop(FBR_SWEEP_SLOTS, fbr_closed_trim, &doubted, 0);
	doubted = true;
	bpf_loop(FBR_SWEEP_SLOTS, fbr_closed_trim, &doubted, 0);
}

static int fbr_sweep_tick(void *map, __u32 *key, struct fbr_state *st)
{
	fbr_sweep_pass(st);
	if (!st->live) {
		/* Nothing to sweep. The next new session starts the timer again. */
		st->tick = 0;
		return 0;
	}
	st->tick = fbr_now();
	fbr_timer_start(&st->timer, FBR_SWEEP_NS);
	return 0;
}

/* Starts the sweep if it does not run: at the first session, after the timer has stalled,
 * or after the programs were replaced (the timer holds the old callback).
 */
static __always_inline void fbr_sweep_ensure(struct fbr_state *st)
{
	__u64 now = fbr_now();

	if (st->tick && now - st->tick < FBR_SWEEP_STALL * cfg_hz && st->epoch == cfg_epoch + 1)
		return;
	st->tick = now;
	st->epoch = cfg_epoch + 1;
	bpf_timer_init(&st->timer, &fbr_state, CLOCK_MONOTONIC); /* EBUSY: already initialised */
	bpf_timer_set_callback(&st->timer, fbr_sweep_tick);
	fbr_timer_start(&st->timer, FBR_SWEEP_NS);
}

#endif
