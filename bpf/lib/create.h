/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The birth of a session: whether there is room for it, and its first bits. */
#ifndef FBR_CREATE_H
#define FBR_CREATE_H

#include "../include/bpf/bpf_endian.h"
#include "claim.h"
#include "config.h"
#include "device.h"
#include "extport.h"
#include "flow.h"
#include "instance.h"
#include "nat.h"
#include "nport.h"
#include "pool.h"
#include "queues.h"
#include "reason.h"
#include "reclaim.h"
#include "session.h"

/* The bits that a session has at birth (fbr_sess_bits). */
static __always_inline __u32 fbr_first_bits(const struct fbr_new *n)
{
	__u32 bits = n->inbound ? FBR_S_INBOUND : 0;

	if (!n->pif)
		bits |= FBR_S_HOST;
	else if (n->fwd.proto == IPPROTO_TCP && !n->inbound)
		bits |= FBR_S_HALF;
	if (n->outside)
		bits |= FBR_S_WAITING;
	if (n->published)
		bits |= FBR_S_PUBLISHED;
	if (!n->owns)
		return bits | FBR_S_OVERLOAD;
	if (n->net & (FBR_NET_ADF | FBR_NET_EIF))
		bits |= FBR_S_OUT_ONLY;
	if ((n->net & FBR_NET_ADF) &&
	    fbr_peer_ref(n->fwd.proto, bpf_ntohs(n->eport), FBR_ARG(n->fwd.daddr)))
		bits |= FBR_S_PEER;
	return bits;
}

static __always_inline __u32 fbr_new_payer(const struct fbr_new *n)
{
	return n->payer ? n->payer : n->pif;
}

/* Whether there is room for n. Returns FBR_NONE or the reason why not.
 *
 * A session that a container begins must fit the quota of its payer. Nobody outside can be
 * held to a quota, so a session begun outside counts among those that are not assured
 * (cfg_waiting_max), and the oldest of these gives way. The last eighth of the table, and
 * of the container's share, is reserved for what containers begin.
 */
__fbr_global enum fbr_reason fbr_room(const struct fbr_new *n)
{
	struct fbr_state *st = fbr_state_get();
	struct fbr_quota *q;
	__u32 payer, share;

	if (!n || !st)
		return FBR_NAT_FULL;
	payer = fbr_new_payer(n);
	q = fbr_quota_get(payer);
	if (n->outside && st->waiting >= cfg_waiting_max && !fbr_drop_early())
		return FBR_NAT_FULL;
	share = n->outside ? fbr_share_outside(cfg_flows_quota) : cfg_flows_quota;
	if (q && q->sessions >= share && !fbr_make_room(payer, 0, true))
		return FBR_QUOTA;
	if (q && n->fwd.proto == IPPROTO_TCP && !n->inbound && q->half >= cfg_half_quota)
		return FBR_QUOTA;
	if (n->outside && st->live >= fbr_share_outside(cfg_flows_max) &&
	    !fbr_make_room(0, 0, false) && !fbr_drop_early())
		return FBR_NAT_FULL;
	return FBR_NONE;
}

/* Begins the session in a slot that the caller owns. Its entries exist, and every field is
 * written that does not outlive the session. Counts the session where it belongs.
 */
static __always_inline void fbr_sess_begin(struct fbr_session *s, __u32 slot, struct fbr_state *st)
{
	struct fbr_quota *q = fbr_quota_get(fbr_payer(s));
	bool waits = s->bits & FBR_S_WAITING;

	s->check_at = 0;
	__sync_fetch_and_add(&st->live, 1);
	if (waits)
		__sync_fetch_and_add(&st->waiting, 1);
	else if (q)
		__sync_fetch_and_add(&q->sessions, 1);
	if (q && (s->bits & FBR_S_HALF))
		__sync_fetch_and_add(&q->half, 1);
	barrier();
	*(volatile __u32 *)&s->state = (s->state & ~FBR_STATE_MASK) | FBR_LIVE;
	if (waits)
		fbr_wait_push(slot, s);
}

/* Creates the session of n (fwd, ext, pif, payer given). Returns FBR_NONE if the session
 * exists now, created here or by another CPU. Otherwise returns the reason, and nothing is
 * left behind.
 */
__fbr_global enum fbr_reason fbr_sess_create(struct __sk_buff *skb, struct fbr_new *n)
{
	if (!n)
		return FBR_NAT_FULL;

	struct fbr_pool *pool = fbr_pool_get(n->fwd.proto);
	struct fbr_state *st = fbr_state_get();
	struct fbr_session *s;
	enum fbr_reason why;
	struct fbr_quota *q;
	__u32 quota;
	long err;

	if (!st || !pool)
		return FBR_NAT_FULL;
	fbr_sweep_ensure(st);

	why = fbr_room(n);
	if (why == FBR_QUOTA)
		goto quota;
	if (why)
		goto full;
	n->slot = fbr_slot_take();
	s = fbr_sess_get(n->slot);
	if (!s)
		goto full;

	err = -ENOENT;
	if (n->published || n->own)
		err = fbr_pair_claim(n);
	else if (!(n->net & FBR_NET_EDM) && !(n->moved && n->pif) && fbr_bind_reuse(skb, n))
		err = fbr_pair_owned(n);
	if (err && !n->inbound && !n->published && !n->own && !fbr_flow_exists(&n->fwd)) {
		quota = fbr_ports_quota(pool);
		q = fbr_quota_get(n->pif);
		if (q && q->ports >= quota && !fbr_make_room(n->pif, quota, true)) {
			bpf_map_push_elem(&fbr_free, &n->slot, BPF_ANY);
			goto quota;
		}
		/* Pressure: less than an eighth of the range is free. */
		if (pool->tail - pool->head <= pool->open / 8)
			fbr_make_room(0, 0, pool->tail == pool->head);
		err = fbr_bind_new(skb, n) ? fbr_pair_owned(n) : -ENOENT;
		if (err && !(n->net & FBR_NET_STRICT) && !fbr_flow_exists(&n->fwd))
			err = fbr_overload(skb, n);
	}
	if (err) {
		bpf_map_push_elem(&fbr_free, &n->slot, BPF_ANY);
		if (fbr_flow_exists(&n->fwd))
			return FBR_NONE; /* another CPU was faster */
		goto full;
	}

	s->fwd = n->fwd;
	s->ext = n->ext;
	s->eport = n->eport;
	s->bits = fbr_first_bits(n);
	s->pif = n->pif;
	s->payer = n->payer;
	s->isn = 0;
	if (n->moved)
		__sync_fetch_and_add(&st->remaps, 1);
	fbr_sess_begin(s, n->slot, st);
	return FBR_NONE;
quota:
	__sync_fetch_and_add(&st->refused_quota, 1);
	return FBR_QUOTA;
full:
	__sync_fetch_and_add(&st->refused_full, 1);
	return FBR_NAT_FULL;
}

#endif
