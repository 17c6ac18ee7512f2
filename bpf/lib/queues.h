/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Queues of the sessions that are given up first when room is needed: closed ones, and
 * those begun outside that are not assured.
 */
#ifndef FBR_QUEUES_H
#define FBR_QUEUES_H

#include "config.h"
#include "device.h"
#include "flow.h"
#include "instance.h"
#include "lease.h"
#include "nat.h"
#include "session.h"

#define FBR_ROOM_TRIES 64 /* queued sessions looked at to make room for one */
#define FBR_WAIT_TRIM  2  /* queued sessions removed when one is queued */

/* Ends the leases of both directions. */
static __always_inline void fbr_sess_slow(struct fbr_flow *fwd, __u32 slot)
{
	struct fbr_flow *rev = fbr_flow_in(slot);

	fbr_lease_end(fwd);
	if (rev)
		fbr_lease_end(rev);
}

/* Queues a session that is closed, or is said to be. */
static __always_inline void fbr_closed_push(__u32 slot, struct fbr_session *s)
{
	if (fbr_doubted_bits(s->bits)) {
		if (!(__sync_fetch_and_or(&s->queued, FBR_Q_DOUBTED) & FBR_Q_DOUBTED))
			bpf_map_push_elem(&fbr_doubted, &slot, BPF_ANY);
		return;
	}
	if (!(__sync_fetch_and_or(&s->queued, FBR_Q_CLOSED) & FBR_Q_CLOSED))
		bpf_map_push_elem(&fbr_closed, &slot, BPF_ANY);
}

/* Takes the slot at the head of fbr_closed or fbr_doubted. NULL if the queue is empty. */
static __always_inline struct fbr_session *fbr_closed_pop(__u32 *slot, bool doubted)
{
	struct fbr_session *s;

	if (doubted ? bpf_map_pop_elem(&fbr_doubted, slot) : bpf_map_pop_elem(&fbr_closed, slot))
		return NULL;
	s = fbr_sess_get(*slot);
	if (s)
		__sync_fetch_and_and(&s->queued, doubted ? ~FBR_Q_DOUBTED : ~FBR_Q_CLOSED);
	return s;
}

/* The session that was queued as w if it is still waiting, or NULL. */
static __always_inline struct fbr_session *fbr_waiter(const struct fbr_wait *w)
{
	struct fbr_session *s = fbr_sess_get(w->slot);

	return s && fbr_sess_state(s) == w->state && (s->bits & FBR_S_WAITING) ? s : NULL;
}

static long fbr_drop_early_one(__u64 i, bool *made)
{
	struct fbr_state *st = fbr_state_get();
	struct fbr_session *s;
	struct fbr_wait w;

	if (!st || bpf_map_pop_elem(&fbr_waiting, &w))
		return 1;
	s = fbr_waiter(&w);
	if (!s || !fbr_sess_claim(s, w.state))
		return 0;
	fbr_sess_free(w.slot);
	__sync_fetch_and_add(&st->dropped_early, 1);
	*made = true;
	return 1;
}

/* Gives up the oldest session that was begun outside and is not assured, as conntrack's
 * early_drop does. False if there is none.
 */
__fbr_global bool fbr_drop_early(void)
{
	bool made = false;

	bpf_loop(FBR_ROOM_TRIES, fbr_drop_early_one, &made, 0);
	return made;
}

/* Queues a session that begins outside. Removes more than one session that no longer waits,
 * so that the queue shrinks.
 */
static __always_inline void fbr_wait_push(__u32 slot, const struct fbr_session *s)
{
	struct fbr_wait w = { .slot = slot, .state = fbr_sess_state(s) }, head;
	int i;

	for (i = 0; i < FBR_WAIT_TRIM; i++) {
		if (bpf_map_peek_elem(&fbr_waiting, &head) || fbr_waiter(&head))
			break;
		/* Another CPU may have taken the one just seen. */
		if (bpf_map_pop_elem(&fbr_waiting, &head))
			break;
		if (fbr_waiter(&head))
			bpf_map_push_elem(&fbr_waiting, &head, BPF_ANY);
	}
	/* If the queue is full, the oldest entry gives way, whatever it is. */
	bpf_map_push_elem(&fbr_waiting, &w, BPF_EXIST);
}

/* The share of n sessions that sessions begun outside may take. */
static __always_inline __u32 fbr_share_outside(__u32 n)
{
	return n - n / 8;
}

/* Counts a TCP connection that was begun outside like any other, now that it is assured,
 * unless there are too many. UDP keeps waiting: the second datagram is as easily forged as
 * the first, and the next one creates its session again.
 */
static __always_inline void fbr_wait_done(struct fbr_session *s)
{
	struct fbr_quota *q = fbr_quota_get(fbr_payer(s));
	struct fbr_state *st = fbr_state_get();

	if (s->fwd.proto != IPPROTO_TCP || !st)
		return;
	if ((q && q->sessions >= fbr_share_outside(cfg_flows_quota)) ||
	    st->live - st->waiting >= fbr_share_outside(cfg_flows_max))
		return;
	if (q)
		__sync_fetch_and_add(&q->sessions, 1);
	if (__sync_fetch_and_and(&s->bits, ~FBR_S_WAITING) & FBR_S_WAITING)
		__sync_fetch_and_add(&st->waiting, -1);
	else if (q) /* another CPU was faster, or has freed it */
		fbr_atomic_dec(&q->sessions);
}

/* Stops counting a TCP session as half-open once it is established or closed. */
static __always_inline void fbr_half_done(struct fbr_session *s, __u32 bits)
{
	struct fbr_quota *q;

	if (!(bits & FBR_S_HALF) || (!fbr_established(bits) && !fbr_closed_bits(bits)))
		return;
	if (!(__sync_fetch_and_and(&s->bits, ~FBR_S_HALF) & FBR_S_HALF))
		return;
	q = fbr_quota_get(fbr_payer(s));
	if (q)
		fbr_atomic_dec(&q->half);
}

#endif
